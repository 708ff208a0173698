"""`attachfs cache …`: look at a cache directory, check it, remove from it; beside a mount or without one.

Nothing here writes a blob or takes the directory's lock. What is removed while a mount has it open stays
readable there, and what a mount misses it fetches again.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from attachfs.cache.disk_cache import DiskCache, Entry
from attachfs.cache.lock_file import lock_holder
from attachfs.cache.quarantine import Quarantine
from attachfs.cli import arguments, output, shared_cache
from attachfs.cli.groups import Group
from attachfs.cli.progress import Progress
from attachfs.config.settings import Config
from attachfs.errors import UsageError
from attachfs.model import Digest
from attachfs.text import printable
from attachfs.units import format_size, parse_size

_DAY = 86_400  # seconds
_SHORTEST = 6  # hexadecimal digits that name a blob, if they name only one
_DIGEST = re.compile(r"(?:(sha(?:256|384|512)):)?([0-9a-f]+)", re.IGNORECASE)


@contextmanager
def _opened(config: Config) -> Iterator[DiskCache]:
    if not config.cache_dir.exists():
        raise UsageError(
            f"there is no cache in {config.cache_dir} yet; "
            "give the --url, --profile or --cache-dir that you mount with"
        )
    cache = DiskCache(config.cache_dir, config.cache_size, config.cache_min_free)
    cache.start(exclusive=False)
    try:
        yield cache
    finally:
        cache.close()


def stat(config: Config, *, as_json: bool) -> int:
    """Print the cache's figures."""
    with _opened(config) as cache:
        entries = cache.entries()
        items = Quarantine(cache.root / "quarantine", 0).list()
    vfs = os.statvfs(cache.root)
    free = vfs.f_bavail * vfs.f_frsize
    held = lock_holder(cache.root)
    size = sum(entry.size for entry in entries)
    in_quarantine = sum(item.size for item in items)
    times = [entry.last_opened_ns / 1e9 for entry in entries]
    if as_json:
        output.say_json(
            {
                "directory": cache.root,
                "held_by": None if held is None else held._asdict(),
                "blobs": len(entries),
                "bytes": size,
                "max_bytes": config.cache_size,
                "least_recently_opened": output.moment(min(times)) if times else None,
                "most_recently_opened": output.moment(max(times)) if times else None,
                "quarantined": len(items),
                "quarantined_bytes": in_quarantine,
                "free_bytes": free,
                "min_free_bytes": config.cache_min_free.of(vfs.f_blocks * vfs.f_frsize),
            }
        )
        return output.OK
    facts: list[tuple[str, object]] = [
        ("directory", cache.root),
        ("in use by", "nobody" if held is None else f"process {held.pid}, {held.doing}"),
        ("blobs", f"{len(entries):,}, {format_size(size)}"),
        ("bound", f"{format_size(config.cache_size)} (as configured here; a mount may have another)"),
        ("quarantined", f"{len(items):,}, {format_size(in_quarantine)}"),
        ("free on the disk", f"{format_size(free)}, of which {config.cache_min_free} stay free"),
    ]
    if times:
        facts.append(("last opened", f"from {output.moment(min(times))} to {output.moment(max(times))}"))
    output.print_facts(facts)
    return output.OK


def list_blobs(config: Config, *, as_json: bool) -> int:
    """Print what is cached, the least recently opened first."""
    with _opened(config) as cache:
        entries = cache.entries()
    if as_json:
        for entry in entries:
            opened = output.moment(entry.last_opened_ns / 1e9)
            output.say_json({"digest": str(entry.digest), "size": entry.size, "last_opened": opened})
    elif entries:
        output.print_table(
            ("digest", "size", "last opened"),
            [(e.digest, format_size(e.size), output.moment(e.last_opened_ns / 1e9)) for e in entries],
            right=("size",),
        )
    return output.OK


def verify(config: Config, *, as_json: bool) -> int:
    """Hash every blob again; 1 if one is wrong (it is put aside), else 3 if one cannot be read."""
    wrong = unread = right = 0
    with _opened(config) as cache:
        entries = cache.entries()
        with Progress("cache verify", sum(entry.size for entry in entries), len(entries)) as progress:
            try:
                for result in cache.verify_all(progress.advance):
                    progress.advance(files=1)
                    right += result.ok
                    unread += result.unreadable
                    wrong += not result.ok and not result.unreadable
                    if as_json:
                        output.say_json(
                            {
                                "digest": str(result.digest),
                                "size": result.size,
                                "ok": result.ok,
                                "problem": result.problem,
                                "quarantined": result.quarantined,
                            }
                        )
                    elif not result.ok:
                        verdict = "COULD NOT TELL" if result.unreadable else "DIFFERS"
                        kept = f" (kept as {result.quarantined})" if result.quarantined else ""
                        output.say(printable(f"{result.digest}: {verdict}: {result.problem}{kept}"))
            except KeyboardInterrupt:
                output.note(f"cache verify: interrupted: {progress.line()}")
                return output.INTERRUPTED
    size = format_size(progress.bytes_done)
    output.note(
        f"cache verify: {output.count(right + wrong + unread, 'blob')}, {size}: {right:,} OK, "
        f"{wrong:,} differ, {unread:,} could not be read"
    )
    if wrong:
        return output.DIFFERS
    return output.UNKNOWN if unread else output.OK


