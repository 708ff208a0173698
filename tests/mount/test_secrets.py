"""Whole runs at debug level, with all that goes wrong with credentials; then a search for them.

Everything the program wrote, showed or passed on is looked through for the token and the secret: as they
are, in base64, and percent-encoded.
"""

import base64
import contextlib
import json
import os
import select
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from tests.mount.conftest import ENDS_WITHIN
from tests.services.faulty_ledger import Case, Exchange, Ledger, body, serving, status

pytestmark = pytest.mark.slow

# Words that nothing else contains, of characters that each encoding shows differently.
TOKEN = "eyJhbGciOiJub25lIn0.ZmF1bHR5LXRva2VuLW9mLXRoZS1sZWRnZXI.c2lnbmVk-_~+/9Qz=="
RENEWED = "UmVuZXdlZC10b2tlbi1vZi10aGUtbGVkZ2Vy.bXVjaC1sb25nZXI.dGhhbi10aGF0-_~+/=="
SECRET = "s3cr3t-of/the+client~under_test=="
FETCHED = "RmV0Y2hlZC10b2tlbi1mb3ItdGhlLWNsaWVudA.aXMtZ29vZA.Zm9yLWEtd2hpbGU-_~+/=="
PASSWORD = "h0rse-battery-staple"


def spellings(secret: str) -> list[bytes]:
    """Return what a secret may look like in what somebody wrote."""
    raw = secret.encode()
    found = {raw, raw.rstrip(b"="), quote(secret).encode(), quote(secret, safe="").encode()}
    found |= {
        raw.hex().encode(),
        raw[::-1],
        json.dumps(secret)[1:-1].encode(),
        secret[: len(secret) // 2].encode(),
    }
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in (b"", b"x", b"xx", b"Bearer ", b"bearer-client:"):
            # What stands before it shifts the groups of three; the ends depend on what is beside it.
            found.add(encode(before + raw)[8 + len(before) : -8])
    return sorted(found)


@dataclass
class Run:
    """A mount as a process, and everything it wrote and showed."""

    base: Path
    point: Path
    process: subprocess.Popen[bytes]
    evidence: dict[str, bytes] = field(default_factory=lambda: {"stderr": b"", "stdout": b""})

    def note(self, name: str, what: bytes) -> None:
        self.evidence[name] = self.evidence.get(name, b"") + what

    def sh(self, command: str) -> None:
        """Run programs on the mount; what they say is noted."""
        ended = subprocess.run(
            ["bash", "-c", command], cwd=self.point, capture_output=True, timeout=60, check=False
        )
        self.note("what programs said", ended.stdout + ended.stderr)

    def look(self) -> None:
        """Note what others can see of the process, and what it tells of itself."""
        for name in ("cmdline", "comm", "mountinfo", "maps"):
            self.note(f"/proc {name}", Path(f"/proc/{self.process.pid}/{name}").read_bytes())
        children = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "args", "e"], capture_output=True, check=False
        )
        self.note("the children's arguments and environment", children.stdout)
        with contextlib.suppress(OSError):
            self.note("status", os.getxattr(self.point, "user.attachfs.status"))
        self.sh("timeout 30 getfattr -R -d -m - . ; timeout 30 getfattr -n user.attachfs.status .")


@contextlib.contextmanager
def run(base: Path, ledger: Ledger, *options: str, **environ: str) -> Iterator[Run]:
    """Mount with everything logged, to stderr and to a file; look through it at the end."""
    point = base / "mnt"
    point.mkdir()
    private = dict.fromkeys(("DATATRAILS_CLIENT_ID", "DATATRAILS_CLIENT_SECRET"))
    inherited = {name: text for name, text in os.environ.items() if name not in private}
    process = subprocess.Popen(
        [
            *(sys.executable, "-X", "dev", "-m", "attachfs", "mount", "-f", "--log-level=debug"),
            *(f"--url={ledger.url}", f"--cache-dir={base / 'cache'}", "--timeout=2", "--negative-ttl=0"),
            *(*options, str(point)),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**inherited, "XDG_STATE_HOME": str(base / "state"), "HOME": str(base), **environ},
    )
    one = Run(base, point, process)

    def listen(stream: "subprocess.IO[bytes]", name: str) -> None:  # type: ignore[name-defined]
        for line in stream:
            one.note(name, line)

    listeners = [
        threading.Thread(target=listen, args=(stream, name))
        for stream, name in ((process.stderr, "stderr"), (process.stdout, "stdout"))
    ]
    for listener in listeners:
        listener.start()
    try:
        wait_for_mount(one)
        yield one
    finally:
        process.terminate()
        try:
            process.wait(ENDS_WITHIN)
        finally:
            process.kill()
            for listener in listeners:
                listener.join(ENDS_WITHIN)
            for stream in (process.stderr, process.stdout):
                assert stream is not None
                stream.close()


