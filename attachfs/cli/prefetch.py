"""`attachfs prefetch`: fill a mount's cache by reading files, several at once.

What is cached already is skipped, so that running it again goes on where it was interrupted.
"""

import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from attachfs.cli import arguments, interruptible, output, shared_cache
from attachfs.cli import paths as places
from attachfs.cli.parallel import in_order
from attachfs.cli.paths import Found, Mounts
from attachfs.cli.progress import Progress
from attachfs.errors import UsageError
from attachfs.mount import mountinfo
from attachfs.units import format_size

_CHUNK = 1 << 20  # bytes read at a time
_CACHED = "user.attachfs.cached"


class _Plan(NamedTuple):
    """A file to be fetched, unless there is a reason why not, or it is cached."""

    path: Path
    size: int = 0
    cached: bool = False
    problem: OSError | None = None


def run(paths: Sequence[Path], *, jobs: int) -> int:
    """Fetch and return the exit code: 1 if a file differs from its record, else 3 if one could not be had."""
    counts: Counter[str] = Counter()
    progress = Progress("prefetch")

    def fetch_all() -> int:
        _check_mounts(paths)
        plans = list(in_order(places.walk(paths), _plan, jobs))
        todo = _to_fetch(plans, counts)
        total = sum(plan.size for plan in todo)
        _warn_of_size(paths, total)
        with progress.of(total, len(todo)):

            def fetch(plan: _Plan) -> tuple[_Plan, OSError | None, bool]:
                error = _fetch(plan, progress.advance)
                progress.advance(files=1)
                return plan, error, error is None and _is_cached(plan.path)

            for plan, error, kept in in_order(todo, fetch, jobs):
                _count(plan, error, counts, kept=kept)
        output.note(f"prefetch: {_summary(counts)}")
        if counts["differ"]:
            return output.DIFFERS
        return output.UNKNOWN if counts["failed"] or counts["not kept"] else output.OK

    def interrupted() -> str:
        progress.stop()
        return f"prefetch: interrupted; {_summary(counts, progress.bytes_done)}. Run it again to go on."

    return interruptible.run(fetch_all, interrupted)


def _check_mounts(paths: Sequence[Path]) -> None:
    for mount in Mounts().require(paths):
        status = mountinfo.status(mount.point) or {}
        if status.get("verify") == "off":
            raise UsageError(f"{mount.point} keeps nothing in its cache: it was mounted with --verify=off")


def _warn_of_size(paths: Sequence[Path], total: int) -> None:
    for mount in Mounts().require(paths):
        cache = (mountinfo.status(mount.point) or {}).get("cache")
        bound = cache.get("max_bytes") if isinstance(cache, dict) else None
        if isinstance(bound, int) and total > bound:
            output.complain(
                f"{format_size(total)} to fetch, but the cache of {mount.point} holds "
                f"{format_size(bound)}: the first files will be evicted before the last arrive (--cache-size)"
            )


def _plan(file: Found) -> _Plan:
    if file.problem is not None:
        return _Plan(file.path, problem=file.problem)
    try:
        size = file.path.stat().st_size
        return _Plan(file.path, size, places.text_xattr(file.path, _CACHED) == "yes")
    except OSError as error:
        return _Plan(file.path, problem=error)


def _to_fetch(plans: Sequence[_Plan], counts: Counter[str]) -> list[_Plan]:
    todo = []
    for plan in plans:
        if plan.problem is not None:
            _count(plan, plan.problem, counts, kept=False)
        elif plan.cached:
            counts["there"] += 1
        else:
            todo.append(plan)
    return todo


def _fetch(plan: _Plan, progress: Callable[[int], object]) -> OSError | None:
    try:
        fd = os.open(plan.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while data := os.read(fd, _CHUNK):
                progress(len(data))
        finally:
            os.close(fd)
    except OSError as error:
        return error
    return None


def _is_cached(path: Path) -> bool:
    try:
        return places.text_xattr(path, _CACHED) == "yes"
    except OSError:
        return False


def _count(plan: _Plan, error: OSError | None, counts: Counter[str], *, kept: bool) -> None:
    if error is None:
        counts["fetched" if kept else "not kept"] += 1
        counts["bytes"] += plan.size
        if not kept:
            output.complain(plan.path, "read, but not kept: the cache has no room for it")
        return
    reason = output.reason_of(error)
    if error.errno == errno.EBADMSG:
        counts["differ"] += 1
        reason += ": its bytes, or two records of it, differ; the mount's log says which"
    else:
        counts["failed"] += 1
    output.complain(plan.path, reason)


def _summary(counts: Counter[str], begun: int = 0) -> str:
    """Return what became of the files; `begun` is how many bytes were read, also of files that were not."""
    words = [f"{output.count(counts['fetched'], 'file')} fetched ({format_size(counts['bytes'])})"]
    if begun > counts["bytes"]:
        words.append(f"{format_size(begun - counts['bytes'])} of others")
    words.append(f"{counts['there']:,} already there")
    for what, words_of in (("differ", "differ"), ("failed", "could not be had"), ("not kept", "not kept")):
        if counts[what]:
            words.append(f"{counts[what]:,} {words_of}")
    return ", ".join(words)


@click.command("prefetch")
@arguments.paths
@arguments.jobs
@click.option("--to-shared", is_flag=True, help="Add the files to the shared cache, for other machines.")
@arguments.locating_options("profile", "config", *shared_cache.OPTIONS)
def command(paths: tuple[Path, ...], jobs: int, to_shared: bool, **given: str | None) -> None:
    """Fill a mount's cache with the files at and below PATH.

    What is cached already is skipped: after Ctrl-C (exit status 130), run it again to go on.
    """
    if to_shared:
        Mounts().require(paths)
        sys.exit(shared_cache.fill(paths, arguments.settings(given), jobs=jobs))
    sys.exit(run(paths, jobs=jobs))
