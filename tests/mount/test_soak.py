"""An hour of a service's life in a minute: it expires tokens, limits, breaks off, goes and comes back.

Meanwhile programs work on the mount, again and again. What they get is right or an errno that tells why;
the service is not asked more than it can bear; and the mount holds no more at the end than at the start.
"""

import concurrent.futures
import errno
import hashlib
import os
import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.mount.lane import Lane, lane
from tests.services.faulty_ledger import TOKEN, Case, Exchange, Ledger, at_place, serving

ASSETS = 40
TIMEOUT = 4
SLACK = 4
GROWTH = 48 * 1024  # KiB
STORM = 6  # requests a second that a service in trouble may see, on average
KNOWN = 1.5  # seconds after the first failure from which on the service is let alone
ALLOWED = {
    "Permission denied": errno.EACCES,
    "Device or resource busy": errno.EBUSY,
    "Input/output error": errno.EIO,
    "Connection timed out": errno.ETIMEDOUT,
    "No route to host": errno.EHOSTUNREACH,
}


@dataclass
class Weather:
    """What the service is like now, and what it was like when."""

    ledger: Ledger
    token_file: Path
    expired: int = 0
    down: list[tuple[str, float, float]] = field(default_factory=list)

    def fine(self) -> None:
        self.ledger.everything = None

    def expire(self) -> str:
        """Let the token expire; return the next one."""
        self.expired += 1
        token = f"{TOKEN}-{self.expired}"
        self.ledger.accepted = {token}
        return token

    def write(self, token: str) -> None:
        """Rewrite the token file in place, as a person would."""
        self.token_file.write_text(f"{token}\n")

    def limit(self, x: Exchange) -> None:
        x.reply(429, b"{}", ("Archivist-Rate-Limit-Reset", "0.8"))

    def break_off(self, x: Exchange) -> None:
        """Break every third body off, and every ninth connection."""
        number = len(self.ledger.seen)
        if x.kind == "blob" and number % 3 == 0:
            at_place("halfway", Exchange.cut)(x)
        elif number % 9 == 0:
            x.reset()
        else:
            x.serve()


def live(weather: Weather, rounds: int, pause: Callable[[float], object]) -> None:
    """Let some rounds of trouble pass. `pause` waits so many seconds."""
    ledger = weather.ledger
    for _ in range(rounds):
        pause(3)
        token = weather.expire()
        pause(2)
        weather.write(token)
        pause(3)
        ledger.everything = weather.break_off
        pause(4)
        weather.fine()
        for name, trouble in (("429", weather.limit), ("reset", Exchange.reset), ("503", unavailable)):
            began = time.monotonic()
            ledger.everything = trouble
            pause(4)
            weather.down.append((name, began, time.monotonic()))
            weather.fine()
            pause(3)
        ledger.stop()
        pause(4)
        ledger.start()
        pause(5)


def unavailable(x: Exchange) -> None:
    x.reply(503, b"<html>no backend")


# -- programs --------------------------------------------------------------------------------------