def holds_no_secret(one: Run, *kept: Path, secrets: tuple[str, ...]) -> None:
    """Search everything but the files that the secrets are kept in."""
    for path in sorted(one.base.rglob("*")):
        if path.is_file() and path not in kept:
            one.note(f"the file {path.relative_to(one.base)}", path.read_bytes())
        one.note("file names", str(path).encode() + b"\n")
    assert {"stderr", "status", "/proc cmdline"} <= set(one.evidence)
    assert sum(name.startswith("the file state/") for name in one.evidence) >= 1
    for name, text in one.evidence.items():
        for secret in secrets:
            for spelling in spellings(secret):
                assert spelling not in text, f"{name} holds a secret"


def raw(data: bytes) -> Callable[[Exchange], None]:
    def script(x: Exchange) -> None:
        x.send(data)
        x.cut()

    return script


def every_fault(one: Run, ledger: Ledger, elsewhere: Ledger) -> None:
    """Let all go wrong, on every kind of request, that has to do with who is asking."""

    def to(location: str) -> Callable[[Exchange], None]:
        return lambda x: x.reply(302, b"", ("Location", location), ("Set-Cookie", "s=1"))

    def quoting(code: int) -> Callable[[Exchange], None]:
        """Give the header back, in the body and in headers."""

        def script(x: Exchange) -> None:
            said = x.headers.get("authorization", "")
            whole = json.dumps({"error": f"bad {said}", "message": said.removeprefix("Bearer ")})
            x.reply(code, whole.encode(), ("X-Echo", said), ("WWW-Authenticate", f'Bearer error="{said}"'))

        return script

    scripts: dict[str, Callable[[Exchange], None]] = {
        "401": status(401),
        "403": status(403),
        "400 that quotes the header": quoting(400),
        "401 that quotes the header": quoting(401),
        "403 that quotes the header": quoting(403),
        "500 that quotes the header": quoting(500),
        "503 that quotes the header": quoting(503),
        "400 that quotes part of the header": lambda x: raw(
            b"HTTP/1.1 400 Bad\r\nContent-Length: 5000\r\n\r\n" + x.headers["authorization"][:-20].encode()
        )(x),
        "to another host": lambda x: x.reply(302, b"", ("Location", f"{elsewhere.url}{x.target}")),
        "to a file": to("file:///etc/passwd"),
        "to an address with a password": to(f"http://me:{PASSWORD}@127.0.0.1/x"),
        "to nowhere": to(""),
        "bad JSON": body(b'{"size": '),
        "a header that is none": raw(b"HTTP/1.1 200 OK\r\n\x00\x01: \xff\r\n\r\n"),
        "reset": Exchange.reset,
        "stall": Exchange.stall,
        "429": lambda x: x.reply(429, b"", ("Retry-After", "0")) if x.number == 1 else x.serve(),
    }
    for name, script in scripts.items():
        for kind, operation in (
            ("events", "ls {0.events}"),
            ("info", "stat {0.path}; getfattr -d {0.path}"),
            ("blob", "cat {0.path}"),
        ):
            case = ledger.add(Case(f"{name} {kind}"), **{kind: script})
            one.sh(operation.format(case))
            one.sh(f"cat {ledger.add(Case(f'good {name} {kind}')).path} | sha256sum")
    assert not any(seen.authorization for seen in elsewhere.seen)


GARBAGE = {
    "two lines": f"{RENEWED}\n{RENEWED}\n",
    "a newline inside": f"{RENEWED[:30]}\n{RENEWED[30:]}",
    "a carriage return inside": f"{RENEWED[:30]}\r{RENEWED[30:]}",
    "a NUL inside": f"{RENEWED[:30]}\0{RENEWED[30:]}",
    "a blank inside": f"{RENEWED[:30]} {RENEWED[30:]}",
    "quotes around it": f'"{RENEWED}"',
    "JSON": json.dumps({"access_token": RENEWED}),
    "an accent": f"é{RENEWED}",
    "a curl command": f"curl -H 'Authorization: Bearer {RENEWED}'",
    "too much of it": RENEWED * 1000,
    "another scheme": f"Basic {RENEWED}",
}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_shows_the_token_of_a_token_file(log_format: str, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(f"Authorization: Bearer {TOKEN}\n")
    log_file = tmp_path / "log"
    with serving({TOKEN}) as ledger, serving() as elsewhere:
        elsewhere.cases = ledger.cases
        ledger.listed = [ledger.add(Case("listed"))]
        options = [f"--token-file={token_file}", f"--log-format={log_format}"]
        if log_format == "json":
            options.append(f"--log-file={log_file}")
        with run(tmp_path, ledger, *options) as one:
            one.sh("find . -ls")
            one.look()
            every_fault(one, ledger, elsewhere)
            # The file is spoilt in every way; then renewed, and spoilt once more, which a reload meets.
            for n, (name, text) in enumerate(GARBAGE.items()):
                ledger.accepted = {RENEWED}
                token_file.write_text(text)
                one.sh(f"ls {ledger.add(Case(f'spoilt {n} {name}')).events}")
            token_file.chmod(0o644)
            one.sh(f"ls {ledger.add(Case('open to all')).events}")
            token_file.chmod(0o600)
            token_file.write_text(RENEWED)
            one.sh(f"cat {ledger.add(Case('renewed')).path} | sha256sum")
            token_file.write_text(GARBAGE["a newline inside"])
            one.process.send_signal(signal.SIGHUP)
            one.process.send_signal(signal.SIGUSR1)
            one.sh("ls -R .")
            one.look()
        tell = one.evidence["stderr"] + (log_file.read_bytes() if log_file.exists() else b"")
        assert tell.count(b"events") > 10
        assert b"[hidden]" in tell
        assert one.process.returncode == 0
        holds_no_secret(one, token_file, secrets=(TOKEN, RENEWED, PASSWORD))


def wait_for_mount(one: Run) -> None:
    """Wait until the kernel tells that it is there: the log may go elsewhere."""
    with Path("/proc/self/mountinfo").open() as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI | select.POLLERR)
        while f" {one.point} " not in Path("/proc/self/mountinfo").read_text():
            assert one.process.poll() is None
            changes.poll(1000)
    os.statvfs(one.point)


