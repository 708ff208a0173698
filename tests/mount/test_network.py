"""Ways to a ledger that work: IPv6, and the environment's proxy."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from attachfs.demo.spawn import DemoServer, spawn_server
from tests.mount.conftest import run_mount


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")
def test_a_ledger_on_ipv6_is_mounted_and_read(tmp_path: Path) -> None:
    with spawn_server(["--host", "::1", "--token-file", str(tmp_path / "token")]) as server:
        assert urlsplit(server.url).hostname == "::1"
        with run_mount(tmp_path, server=server) as mounted:
            assert (mounted.point / server.story["photo"]).read_bytes().startswith(b"\xff\xd8")


@contextmanager
def forward_proxy(seen: list[str]) -> Iterator[str]:
    """Serve a proxy that passes plain requests on and writes their addresses down."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(self.path)
            target = urlsplit(self.path)
            assert target.hostname is not None
            connection = http.client.HTTPConnection(target.hostname, target.port)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request("GET", f"{target.path}?{target.query}", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", ""))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("exempt", ["", "127.0.0.1"])
def test_the_environments_proxy_is_used_and_no_proxy_heeded(
    ledger: DemoServer, tmp_path: Path, exempt: str
) -> None:
    seen: list[str] = []
    with forward_proxy(seen) as proxy:
        environ = {"http_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": exempt, "NO_PROXY": exempt}
        with run_mount(tmp_path, server=ledger, environ=environ) as mounted:
            assert (mounted.point / ledger.story["photo"]).read_bytes().startswith(b"\xff\xd8")
    assert bool(seen) == (not exempt)
    assert all(one.startswith(ledger.url) for one in seen)
