"""What each pattern costs in requests: counted, not timed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer, spawn_server
from tests.mount.conftest import Mounted, run_mount

FILES = 120
ONCE = "--metadata-ttl=3600"  # so that nothing is asked for again, however slow the machine


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """Serve one asset with one event that has many attachments."""
    token = tmp_path_factory.mktemp("wide") / "token"
    size = ["--bulk", "1", "--events", "1", "--attachments", str(FILES), "--size", "4096"]
    with spawn_server([*size, "--token-file", str(token), "--delay-ms", "20"]) as server:
        yield server


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """Serve many assets with two events each, and one attachment on each of these."""
    token = tmp_path_factory.mktemp("long") / "token"
    size = ["--bulk", "150", "--events", "2", "--attachments", "1", "--size", "4096"]
    with spawn_server([*size, "--token-file", str(token), "--delay-ms", "5"]) as server:
        yield server


def event_of(mounted: Mounted) -> str:
    return mounted.sh("ls -d assets/*/events/*").stdout.strip()


def counts(server: DemoServer) -> dict[str, int]:
    return {kind: count for kind, count in server.requests()["counts"].items() if count}


@pytest.mark.parametrize(
    "copy", ["cp -r {} ../copy", "tar cf ../a.tar {}", "rsync -a {} ../copy", "grep -rc x {}"]
)
def test_copying_a_directory_fetches_each_file_once_and_many_at_a_time(
    wide: DemoServer, tmp_path: Path, copy: str
) -> None:
    with run_mount(tmp_path, server=wide) as mounted:
        event = event_of(mounted)
        wide.reset()
        mounted.sh(copy.format(event))
        requests = wide.requests()
        assert requests["counts"]["blob"] == requests["counts"]["info"] == FILES
        assert requests["in_flight_max"]["blob"] >= 6
        assert sum(counts(wide).values()) == 2 * FILES


def test_opening_one_file_of_many_fetches_one(wide: DemoServer, tmp_path: Path) -> None:
    with run_mount(tmp_path, server=wide) as mounted:
        event = event_of(mounted)
        middle = mounted.sh(f"ls {event}").stdout.split()[FILES // 2]
        wide.reset()
        mounted.sh(f"cat {event}/{middle} > /dev/null")
        assert counts(wide) == {"info": 1, "blob": 1}


def test_ls_asks_for_no_info_and_ls_l_for_each_once(wide: DemoServer, tmp_path: Path) -> None:
    with run_mount(tmp_path, server=wide) as mounted:
        event = event_of(mounted)
        wide.reset()
        mounted.sh(f"ls -f {event}; find {event}")
        assert counts(wide) == {}
        mounted.sh(f"ls -l {event}; stat {event}/*; getfattr -d {event}/*")
        assert counts(wide) == {"info": FILES}


def test_find_asks_for_each_listing_once_and_for_many_at_a_time(long: DemoServer, tmp_path: Path) -> None:
    with run_mount(tmp_path, ONCE, server=long) as mounted:
        long.reset()
        assert len(mounted.sh("find assets").stdout.split()) == 1 + 150 * (1 + 1 + 1 + 2 + 2)
        requests = long.requests()
        assert counts(long) == {"assets": 1, "events": 150}
        assert requests["in_flight_max"]["events"] >= 4


def test_ls_lr_and_cp_r_of_many_assets_ask_for_each_thing_once_and_ahead(
    long: DemoServer, tmp_path: Path
) -> None:
    with run_mount(tmp_path, ONCE, server=long) as mounted:
        long.reset()
        mounted.sh("ls -lR assets > /dev/null")
        assert counts(long) == {"assets": 1, "events": 150, "info": 450}
        assert long.requests()["in_flight_max"]["info"] >= 4
        mounted.sh("cp -r assets ../copy")  # an asset's own attachment is one of its events'
        assert counts(long) == {"assets": 1, "events": 150, "info": 450, "blob": 300}
        assert long.requests()["in_flight_max"]["blob"] >= 4


# What coreutils 9.4 and later does for `ls -lR`: everything's attributes are listed, one after another.
LS_LR = """
import os, sys
def ls(folder):
    names = sorted(os.listdir(folder))
    for name in names:
        path = os.path.join(folder, name)
        os.lstat(path)
        listed.append(len(os.listxattr(path, follow_symlinks=False)))
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            ls(path)
listed = []
ls(sys.argv[1])
print(len(listed), listed.count(0))
"""


def test_listing_the_attributes_of_everything_asks_for_nothing_that_ls_would_not_ask_for(
    long: DemoServer, tmp_path: Path
) -> None:
    script = tmp_path / "ls.py"
    script.write_text(LS_LR)
    with run_mount(tmp_path, ONCE, server=long) as mounted:
        long.reset()
        found, without = map(int, mounted.sh(f"python3 {script} assets").stdout.split())
        assert found == 150 * (1 + 1 + 1 + 2 + 2)
        assert without == 150  # the directories called events
        assert counts(long) == {"assets": 1, "events": 150, "info": 450}
        assert long.requests()["in_flight_max"]["info"] >= 4
        mounted.sh(f"python3 {script} by-name")
        assert counts(long) == {"assets": 1, "events": 150, "info": 450}


# -- a ledger that takes more than one page ------------------------------------------------------------------

VAST, ON_A_PAGE = 1200, 500
BEGINNING = 200 + 64 + 32  # assets that a walk asks for by themselves before and while it reads all events


@pytest.fixture(scope="module")
def vast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """Serve assets on three pages, with an event each, and one attachment on each of these."""
    token = tmp_path_factory.mktemp("vast") / "token"
    size = ["--bulk", str(VAST), "--events", "1", "--attachments", "1", "--size", "64"]
    with spawn_server([*size, "--token-file", str(token), "--delay-ms", "5"]) as server:
        yield server


def test_a_walk_over_a_large_ledger_reads_pages_and_over_its_names_nothing_more(
    vast: DemoServer, tmp_path: Path
) -> None:
    pages = -(-VAST // ON_A_PAGE)
    with run_mount(tmp_path, server=vast) as mounted:
        vast.reset()
        found = mounted.sh("find assets").stdout.splitlines()
        assert len(found) == len(set(found)) == 1 + 5 * VAST
        asked = counts(vast)
        assert asked.keys() == {"assets", "events"}
        assert asked["assets"] == pages
        # The listing of all events, its first page again, and the last asset on each of its pages.
        assert asked["events"] <= BEGINNING + pages + 1 + pages
        vast.reset()
        found = mounted.sh("find by-name").stdout.splitlines()
        assert len(found) == len(set(found)) == 1 + 5 * VAST
        assert counts(vast).keys() <= {"events"}
        assert counts(vast).get("events", 0) <= pages


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set how much the kernel asks for")
def test_for_root_the_kernel_asks_for_much_at_a_time(wide: DemoServer, tmp_path: Path) -> None:
    with run_mount(tmp_path, server=wide) as mounted:
        device = mounted.point.stat().st_dev
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        assert setting.read_text(encoding="ascii").strip() == "512"


def test_mounting_tries_the_ledger_out_with_one_request(wide: DemoServer, tmp_path: Path) -> None:
    wide.reset()
    with run_mount(tmp_path, server=wide):
        assert counts(wide) == {"assets": 1}  # one record: the ledger answers, and takes the token
