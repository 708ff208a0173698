"""Promises of attachfs(7) that no other test has for its subject: what does not open, what is not there."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, identity, send, send_json, serve

CONTENT = random.Random(1).randbytes(200 * 1024)


def errno_of(work: Callable[[], object]) -> int:
    with pytest.raises(OSError) as caught:
        work()
    assert caught.value.errno is not None
    return caught.value.errno


@pytest.mark.parametrize("verify", ["strict", "stream"])
@pytest.mark.parametrize(
    "recorded",
    [None, {}, {"alg": "MD5", "value": "0" * 32}, {"alg": "SHA256"}, {"alg": "SHA256", "value": "0" * 63}],
    ids=["none", "empty", "unknown", "no value", "malformed"],
)
def test_without_a_hash_to_compare_with_nothing_opens(
    tmp_path: Path, recorded: dict[str, str] | None, verify: str
) -> None:
    """It can be seen, and has its size.

    Promise 18: "A file whose recorded hash is missing, malformed or of an unknown kind does not open."
    """
    ledger = ScriptedLedger()
    path = ledger.add("one", CONTENT)
    ledger.infos[identity("one")]["hash"] = recorded
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, f"--verify={verify}", server=server) as mounted,
    ):
        assert (mounted.point / path).stat().st_size == len(CONTENT)
        assert errno_of((mounted.point / path).read_bytes) == errno.EIO
        assert ledger.counts["blob"] == 0


@pytest.mark.parametrize(
    ("policy", "status", "opens"),
    [
        ("block-bad", "SCANNED_OK", True),
        ("block-bad", "NOT_SCANNED", True),
        ("block-bad", "SCANNED_BAD", False),
        ("require-ok", "SCANNED_OK", True),
        ("require-ok", "NOT_SCANNED", False),
        ("require-ok", "SCANNED_BAD", False),
        ("warn", "SCANNED_BAD", True),
        ("off", "SCANNED_BAD", True),
    ],
)
def test_the_scan_policy_is_asked_at_each_open_of_cached_files_too(
    tmp_path: Path, policy: str, status: str, *, opens: bool
) -> None:
    """The status changes while the file is cached, and while the kernel has its pages.

    Promise 19: "The scan policy is applied at every open, of cached files too, and what it refuses fails
    with EPERM."
    """
    ledger = ScriptedLedger()
    path = ledger.add("one", CONTENT)
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, f"--scan-policy={policy}", "--metadata-ttl=0", server=server) as mounted,
    ):
        assert (mounted.point / path).read_bytes() == CONTENT
        ledger.infos[identity("one")]["scanned_status"] = status
        if opens:
            assert (mounted.point / path).read_bytes() == CONTENT
        else:
            assert errno_of((mounted.point / path).read_bytes) == errno.EPERM
        ledger.infos[identity("one")]["scanned_status"] = "SCANNED_OK"
        assert (mounted.point / path).read_bytes() == CONTENT
        assert ledger.counts["blob"] == 1


def test_unverified_bytes_only_where_somebody_asked_for_them(tmp_path: Path) -> None:
    """Wrong bytes are handed out, as was asked for, and are gone with the file's last close.

    Promise 20: "Only with verification turned off are unverified bytes served; then nothing is kept in the
    cache, and each mount logs a warning."
    """
    ledger = ScriptedLedger()
    path = ledger.add("one", CONTENT)
    ledger.blobs[identity("one")] = CONTENT[::-1]
    with serve(ledger, tmp_path / "token") as server:
        for verify in ("auto", "strict", "stream"):
            with run_mount(tmp_path, f"--verify={verify}", server=server) as mounted:
                assert errno_of((mounted.point / path).read_bytes) == errno.EBADMSG
                assert not any("--verify=off" in line for line in mounted.log)
        for _ in range(2):
            with run_mount(tmp_path, "--verify=off", server=server) as mounted:
                assert (mounted.point / path).read_bytes() == CONTENT[::-1]
                assert os.getxattr(mounted.point / path, "user.attachfs.verified") == b"no"
                assert mounted.cached() == []
                assert any(" WARNING " in line and "--verify=off" in line for line in mounted.log)
        with run_mount(tmp_path, server=server) as mounted:
            assert errno_of((mounted.point / path).read_bytes) == errno.EBADMSG


def answers(status: int, body: bytes = b"{}") -> Callable[[Handler], bool]:
    def bent(request: Handler) -> bool:
        send(request, status, body)
        return True

    return bent


@pytest.mark.parametrize(
    ("bent", "expected"),
    [
        (answers(404), errno.ENOENT),
        (answers(400), errno.EIO),
        (answers(403), errno.EACCES),
        (answers(410), errno.EIO),
        (answers(204, b""), errno.EIO),
        (answers(200, b""), errno.EIO),
        (answers(200, b"null"), errno.EIO),
        (answers(200, b"not JSON"), errno.EIO),
        (answers(200, b'{"size": -1}'), errno.EIO),
    ],
    ids=["404", "400", "403", "410", "204", "empty", "null", "garbage", "no size"],
)
def test_only_the_ledgers_404_makes_an_identity_absent(
    tmp_path: Path, bent: Callable[[Handler], bool], expected: int
) -> None:
    """And only for as long as it says so.

    Promise 23: "Only the ledger's own answer makes an identity absent: an outage, a refusal or an
    unreadable answer is another error."
    """
    ledger = ScriptedLedger()
    path = ledger.add("one", CONTENT)
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, "--negative-ttl=0", server=server) as mounted,
    ):
        ledger.bend["info"] = bent
        assert errno_of((mounted.point / path).stat) == expected
        assert errno_of((mounted.point / path).read_bytes) == expected
        ledger.bend.clear()
        assert (mounted.point / path).read_bytes() == CONTENT


def page_of(kind: str, records: list[dict[str, Any]], token: str) -> Callable[[Handler], bool]:
    """Return a listing's first page, and 400 for any other."""

    def bent(request: Handler) -> bool:
        if "page_token" in request.path:
            send(request, 400, b"{}")
        else:
            send_json(request, {kind: records, "next_page_token": token})
        return True

    return bent


@pytest.mark.parametrize("kind", ["assets", "events"])
def test_a_listing_that_breaks_off_fails(tmp_path: Path, kind: str) -> None:
    """Also after entries have been shown.

    Promise 24: "A directory is listed whole or its listing fails: a page that cannot be fetched never makes
    it look shorter."
    """
    ledger = ScriptedLedger()
    records = [
        {"identity": f"assets/{identity(f'asset {n}')}", "attributes": {}}
        if kind == "assets"
        else {
            "identity": f"assets/{ledger.asset}/events/{identity(f'event {n}')}",
            "event_attributes": {},
            "asset_attributes": {},
        }
        for n in range(20)
    ]
    names = {str(record["identity"]).rpartition("/")[2] for record in records}
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, "--metadata-ttl=0", server=server) as mounted,
    ):
        folder = mounted.point / "assets"
        folder = folder if kind == "assets" else folder / ledger.asset / "events"
        ledger.bend[kind] = page_of(kind, records, "")
        assert {path.name for path in folder.iterdir()} == names
        ledger.bend[kind] = page_of(kind, records, "more")
        assert errno_of(lambda: list(folder.iterdir())) == errno.EIO
        done = mounted.sh(f"ls {folder}", check=False)
        assert done.returncode != 0
        assert set(done.stdout.split()) <= names
