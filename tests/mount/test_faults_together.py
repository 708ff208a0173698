"""Faults that many programs meet at once, and what a mount does about them: gates, circuits, one request."""

import concurrent.futures
import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.lane import Lane, lane
from tests.services.faulty_ledger import TOKEN, Case, Exchange, serving, status

SLACK = 4


def errnos(mounted: Lane, paths: list[str], readers: int = 100) -> list[int]:
    """Read all at the same time; return the errnos, 0 for success."""
    barrier = threading.Barrier(len(paths))

    def read(path: str) -> int:
        barrier.wait(30)
        try:
            (mounted.point / path).read_bytes()
        except OSError as error:
            return error.errno or -1
        return 0

    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        return list(pool.map(read, paths))


def test_a_hundred_readers_of_one_good_blob_cost_one_request(tmp_path: Path) -> None:
    with lane(tmp_path) as mounted:
        case = mounted.fresh(300_000)
        assert errnos(mounted, [case.path] * 100) == [0] * 100
        assert mounted.ledger.count("blob", case) == 1
        assert mounted.ledger.count("info", case) == 1


@pytest.mark.parametrize(
    ("script", "number"),
    [
        (lambda x: x.reply(200, bytes(len(x.good.body))), errno.EBADMSG),
        (lambda x: x.reply(200, x.good.body[:-1]), errno.EIO),
        (status(403), errno.EACCES),
    ],
    ids=["wrong bytes", "a byte short", "refused"],
)
def test_a_hundred_readers_of_one_bad_blob_cost_a_few(
    script: Callable[[Exchange], None], number: int, tmp_path: Path
) -> None:
    with lane(tmp_path) as mounted:
        case = mounted.ledger.add(Case("bad", 300_000), blob=script)
        assert set(errnos(mounted, [case.path] * 100)) == {number}
        few = 4 if number != errno.EACCES else 100  # a refusal is not remembered: it may be lifted
        assert mounted.ledger.count("blob", case) <= few
        mounted.serves_a_good_file()
        assert len(mounted.log.told(f"{case.blob}: ")) == 1


def test_429_shuts_the_gate_for_everybody_and_lowers_what_is_asked_at_once(tmp_path: Path) -> None:
    with lane(tmp_path) as mounted:
        ledger = mounted.ledger
        cases = [mounted.fresh(1000) for _ in range(40)]
        limited = cases[0]
        ledger.scripts["info", limited.asset] = lambda x: (
            x.reply(429, b"", ("Retry-After", "1")) if x.number == 1 else x.serve()
        )
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit((mounted.point / limited.path).stat)
            mounted.log.wait_for("the service limits the rate")
            assert mounted.mounted.status()["requests"]["connections_allowed"] == 16
            assert errnos(mounted, [case.path for case in cases[1:]]) == [0] * 39
            assert first.result().st_size == 1000
        times = [seen.time for seen in ledger.seen]
        shut = next(seen.time for seen in ledger.seen if seen.kind == "info")
        assert not [when for when in times if shut + 0.1 < when < shut + 1]
        for _ in range(8):
            errnos(mounted, [mounted.fresh(10).path for _ in range(40)])
        assert mounted.mounted.status()["requests"]["connections_allowed"] > 24


def test_an_outage_opens_a_circuit_and_what_is_known_goes_on_being_told(tmp_path: Path) -> None:
    options = ("--timeout=2", "--metadata-ttl=1", "--negative-ttl=0")
    with lane(tmp_path, *options) as mounted:
        ledger = mounted.ledger
        known = mounted.fresh()
        mounted.serves_a_good_file(known)
        ledger.everything = Exchange.reset
        began, fresh = time.monotonic(), [mounted.fresh() for _ in range(400)]
        for case in fresh:
            with pytest.raises(OSError, match="Errno"):
                (mounted.point / case.path).stat()
            if mounted.log.told("the ledger is out of reach"):
                break
        asked = len(ledger.seen)
        at_once = time.monotonic()
        for case in fresh[-100:]:
            with pytest.raises(OSError, match="Errno") as caught:
                (mounted.point / case.path).stat()
            assert caught.value.errno == errno.EHOSTUNREACH
        assert time.monotonic() - at_once < SLACK
        # A probe from time to time; no more.
        assert len(ledger.seen) - asked < 3 + 2 * (time.monotonic() - began)
        assert (mounted.point / known.path).read_bytes() == known.content
        stats = mounted.mounted.status()["requests"]
        assert stats["unreachable_since"]
        assert stats["unreachable_reason"]
        ledger.everything = None
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH,))
        assert mounted.mounted.status()["requests"]["unreachable_since"] is None
        assert len(mounted.log.told("requests fail at once until it answers")) == 1
        assert sum("the ledger answers again" in line for line in mounted.log) == 1