@dataclass
class Programs:
    """Programs that work on the mount until they are told to stop, and what became of that."""

    point: Path
    cases: list[Case]
    base: Path
    stop: threading.Event = field(default_factory=threading.Event)
    done: Counter[tuple[str, bool]] = field(default_factory=Counter)
    errnos: Counter[int] = field(default_factory=Counter)
    dice: random.Random = field(default_factory=lambda: random.Random(4))

    def __post_init__(self) -> None:
        self.files = {case.path: case.content for case in self.cases}
        self.files |= {f"{case.event_path}/{case.event_blob}": case.content for case in self.cases}
        sums = self.base / "sums"
        lines = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in self.files.items()]
        sums.write_text("".join(lines))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            command,
            cwd=self.point,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            timeout=300,
            check=False,
        )
        for line in ended.stderr.splitlines():
            if line.startswith("sha256sum: WARNING"):
                continue
            reason = line.rpartition(": ")[2]
            assert reason in ALLOWED, line
            self.errnos[ALLOWED[reason]] += 1
        return ended

    def find(self) -> None:
        ended = self.run("find", "assets", "-type", "f", "-printf", "%p %s\\n")
        found = dict(line.split(" ") for line in ended.stdout.splitlines())
        expected = {path: str(len(data)) for path, data in self.files.items()}
        assert found.items() <= expected.items()
        if ended.returncode == 0:
            assert found == expected
        assert ended.returncode == 0 or ended.stderr
        self.done["find", ended.returncode == 0] += 1

    def copy(self) -> None:
        case = self.dice.choice(self.cases)
        target = self.base / "copies" / case.asset
        target.parent.mkdir(exist_ok=True)
        ended = self.run("cp", "-r", f"assets/{case.asset}", str(target))
        copied = {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}
        expected = {case.blob: case.content, case.event_blob: case.content}
        # What could not be had is not there: no part of it, and nothing in its place.
        assert copied.items() <= expected.items()
        if ended.returncode == 0:
            assert copied == expected
        assert ended.returncode == 0 or ended.stderr
        # A copy's directories are 0555, as on the mount: only root removes what is in them.
        subprocess.run(["chmod", "-R", "u+w", target], check=False)
        subprocess.run(["rm", "-rf", target], check=True)
        self.done["cp", ended.returncode == 0] += 1

    def check(self) -> None:
        ended = self.run("sha256sum", "-c", str(self.base / "sums"))
        for line in ended.stdout.splitlines():
            assert re.fullmatch(r".*: (OK|FAILED open or read)", line), line
        assert (ended.returncode == 0) == ("FAILED" not in ended.stdout)
        self.done["sha256sum", ended.returncode == 0] += 1

    def look(self) -> None:
        """Read somewhere: the bytes are those, and the answer comes in time."""
        path, data = self.dice.choice([one for one in self.files.items() if one[1]])
        offset = self.dice.randrange(len(data))
        length = self.dice.randrange(1, 200_000)
        began = time.monotonic()
        number, found = 0, b""
        try:
            with (self.point / path).open("rb", buffering=0) as file:
                found = os.pread(file.fileno(), length, offset)
        except OSError as error:
            number = error.errno or -1
        if number:
            assert number in ALLOWED.values(), os.strerror(number)
            self.errnos[number] += 1
        else:
            assert found == data[offset : offset + length]
        self.done["read", not number] += 1
        # A path of five names, each of which may be waited for.
        assert time.monotonic() - began < 5 * TIMEOUT + SLACK

    def repeat(self, work: Callable[[], None]) -> None:
        while not self.stop.is_set():
            work()
            self.stop.wait(0.2)  # an hour's work is not needed, and the machine has other tests


@pytest.mark.slow
def test_after_each_kind_of_trouble_under_load_all_is_well_again(tmp_path: Path) -> None:
    with serving({TOKEN}) as ledger:
        sizes = (0, 1, 700, 4096, 65_537, 300_000)
        cases = [ledger.add(Case(f"hour {n}", sizes[n % len(sizes)])) for n in range(ASSETS)]
        ledger.listed = cases
        options = (f"--timeout={TIMEOUT}", "--metadata-ttl=2", "--negative-ttl=1", "--cache-size=2M")
        with lane(tmp_path, *options, ledger=ledger) as mounted:
            assert mounted.token_file is not None
            programs = Programs(mounted.point, cases, tmp_path)
            for work in (programs.find, programs.copy, programs.check, programs.look):
                work()
            assert not programs.errnos
            before = mounted.held()
            weather = Weather(ledger, mounted.token_file)
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                work_of = (programs.find, programs.copy, programs.check, programs.look, programs.look)
                running = [pool.submit(programs.repeat, work) for work in work_of]
                for one in running:
                    one.add_done_callback(lambda _: programs.stop.set())
                try:
                    live(weather, 1, programs.stop.wait)
                finally:
                    weather.fine()
                    programs.stop.set()
                for one in running:
                    one.result()
            recovers(mounted, programs)
            after = mounted.held()
            tell = f"{programs.done} {programs.errnos} {before.rss} {after.rss}"
            for name in ("find", "cp", "sha256sum", "read"):
                assert programs.done[name, True] >= 2, tell
                assert programs.done[name, False] >= 1, tell
            assert {errno.EACCES, errno.EHOSTUNREACH} <= set(programs.errnos), tell
            for name, began, ended in weather.down:
                # A second after the first failure it is known; what was under way then may still come.
                asked = [seen.time for seen in ledger.seen if began <= seen.time < ended]
                noticed = min(asked, default=began) + KNOWN
                late = sum(time >= noticed for time in asked)
                assert late < STORM * max(1, ended - noticed), (name, tell)
            assert len(after.open_files) <= len(before.open_files)
            assert after.rss - before.rss < GROWTH, tell
            for figure in ("open_files", "open_directories", "downloading"):
                assert after.status[figure] == before.status[figure]
            assert after.status["requests"]["in_flight"] == after.status["requests"]["waiting"] == 0


