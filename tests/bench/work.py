"""The pieces of work: each function does one run of one or more rows, contender after contender."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from attachfs.demo.bulk import BulkLedger
from tests.bench.origin import Shape
from tests.bench.processes import Failed, Mount, Ran, ask, drop_caches, mount, run
from tests.bench.results import ATTACHFS, ROUND_TRIPS, Results, loop_ms

_RATTR = "user.hash.sha256"
_PASSES = 6  # over the known files; the kernel's names are dropped before each
_NULL = "do-nothing"
_SEQUENTIAL = "one by one"


@dataclass(frozen=True)
class Sizes:
    """How much work there is."""

    files: int = 500
    file_size: int = 64 * 1024
    walked: int = 1000
    small: int = 10_000
    big: int = 2**30
    parallel: int = 16
    parallel_size: int = 64 * 2**20
    crowd: int = 100_000

    def shapes(self) -> dict[str, Shape]:
        """Return the ledgers that the origin is to serve."""
        return {
            "copy": Shape(1, 1, self.files, self.file_size),
            "small": Shape(1, self.small // 100, 100, 4096),
            "walk": Shape(self.walked, 2, 1, 4096),
            "big": Shape(1, 1, 1, self.big),
            "many": Shape(1, 1, self.parallel, self.parallel_size),
            "crowd": Shape(self.crowd, 1, 1, 32),
        }


QUICK = Sizes(20, 64 * 1024, 20, 200, 64 * 2**20, 4, 4 * 2**20, 2000)


@dataclass
class Bench:
    """What a run needs: where the origin is, near and far, where to work, and where amounts go."""

    sizes: Sizes
    near: int
    far: int
    round_trip: float  # seconds
    base: Path
    results: Results
    once: set[str] = field(default_factory=set)
    rclone: str | None = field(default_factory=lambda: shutil.which("rclone"))
    curl: str | None = field(default_factory=lambda: shutil.which("curl"))

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        """Return a new directory for one run of one contender."""
        path = Path(tempfile.mkdtemp(dir=self.base))
        try:
            yield path
        finally:
            # A copy's directories are 0555, as on the mount: only root removes what is in them as they are.
            subprocess.run(["chmod", "-R", "u+w", path], check=True)
            shutil.rmtree(path)

    @contextlib.contextmanager
    def attachfs(
        self, ledger: str, *options: str, far: bool = False, base: Path | None = None
    ) -> Iterator[Mount]:
        """Mount a ledger with attachfs: with an empty cache, or with the one that is in `base`."""
        with contextlib.ExitStack() as stack:
            base = stack.enter_context(self.directory()) if base is None else base
            ask(self.near, "-/reset")
            yield stack.enter_context(
                mount(self.attachfs_command(ledger, base, *options, far=far), base / "mnt", base)
            )

    def attachfs_command(self, ledger: str, base: Path, *options: str, far: bool = False) -> list[str]:
        """Return the command that mounts a ledger on `base/mnt`."""
        url = f"http://127.0.0.1:{self.far if far else self.near}/{ledger}"
        command = [sys.executable, "-m", "attachfs", "mount", f"--url={url}", "--no-auth"]
        return [*command, f"--cache-dir={base / 'blobs'}", "-f", *options, str(base / "mnt")]

    @contextlib.contextmanager
    def rclone_mount(self, ledger: str, *, far: bool = False) -> Iterator[Mount]:
        """Mount the same bytes with rclone and an empty cache."""
        assert self.rclone is not None
        with self.directory() as base:
            url = f"http://127.0.0.1:{self.far if far else self.near}/{ledger}/files/"
            point, cache = base / "mnt", base / "blobs"
            command = [self.rclone, "mount", ":http:", str(point), "--http-url", url]
            command += ["--vfs-cache-mode", "full", "--cache-dir", str(cache), "--config", "/dev/null"]
            ask(self.near, "-/reset")
            with mount(command, point, base) as mounted:
                yield mounted

    @contextlib.contextmanager
    def null(self) -> Iterator[Mount]:
        """Mount the do-nothing filesystem."""
        with self.directory() as base:
            arguments = [str(base / "mnt"), str(self.sizes.files), str(self.sizes.big)]
            command = [sys.executable, "-m", "tests.bench.nullfs", *arguments]
            with mount(command, base / "mnt", base) as mounted:
                yield mounted

    def add(self, row: str, contender: str, amount: float, *, counted: bool = False) -> None:
        """Note an amount, and how many requests the origin has seen."""
        requests = sum(ask(self.near, "-/counts").values()) if counted else None
        self.results.add(row, contender, amount, requests)
        self.results.loops.setdefault(row, []).append(loop_ms())

    def first_time(self, what: str) -> bool:
        """Whether this is the first run of something slow that is done once."""
        if what in self.once:
            return False
        self.once.add(what)
        self.results.note(f"measured once: {what}")
        return True


def event_path(files: int) -> tuple[str, list[str]]:
    """Return the first event's directory, and the names in it."""
    ledger = BulkLedger(1, 1, files)
    return f"assets/{ledger.asset_id(0)}/events/{ledger.event_id(0, 0)}", [
        ledger.blob_id(0, 0, number) for number in range(files)
    ]


