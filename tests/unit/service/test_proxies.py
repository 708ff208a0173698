"""Which proxy a request goes through: the cases of which curl and Go agree."""

import pytest

from attachfs.errors import UsageError
from attachfs.service.proxies import Proxies

PROXY = "http://proxy.example:3128"


def is_direct(exceptions: str, host: str, port: int | None = None, scheme: str = "https") -> bool:
    return Proxies({"ALL_PROXY": PROXY, "NO_PROXY": exceptions}).url_for(scheme, host, port) is None


@pytest.mark.parametrize(
    ("exceptions", "host"),
    [
        ("*", "ledger.example"),
        ("ledger.example", "ledger.example"),
        ("LEDGER.example", "Ledger.Example"),
        ("ledger.example", "ledger.example."),
        ("ledger.example.", "ledger.example"),
        ("example", "ledger.example"),
        (".example", "ledger.example"),
        ("*.example", "ledger.example"),
        ("other.test, ledger.example", "ledger.example"),
        ("other.test ledger.example", "ledger.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.1.2.3/8", "10.200.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("2001:db8::/32", "2001:db8:1::7"),
        ("[2001:db8::]/32", "2001:db8:1::7"),
        ("fe80::/10", "fe80::1%eth0"),
        ("[fd00::1", "fd00::1"),
        ("999.0.0.1, 10.0.0.0/99, ledger.example", "ledger.example"),
    ],
)
def test_hosts_that_are_asked_directly(exceptions: str, host: str) -> None:
    assert is_direct(exceptions, host)


@pytest.mark.parametrize(
    ("exceptions", "host"),
    [
        ("", "ledger.example"),
        (",, ,", "ledger.example"),
        ("ledger.example", "notledger.example"),
        ("edger.example", "ledger.example"),
        ("10.0.0.0/8", "11.0.0.1"),
        ("0.0.1", "127.0.0.1"),  # an address has no domain
        ("10.0.0.0/8", "ledger.example"),  # names are not resolved for this
        ("10.0.0.0/99", "10.0.0.1"),
        ("::/0", "127.0.0.1"),
        ("0.0.0.0/0", "::1"),
        ("2001:db8::/32", "2001:db9::1"),
    ],
)
def test_hosts_that_are_asked_through_the_proxy(exceptions: str, host: str) -> None:
    assert not is_direct(exceptions, host)


@pytest.mark.parametrize(
    ("exceptions", "host"),
    [
        ("ledger.example:8443", "ledger.example"),
        ("example:8443", "ledger.example"),
        ("127.0.0.1:8443", "127.0.0.1"),
        ("[::1]:8443", "::1"),
    ],
)
def test_an_exception_with_a_port_is_for_that_port_only(exceptions: str, host: str) -> None:
    assert is_direct(exceptions, host, 8443)
    assert not is_direct(exceptions, host, 8444)
    assert not is_direct(exceptions, host)


def test_a_port_that_is_not_said_is_the_scheme_s_own() -> None:
    assert is_direct("ledger.example:443", "ledger.example", scheme="https")
    assert not is_direct("ledger.example:443", "ledger.example", scheme="http")
    assert is_direct("ledger.example:80", "ledger.example", scheme="http")


def test_the_scheme_s_own_proxy_goes_before_the_one_for_all_and_lower_case_before_upper() -> None:
    environ = {
        "ALL_PROXY": "http://all.test:1",
        "HTTPS_PROXY": "http://upper.test:2",
        "https_proxy": "http://lower.test:3",
    }
    assert Proxies(environ).url_for("https", "ledger.example", None) == "http://lower.test:3"
    assert Proxies(environ).url_for("http", "ledger.example", None) == "http://all.test:1"
    assert Proxies({**environ, "https_proxy": ""}).url_for("https", "x.test", None) == "http://all.test:1"


def test_a_proxy_without_a_scheme_is_spoken_to_in_http() -> None:
    assert (
        Proxies({"http_proxy": "proxy:3128"}).url_for("http", "ledger.example", None) == "http://proxy:3128"
    )


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4a"])
def test_socks_is_refused_where_it_would_be_needed_and_no_matter_elsewhere(scheme: str) -> None:
    proxies = Proxies({"ALL_PROXY": f"{scheme}://127.0.0.1:1080", "NO_PROXY": "ledger.example,10.0.0.0/8"})
    assert proxies.url_for("https", "ledger.example", None) is None
    assert proxies.url_for("https", "10.9.8.7", 8443) is None
    with pytest.raises(UsageError, match=r"ALL_PROXY .* SOCKS is not supported; .* NO_PROXY"):
        proxies.url_for("https", "elsewhere.example", None)


@pytest.mark.parametrize(
    "value",
    ["http://", "http://proxy:0", "http://proxy:99999", "http://[::1", "ftp://proxy", "http://pröxy", "a\tb"],
)
def test_a_proxy_that_cannot_be_one_is_named_with_its_variable(value: str) -> None:
    with pytest.raises(UsageError, match="HTTPS_PROXY in the environment cannot be used as a proxy"):
        Proxies({"HTTPS_PROXY": value}).url_for("https", "ledger.example", None)