def test_unmounting_works_with_fifty_reads_in_flight(tmp_path: Path) -> None:
    with lane(tmp_path, "--timeout=60") as mounted:
        ledger = mounted.ledger
        cases = [ledger.add(Case(f"stalled {n}"), blob=Exchange.stall) for n in range(50)]
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            reads = [pool.submit((mounted.point / case.path).read_bytes) for case in cases]
            ledger.wait_for(lambda: sum(seen.kind == "blob" for seen in ledger.seen) >= 20)
            began = time.monotonic()
            mounted.mounted.process.send_signal(signal.SIGTERM)
            assert mounted.mounted.process.wait(20) == 0
            assert time.monotonic() - began < 5 + SLACK
            for read in reads:
                assert isinstance(read.exception(20), OSError)


# -- who is asking ---------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [True, False], ids=["with credentials", "without"])
def test_public_assets_are_read_without_credentials_whoever_asks(token: bool, tmp_path: Path) -> None:  # noqa: FBT001
    with lane(tmp_path, token=token) as mounted:
        case = mounted.fresh()
        case.record["identity"] = f"publicassets/{case.asset}"
        assert (mounted.point / f"public{case.path}").read_bytes() == case.content
        about = [seen for seen in mounted.ledger.seen if seen.asset == case.asset]
        assert about
        assert not any(seen.authorization for seen in about)
        private = mounted.fresh()
        if token:
            assert (mounted.point / private.path).read_bytes() == private.content
            assert any(seen.authorization == f"Bearer {TOKEN}" for seen in mounted.ledger.seen)
        else:
            with pytest.raises(PermissionError):
                (mounted.point / private.path).stat()
            mounted.log.wait_for("the service wants credentials, and none are sent (401)")
        assert os.listdir(mounted.point / "publicassets") == []  # noqa: PTH208 - as ls would


def test_a_token_endpoint_that_is_down_is_no_refusal(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("the-client-secret\n")
    with serving({"given"}) as ledger:

        def give(x: Exchange) -> None:
            x.json({"access_token": "given", "expires_in": 3600})

        ledger.scripts["token", ""] = give
        options = ("--client-id=tester", f"--client-secret-file={secret}", "--negative-ttl=0", "--timeout=5")
        with lane(tmp_path, *options, ledger=ledger) as mounted:
            mounted.serves_a_good_file()
            ledger.accepted = set()
            ledger.scripts["token", ""] = status(501)
            for _ in range(3):  # also while nobody may ask for a token so soon again
                with pytest.raises(OSError, match="Errno") as caught:
                    (mounted.point / mounted.fresh().path).stat()
                assert caught.value.errno == errno.EIO
            assert mounted.log.told("the token endpoint: the service answered 501")
            ledger.accepted = {"given"}
            ledger.scripts["token", ""] = give
            mounted.serves_a_good_file_soon((errno.EIO,))


# -- bytes that are handed out as they come --------------------------------------------------------


def read_on(path: Path, came: list[int]) -> None:
    """Read to the end, and note how much came."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(65_536):
            came.append(len(piece))


@pytest.mark.parametrize("where", [0, 500_000, -1], ids=["first", "middle", "last"])
def test_a_wrong_bit_in_a_stream_is_never_read_to_its_end(where: int, tmp_path: Path) -> None:
    with lane(tmp_path, "--verify=stream", "--timeout=2") as mounted:

        def flipped(x: Exchange) -> None:
            data = bytearray(x.good.body)
            data[where] ^= 1
            x.reply(200, bytes(data))

        case = mounted.ledger.add(Case("stream", 1_000_000), blob=flipped)
        came: list[int] = []
        with pytest.raises(OSError, match="Errno") as caught:
            read_on(mounted.point / case.path, came)
        assert caught.value.errno == errno.EBADMSG
        assert sum(came) < 1_000_000
        mounted.serves_a_good_file()
        assert len(mounted.log.told(case.asset)) == 1, list(mounted.log)
