"""The way of a single `/info` through this package: each frame costs something at each task switch."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

import attachfs
from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.offline import RecordingSource, StoredAnswers
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef
from tests.services.memory_source import FakeSource, file_ref, info_body

OURS = Path(attachfs.__file__).parent  # not all that is below a checkout of that name


class LookingBack(FakeSource):
    """Notes which functions of ours led to it."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[str] = []

    async def info(self, ref: AttachmentRef) -> bytes:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if "/attachfs/ledger/" in frame.f_code.co_filename:
                self.frames.append(frame.f_code.co_name)
            frame = frame.f_back
        return await super().info(ref)


def awaiting(work: Any) -> list[str]:
    """Return the functions of ours in which a coroutine waits, the outermost first."""
    found, inner = [], getattr(work, "cr_await", None)
    if Path(work.cr_code.co_filename).is_relative_to(OURS):
        found.append(work.cr_code.co_name)
    return found + (awaiting(inner) if hasattr(inner, "cr_code") else [])


async def test_to_the_source_are_three_functions_and_the_flight_that_many_callers_share(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    source = LookingBack()
    file = file_ref()
    source.infos[file] = info_body(file)
    source.gate = trio.Event()
    store = AnswerStore(tmp_path / "answers.sqlite")
    ledger = Ledger(RecordingSource(source, store), nursery, stored=StoredAnswers(store))
    caller = ledger.info(file)

    async def call() -> None:
        await caller

    async with trio.open_nursery() as callers:
        callers.start_soon(call)
        await wait_all_tasks_blocked()
        waiting = awaiting(caller)
        source.gate.set()
    assert (waiting, source.frames) == (["get"], ["_kept", "_fetch", "_fly"])
