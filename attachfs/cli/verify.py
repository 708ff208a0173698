"""`attachfs verify`: read every byte again, hash it, and compare with what the ledger records.

On a mount, the kernel's own copy of the bytes is dropped first, and neither the mount's claim nor its cache
is believed: what is hashed is what a program would be given. A loose copy is compared with the record in its
own attributes, and with the ledger's where a mount of that ledger is running: whoever changes a copy can
change its attributes too.
"""

import errno
import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from attachfs.cli import arguments, interruptible, output
from attachfs.cli import paths as places
from attachfs.cli.custody import noted
from attachfs.cli.parallel import in_order
from attachfs.cli.paths import Found, Mounts, Record
from attachfs.cli.progress import Progress
from attachfs.cli.verdicts import Result, Verdict
from attachfs.cli.verify_bag import Task, is_bag, tasks
from attachfs.errors import UsageError
from attachfs.model import Digest
from attachfs.text import printable
from attachfs.units import format_size

_CHUNK = 1 << 20  # bytes read and hashed at a time


@dataclass(frozen=True)
class _Read:
    digest: Digest
    size: int


def run(paths: Sequence[Path], *, as_json: bool, live: bool, jobs: int) -> int:
    """Print a line for each file and return the exit code: 1 if one differs, else 3 if one cannot be told."""
    counts: Counter[Verdict] = Counter()
    progress = Progress("verify")

    def check_all() -> int:
        todo = list(_tasks(paths, Mounts(), jobs, live=live))
        with progress.of(sum(task.size for task in todo), len(todo)):

            def check(task: Task) -> Result | None:
                result = task.check(progress.advance)
                progress.advance(files=1)
                return result

            for result in in_order(todo, check, jobs):
                if result is not None:
                    counts[result.verdict] += 1
                    _say(result, as_json=as_json)
        output.note(f"verify: {_summary(counts, progress.bytes_done)}")
        if counts[Verdict.DIFFERS]:
            return output.DIFFERS
        return output.UNKNOWN if counts[Verdict.UNKNOWN] or not todo else output.OK

    def interrupted() -> str:
        progress.stop()
        return f"verify: interrupted after {_summary(counts, progress.bytes_done)}"

    return interruptible.run(check_all, interrupted)


def _tasks(paths: Sequence[Path], mounts: Mounts, jobs: int, *, live: bool) -> Iterator[Task]:
    """Yield what is to be looked at: bags' files, and all others at and below the paths."""
    bags = [path for path in paths if is_bag(path) and mounts.of(path) is None]
    if bags and live:
        raise UsageError(f"{bags[0]} is an exported bag: verify it without --live")
    for bag in bags:
        yield from tasks(bag)
    files = list(places.walk(path for path in paths if path not in bags))
    for file, size in zip(files, in_order(files, _size, jobs), strict=True):
        yield Task(size, functools.partial(_check, file, mounts, live=live))


def _say(result: Result, *, as_json: bool) -> None:
    if as_json:
        output.say_json(
            {
                "path": result.path,
                "verdict": result.verdict,
                "reason": result.reason,
                "live": result.live,
                "recorded": None if result.recorded is None else str(result.recorded),
                "found": None if result.found is None else str(result.found),
                "size": result.size,
            }
        )
        return
    reason = f": {printable(result.reason)}" if result.reason else ""
    if result.verdict is Verdict.OK and reason:
        reason = f" ({printable(result.reason)})"
    output.say(f"{printable(result.path)}: {result.verdict}{reason}")


def _summary(counts: Counter[Verdict], size: int) -> str:
    return (
        f"{output.count(counts.total(), 'file')}, {format_size(size)}: {counts[Verdict.OK]:,} OK, "
        f"{counts[Verdict.DIFFERS]:,} differ, {counts[Verdict.UNKNOWN]:,} unknown"
    )


def _size(file: Found) -> int:
    try:
        return 0 if file.problem else file.path.stat().st_size
    except OSError:
        return 0  # told when it is its turn


def _check(file: Found, mounts: Mounts, progress: Callable[[int], object], *, live: bool) -> Result:
    try:
        if file.problem is not None:
            raise file.problem
        if mounts.of(file.path) is not None:
            return _check_mounted(file.path, progress)
        return _check_copy(file.path, mounts, progress, live=live)
    except OSError as error:
        return Result(file.path, Verdict.UNKNOWN, output.reason_of(error))


