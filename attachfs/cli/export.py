"""`attachfs export`: what a mount shows, as a BagIt bag that others can check without attachfs.

First the records are read and written, and what there is to copy is noted (export_scan.py); then the files
are copied, several at once (export_copy.py); then the bag is made whole (archive/writer.py). The journal in
the bag remembers all of it: after any end, running it again goes on where it was.
"""

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from attachfs.archive import layout, manifest, writer
from attachfs.archive.entries import Exported
from attachfs.archive.folder import BagFolder
from attachfs.archive.journal import REFUSED, TODO, Journal
from attachfs.archive.layout import Place
from attachfs.archive.report import Report
from attachfs.cli import arguments, interruptible, output
from attachfs.cli.custody import noted
from attachfs.cli.export_copy import Copier
from attachfs.cli.export_logs import add_logs
from attachfs.cli.export_scan import Scanner, Source, place_of
from attachfs.cli.parallel import in_order
from attachfs.cli.paths import Mounts
from attachfs.cli.progress import Counter, Progress
from attachfs.config.settings import Config
from attachfs.errors import NotFound, UsageError
from attachfs.mount import mountinfo
from attachfs.units import format_size

_PER_FILE = 8192  # bytes of a bag beside each attachment's own: records, directories, lines
_SHOWN = 20  # refused files named on the terminal; the report has all


def run(config: Config, paths: Sequence[Path], bag: Path, *, jobs: int, read_only: bool) -> int:
    """Export and return the exit code: 1 if anything was refused."""
    progress = Progress("export")

    def export() -> int:
        point, status = _mount_of(paths)
        places = sorted({place.path: place for place in (place_of(path, point) for path in paths)}.items())
        chosen = [place for path, place in places if not _covered(path, places)]
        if bag.absolute().resolve().is_relative_to(Path(os.path.realpath(point))):
            raise UsageError(f"{bag} is on the mount, which is read-only: choose another place")
        try:
            if _is_complete(bag, [place.path for place in chosen]):
                return output.OK
            with Journal(bag) as journal:
                return _export(
                    journal, chosen, bag, point, status, progress, config, jobs=jobs, read_only=read_only
                )
        except (OSError, sqlite3.Error) as error:
            raise writer.cannot_write(bag, error) from error

    def interrupted() -> str:
        progress.stop()
        done = f"{output.count(progress.files_done, 'file')} ({format_size(progress.bytes_done)})"
        return f"export: interrupted after {done}. Run it again to go on."

    return interruptible.run(export, interrupted)


