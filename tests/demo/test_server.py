"""The demo ledger as a process: how it starts, what it says, how it ends, how it is served."""

import os
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import trio
import trustme

from attachfs.demo.app import create_app
from attachfs.demo.server import serve
from attachfs.demo.spawn import DemoServer, spawn_server
from attachfs.demo.store import Store


def get(server: DemoServer, path: str, **headers: str) -> httpx.Response:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        return client.get(path, headers=headers)


def test_the_token_file_is_private_and_accepted(tmp_path: Path) -> None:
    file = tmp_path / "token.txt"
    file.write_text("left over")
    file.chmod(0o644)
    with spawn_server(["--empty", "--token-file", str(file)]) as server:
        assert server.token_file == file
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        name, _, value = file.read_text().rstrip("\n").partition(": ")
        assert name == "Authorization"
        assert get(server, "/archivist/v2/assets").status_code == 401
        assert get(server, "/archivist/v2/assets", **{name: value}).status_code == 200


def test_the_child_ends_with_the_block_and_cleans_up(tmp_path: Path) -> None:
    with spawn_server(["--empty", "--no-auth", "--data", str(tmp_path / "d")]) as server:
        assert get(server, "/archivist/v2/assets").json() == {"assets": [], "next_page_token": ""}
        assert server.requests()["counts"] == {"assets": 1}
        server.reset()
        assert server.requests()["counts"] == {}
        assert server.story == {}
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_child_that_cannot_start_is_reported() -> None:
    with pytest.raises(RuntimeError, match="exit status"), spawn_server(["--no-such-option"]):
        pass


def test_the_child_outlives_the_thread_that_started_it() -> None:
    servers: list[DemoServer] = []
    started = threading.Event()
    manager = spawn_server(["--empty", "--no-auth"])

    def start() -> None:
        servers.append(manager.__enter__())
        started.set()

    thread = threading.Thread(target=start)
    thread.start()
    assert started.wait(30)
    thread.join()
    try:
        # The kernel told the child that the thread has gone; it is to see that its parent has not.
        for _ in range(20):
            assert servers[0].requests()["log"] == []
    finally:
        manager.__exit__(None, None, None)


def test_the_child_dies_with_a_killed_parent() -> None:
    script = (
        "import sys\nfrom attachfs.demo.spawn import spawn_server\n"
        "with spawn_server(['--empty']) as server:\n    print(server.pid, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_root()
    ) as parent:
        assert parent.stdout is not None
        descriptor = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.send_signal(signal.SIGKILL)
            assert _ends(descriptor)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: int) -> None:
    command = [sys.executable, "-m", "attachfs.demo.server", "--empty", "--die-with-stdin"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=_root()) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b'{"url": "http://127.0.0.1:')
        process.send_signal(number)
        _, messages = process.communicate(timeout=10)
        assert (process.returncode, messages) == (0, b"")


def _root() -> Path:
    return Path(__file__).parents[2]


def _ends(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 10)[0])


async def test_the_demo_ledger_serves_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    app = create_app(Store(tmp_path / "blobs"), require_auth=False)
    async with trio.open_nursery() as nursery:
        pem = tmp_path / "both.pem"
        url: str = await nursery.start(
            lambda task_status: serve(app, tls_cert=pem, tls_key=pem, task_status=task_status)
        )
        assert url.startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(base_url=url, verify=context, trust_env=False, http2=True) as client:
            for _ in range(3):
                assert (await client.get("/archivist/v2/assets")).json()["assets"] == []
        nursery.cancel_scope.cancel()


async def test_a_large_blob_arrives_whole_over_a_kept_connection(tmp_path: Path) -> None:
    content = os.urandom(9 << 20)
    store = Store(tmp_path / "blobs")
    blob = store.add_blob(content)
    app = create_app(store, require_auth=False)
    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve, app)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            ports = set()
            for wanted, status in (({}, 200), ({"Range": "bytes=4000000-8000000"}, 206), ({}, 200)):
                answer = await client.get(f"/archivist/v1/blobs/{blob.id}", headers=wanted)
                assert answer.status_code == status
                assert answer.content == (content[4_000_000:8_000_001] if wanted else content)
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
            assert len(ports) == 1
            head = await client.head(f"/archivist/v1/blobs/{blob.id}")
            assert (head.content, head.headers["content-length"]) == (b"", str(len(content)))
        nursery.cancel_scope.cancel()


async def test_answers_can_be_held_back(tmp_path: Path) -> None:
    app = create_app(Store(tmp_path / "blobs"), require_auth=False, delay=0.05)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as client:
        start = trio.current_time()
        await client.get("/archivist/v2/assets")
        assert trio.current_time() - start >= 0.05


async def test_a_client_that_leaves_disturbs_nobody(tmp_path: Path) -> None:
    store = Store(tmp_path / "blobs")
    blob = store.add_blob(bytes(32 << 20))
    app = create_app(store, require_auth=False)
    async with trio.open_nursery() as nursery:
        url: str = await nursery.start(serve, app)
        port = int(url.rpartition(":")[2])
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as rude:
                rude.sendall(f"GET /archivist/v1/blobs/{blob.id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await trio.to_thread.run_sync(rude.recv, 1000)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            assert len((await client.get(f"/archivist/v1/blobs/{blob.id}")).content) == 32 << 20
        nursery.cancel_scope.cancel()