def recovers(mounted: Lane, programs: Programs) -> None:
    """All is well again, without a remount."""
    mounted.serves_a_good_file_soon((errno.EHOSTUNREACH, errno.EBUSY, errno.ETIMEDOUT, errno.EACCES))
    ends = time.monotonic() + 30
    while (ended := programs.run("find", "assets", "-type", "f")).returncode:
        assert time.monotonic() < ends, ended.stderr
    assert set(ended.stdout.split()) == set(programs.files)
    programs.check()


# -- tokens that expire under many readers ---------------------------------------------------------

READERS = 50


class Tokens:
    """The token endpoint: gives out tokens that are good until the next is given out or wished for."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.given = 0
        ledger.scripts["token", ""] = self.give

    def give(self, x: Exchange) -> None:
        self.given += 1
        token = f"{TOKEN}-client-{self.given}"
        self.ledger.accepted = {token}
        x.json({"access_token": token, "token_type": "Bearer", "expires_in": 3600})


def read_all(mounted: Lane, cases: list[Case]) -> None:
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        reads = {case.name: pool.submit((mounted.point / case.path).read_bytes) for case in cases}
        for case in cases:
            assert reads[case.name].result() == case.content


def break_all_once(ledger: Ledger, cases: list[Case], expire: Callable[[], object]) -> None:
    """Break each blob off in the middle, once; the token expires with the first of them."""
    once = threading.Lock()

    def script(x: Exchange) -> None:
        if x.number > 1 or x.good.status != 200:
            x.serve()
            return
        half = at_place("halfway", Exchange.cut)
        if once.acquire(blocking=False):
            expire()
        half(x)

    for case in cases:
        ledger.scripts["blob", case.asset] = script


@pytest.mark.parametrize("when", ["between the listing and the bytes", "in the middle of the bytes"])
def test_a_token_file_is_read_again_for_fifty_readers(when: str, tmp_path: Path) -> None:
    with lane(tmp_path) as mounted:
        ledger = mounted.ledger
        cases = ledger.listed = [ledger.add(Case(f"fifty {n}", 40_000)) for n in range(READERS)]
        mounted.mounted.sh("find assets -type f -size +0")

        def expire() -> None:
            assert mounted.token_file is not None
            mounted.token_file.write_text(f"{TOKEN}-new\n")
            ledger.accepted = {f"{TOKEN}-new"}

        if when.startswith("in"):
            break_all_once(ledger, cases, expire)
        else:
            expire()
        read_all(mounted, cases)
        refused = sum(seen.kind == "blob" and not seen.authorization.endswith("new") for seen in ledger.seen)
        assert refused <= 2 * READERS
        assert not mounted.log.told("credentials")


@pytest.mark.parametrize("when", ["between the listing and the bytes", "in the middle of the bytes"])
def test_one_new_token_is_fetched_for_fifty_readers(when: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("the-client-secret\n")
    with serving(set()) as ledger:
        tokens = Tokens(ledger)
        cases = ledger.listed = [ledger.add(Case(f"fifty {n}", 40_000)) for n in range(READERS)]
        options = ("--client-id=tester", f"--client-secret-file={secret}")
        with lane(tmp_path, *options, ledger=ledger) as mounted:
            mounted.mounted.sh("find assets -type f -size +0")
            assert tokens.given == 1

            def expire() -> None:
                ledger.accepted = set()

            if when.startswith("in"):
                break_all_once(ledger, cases, expire)
            else:
                expire()
            read_all(mounted, cases)
            assert tokens.given == 2
            assert not any("secret" in seen.target for seen in ledger.seen)


def test_a_mount_whose_token_has_expired_comes_back_when_the_file_is_renewed(tmp_path: Path) -> None:
    with lane(tmp_path, "--negative-ttl=0") as mounted:
        mounted.serves_a_good_file()
        mounted.ledger.accepted = {"renewed"}
        for _ in range(3):
            with pytest.raises(PermissionError):
                (mounted.point / mounted.fresh().path).stat()
        assert mounted.token_file is not None
        mounted.token_file.write_text("Authorization: Bearer renewed\n")
        mounted.serves_a_good_file()
