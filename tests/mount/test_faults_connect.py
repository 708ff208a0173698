"""Faults of the connection: TLS, names, ports and proxies. Each in a mount that goes on when it is gone."""

import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from tests.mount.lane import Lane, lane
from tests.services.faulty_ledger import TOKEN, Case, Ledger, serving, status

TIMEOUT = 2
SLACK = 4


def errno_of(path: Path) -> tuple[int, float]:
    """Return the errno with which `stat` fails, and the seconds it took."""
    began = time.monotonic()
    with pytest.raises(OSError, match="Errno") as caught:
        path.stat()
    return caught.value.errno or -1, time.monotonic() - began


def fails_and_heals(mounted: Lane, case: Case, told: str, number: int = errno.EHOSTUNREACH) -> None:
    """Look at one failure and its one log line. Healing is up to the caller."""
    found, took = errno_of(mounted.point / case.path)
    assert errno.errorcode[found] == errno.errorcode[number]
    assert took < TIMEOUT + SLACK
    lines = mounted.log.wait_until_told(case.asset)  # what mounting itself met has been told already
    assert len(lines) == 1
    assert told in lines[0]
    assert mounted.mounted.status()["requests"]["in_flight"] == 0


@dataclass
class Authorities:
    ours: trustme.CA
    foreign: trustme.CA
    ca_file: Path


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    ours = trustme.CA()
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ours.cert_pem.write_to_path(ca_file)
    return Authorities(ours, trustme.CA(), ca_file)


def context_of(issued: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


@contextmanager
def tls_mount(
    tmp_path: Path, authorities: Authorities, context: ssl.SSLContext
) -> Iterator[tuple[Lane, ssl.SSLContext]]:
    """Mount a ledger that speaks TLS with this certificate; also return the good context."""
    good = context_of(authorities.ours.issue_cert("127.0.0.1"))
    with (
        serving({TOKEN}, context) as ledger,
        lane(tmp_path, f"--timeout={TIMEOUT}", f"--ca-file={authorities.ca_file}", ledger=ledger) as mounted,
    ):
        yield mounted, good


PAST = datetime(2020, 1, 1, tzinfo=UTC)
CERTIFICATES = ("expired", "for another host", "self-signed", "of an authority nobody knows")


def certificate(name: str, authorities: Authorities) -> trustme.LeafCert:
    return {
        "expired": lambda: authorities.ours.issue_cert("127.0.0.1", not_after=PAST),
        "for another host": lambda: authorities.ours.issue_cert("elsewhere.example"),
        "self-signed": lambda: trustme.CA().issue_cert("127.0.0.1"),
        "of an authority nobody knows": lambda: authorities.foreign.issue_cert("127.0.0.1"),
    }[name]()


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_that_cannot_be_trusted_makes_the_ledger_unreachable(
    name: str, tmp_path: Path, authorities: Authorities
) -> None:
    context = context_of(certificate(name, authorities))
    with tls_mount(tmp_path, authorities, context) as (mounted, good):
        case = mounted.fresh()
        fails_and_heals(mounted, case, "TLS: the certificate is refused")
        assert not mounted.ledger.seen  # nothing was sent, and a refused certificate is not tried again
        mounted.ledger.context = good
        mounted.serves_a_good_file(case)


def test_an_old_tls_version_is_refused(tmp_path: Path, authorities: Authorities) -> None:
    context = context_of(authorities.ours.issue_cert("127.0.0.1"))
    context.set_ciphers("AES128-SHA256")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tls_mount(tmp_path, authorities, context) as (mounted, good):
        case = mounted.fresh()
        fails_and_heals(mounted, case, "TLS: ")
        mounted.ledger.context = good
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH,))


def test_plain_http_on_the_tls_port_makes_the_ledger_unreachable(
    tmp_path: Path, authorities: Authorities
) -> None:
    good = context_of(authorities.ours.issue_cert("127.0.0.1"))
    with (
        serving({TOKEN}) as ledger,
        lane(
            tmp_path,
            f"--timeout={TIMEOUT}",
            f"--ca-file={authorities.ca_file}",
            ledger=ledger,
            url=f"https://127.0.0.1:{ledger.port}",
        ) as mounted,
    ):
        case = mounted.fresh()
        # A server that speaks HTTP waits for a line of it: the handshake's bytes are none.
        fails_and_heals(mounted, case, "cannot connect")
        ledger.context = good
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH,))


def test_tls_on_the_plain_port_is_a_bad_answer(tmp_path: Path, authorities: Authorities) -> None:
    with (
        serving({TOKEN}, context_of(authorities.ours.issue_cert("127.0.0.1"))) as ledger,
        lane(
            tmp_path, f"--timeout={TIMEOUT}", ledger=ledger, url=f"http://127.0.0.1:{ledger.port}"
        ) as mounted,
    ):
        case = mounted.fresh()
        fails_and_heals(mounted, case, "broke", errno.EIO)
        ledger.context = None
        mounted.serves_a_good_file_soon((errno.EIO, errno.EHOSTUNREACH))


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, authorities: Authorities) -> None:
    context = context_of(authorities.ours.issue_cert("127.0.0.1"))
    with (
        serving() as plain,
        tls_mount(tmp_path, authorities, context) as (mounted, _),
    ):
        case = mounted.fresh()
        plain.cases = mounted.ledger.cases
        mounted.ledger.scripts["info", case.asset] = lambda x: x.reply(
            302, b"", ("Location", f"{plain.url}{x.target}")
        )
        fails_and_heals(mounted, case, "from https to http, which is refused", errno.EIO)
        assert not plain.seen
        assert mounted.ledger.count("info", case) == 1
        mounted.serves_a_good_file()


