"""A database that is damaged, locked, full or read-only costs one warning, and never anybody's time."""

import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from attachfs.errors import UsageError
from attachfs.ledger import answer_store
from attachfs.ledger.answer_store import AnswerStore

KEYS = [f"assets/{number}" for number in range(200)]


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """Return a database with some answers."""
    path = tmp_path / "state" / "ledger.sqlite"
    store = AnswerStore(path, lambda: 100.0)
    for key in KEYS:
        store.put(key, f"the answer to {key}".encode() * 20, store.generation)
    await store.aclose()
    return path


def flip_header(path: Path) -> None:
    path.write_bytes(b"\x00" + path.read_bytes()[1:])


def flip_page(path: Path) -> None:
    """Damage the second page's header: SQLite finds out when it gets there."""
    data = bytearray(path.read_bytes())
    data[4096] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def junk(path: Path) -> None:
    path.write_bytes(b"not a database, at all\n" * 1000)


@pytest.mark.parametrize("damage", [flip_header, flip_page, cut, junk])
async def test_a_damaged_one_is_set_aside_and_a_new_one_begun(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(path)
    store = AnswerStore(path)
    for key in KEYS[:50]:
        await store.get(key)
    for key in KEYS:
        store.put(key, b"anew", store.generation)
        await store.write()
    found = await store.get(KEYS[0])
    assert found is not None
    assert found.body == b"anew"
    await store.aclose()
    damaged = [record.message for record in caplog.records if "set aside as" in record.message]
    assert len(damaged) == 1
    assert path.with_name("ledger.sqlite.damaged").exists()
    later = AnswerStore(path)
    await later.open()
    assert later.stats()["answers"] == len(KEYS)
    await later.aclose()


async def test_an_answer_with_a_flipped_bit_is_not_used(path: Path) -> None:
    data = path.read_bytes()
    body = f"the answer to {KEYS[7]}".encode() * 20
    assert data.count(body) == 1
    path.write_bytes(data.replace(body, body.replace(b"answer", b"bnswer", 1)))
    store = AnswerStore(path)
    assert await store.get(KEYS[7]) is None
    assert await store.get(KEYS[8]) is not None
    await store.aclose()


async def test_a_locked_answer_store_keeps_nobody_waiting_for_long(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_store, "_BUSY", 0.2)
    monkeypatch.setattr(answer_store, "_PATIENCE", 0.4)
    monkeypatch.setattr(answer_store, "_RETRY", 0.0)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        store = AnswerStore(path)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for key in KEYS[:20]:
                nursery.start_soon(store.get, key)
                store.put(key, b"anew", store.generation)
            nursery.start_soon(store.write)
        assert trio.current_time() - begun < 3
        for _ in range(2):
            store.put(KEYS[0], b"anew", store.generation)
            await store.write()
        assert "locked" in store.stats()["problem"]
        other.execute("ROLLBACK")
    other.close()
    assert len([r for r in caplog.records if "end what else has it open" in r.message]) == 1
    assert await store.get(KEYS[0]) is not None
    assert store.stats()["problem"] == ""
    await store.aclose()


async def test_the_event_loop_goes_on_while_the_database_is_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_store, "_BUSY", 0.5)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        store = AnswerStore(path)
        store.put(KEYS[0], b"anew", store.generation)
        turns = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write)
            while nursery.child_tasks:
                await trio.sleep(0.01)
                store.stats()
                turns += 1
        assert turns > 10
    other.close()
    await store.aclose()


async def test_what_was_about_to_be_written_at_the_end_of_the_mount_is_written_by_closing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader has the database at the moment at which the writing task is cancelled."""
    store = AnswerStore(path)
    reading, goes_on = trio.Event(), threading.Event()
    works, token = store._read, trio.lowlevel.current_trio_token()

    def slow(key: str) -> tuple[bytes, float] | None:
        token.run_sync_soon(reading.set)
        goes_on.wait(30)
        return works(key)

    monkeypatch.setattr(store, "_read", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.get, KEYS[1])
        await reading.wait()
        store.put(KEYS[0], b"anew", store.generation)
        nursery.start_soon(store.write)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    goes_on.set()
    await store.aclose()
    store = AnswerStore(path)
    found = await store.get(KEYS[0])
    await store.aclose()
    assert found is not None
    assert found.body == b"anew"


async def test_offline_says_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_store, "_BUSY", 0.1)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match=r"locked.*without --offline"):
            await AnswerStore(path).open()
    other.close()


async def test_a_directory_that_cannot_be_made_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    store = AnswerStore(tmp_path / "state" / "ledger.sqlite")
    for _ in range(3):
        store.put("x", b"x", store.generation)
        await store.write()
        assert await store.get("x") is None
    await store.aclose()
    assert len([r for r in caplog.records if "are not kept for --offline" in r.message]) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_read_only_directory_is_read_all_the_same(path: Path) -> None:
    mode = path.parent.stat().st_mode
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    path.chmod(stat.S_IRUSR)
    try:
        store = AnswerStore(path)
        await store.open()
        assert await store.get(KEYS[0]) is not None
        await store.aclose()
    finally:
        path.parent.chmod(mode)
