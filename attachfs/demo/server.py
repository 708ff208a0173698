"""The demo ledger's process: `serve` (hypercorn on trio) and `python -m attachfs.demo.server`.

The process prints one line of JSON once it listens, `{"url": …, "token_file": …, "pid": …}`, and serves until
SIGTERM or SIGINT, or, with `--die-with-stdin`, until its standard input ends or its parent dies.
With the story, the line also has `"story"`: the paths of `Story` by name.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import hypercorn.trio
import trio
from hypercorn.config import Config
from hypercorn.typing import Framework
from starlette.types import ASGIApp

from attachfs.demo.app import (
    CLIENT_ID,
    CLIENT_SECRET,
    PAGE_LIMIT,
    TOKEN_LIFETIME,
    create_app,
)
from attachfs.demo.bulk import BulkLedger
from attachfs.demo.records import Ledger
from attachfs.demo.store import Store
from attachfs.demo.story import Story, fill

_PR_SET_PDEATHSIG = 1
_PARENT_DIED = signal.SIGUSR1
_STDIN = 0
_NO_LIMIT = 1_000_000_000


async def serve(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; report the base URL (`http://127.0.0.1:PORT`) once it listens.

    Args:
        app: what to serve.
        host: the address to listen at.
        port: 0 takes any free one.
        tls_cert: with `tls_key`, serve HTTPS.
        tls_key: the certificate's key.
        task_status: for `nursery.start`.
    """
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.accesslog = None
    config.loglevel = "WARNING"
    config.keep_alive_timeout = 120
    config.keep_alive_max_requests = _NO_LIMIT
    config.graceful_timeout = 0.5
    config.backlog = 1024
    if tls_cert is not None:
        config.certfile = str(tls_cert)
        config.keyfile = str(tls_key) if tls_key is not None else None
    async with trio.open_nursery() as nursery:
        started = await nursery.start(functools.partial(hypercorn.trio.serve, cast("Framework", app), config))
        task_status.started(started[0])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m attachfs.demo.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--data", type=Path, help="keep blobs there; default: a temporary directory")
    parser.add_argument("--empty", action="store_true", help="begin without the story")
    parser.add_argument(
        "--originals", type=Path, help="lay the story's true bytes out there, as a mount does"
    )
    bulk = parser.add_argument_group("a computed ledger instead of the story")
    bulk.add_argument("--bulk", type=int, metavar="N", help="with N assets")
    bulk.add_argument("--events", type=int, default=1, metavar="E", help="events of each asset")
    bulk.add_argument("--attachments", type=int, default=1, metavar="A", help="attachments of each event")
    bulk.add_argument("--size", type=int, default=4096, metavar="S", help="bytes of each attachment")
    access = parser.add_argument_group("access")
    access.add_argument("--no-auth", action="store_true", help="ask for no credentials")
    access.add_argument("--token-file", type=Path, help="write a header line there that is always accepted")
    parser.add_argument(
        "--log-key-file", type=Path, help="write the key there that seals the transparency logs (PEM)"
    )
    access.add_argument("--client-id", default=CLIENT_ID)
    access.add_argument("--client-secret", default=CLIENT_SECRET, help="not a secret: nothing is behind it")
    access.add_argument("--token-lifetime", type=float, default=TOKEN_LIFETIME, metavar="SECONDS")
    access.add_argument("--tls-cert", type=Path)
    access.add_argument("--tls-key", type=Path)
    parser.add_argument("--page-limit", type=int, default=PAGE_LIMIT, help="records on one page at most")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="hold each answer back")
    parser.add_argument("--die-with-stdin", action="store_true", help="end when the parent goes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the process."""
    options = _arguments(argv)
    parent = _request_parent_death_signal() if options.die_with_stdin else 0
    with contextlib.ExitStack() as stack:
        data = options.data
        if data is None:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attachfs-demo-")))
        ledger, story = _ledger(options, data)
        app = create_app(
            ledger,
            client_id=options.client_id,
            client_secret=options.client_secret,
            token_lifetime=options.token_lifetime,
            require_auth=not options.no_auth,
            static_tokens=_write_token(options.token_file),
            page_limit=options.page_limit,
            delay=options.delay_ms / 1000,
        )
        ready: dict[str, object] = {"pid": os.getpid()}
        if options.token_file is not None:
            ready["token_file"] = str(options.token_file)
        if story is not None:
            ready["story"] = story.places()
        trio.run(_run, app, options, ready, parent)


def _ledger(options: argparse.Namespace, data: Path) -> tuple[Ledger, Story | None]:
    if options.bulk is not None:
        bulk = BulkLedger(options.bulk, options.events, options.attachments, options.size)
        return bulk, None
    store = Store(data)
    if options.log_key_file is not None:
        options.log_key_file.write_bytes(store.logs.key.pem())
    if options.empty:
        return store, None
    story = fill(store)
    if options.originals is not None:
        story.originals(options.originals)
    return store, story


def _write_token(path: Path | None) -> list[str]:
    if path is None:
        return []
    token = f"demo.{secrets.token_urlsafe(32)}"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"Authorization: Bearer {token}\n")
    return [token]


async def _run(app: ASGIApp, options: argparse.Namespace, ready: dict[str, object], parent: int) -> None:
    async with trio.open_nursery() as nursery:
        # Signals are caught before anyone learns that the process is there.
        await nursery.start(_stop_on_signal, nursery.cancel_scope, parent)
        if options.die_with_stdin:
            nursery.start_soon(_stop_on_end_of_input, nursery.cancel_scope)
        url = await nursery.start(
            functools.partial(
                serve,
                app,
                host=options.host,
                port=options.port,
                tls_cert=options.tls_cert,
                tls_key=options.tls_key,
            )
        )
        sys.stdout.write(json.dumps({"url": url, **ready}) + "\n")
        sys.stdout.flush()


async def _stop_on_signal(
    scope: trio.CancelScope, parent: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, _PARENT_DIED) as signals:
        task_status.started()
        async for number in signals:
            # The kernel also sends it when just the thread that started us ends.
            if number != _PARENT_DIED or os.getppid() != parent:
                scope.cancel()
                return


async def _stop_on_end_of_input(scope: trio.CancelScope) -> None:
    # A thread, and not a non-blocking descriptor: that would change the parent's end of a shared terminal.
    # And os.read, not sys.stdin: an abandoned thread would hold its lock when the interpreter ends.
    while await trio.to_thread.run_sync(os.read, _STDIN, 4096, abandon_on_cancel=True):
        pass
    scope.cancel()


def _request_parent_death_signal() -> int:
    """Let the kernel tell the parent's death: its end of our input may outlive it. Return its id."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _PARENT_DIED, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    return parent


if __name__ == "__main__":
    main()
