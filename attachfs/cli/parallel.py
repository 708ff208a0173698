"""Several files at once, in threads that do not outlive an impatient user."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 1000  # items begun or queued before the result of the first of them is there


def in_order(items: Iterable[T], work: Callable[[T], R], jobs: int) -> Generator[R, None, None]:
    """Yield `work(item)` for each item, in the items' order, doing `jobs` at a time.

    The threads are daemons: one that waits for a file on a mount cannot be interrupted, and would keep the
    program from ending. Nothing new is begun once the caller stops asking.
    """
    todo: SimpleQueue[tuple[Future[R], T] | None] = SimpleQueue()
    stopped = threading.Event()
    pending: deque[Future[R]] = deque()
    threads = 0

    def run() -> None:
        while (task := todo.get()) is not None and not stopped.is_set():
            future, item = task
            try:
                future.set_result(work(item))
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
                future.set_exception(error)

    try:
        for item in items:
            future: Future[R] = Future()
            pending.append(future)
            todo.put((future, item))
            if threads < jobs:
                threads += 1
                threading.Thread(target=run, daemon=True).start()
            while pending and (pending[0].done() or len(pending) >= _AHEAD):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        stopped.set()
        for _ in range(threads):
            todo.put(None)