TOKEN_FAULTS: dict[str, Callable[[Exchange], None]] = {
    "401": lambda x: x.reply(401, b'{"error":"invalid_client","error_description":"' + x.body + b'"}'),
    "400 that quotes the form": lambda x: x.reply(400, x.body),
    "500 that quotes the form": lambda x: x.reply(500, b"<p>" + x.body),
    "a redirect": lambda x: x.reply(302, b"", ("Location", "http://127.0.0.1:9/?" + x.body.decode())),
    "bad JSON with a token": body(f'{{"access_token": "{FETCHED}", '.encode()),
    "a token with a newline": body(json.dumps({"access_token": f"{FETCHED}\n"}).encode()),
    "a token that is a list": body(json.dumps({"access_token": [FETCHED]}).encode()),
    "a token of another type": body(json.dumps({"access_token": FETCHED, "token_type": "mac"}).encode()),
    "a reset": Exchange.reset,
    "429": status(429),
}


@pytest.mark.parametrize("where", ["a file", "the environment"])
def test_nothing_shows_the_secret_of_a_client(where: str, tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.touch(mode=0o600)
    secret_file.write_text(f"{SECRET}\n")
    with serving({FETCHED}) as ledger, serving() as elsewhere:
        elsewhere.cases = ledger.cases

        def good(x: Exchange) -> None:
            x.json({"access_token": FETCHED, "token_type": "Bearer", "expires_in": 3600})

        ledger.scripts["token", ""] = good
        options = ["--client-id=tester"]
        environ = {}
        if where == "a file":
            options.append(f"--client-secret-file={secret_file}")
        else:
            environ["DATATRAILS_CLIENT_SECRET"] = SECRET
        with run(tmp_path, ledger, *options, **environ) as one:
            one.sh(f"cat {ledger.add(Case('first')).path} | sha256sum")
            one.look()
            every_fault(one, ledger, elsewhere)
            for name, script in TOKEN_FAULTS.items():
                ledger.scripts["token", ""] = script
                before = ledger.count("token")
                one.process.send_signal(signal.SIGHUP)  # asks for another token at once
                ledger.wait_for(lambda before=before: ledger.count("token") > before)  # type: ignore[misc]
                one.sh(f"cat {ledger.add(Case(f'with {name}')).path} | sha256sum")
            ledger.accepted = set()  # the token at hand is refused, and another cannot be had
            ledger.scripts["token", ""] = status(401)
            one.sh(f"cat {ledger.add(Case('refused')).path} | sha256sum")
            ledger.scripts["token", ""] = good
            ledger.accepted = {FETCHED}
            one.sh("ls -R .")
            one.look()
        assert one.process.returncode == 0
        told = one.evidence["stderr"]
        assert b"the token endpoint: the client ID or secret is wrong (401)" in told
        assert b"holds no usable token" in told
        assert b"[hidden]" in told
        # The secret went to the token endpoint, in the form's body, and nowhere else.
        holds_no_secret(one, secret_file, secrets=(SECRET, FETCHED, PASSWORD))


def test_nothing_shows_the_token_where_tls_fails_or_what_is_there_cannot_be_used(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(f"Bearer {TOKEN}")
    with serving({TOKEN}, context) as ledger:
        with run(tmp_path, ledger, f"--token-file={token_file}") as one:
            one.sh("ls assets; ls assets; ls -R .")
            one.look()
        assert b"TLS: the certificate is refused" in one.evidence["stderr"]
        assert not ledger.seen
        holds_no_secret(one, token_file, secrets=(TOKEN,))


@pytest.mark.parametrize("name", GARBAGE)
def test_a_token_file_that_cannot_be_used_is_told_and_not_shown(name: str, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(GARBAGE[name])
    (tmp_path / "mnt").mkdir()
    ended = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "attachfs",
                "mount",
                "-f",
                "--log-level=debug",
                "--url=http://127.0.0.1:9",
            ),
            *(f"--token-file={token_file}", f"--cache-dir={tmp_path / 'cache'}", str(tmp_path / "mnt")),
        ],
        capture_output=True,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert str(token_file).encode() in ended.stderr
    for spelling in spellings(RENEWED):
        assert spelling not in ended.stdout + ended.stderr