def _mount_of(paths: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    mounts = Mounts().require(paths)
    if len(mounts) > 1:
        points = " and ".join(str(mount.point) for mount in mounts)
        raise UsageError(f"the paths are on {points}: a bag holds one ledger; export them separately")
    point = mounts[0].point
    status = mountinfo.status(point)
    if status is None:
        raise UsageError(f"{point} does not answer, or is another user's")
    if status.get("verify") == "off":
        raise UsageError(f"{point} does not verify: it was mounted with --verify=off; mount it without")
    return point, status


def _covered(path: str, places: Sequence[tuple[str, Place]]) -> bool:
    return any(path != other and layout.covers(place, path) for other, place in places)


# -- a directory to begin or go on in ------------------------------------------------------------------


def _is_complete(bag: Path, paths: list[str]) -> bool:
    """Make sure that the directory can be exported into; True: it is a whole bag of the same already.

    Raises:
        UsageError: it holds something else.
    """
    if not bag.exists():
        try:
            bag.mkdir()
        except OSError as error:
            raise UsageError(f"{bag} cannot be made: {error.strerror}") from error
        return False
    if not bag.is_dir():
        raise UsageError(f"{bag} is not a directory")
    names = {entry.name for entry in bag.iterdir()}
    if not names or layout.WORK in names:
        return False
    if layout.DECLARATION not in names:
        raise UsageError(f"{bag} is neither empty nor an export: choose another directory")
    with BagFolder(bag) as folder:
        manifest.check_declaration(folder)
        report = Report(folder)
        if sorted(report.head.paths) != sorted(paths):
            raise UsageError(f"{bag} is an export of other paths: choose another directory")
        if next(report.refused(), None) is None:
            files = report.head.totals.get("files")
            output.note(
                f"export: {bag} is complete, with {files} files; check it with: attachfs verify {bag}"
            )
            return True
    return False


def _take_up(journal: Journal, bag: Path) -> None:
    """Note what a bag has that was whole, and in which something was refused: that is tried again."""
    writer.protect(bag, read_only=False)
    with BagFolder(bag) as folder:
        report = Report(folder)
        for entry in report.files():
            journal.finish(entry)
        try:
            for path, sha256 in manifest.entries(folder, layout.TAG_MANIFEST):
                if path.startswith((f"{layout.RECORDS}/", f"{layout.PROOF}/")):
                    journal.add_tags([(path, sha256)])
        except NotFound:
            pass  # all records are read again in any case
    journal.set("began", str(report.head.about.get("began")))
    journal.commit(now=True)
    (bag / layout.DECLARATION).unlink()


# -- the export ----------------------------------------------------------------------------------------


def _export(
    journal: Journal,
    places: list[Place],
    bag: Path,
    point: Path,
    status: dict[str, Any],
    progress: Progress,
    config: Config,
    *,
    jobs: int,
    read_only: bool,
) -> int:
    paths = [place.path for place in places]
    if journal.get("paths") is None:
        journal.set("paths", json.dumps([status.get("ledger"), paths]))
        if (bag / layout.DECLARATION).exists():
            _take_up(journal, bag)
    elif journal.get("paths") != json.dumps([status.get("ledger"), paths]):
        raise UsageError(f"the export in {bag} was started with other paths, or from another ledger")
    if journal.get("began") is None:
        journal.set("began", _now())
    journal.retry()
    source = Source.at(point)
    _scan(journal, Scanner(source, bag, journal.work), places, jobs)
    cache = status.get("cache_dir")
    copier = Copier(source, bag, journal.work, Path(cache) if isinstance(cache, str) else None)
    _reopen_changed(journal, copier)
    _check_space(journal, bag)
    _copy(journal, copier, progress, jobs)
    journal.clear_proofs()
    logs = add_logs(journal, bag, config, status)
    about = {
        "url": str(status.get("ledger")),
        "paths": paths,
        "by": writer.who(),
        "began": str(journal.get("began")),
        "mounted_on": str(point),
        "scan_policy": status.get("scan_policy"),
        "verify": status.get("verify"),
        "transparency_log": "; ".join(logs.problems) or logs.summary,
    }
    totals = writer.finish(bag, journal, about)
    refused = list(_first(journal, REFUSED, _SHOWN))
    journal.remove()
    writer.protect(bag, read_only=read_only)
    for problem in logs.problems:
        output.complain("the transparency log", problem)
    return _report_end(bag, totals, refused)


def _scan(journal: Journal, scanner: Scanner, places: list[Place], jobs: int) -> None:
    """Note everything that is to be exported, and write the records."""
    todo = (place for place in scanner.places(places) if not journal.is_listed(place.path))
    count = 0
    with Counter("export: reading records") as counter:
        for found in in_order(todo, scanner.scan, jobs):
            journal.add_tags(found.tags)
            for entry in found.entries:
                journal.add(entry)
            if found.complete:
                journal.set_listed(found.path)
            count += len(found.entries)
            counter.show(output.count(count, "file"))
            journal.commit()


def _reopen_changed(journal: Journal, copier: Copier) -> None:
    """Have looked at again what is not the file any more that was exported."""
    for entry, stamp in journal.stamps():
        if not stamp or copier.stamp(entry.path) != stamp:
            journal.reopen(entry.path)


def _check_space(journal: Journal, bag: Path) -> None:
    count, size = journal.count(TODO)
    needed, free = size + count * _PER_FILE, shutil.disk_usage(bag).free
    if needed > free:
        raise UsageError(
            f"{bag} has room for {format_size(free)}, and {format_size(needed)} are still needed: make "
            f"room and run it again to go on, or choose another directory"
        )


def _copy(journal: Journal, copier: Copier, progress: Progress, jobs: int) -> None:
    count, size = journal.count(TODO)
    with progress.of(size, count):

        def copy(entry: Exported) -> tuple[Exported, str]:
            done = copier.copy(entry, progress.advance)
            progress.advance(files=1)
            return done

        for entry, stamp in in_order(journal.entries(TODO), copy, jobs):
            journal.finish(entry, stamp)
            journal.commit()


def _first(journal: Journal, state: int, count: int) -> list[Exported]:
    return [entry for entry, _ in zip(journal.entries(state), range(count), strict=False)]


def _report_end(bag: Path, totals: dict[str, Any], refused: list[Exported]) -> int:
    for entry in refused:
        output.complain(entry.path, f"refused: {entry.reason} [{entry.errno}]")
    more = totals["refused"] - len(refused)
    if more > 0:
        output.note(f"and {more:,} more; {bag / layout.REPORT} has all")
    words = f"{output.count(totals['files'], 'file')} ({format_size(totals['bytes'])}) in {bag}"
    if totals["refused"]:
        words += f", {totals['refused']:,} refused: {bag / layout.REPORT_HTML} says why"
    output.note(f"export: {words}")
    return output.DIFFERS if totals["refused"] else output.OK


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@click.command("export")
@arguments.paths
@click.argument("bag", type=click.Path(path_type=Path))
@click.option("--read-only", is_flag=True, help="Leave files and directories without write permission.")
@arguments.jobs
@arguments.locating_options("log-key", "log-url", "ca-file", "timeout", "profile", "config")
def command(paths: tuple[Path, ...], bag: Path, read_only: bool, jobs: int, **given: str | None) -> None:
    """Take evidence home: write what is at and below PATH into the directory BAG.

    BAG becomes a BagIt bag (RFC 8493) of the files, their records and a report, which others can check
    without attachfs. After Ctrl-C or a crash, run it again to go on.

    Exit status: 0 all is in the bag, 1 something was refused; BAG/report.html says what and why.
    """
    config = arguments.settings(given)
    sys.exit(noted("export", paths, lambda: run(config, paths, bag, jobs=jobs, read_only=read_only)))
