"""Which proxy a request goes through, from the environment as curl and Go read it.

Owns: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case (the lower one wins).
"""

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from attachfs.errors import UsageError

_SCHEMES = ("http", "https")  # SOCKS would need another library
_DEFAULT_PORTS = {"http": 80, "https": 443}


class _Exception(NamedTuple):
    """One entry of NO_PROXY. An empty host stands for all; `network` for an address or a block of them."""

    host: str
    port: int | None
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None


class Proxies:
    """The environment's proxies, and the hosts they are not for.

    Args:
        environ: the environment.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        entries = self._variable("no_proxy")[1].replace(",", " ").split()
        self._direct = [_entry(text) for text in entries]

    def url_for(self, scheme: str, host: str, port: int | None) -> str | None:
        """Return the address of the proxy for a host, None if it is asked directly.

        Args:
            scheme: http or https.
            host: a name or an address, without brackets.
            port: None for the scheme's own.

        Raises:
            UsageError: the proxy's address cannot be used.
        """
        found = self._chosen(scheme, host, port)
        return None if found is None else _checked(*found)

    def variable_for(self, url: str) -> str:
        """Return the name of the variable that has a proxy used for an address, "" if none is used."""
        parts = urlsplit(url)
        found = self._chosen(parts.scheme, parts.hostname or "", parts.port)
        return "" if found is None else found[0]

    def _chosen(self, scheme: str, host: str, port: int | None) -> tuple[str, str] | None:
        if self._is_direct(host.rstrip(".").lower(), port or _DEFAULT_PORTS.get(scheme, 0)):
            return None
        for variable in (f"{scheme}_proxy", "all_proxy"):
            name, value = self._variable(variable)
            if value:
                return name, value
        return None

    def _variable(self, name: str) -> tuple[str, str]:
        for spelling in (name, name.upper()):
            if (value := self._environ.get(spelling)) is not None:
                return spelling, value.strip()
        return name, ""

    def _is_direct(self, host: str, port: int) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            address = None
        for one in self._direct:
            if one.port not in (None, port):
                continue
            if one.network is not None:
                if address is not None and address in one.network:
                    return True
            elif not one.host or host == one.host or (address is None and host.endswith(f".{one.host}")):
                return True
        return False


def _entry(text: str) -> _Exception:
    """Return what an entry of NO_PROXY stands for. One that makes no sense matches nothing."""
    text = text.lower()
    if text == "*":
        return _Exception("", None, None)
    host, port = text, None
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest.startswith("/"):
            host += rest
        elif rest.startswith(":") and rest[1:].isdecimal():
            port = int(rest[1:])
    elif text.count(":") == 1 and text.rpartition(":")[2].isdecimal():
        host, _, digits = text.partition(":")
        port = int(digits)
    try:
        return _Exception("-", port, ipaddress.ip_network(host, strict=False))
    except ValueError:
        return _Exception(host.removeprefix("*").strip(".") or "-", port, None)


def _checked(name: str, value: str) -> str:
    url = value if "://" in value else f"http://{value}"
    problem = f"{name} in the environment cannot be used as a proxy: "
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable()
    except ValueError:
        usable = False
        parts = urlsplit("")
    if usable and parts.scheme.startswith("socks"):
        raise UsageError(
            f"{problem}SOCKS is not supported; give an HTTP proxy, or name the ledger's host in NO_PROXY"
        )
    if not usable or parts.scheme not in _SCHEMES:
        raise UsageError(f"{problem}it must look like http://host:port")
    return url