def _big() -> str:
    ledger = BulkLedger(1)
    return f"assets/{ledger.asset_id(0)}/{ledger.blob_id(0, 0, 0)}"


def _read(path: Path) -> Ran:
    return run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"])


# -- 50 ms away ----------------------------------------------------------------------------------------


def copy(bench: Bench) -> None:
    """Copy a directory of attachments."""
    where, _ = event_path(bench.sizes.files)
    with bench.attachfs("copy", far=True) as mounted, bench.directory() as target:
        before = mounted.cpu()
        ran = run(["cp", "-r", mounted.point / where, target])
        bench.add("copy", ATTACHFS, ran.seconds, counted=True)
        bench.add("copy-cpu", ATTACHFS, mounted.cpu() - before)
        found = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        if found != bench.sizes.files * bench.sizes.file_size:
            raise Failed(f"cp -r brought {found} bytes")
    _replay(bench, "copy")
    if bench.rclone:
        with bench.rclone_mount("copy", far=True) as mounted, bench.directory() as target:
            bench.add(
                "copy", "rclone", run(["cp", "-r", mounted.point / where, target]).seconds, counted=True
            )
    _sequential(bench, "copy", "copy")


def list_long(bench: Bench) -> None:
    """List a directory of attachments with sizes and times."""
    where, _ = event_path(bench.sizes.files)
    with bench.attachfs("copy", far=True) as mounted:
        before = mounted.cpu()
        bench.add("list", ATTACHFS, run(["ls", "-l", mounted.point / where]).seconds, counted=True)
        bench.add("list-cpu", ATTACHFS, mounted.cpu() - before)
    _replay(bench, "list")
    if bench.rclone:
        with bench.rclone_mount("copy", far=True) as mounted:
            bench.add("list", "rclone", run(["ls", "-l", mounted.point / where]).seconds, counted=True)
    _sequential(bench, "list", "copy")


def find(bench: Bench) -> None:
    """Walk everything there is."""
    directories = 1 + 4 * bench.sizes.walked
    with bench.attachfs("walk", far=True) as mounted:
        before = mounted.cpu()
        ran = run(["find", mounted.point / "assets"])
        bench.add("find", ATTACHFS, ran.seconds, counted=True)
        bench.add("find-cpu", ATTACHFS, mounted.cpu() - before)
        # every directory, and an attachment in each asset and event
        if len(ran.output.splitlines()) != directories + 3 * bench.sizes.walked:
            raise Failed(f"find saw {len(ran.output.splitlines())} names")
    _replay(bench, "find")
    bench.add("find", ROUND_TRIPS, directories * bench.round_trip)
    _sequential(bench, "find", "walk")