def evict(config: Config, digests: Sequence[str], *, older_than: float | None, to: int | None) -> int:
    """Remove blobs: the named ones, those not opened for `older_than` days, the oldest beyond `to` bytes."""
    if not digests and older_than is None and to is None:
        raise UsageError("say what to evict: digests, --older-than DAYS, or --to SIZE")
    code = output.OK
    with _opened(config) as cache:
        entries = cache.entries()
        chosen: dict[Digest, Entry] = {}
        for one in digests:
            found = _named(one, entries)
            if found is None:
                output.complain(one, "no such blob is cached")
                code = output.DIFFERS
            else:
                chosen[found.digest] = found
        chosen |= {entry.digest: entry for entry in _old(entries, older_than)}
        chosen |= {entry.digest: entry for entry in _beyond(entries, to, chosen)}
        gone = [entry for entry in chosen.values() if cache.remove(entry.digest)]
    if len(gone) < len(chosen):
        code = output.DIFFERS
        output.complain(
            f"{output.count(len(chosen) - len(gone), 'blob')} could not be removed, or were already gone"
        )
    _report_removed(gone)
    return code


def clear(config: Config, *, sure: bool) -> int:
    """Remove every blob, having asked; the quarantine and the first-seen hashes stay."""
    with _opened(config) as cache:
        entries = cache.entries()
        size = format_size(sum(entry.size for entry in entries))
        if not sure:
            what = f"{output.count(len(entries), 'blob')} ({size}) from {printable(cache.root)}"
            click.confirm(f"Remove {what}?", abort=True, err=True)
        gone = [entry for entry in entries if cache.remove(entry.digest)]
    _report_removed(gone)
    if len(gone) < len(entries):
        output.complain(
            f"{output.count(len(entries) - len(gone), 'blob')} could not be removed, or were already gone"
        )
        return output.DIFFERS
    return output.OK


def _report_removed(gone: Sequence[Entry]) -> None:
    size = format_size(sum(entry.size for entry in gone))
    output.note(
        f"removed {output.count(len(gone), 'blob')}, {size}; what a program has open stays readable to it, "
        f"and takes its room until it is closed"
    )


def _named(one: str, entries: Sequence[Entry]) -> Entry | None:
    found = _DIGEST.fullmatch(one)
    if found is None or len(found[2]) < _SHORTEST:
        raise UsageError(
            f"{one} is not a digest: give it as 'attachfs cache list' shows it, or its beginning"
        )
    alg, start = (found[1] or "").lower(), found[2].lower()
    matching = [e for e in entries if e.digest.hex.startswith(start) and alg in ("", e.digest.alg)]
    if len(matching) > 1:
        raise UsageError(f"{one} is the beginning of {len(matching)} digests: give more of it")
    return matching[0] if matching else None


def _old(entries: Sequence[Entry], days: float | None) -> list[Entry]:
    if days is None:
        return []
    before = time.time_ns() - int(days * _DAY * 1e9)
    return [entry for entry in entries if entry.last_opened_ns < before]


def _beyond(entries: Sequence[Entry], to: int | None, chosen: dict[Digest, Entry]) -> list[Entry]:
    """Return the least recently opened that have to go, besides those chosen already."""
    if to is None:
        return []
    remaining = [entry for entry in entries if entry.digest not in chosen]
    size = sum(entry.size for entry in remaining)
    more = []
    for entry in remaining:
        if size <= to:
            break
        more.append(entry)
        size -= entry.size
    return more


_cache_options = arguments.locating_options(
    "url", "cache-dir", "cache-size", "cache-min-free", "profile", "config"
)


@click.group("cache", cls=Group)
def command() -> None:
    """Inspect, check and clear the cache on disk, with or without a running mount."""


command.add_command(shared_cache.group)


@command.command("stat")
@arguments.as_json
@_cache_options
def cache_stat(as_json: bool, **given: str | None) -> None:
    """Show how much is cached, and who uses the cache."""
    sys.exit(stat(arguments.settings(given), as_json=as_json))


@command.command("list")
@arguments.as_json
@_cache_options
def cache_list(as_json: bool, **given: str | None) -> None:
    """List what is cached, the least recently opened first."""
    sys.exit(list_blobs(arguments.settings(given), as_json=as_json))


@command.command("verify")
@arguments.as_json
@_cache_options
def cache_verify(as_json: bool, **given: str | None) -> None:
    """Hash everything that is cached again, and put aside what is wrong.

    Exit status: 0 all is right, 1 something was not, 3 something could not be read.
    """
    sys.exit(verify(arguments.settings(given), as_json=as_json))


def _size(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@command.command("evict")
@click.argument("digests", nargs=-1, metavar="[DIGEST…]")
@click.option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="Not opened for so long.")
@click.option("--to", callback=_size, metavar="SIZE", help="The least recently opened beyond this size.")
@_cache_options
def cache_evict(
    digests: tuple[str, ...], older_than: float | None, to: int | None, **given: str | None
) -> None:
    """Remove some blobs from the cache. Programs that have one open can still read it."""
    sys.exit(evict(arguments.settings(given), digests, older_than=older_than, to=to))


@command.command("clear")
@arguments.yes
@_cache_options
def cache_clear(yes: bool, **given: str | None) -> None:
    """Remove all that is cached. First-seen hashes and the quarantine stay."""
    sys.exit(clear(arguments.settings(given), sure=yes))