def _check_mounted(path: Path, progress: Callable[[int], object]) -> Result:
    record = places.live_record(path)
    if record.digest is None:
        return Result(path, Verdict.UNKNOWN, record.problem, live=True)
    attested = places.text_xattr(path, "user.attachfs.attested")
    try:
        read = _read(path, record.digest.alg, progress)
    except OSError as error:
        reason = f"the mount refuses it ({output.reason_of(error)})"
        if error.errno == errno.EBADMSG:
            reason += ": bytes, or two records, differ; the mount's log says which"
            return Result(path, Verdict.DIFFERS, reason, live=True, recorded=record.digest)
        if error.errno == errno.EPERM:
            reason += ": by its --scan-policy"
        return Result(path, Verdict.UNKNOWN, reason, live=True, recorded=record.digest)
    reason = _difference(read, record, "the ledger")
    if attested == "mismatch":
        reason = reason or "the ledger's own attribute records another hash than its /info"
    return _result(path, reason, read, record, live=True)


def _check_copy(path: Path, mounts: Mounts, progress: Callable[[int], object], *, live: bool) -> Result:
    own = places.copied_record(path)
    if own.digest is None:
        hint = "" if own.size is not None else " in its attributes: copy with cp -a or rsync -X"
        return Result(path, Verdict.UNKNOWN, f"{own.problem}{hint}")
    read = _read(path, own.digest.alg, progress)
    reason = _difference(read, own, "its own attribute")
    if reason:
        return _result(path, reason, read, own, live=False)
    url = places.text_xattr(path, "user.xdg.origin.url") or ""
    there = mounts.live(url)
    missing = "it does not carry the ledger's address"
    if there is not None:
        try:
            return _check_live(path, there, read, own)
        except OSError as error:
            missing = f"the ledger's record cannot be had: {output.reason_of(error)}"
            if error.errno == errno.ENOENT:
                # It has no such attachment, or shows it to others only. An outage would say so.
                return Result(
                    path, Verdict.UNKNOWN, "the ledger does not have it", live=True, found=read.digest
                )
    elif url:
        missing = f"no mount of {url.partition('/archivist/')[0]} is running"
    if live:
        return Result(path, Verdict.UNKNOWN, missing, recorded=own.digest, found=read.digest, size=read.size)
    result = _result(path, "", read, own, live=False)
    return Result(**{**result.__dict__, "reason": f"recorded hash only: {missing}"})


def _check_live(path: Path, there: Path, read: _Read, own: Record) -> Result:
    record = places.live_record(there)
    if record.digest is None:
        return Result(path, Verdict.UNKNOWN, record.problem, live=True, found=read.digest)
    if own.digest is not None and record.digest.alg != own.digest.alg:
        read = _read(path, record.digest.alg, lambda _: None)
    reason = _difference(read, record, "the ledger")
    if not reason and places.text_xattr(there, "user.attachfs.attested") == "mismatch":
        reason = "the ledger's own attribute records another hash than its /info"
    return _result(path, reason, read, record, live=True)


def _difference(read: _Read, record: Record, who: str) -> str:
    if record.size is not None and read.size != record.size:
        return f"it has {read.size} bytes, {who} records {record.size}"
    return (
        ""
        if read.digest == record.digest
        else f"its bytes hash to {read.digest}, {who} records {record.digest}"
    )


def _result(path: Path, reason: str, read: _Read, record: Record, *, live: bool) -> Result:
    verdict = Verdict.DIFFERS if reason else Verdict.OK
    return Result(path, verdict, reason, live, record.digest, read.digest, read.size)


def _read(path: Path, alg: str, progress: Callable[[int], object]) -> _Read:
    """Hash a file, from its source and not from the kernel's memory of it."""
    hasher = hashlib.new(alg)
    size = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        while data := os.read(fd, _CHUNK):
            hasher.update(data)
            size += len(data)
            progress(len(data))
    finally:
        os.close(fd)
    return _Read(Digest(alg, hasher.hexdigest()), size)


@click.command("verify")
@arguments.paths
@arguments.as_json
@click.option("--live", is_flag=True, help="Copies too must be compared with the ledger itself.")
@arguments.jobs
def command(paths: tuple[Path, ...], as_json: bool, live: bool, jobs: int) -> None:
    """Read files again, hash them, and compare with the ledger.

    PATH is a file or directory on a mount, or a copy made with 'cp -a' or 'rsync -X', which carries its
    record along. Copies are compared with the ledger itself where a mount of it is running. Of a bag made
    with 'attachfs export', manifests, records and bytes are compared with each other.

    Exit status: 0 all are right, 1 something differs, 3 something could not be found out.
    """
    sys.exit(noted("verify", paths, lambda: run(paths, as_json=as_json, live=live, jobs=jobs)))