def small(bench: Bench) -> None:
    """Copy many very small attachments, a hundred in each event."""
    where = f"assets/{BulkLedger(1).asset_id(0)}/events"
    with bench.attachfs("small", far=True) as mounted, bench.directory() as target:
        before = mounted.cpu()
        ran = run(["cp", "-r", mounted.point / where, target])
        bench.add("small", ATTACHFS, ran.seconds, counted=True)
        bench.add("small-cpu", ATTACHFS, mounted.cpu() - before)
        found = sum(1 for path in target.rglob("*") if path.is_file())
        if found != bench.sizes.small:
            raise Failed(f"cp -r brought {found} files")
    _replay(bench, "small")


def first(bench: Bench) -> None:
    """Read the first byte of a large blob."""
    with bench.attachfs("big", "--verify=stream", far=True) as mounted:
        ran = run(["head", "-c1", mounted.point / _big()])
        bench.add("first", ATTACHFS, ran.seconds, counted=True)
    if bench.rclone:
        with bench.rclone_mount("big", far=True) as mounted:
            bench.add("first", "rclone", run(["head", "-c1", mounted.point / _big()]).seconds, counted=True)
    bench.add("first", "round trip", bench.round_trip)


def _replay(bench: Bench, row: str) -> None:
    """Have a plain client make the requests that attachfs has just made, 32 at a time."""
    paths = ask(bench.near, "-/paths")
    ask(bench.near, "-/reset")
    command = [sys.executable, "-m", "tests.bench.clients", "replay", str(bench.far), "32"]
    seconds, cpu = json.loads(run(command, feed=json.dumps(paths)).output)
    bench.add(row, "32 connections", seconds, counted=True)
    bench.add(f"{row}-cpu", "32 connections", cpu)
    bench.results.note(
        "32 connections: the very requests that attachfs made, by a client that does nothing else"
    )


def _sequential(bench: Bench, row: str, ledger: str) -> None:
    if bench.first_time(f"{row}, {_SEQUENTIAL} (a client like the vendor's SDK)"):
        ask(bench.near, "-/reset")
        command = [sys.executable, "-m", "tests.bench.clients", "sequential", str(bench.far), ledger, row]
        bench.add(row, _SEQUENTIAL, json.loads(run(command).output)[0], counted=True)


# -- a gigabyte, near ----------------------------------------------------------------------------------


def big(bench: Bench) -> None:
    """Read a large blob: cold, from the page cache, and after that was dropped; CPU and memory."""
    with bench.attachfs("big") as mounted:
        bench.add("idle", ATTACHFS, mounted.memory())
        before = mounted.cpu()
        _three_times(bench, ATTACHFS, mounted.point / _big(), lambda: _cost(bench, ATTACHFS, mounted, before))
    if bench.rclone:
        with bench.rclone_mount("big") as mounted:
            bench.add("idle", "rclone", mounted.memory())
            before = mounted.cpu()
            _three_times(
                bench, "rclone", mounted.point / _big(), lambda: _cost(bench, "rclone", mounted, before)
            )
    with bench.directory() as target:
        file = target / "file"
        if bench.curl:
            ask(bench.near, "-/reset")
            url = f"http://127.0.0.1:{bench.near}/big/files/{_big()}"
            ran = run([bench.curl, "-s", "-o", file, url])
            bench.add("cold", "curl", ran.seconds, counted=True)
            bench.add("cpu", "curl + sha256sum", ran.cpu + run(["sha256sum", file]).cpu)
        else:
            with file.open("wb") as out:
                for _ in range(0, bench.sizes.big, 2**20):
                    out.write(bytes(min(2**20, bench.sizes.big)))
        _read(file)
        bench.add("again", "local file", _read(file).seconds)
        _dropped(bench, "local file", file)
    with bench.null() as mounted:
        bench.add("cold", _NULL, _read(mounted.point / "big").seconds)
        bench.add("again", _NULL, _read(mounted.point / "big").seconds)


def _three_times(bench: Bench, contender: str, path: Path, between: Callable[[], None]) -> None:
    bench.add("cold", contender, _read(path).seconds, counted=True)
    between()
    bench.add("again", contender, _read(path).seconds)
    _dropped(bench, contender, path)


def _dropped(bench: Bench, contender: str, path: Path) -> None:
    try:
        drop_caches(1)
    except Failed as error:
        bench.results.note(f"1 GiB after the page cache was dropped: not measured: {error}")
        return
    bench.add("dropped", contender, _read(path).seconds)