def test_a_redirect_from_http_to_https_loses_the_token(tmp_path: Path, authorities: Authorities) -> None:
    context = context_of(authorities.ours.issue_cert("127.0.0.1"))
    with (
        serving(None, context) as secure,
        lane(tmp_path, f"--timeout={TIMEOUT}", f"--ca-file={authorities.ca_file}") as mounted,
    ):
        case = mounted.fresh()
        secure.cases = mounted.ledger.cases
        mounted.ledger.scripts["blob", case.asset] = lambda x: x.reply(
            308, b"", ("Location", f"{secure.url}{x.target}")
        )
        assert (mounted.point / case.path).read_bytes() == case.content
        assert [seen.authorization for seen in secure.seen] == [""]


# -- names -----------------------------------------------------------------------------------------

# The resolver as the mount sees it, bent from outside: while `broken` is there no name is known; while
# `slow`, a FIFO, is there, answers wait until somebody writes into it.
RESOLVER = """
import os, pathlib, socket
here = pathlib.Path(__file__).parent
real = socket.getaddrinfo
def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    if host in ("ledger.example", b"ledger.example") and not flags & socket.AI_NUMERICHOST:
        if (here / "broken").exists():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if (here / "slow").exists():
            with open(here / "slow", "rb") as gate:
                gate.read()
        host = "127.0.0.1"
    return real(host, port, family, type, proto, flags)
socket.getaddrinfo = getaddrinfo
"""


@contextmanager
def named(tmp_path: Path, *faults: str) -> Iterator[tuple[Lane, Path]]:
    """Mount a ledger by a name, with a resolver that a test can bend."""
    bent = tmp_path / "resolver"
    bent.mkdir()
    (bent / "sitecustomize.py").write_text(RESOLVER)
    if "broken" in faults:
        (bent / "broken").touch()
    if "slow" in faults:
        os.mkfifo(bent / "slow")
    with (
        serving({TOKEN}) as ledger,
        lane(
            tmp_path,
            f"--timeout={TIMEOUT}",
            "--insecure-http",
            ledger=ledger,
            url=f"http://ledger.example:{ledger.port}",
            environ={"PYTHONPATH": str(bent), "NO_PROXY": "*"},
        ) as mounted,
    ):
        yield mounted, bent


def test_a_host_name_that_nobody_knows_is_unreachable(tmp_path: Path) -> None:
    with named(tmp_path, "broken") as (mounted, bent):
        fails_and_heals(mounted, mounted.fresh(), "the host's name is not known")
        assert not mounted.ledger.seen
        (bent / "broken").unlink()
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH,))


def test_a_resolver_that_does_not_answer_is_given_up_in_time(tmp_path: Path) -> None:
    with named(tmp_path, "slow") as (mounted, bent):
        fails_and_heals(mounted, mounted.fresh(), "cannot connect: no answer")
        gate = os.open(bent / "slow", os.O_RDWR)  # lets those who wait open it
        (bent / "slow").unlink()
        os.close(gate)  # and read it to its end
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH,))


# -- ports -----------------------------------------------------------------------------------------


def test_a_closed_port_is_unreachable(tmp_path: Path) -> None:
    with lane(tmp_path, f"--timeout={TIMEOUT}") as mounted:
        mounted.serves_a_good_file()
        mounted.ledger.stop()
        fails_and_heals(mounted, mounted.fresh(), "Connection refused")
        mounted.ledger.start()
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH,))


def test_a_host_that_swallows_packets_is_given_up_in_time(tmp_path: Path) -> None:
    """A backlog that is full drops what would begin a connection."""
    with ExitStack() as stack, lane(tmp_path, f"--timeout={TIMEOUT}") as mounted:
        mounted.serves_a_good_file()
        mounted.ledger.stop()
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind(("127.0.0.1", mounted.ledger.port))
        full.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        fails_and_heals(mounted, mounted.fresh(), "cannot connect: no answer")
        stack.close()
        mounted.ledger.start()
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH,))


def test_a_proxy_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as port:
        proxy = f"http://127.0.0.1:{port.getsockname()[1]}"
    environ = {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
    with lane(tmp_path, f"--timeout={TIMEOUT}", environ=environ) as mounted:
        fails_and_heals(mounted, mounted.fresh(), "Connection refused")
        assert not mounted.ledger.seen


def test_a_proxy_is_used_and_what_it_refuses_is_told(tmp_path: Path) -> None:
    proxied = Ledger(None)
    proxied.everything = status(407)
    proxied.start()
    environ = {"HTTP_PROXY": proxied.url, "http_proxy": proxied.url, "NO_PROXY": "", "no_proxy": ""}
    try:
        with lane(tmp_path, f"--timeout={TIMEOUT}", environ=environ) as mounted:
            fails_and_heals(mounted, mounted.fresh(), "answered 407", errno.EIO)
            assert proxied.seen[0].target.startswith(f"{mounted.ledger.url}/archivist/v2/")
            assert not mounted.ledger.seen
    finally:
        proxied.stop()
