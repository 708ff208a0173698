"""The table of options: names, defaults, parsers, help."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from attachfs.model import ScanPolicy, Verify
from attachfs.units import parse_min_free, parse_size

DEFAULT_URL = "https://app.datatrails.ai"
LOG_KEY_NAME = "datatrails"  # stands for the published keys among the values of --log-key


# Words that mount(8) and fstab(5) put into -o and that mean nothing to this program.
MOUNT_WORDS = frozenset(
    (
        *("ro", "rw", "auto", "noauto", "nofail", "fail", "_netdev", "defaults", "default_permissions"),
        *("user", "nouser", "users", "nousers", "group", "nogroup", "owner", "noowner"),
        *("exec", "noexec", "dev", "nodev", "suid", "nosuid", "symfollow", "nosymfollow"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime"),
        *("strictatime", "nostrictatime", "lazytime", "nolazytime"),
        *("async", "sync", "dirsync", "iversion", "noiversion", "mand", "nomand", "silent", "loud"),
    )
)


@dataclass(frozen=True)
class Option:
    """One option: its name as on the command line, its parser, and its words in the help."""

    name: str
    parse: Callable[[str], Any]
    help: str
    default: str | None = None
    env: tuple[str, ...] = ()
    metavar: str = "VALUE"
    flag: bool = False
    repeatable: bool = False

    @property
    def key(self) -> str:
        """The name as an identifier, as in `Config` and the TOML file."""
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it, the first one set winning."""
        return (f"ATTACHFS_{self.key.upper()}", *self.env)


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400 * 365:
        raise ValueError(f"{text!r} is not a number of seconds")
    return value


def _timeout(text: str) -> float:
    if not (value := _seconds(text)) >= 1:
        raise ValueError(f"{text!r} is less than a second")
    return value


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _listen_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535 or (colon and not host):
        raise ValueError(f"{text!r} is not [HOST:]PORT, such as 9464 or 0.0.0.0:9464")
    if ":" in host and not bracketed:
        raise ValueError(f"{text!r}: an IPv6 address needs brackets: [::1]:9464")
    return f"{host or '127.0.0.1'}:{port}"


def _id(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) >= 2**32 - 1:
        raise ValueError(f"{text!r} is not a numeric user or group id")
    return int(text)


