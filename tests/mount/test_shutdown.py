"""The end of a mount: nothing is closed before its last users, however much is under way."""

import contextlib
import signal
import sqlite3
import threading
from pathlib import Path

from tests.mount.conftest import ENDS_WITHIN, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, serve

# In the mount's process: writes down, in order, each use of what is shared and each end of it; and has a task
# that uses all of it once more when it is cancelled, as one may that cleans up behind itself.
RECORD = """
import importlib, inspect, os, trio
from pathlib import Path
def note(word):
    with open({record!r}, "a") as file:
        file.write(word + "\\n")
def noted(target, word):
    module, _, path = target.partition(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one)
    works = getattr(owner, name)
    if inspect.iscoroutinefunction(works):
        async def wrapped(*args, **kwargs):
            note(word)
            return await works(*args, **kwargs)
    else:
        def wrapped(*args, **kwargs):
            note(word)
            return works(*args, **kwargs)
    setattr(owner, name, wrapped)
for target, word in {targets!r}.items():
    noted(target, word)
from attachfs.fuse.readahead import ReadAhead
from attachfs.fuse.operations import Filesystem
from attachfs.model import Digest
made = Filesystem.__init__
def init(self, tree, blobs, inodes, readahead, *args, **kwargs):
    made(self, tree, blobs, inodes, readahead, *args, **kwargs)
    staging = blobs._staging
    async def last_use():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked(0.1)  # whoever else ends has ended by now
                note("the last task")
                stored = tree.ledger._stored.store
                stored.put("assets/last", b"kept", stored.generation)
                await stored.get("assets/last")
                await trio.to_thread.run_sync(staging._pins.conflict, "last", Digest("sha256", 64 * "0"), 1)
                await trio.to_thread.run_sync(staging._cache.open, Digest("sha256", 64 * "0"), 1)
    readahead._nursery.start_soon(last_use)
Filesystem.__init__ = init
import trio.testing
"""
TARGETS = {
    "attachfs.ledger.answer_store:AnswerStore.put": "use answers",
    "attachfs.ledger.answer_store:AnswerStore.get": "use answers",
    "attachfs.ledger.answer_store:AnswerStore._close": "end answers",
    "attachfs.blobs.pins:Pins.conflict": "use pins",
    "attachfs.blobs.pins:Pins.check": "use pins",
    "attachfs.blobs.pins:Pins.close": "end pins",
    "attachfs.cache.disk_cache:DiskCache.open": "use cache",
    "attachfs.cache.disk_cache:DiskCache.reserve": "use cache",
    "attachfs.cache.directory:CacheDir.detach": "end cache",
    "attachfs.cache.writer:Writer.abort": "use cache",
    "attachfs.mount.custody:CustodyRecorder.opened": "use custody",
    "attachfs.mount.custody:CustodyRecorder.end": "end custody",
    "attachfs.fuse.operations:Filesystem.close": "end filesystem",
}


def test_what_is_shared_is_closed_after_its_last_user_and_in_reverse(tmp_path: Path) -> None:
    ledger, token, record = ScriptedLedger(), tmp_path / "token.txt", tmp_path / "record"
    token.write_text(ledger.token)
    token.chmod(0o600)
    read, stuck, unknown = (ledger.add(name, name.encode() * 2**20) for name in ("read", "stuck", "unknown"))
    held, over = threading.Semaphore(0), threading.Event()

    def half(request: Handler) -> bool:
        if request.path.endswith(stuck.rpartition("/")[2]):
            request.send_response(200)
            request.send_header("Content-Type", "application/octet-stream")
            request.send_header("Content-Length", str(5 * 2**20))
            request.end_headers()
            request.wfile.write(b"stuck" * 1000)
            held.release()
            over.wait(ENDS_WITHIN)
            return True
        return False

    def silent(request: Handler) -> bool:
        if unknown.rpartition("/")[2] in request.path:
            held.release()
            over.wait(ENDS_WITHIN)
            return True
        return False

    ledger.bend |= {"blob": half, "info": silent}
    prelude = RECORD.format(record=str(record), targets=TARGETS)
    options = (f"--custody-log={tmp_path}/custody", "--cache-size=100M")
    with serve(ledger, token) as served:
        with run_mount(tmp_path, *options, server=served, prelude=prelude) as mounted:
            assert (mounted.point / read).read_bytes() == b"read" * 2**20
            readers = [
                threading.Thread(target=mounted.sh, args=(f"cat {file} >/dev/null",), kwargs={"check": False})
                for file in (stuck, unknown)
            ]
            for reader in readers:  # in this order: a lookup that waits may hold up others in its directory
                reader.start()
                assert held.acquire(timeout=ENDS_WITHIN)
            mounted.process.send_signal(signal.SIGTERM)
            mounted.process.wait(ENDS_WITHIN)
        over.set()
        for reader in readers:
            reader.join(ENDS_WITHIN)
    happened = record.read_text().splitlines()
    ends = [word.removeprefix("end ") for word in happened if word.startswith("end ")]
    assert ends == ["filesystem", "answers", "custody", "pins", "cache"]
    assert happened.index("the last task") > happened.index("end filesystem")
    for thing in ("answers", "pins", "cache", "custody"):
        uses = [place for place, word in enumerate(happened) if word == f"use {thing}"]
        assert uses, happened
        assert uses[-1] < happened.index(f"end {thing}"), happened
    assert not any(" ERROR " in line for line in mounted.log), mounted.log
    (database,) = (tmp_path / "state" / "attachfs").glob("127*.sqlite")
    with contextlib.closing(sqlite3.connect(database)) as db:
        kept = db.execute("SELECT body FROM answers WHERE key = 'assets/last'").fetchone()
    assert kept == (b"kept",)  # closing has written it