def _cost(bench: Bench, contender: str, mounted: Mount, before: float) -> None:
    time.sleep(0.3)  # what it still does after the last byte belongs to it
    bench.add("cpu", contender, (mounted.cpu() - before) * 2**30 / bench.sizes.big)
    bench.add("memory", contender, mounted.memory(peak=True))


# -- what is known -------------------------------------------------------------------------------------


def stat(bench: Bench) -> None:
    """Ask for attributes of files that are known, each with a lookup."""
    where, names = event_path(bench.sizes.files)
    try:
        with bench.attachfs("copy") as mounted:
            run(["ls", "-l", mounted.point / where])
            _ask_all(bench, ATTACHFS, mounted.point / where, names)
        with bench.null() as mounted:
            before = int(os.getxattr(mounted.point, "user.lookups"))
            _ask_all(bench, _NULL, mounted.point, [str(number) for number in range(bench.sizes.files)])
            seen = int(os.getxattr(mounted.point, "user.lookups")) - before
            bench.results.note(
                f"stat and getxattr: {seen / bench.sizes.files / _PASSES / 2:.2f} lookups each"
            )
    except Failed as error:
        bench.results.note(f"stat and getxattr: not measured: {error}")


def _ask_all(bench: Bench, contender: str, directory: Path, names: list[str]) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)  # so that its own name is not looked up again
    try:
        took = {"stat": 0.0, "getxattr": 0.0}
        for _, row in itertools.product(range(_PASSES), took):
            drop_caches(2)
            os.stat("0" if contender == _NULL else names[0], dir_fd=opened)  # after what it forgets
            began = time.perf_counter()
            if row == "stat":
                for name in names:
                    os.stat(name, dir_fd=opened)
            else:
                for name in names:
                    os.getxattr(f"/proc/self/fd/{opened}/{name}", _RATTR)
            took[row] += time.perf_counter() - began
        for row, seconds in took.items():
            bench.add(row, contender, seconds / _PASSES / len(names))
    finally:
        os.close(opened)


def parallel(bench: Bench) -> None:
    """Read cached blobs one after another, and all at once: from its cache, through its handlers."""
    where, names = event_path(bench.sizes.parallel)
    with bench.directory() as base:
        for contender in ("", "one reader", ATTACHFS):
            # a new mount each time: the kernel has none of its pages, the disk cache has all blobs
            with bench.attachfs("many", base=base) as mounted:
                paths = [str(mounted.point / where / name) for name in names]
                if contender == ATTACHFS:
                    reader = 'for f; do dd if="$f" of=/dev/null bs=1M status=none & done; wait'
                else:
                    reader = 'for f; do dd if="$f" of=/dev/null bs=1M status=none; done'
                run(["ls", "-l", mounted.point / where])
                ran = run(["bash", "-c", reader, "read", *paths])
                if contender:
                    bench.add("parallel", contender, ran.seconds)


def crowd(bench: Bench) -> None:
    """List as many assets as there are."""
    with bench.attachfs("crowd") as mounted:
        ran = run(["ls", mounted.point / "assets"])
        if len(ran.output.splitlines()) != bench.sizes.crowd:
            raise Failed(f"ls saw {len(ran.output.splitlines())} assets")
        bench.add("crowd", ATTACHFS, mounted.memory(peak=True), counted=True)


def mounting(bench: Bench) -> None:
    """Mount in the background, as a person does, and stat."""
    with bench.attachfs("copy") as mounted:
        bench.add("mount", ATTACHFS, mounted.started)
    if bench.rclone:
        with bench.rclone_mount("copy") as mounted:
            bench.add("mount", "rclone", mounted.started)
    with bench.null() as mounted:
        bench.add("mount", _NULL, mounted.started)


WORK: dict[str, Callable[[Bench], None]] = {
    "copy": copy,
    "list": list_long,
    "find": find,
    "small": small,
    "big": big,
    "first": first,
    "stat": stat,
    "parallel": parallel,
    "crowd": crowd,
    "mount": mounting,
}