def _umask(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise ValueError(f"{text!r} is not an octal mask such as 022")
    return int(text, 8) & 0o777


def _bool(text: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if text.lower() not in words:
        raise ValueError(f"{text!r} is neither yes nor no")
    return words[text.lower()]


def parse_path(text: str) -> Path:
    """Return the path; raises ValueError for what cannot be one."""
    if not text or "\0" in text:
        raise ValueError("an empty path")
    return Path(text).expanduser()


def parse_log_keys(text: str) -> tuple[str, ...]:
    """Return the files of trusted keys, separated by colons; `datatrails` stays as it is."""
    names = text.split(":")
    if not all(names) or "\0" in text:
        raise ValueError("an empty path among the files of keys")
    return tuple(name if name == LOG_KEY_NAME else str(parse_path(name)) for name in names)


def _cache_size(text: str) -> int:
    size = parse_size(text)
    if 0 < size < 10_000 and text.strip().isdigit():
        raise ValueError(f"{text!r} is a number of bytes, and too few for a cache; with a unit: {size}G")
    return size


def _printable(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a word of printable ASCII")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}", text):
        raise ValueError(f"{text!r} is not a name of letters, digits, '.', '_' and '-'")
    return text


def _source_name(text: str) -> str:
    # libfuse's binding takes mount options in ASCII only.
    if not text.isascii() or not text.isprintable() or not 0 < len(text) <= 512:
        raise ValueError("not a line of at most 512 printable ASCII characters")
    return text


def _url(text: str) -> str:
    if "@" in text or "?" in text or "#" in text:
        # Not quoted: what stands before an @ may be a password.
        raise ValueError("the address must not hold credentials, a query or a fragment")
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} has an impossible port") from error
    plain = re.fullmatch(r"[!-~]+", text) is not None and "\\" not in text
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{text!r} is not an http or https address such as {DEFAULT_URL}")
    return text.rstrip("/")


def _store_url(text: str) -> str:
    parts = urlsplit(text)
    if "@" in text or "#" in text:
        # Not quoted: what stands before an @ may be a password.
        raise ValueError("the address must not hold credentials; see --shared-cache-credentials-file")
    printable = re.fullmatch(r"[!-~]+", text) is not None
    if printable and parts.scheme in ("http", "https") and parts.hostname and not parts.query:
        return text
    bucket = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", parts.netloc) is not None
    if printable and parts.scheme == "s3" and bucket:
        if parts.query in ("", "style=path", "style=virtual"):
            return text
        raise ValueError(f"{text!r}: the only queries are ?style=path and ?style=virtual")
    raise ValueError(f"{text!r} is neither https://host/cas/ nor s3://bucket/prefix")


OPTIONS: tuple[Option, ...] = (
    Option("url", _url, "The ledger's address.", DEFAULT_URL, ("DATATRAILS_URL",), "URL"),
    Option(
        "token-file",
        parse_path,
        "File with a bearer token, bare or as a whole 'Authorization: Bearer …' line; mode 0600.",
        "~/.datatrails/bearer-token.txt",
        metavar="FILE",
    ),
    Option(
        "client-id",
        _printable,
        "Log in as this application, with the secret in --client-secret-file or $DATATRAILS_CLIENT_SECRET.",
        env=("DATATRAILS_CLIENT_ID",),
        metavar="ID",
    ),
    Option(
        "client-secret-file", parse_path, "File with the application's secret; mode 0600.", metavar="FILE"
    ),
    Option("no-auth", _bool, "Send no credentials: public assets only.", "no", flag=True),
    Option(
        "insecure-http",
        _bool,
        "Send credentials to another host in the clear, by http:// instead of https://.",
        "no",
        flag=True,
    ),
    Option(
        "ca-file",
        parse_path,
        "Trust these certificate authorities (PEM) instead of the system's.",
        metavar="FILE",
    ),
    Option(
        "cache-dir", parse_path, "Where verified bytes are kept. One mount at a time uses it.", metavar="DIR"
    ),
    Option("cache-size", _cache_size, "How much of the disk the cache may use.", "10G", metavar="SIZE"),
    Option(
        "cache-min-free",
        parse_min_free,
        "How much the cache leaves free there (size or percent).",
        "5%",
        metavar="SIZE",
    ),
    Option(
        "verify",
        _choice(*get_args(Verify)),
        "When bytes are served: 'strict', at open, after the whole file is verified; 'stream', as they "
        "arrive, the last part after the whole is verified; 'auto', strict up to --strict-limit, else "
        "stream; 'off', unverified.",
        "auto",
        metavar="|".join(get_args(Verify)),
    ),
    Option(
        "strict-limit", parse_size, "The size up to which --verify=auto is strict.", "32M", metavar="SIZE"
    ),
    Option(
        "scan-policy",
        _choice(*get_args(ScanPolicy)),
        "Which results of the ledger's virus scan let a file open.",
        "block-bad",
        metavar="|".join(get_args(ScanPolicy)),
    ),
    Option("max-connections", _number(1, 1000), "Requests in flight at once.", "32", metavar="N"),
    Option(
        "timeout",
        _timeout,
        "Seconds without progress after which a program gets an error.",
        "60",
        metavar="SECONDS",
    ),
    Option("metadata-ttl", _seconds, "Seconds that names and attributes are kept.", "60", metavar="SECONDS"),
    Option(
        "stale-ttl",
        _seconds,
        "Seconds for which known names and attributes are served while the ledger does not answer.",
        "604800",
        metavar="SECONDS",
    ),
    Option(
        "soft-timeout",
        _seconds,
        "Seconds to wait for an answer before known names and attributes are served instead.",
        "2",
        metavar="SECONDS",
    ),
    Option(
        "offline",
        _bool,
        "Make no requests: show what was seen before, and files in the cache.",
        "no",
        flag=True,
    ),
    Option(
        "archive",
        parse_path,
        "Mount this exported bag instead of a ledger: no requests, no credentials, no cache.",
        metavar="BAG",
    ),
    Option(
        "shared-cache",
        _store_url,
        "Try this store of blobs before the ledger: https://host/cas/ or s3://bucket/prefix. Never trusted.",
        metavar="URL",
    ),
    Option("shared-cache-write", _bool, "Add verified blobs to the shared cache.", "no", flag=True),
    Option(
        "shared-cache-credentials-file",
        parse_path,
        "File with the shared cache's own credentials (http): a token or user:password; mode 0600.",
        metavar="FILE",
    ),
    Option(
        "shared-cache-ca-file",
        parse_path,
        "Certificate authorities (PEM) to trust for the shared cache instead of the system's.",
        metavar="FILE",
    ),
    Option(
        "shared-cache-insecure",
        _bool,
        "Allow plain http to a shared cache on another host.",
        "no",
        flag=True,
    ),
    Option(
        "metrics",
        _listen_address,
        "Serve OpenMetrics for Prometheus here, on this machine only unless HOST says otherwise.",
        metavar="[HOST:]PORT",
    ),
    Option("negative-ttl", _seconds, "Seconds for which absences are remembered.", "5", metavar="SECONDS"),
    Option(
        "allow-other",
        _bool,
        "Let other users read the mount (see user_allow_other in fuse.conf).",
        "no",
        flag=True,
    ),
    Option("uid", _id, "Owner of everything (default: you).", metavar="ID"),
    Option("gid", _id, "Group of everything (default: yours).", metavar="ID"),
    Option("umask", _umask, "Permission bits to take away.", "0", metavar="OCTAL"),
    Option(
        "fsname", _source_name, "What df and mount show as the source (default: the address).", metavar="NAME"
    ),
    Option(
        "log-level",
        _choice("debug", "info", "warning", "error"),
        "How much to log.",
        "info",
        metavar="debug|info|warning|error",
    ),
    Option("log-file", parse_path, "Log here instead of to stderr (-f) or syslog.", metavar="FILE"),
    Option(
        "log-format",
        _choice("text", "json"),
        "Plain text, or one JSON object per line.",
        "text",
        metavar="text|json",
    ),
    Option(
        "log-url",
        _url,
        "Where 'prove' finds transparency logs (default: below the ledger's address).",
        metavar="URL",
    ),
    Option(
        "log-key",
        parse_log_keys,
        "Trust this key (PEM or JWKS) to seal transparency logs; 'datatrails' means the published ones. "
        "Repeatable.",
        metavar="FILE",
        repeatable=True,
    ),
    Option(
        "custody-log",
        parse_path,
        "Record here who opens which attachment; each line holds the hash of the one before.",
        metavar="FILE",
    ),
    Option(
        "custody-log-optional",
        _bool,
        "Open files even while the custody log cannot be written, and log a warning.",
        "no",
        flag=True,
    ),
    Option("profile", _name, "Use this profile of the configuration file.", metavar="NAME"),
    Option(
        "config",
        parse_path,
        "The configuration file (default: $XDG_CONFIG_HOME/attachfs/config.toml).",
        metavar="FILE",
    ),
)


BY_KEY = {option.key: option for option in OPTIONS}


# What the configuration file may hold: all but where it is, and which profile is used (see config/file.py).
FILE_KEYS = tuple(option.name for option in OPTIONS if option.name not in ("config", "profile"))
