"""A store that a fleet shares, on real servers: it saves downloads, and never a wrong byte comes of it."""

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Mounted, run_mount
from tests.services.shared_stores import SharedStore, run_nginx, run_s3
from tests.services.threaded_ledger import ScriptedLedger, Served, serve

COUNT = 12


def content(index: int) -> bytes:
    """Return a file's bytes: from 1 byte to above a MiB."""
    return bytes((index * 7 + offset) % 251 for offset in range(1 + index * 100_000))


@pytest.fixture(scope="module", params=["nginx", "s3"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedStore]:
    base = tmp_path_factory.mktemp("store") / "base"
    with run_nginx(base) if request.param == "nginx" else run_s3(base) as running:
        yield running


# What does not depend on how a store is spoken to is shown on one of them.
on_one_store = pytest.mark.parametrize("store", ["nginx"], indirect=True, scope="module")


class Fleet:
    """Workstations of one ledger, with an own cache each."""

    def __init__(self, base: Path, ledger: ScriptedLedger, served: Served, store: SharedStore) -> None:
        self.base = base
        self.ledger = ledger
        self.served = served
        self.store = store
        self.files = {ledger.add(f"file {n}", content(n)): content(n) for n in range(COUNT)}
        self._machines = 0

    @contextlib.contextmanager
    def machine(self, *options: str) -> Iterator["Machine"]:
        """Mount on a workstation that has never mounted before."""
        self._machines += 1
        base = self.base / f"machine{self._machines}"
        base.mkdir()
        environ = {**os.environ, **self.store.environ}
        with run_mount(base, *self.store.options, *options, server=self.served, environ=environ) as mounted:
            yield Machine(self, mounted)

    def attachfs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the store configured."""
        return subprocess.run(
            [sys.executable, "-m", "attachfs", *arguments, *self.store.options],
            env={**os.environ, **self.store.environ, "XDG_CONFIG_HOME": str(self.base / "config")},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @property
    def downloads(self) -> int:
        """How many blobs the service has sent."""
        return self.ledger.counts["blob"]


class Machine:
    """One workstation."""

    def __init__(self, fleet: Fleet, mounted: Mounted) -> None:
        self.fleet = fleet
        self.mounted = mounted

    def read_all(self) -> None:
        """Read every file, and compare."""
        for path, data in self.fleet.files.items():
            assert (self.mounted.point / path).read_bytes() == data

    def stats(self) -> dict[str, Any]:
        """Return what status says of the shared cache."""
        found: dict[str, Any] = self.mounted.status()["shared_cache"]
        return found

    def wait_for(self, key: str, value: int) -> None:
        """Wait until a figure has a value; uploads go on behind readers' backs."""
        until = time.monotonic() + 30
        while self.stats()[key] != value:
            assert time.monotonic() < until, self.stats()
            time.sleep(0.02)  # nothing tells from outside


@pytest.fixture
def fleet(tmp_path: Path, store: SharedStore) -> Iterator[Fleet]:
    ledger = ScriptedLedger()
    with serve(ledger, tmp_path / "ledger-token") as served:
        yield Fleet(tmp_path, ledger, served, store)


def test_a_second_machine_downloads_nothing_from_the_service(fleet: Fleet) -> None:
    with fleet.machine("--shared-cache-write") as first:
        first.read_all()
        first.wait_for("uploaded", COUNT)
    assert fleet.downloads == COUNT
    with fleet.machine() as second:
        second.read_all()
        assert second.stats()["hits"] == COUNT
    assert fleet.downloads == COUNT
    assert set(fleet.store.objects().values()) == set(fleet.files.values())


def test_every_object_flipped_costs_no_byte_and_is_healed(fleet: Fleet) -> None:
    with fleet.machine("--shared-cache-write") as first:
        first.read_all()
        until = time.monotonic() + 30
        while len(fleet.store.objects()) < COUNT:
            assert time.monotonic() < until
            time.sleep(0.02)
    for name, data in fleet.store.objects().items():
        fleet.store.replace(name, bytes([data[0] ^ 1]) + data[1:])
    before = fleet.downloads
    with fleet.machine() as reader:
        reader.read_all()
        assert reader.stats()["hits"] == 0
    assert fleet.downloads - before == COUNT
    healed = set(fleet.files.values())
    for _ in range(COUNT):  # three wrong ones in a row turn reading off: a machine heals what it has met
        with fleet.machine("--shared-cache-write") as writer:
            writer.read_all()
            wrong = writer.stats()["wrong"]
            until = time.monotonic() + 30
            while wrong and writer.stats()["uploaded"] < wrong:
                assert time.monotonic() < until
                time.sleep(0.02)
        if set(fleet.store.objects().values()) == healed:
            break
    assert set(fleet.store.objects().values()) == healed


def test_one_machine_fills_the_store_for_all(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with fleet.machine() as machine:
        point = machine.mounted.point
        done = fleet.attachfs("prefetch", "--to-shared", str(point / "assets"))
        assert done.returncode == 0, done.stderr
        assert set(fleet.files.values()) <= set(fleet.store.objects().values())
        again = fleet.attachfs("prefetch", "--to-shared", str(point / "assets"))
        assert f"{COUNT:,} already there" in again.stderr


@on_one_store
def test_the_store_can_be_checked_and_healed_from_a_machine_that_has_the_blobs(fleet: Fleet) -> None:
    with fleet.machine() as machine:
        machine.read_all()
        fleet.attachfs("prefetch", "--to-shared", str(machine.mounted.point / "assets"))
        cache = f"--cache-dir={machine.mounted.cache}"
        assert fleet.attachfs("cache", "shared", "verify", "--all", cache).returncode == 0
        data = fleet.files[next(iter(fleet.files))]
        digest = hashlib.sha256(data).hexdigest()
        fleet.store.replace(digest, b"forged")
        found = fleet.attachfs("cache", "shared", "verify", "--all", cache)
        assert found.returncode == 1
        assert f"sha256:{digest}: WRONG" in found.stdout
        healed = fleet.attachfs("cache", "shared", "verify", "--all", "--shared-cache-write", cache)
        assert healed.returncode == 0, healed.stderr
        assert "1 replaced" in healed.stderr
        assert fleet.store.objects()[digest] == data


def test_doctor_reaches_writes_reads_and_verifies(fleet: Fleet) -> None:
    found = fleet.attachfs("doctor", "--shared-cache-write", f"--url={fleet.served.url}").stdout
    assert re.search(r"ok +shared cache +\S+ answers", found)
    assert re.search(r"ok +shared cache +\S+ takes a test object", found)
    assert re.search(r"ok +shared cache +\S+ gives it back", found)
    with fleet.store.stopped():
        assert "WRONG    shared cache" in fleet.attachfs("doctor", f"--url={fleet.served.url}").stdout


@on_one_store
def test_without_write_nothing_is_stored(fleet: Fleet) -> None:
    before = fleet.store.objects()
    with fleet.machine() as machine:
        machine.read_all()
    assert fleet.store.objects() == before


@on_one_store
@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_a_store_that_stands_still_costs_little_once(fleet: Fleet, when: str) -> None:
    for index in range(30):
        data = os.urandom(100 * 1024)
        fleet.files[fleet.ledger.add(f"{when} {index}", data)] = data
    with contextlib.ExitStack() as stack:
        if when == "before":
            stack.enter_context(fleet.store.stopped())
        machine = stack.enter_context(fleet.machine("--shared-cache-write"))
        began = time.monotonic()
        paths = list(fleet.files.items())
        for index, (path, data) in enumerate(paths):
            if index == 10 and when != "before":
                stack.enter_context(fleet.store.stopped())
            assert (machine.mounted.point / path).read_bytes() == data
        assert time.monotonic() - began < 25
        assert machine.stats()["off"]


def first_answers(fleet: Fleet, base: Path, *options: str) -> tuple[float, float]:
    """Mount; return the seconds until all is listed with its attributes, and those of the first read."""
    base.mkdir()
    began = time.monotonic()
    with run_mount(base, *options, server=fleet.served) as mounted:
        (path, data), *_ = fleet.files.items()
        names = {entry.name for entry in os.scandir((mounted.point / path).parent) if entry.stat().st_size}
        assert names >= {Path(one).name for one in fleet.files}
        listed = time.monotonic()
        assert (mounted.point / path).read_bytes() == data
        return listed - began, time.monotonic() - listed


@on_one_store
def test_the_next_mount_beside_a_store_that_stands_still_is_as_fast_as_without(
    fleet: Fleet, tmp_path: Path
) -> None:
    """In turns, and the fastest of each count: this machine may be busy with something else."""
    without, beside = [], []
    with fleet.store.stopped():
        for turn in range(3):
            without.append(first_answers(fleet, tmp_path / f"without{turn}"))
            beside.append(first_answers(fleet, tmp_path / f"beside{turn}", *fleet.store.options))
    assert min(listed for listed, _ in beside) < 1.5 * min(listed for listed, _ in without) + 0.3
    # The first read of each mount asks the store, and after a quarter of a second the service too.
    assert min(read for _, read in beside) < 1.5 * min(read for _, read in without) + 1


@on_one_store
def test_mounting_and_listing_do_not_ask_the_store(fleet: Fleet, tmp_path: Path) -> None:
    """So no state of the store can hold them up."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        store.setblocking(False)
        url = f"--shared-cache=http://127.0.0.1:{store.getsockname()[1]}/cas/"
        (tmp_path / "base").mkdir()
        with run_mount(tmp_path / "base", url, server=fleet.served) as mounted:
            path, data = next(iter(fleet.files.items()))
            assert sum(entry.stat().st_size for entry in os.scandir((mounted.point / path).parent)) > 0
            os.listxattr(mounted.point / path)
            with pytest.raises(BlockingIOError):
                store.accept()
            assert (mounted.point / path).read_bytes() == data
            store.accept()[0].close()  # it would have been seen
