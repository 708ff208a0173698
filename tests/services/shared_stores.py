"""Real stores for a fleet's shared cache: nginx over TLS, and an S3 server that checks signatures."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import botocore.session
import trustme

_NGINX = """
daemon off; master_process off; pid {base}/nginx.pid; error_log {base}/error.log;
events {{ }}
http {{
    access_log {base}/access.log;
    client_body_temp_path {base}/body; proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
    {server}
}}
"""
_FLEET = Path(__file__).parents[2] / "docs" / "fleet.md"


def _documented_server(base: Path, port: int) -> str:
    """Return the block that docs/fleet.md shows, with the test's own address, files and token."""
    blocks = re.findall(
        r"^    server \{\n.*?^    \}$", _FLEET.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 1
    block: str = blocks[0]
    for shown, here in [
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/nginx/cache.pem", f"{base}/server.pem"),
        ("/srv/attachfs", f"{base}/store"),
        ("CHANGE-ME", "fleet-token"),
    ]:
        assert shown in block, shown
        block = block.replace(shown, here)
    return block


@dataclass
class SharedStore:
    """A store that runs. `options` and `environ` make a mount use it."""

    options: list[str]
    environ: dict[str, str]
    process: subprocess.Popen[bytes]
    objects: Callable[[], dict[str, bytes]]  # by digest
    replace: Callable[[str, bytes], None]

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold the store's process for the block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the store ended"
            assert time.monotonic() < until, "the store does not listen"
            time.sleep(0.02)  # nothing tells when it listens
        else:
            return


@contextlib.contextmanager
def _running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(30)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@contextlib.contextmanager
def run_nginx(base: Path) -> Iterator[SharedStore]:
    """Run nginx over https, with a certificate of a test authority, and a token of the store's own."""
    base.mkdir()
    (base / "store" / "cas").mkdir(parents=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(base / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(base / "server.pem")
    (base / "token").write_text("fleet-token\n")
    (base / "token").chmod(0o600)
    port = free_port()
    (base / "nginx.conf").write_text(_NGINX.format(base=base, server=_documented_server(base, port)))
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([nginx, "-c", base / "nginx.conf", "-p", base, "-e", base / "error.log"])
    store = base / "store" / "cas"
    with _running(process):
        _wait_for(port, process)
        yield SharedStore(
            [
                f"--shared-cache=https://127.0.0.1:{port}/cas/",
                f"--shared-cache-ca-file={base}/ca.pem",
                f"--shared-cache-credentials-file={base}/token",
            ],
            {},
            process,
            lambda: {path.name: path.read_bytes() for path in store.iterdir()},
            lambda name, data: _write(store / name, data),
        )


@contextlib.contextmanager
def run_s3(base: Path) -> Iterator[SharedStore]:
    """Run an S3 server that refuses requests which are not signed with the fleet's keys."""
    base.mkdir()
    port = free_port()
    environ = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "4"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    with _running(process):
        _wait_for(port, process)
        session = botocore.session.Session()
        admin = session.create_client(
            "iam", "us-east-1", endpoint_url=url, aws_access_key_id="any", aws_secret_access_key="any"
        )
        admin.create_user(UserName="fleet")
        keys = admin.create_access_key(UserName="fleet")["AccessKey"]
        policy = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'
        admin.put_user_policy(UserName="fleet", PolicyName="s3", PolicyDocument=policy)
        s3 = session.create_client(
            "s3",
            "us-east-1",
            endpoint_url=url,
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
        )
        s3.create_bucket(Bucket="fleet")

        def objects() -> dict[str, bytes]:
            listed = s3.list_objects_v2(Bucket="fleet").get("Contents", [])
            return {
                one["Key"].rpartition("/")[2]: s3.get_object(Bucket="fleet", Key=one["Key"])["Body"].read()
                for one in listed
            }

        def replace(name: str, data: bytes) -> None:
            s3.put_object(Bucket="fleet", Key=f"evidence/cas/{name}", Body=data)

        yield SharedStore(
            ["--shared-cache=s3://fleet/evidence"],
            {
                "AWS_ENDPOINT_URL_S3": url,
                "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
                "AWS_REGION": "us-east-1",
            },
            process,
            objects,
            replace,
        )
