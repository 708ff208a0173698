"""The configuration: one table of options, where each value came from, and the frozen result.

The command line (with its `-o` words) wins, then the environment, then the configuration file's
profile, then its top level, then the defaults. Every layer gives text, and one parser an option turns it
into a value, so that a mistake is told the same way wherever it was made.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from attachfs.configfile import APP, ConfigFile, Given, default_path
from attachfs.errors import UsageError
from attachfs.model import ScanPolicy, Verify
from attachfs.units import MinFree, parse_min_free, parse_size

DEFAULT_URL = "https://app.datatrails.ai"

# Words that mount(8) and fstab(5) put into -o and that mean nothing to this program.
_MOUNT_WORDS = frozenset(
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


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError("an empty path")
    return Path(text).expanduser().absolute()


def _printable(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a word of printable ASCII")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}", text):
        raise ValueError(f"{text!r} is not a name of letters, digits, '.', '_' and '-'")
    return text


def _source_name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= 512:
        raise ValueError("not a line of printable text")
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


OPTIONS: tuple[Option, ...] = (
    Option("url", _url, "The ledger's address.", DEFAULT_URL, ("DATATRAILS_URL",), "URL"),
    Option(
        "token-file",
        _path,
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
    Option("client-secret-file", _path, "File with the application's secret; mode 0600.", metavar="FILE"),
    Option("no-auth", _bool, "Send no credentials: public assets only.", "no", flag=True),
    Option(
        "ca-file", _path, "Trust these certificate authorities (PEM) instead of the system's.", metavar="FILE"
    ),
    Option("cache-dir", _path, "Where verified bytes are kept. One mount at a time uses it.", metavar="DIR"),
    Option("cache-size", parse_size, "What the cache may take on the disk.", "10G", metavar="SIZE"),
    Option(
        "cache-min-free",
        parse_min_free,
        "What the cache leaves free there (size or percent).",
        "5%",
        metavar="SIZE",
    ),
    Option(
        "verify",
        _choice("auto", "strict", "stream", "off"),
        "When bytes are handed out: 'strict', once the whole file is verified, at open; 'stream', as they "
        "come, the last part once the whole is verified; 'auto', strict up to --strict-limit, else stream; "
        "'off', unverified.",
        "auto",
        metavar="auto|strict|stream|off",
    ),
    Option("strict-limit", parse_size, "Up to what size --verify=auto is strict.", "32M", metavar="SIZE"),
    Option(
        "scan-policy",
        _choice("off", "warn", "block-bad", "require-ok"),
        "Which results of the ledger's virus scan let a file open.",
        "block-bad",
        metavar="off|warn|block-bad|require-ok",
    ),
    Option("max-connections", _number(1, 1000), "Requests in flight at once.", "32", metavar="N"),
    Option(
        "timeout",
        _timeout,
        "Seconds without progress after which a program gets an error.",
        "60",
        metavar="SECONDS",
    ),
    Option(
        "metadata-ttl",
        _seconds,
        "Seconds for which names and attributes are remembered.",
        "60",
        metavar="SECONDS",
    ),
    Option(
        "stale-ttl",
        _seconds,
        "Seconds for which names and attributes may be told while the ledger cannot be reached.",
        "3600",
        metavar="SECONDS",
    ),
    Option(
        "offline",
        _bool,
        "Make no requests: show what was seen before, and the files that are in the cache.",
        "no",
        flag=True,
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
        "How much is logged.",
        "info",
        metavar="debug|info|warning|error",
    ),
    Option("log-file", _path, "Log here instead of to stderr (-f) or syslog.", metavar="FILE"),
    Option(
        "log-format",
        _choice("text", "json"),
        "Lines for people, or one JSON object a line.",
        "text",
        metavar="text|json",
    ),
    Option("profile", _name, "Use this profile of the configuration file.", metavar="NAME"),
    Option(
        "config",
        _path,
        "The configuration file (default: $XDG_CONFIG_HOME/attachfs/config.toml).",
        metavar="FILE",
    ),
)
_BY_KEY = {option.key: option for option in OPTIONS}
# What the configuration file may hold: all but where it is, and which profile is used (see configfile.py).
FILE_KEYS = tuple(option.name for option in OPTIONS if option.name not in ("config", "profile"))


@dataclass(frozen=True)
class Config:
    """What a mount runs with. Sizes in bytes, times in seconds."""

    url: str
    token_file: Path
    client_id: str | None
    client_secret_file: Path | None
    no_auth: bool
    ca_file: Path | None
    cache_dir: Path
    cache_size: int
    cache_min_free: MinFree
    verify: Verify
    strict_limit: int
    scan_policy: ScanPolicy
    max_connections: int
    timeout: float
    metadata_ttl: float
    negative_ttl: float
    stale_ttl: float
    offline: bool
    allow_other: bool
    uid: int
    gid: int
    umask: int
    fsname: str | None
    log_level: str
    log_file: Path | None
    log_format: str
    profile: str | None
    config: Path | None
    state_dir: Path
    origins: Mapping[str, str]

    @property
    def source(self) -> str:
        """What the kernel shows as the mount's source."""
        return self.fsname or self.url

    @property
    def host_name(self) -> str:
        """The ledger's host and port, fit for a file's name."""
        return file_name(self.url)

    @property
    def host(self) -> str:
        """The ledger's host and port, as in the names of directories and of pins."""
        return urlsplit(self.url).netloc


def file_name(url: str) -> str:
    """Return an address's host and port, fit for a file's name."""
    return re.sub("[^A-Za-z0-9.-]", "_", urlsplit(url).netloc)


def parse_o_words(words: str, *, sloppy: bool = False) -> dict[str, str]:
    """Return the options in the argument of `-o`: `name=value`, a flag's name, mount(8)'s own words.

    A value may be quoted ("…") to hold a comma; `-` and `_` are the same in names; `x-…` is ignored.

    Raises:
        UsageError: a word is not known (unless `sloppy`), or lacks its value.
    """
    options: dict[str, str] = {}
    for word in re.findall(r'(?:[^,"]|"[^"]*"?)+', words):
        name, equals, value = word.strip().partition("=")
        key = name.replace("-", "_")
        option = _BY_KEY.get(key)
        if option is not None and (equals or option.flag):
            options[key] = value.strip('"') if equals else "yes"
        elif name in _MOUNT_WORDS or name.startswith(("x-", "X-")) or name in ("", "comment"):
            continue
        elif option is not None:
            raise UsageError(f"-o {name} needs a value: -o {name}=…")
        elif not sloppy:
            raise UsageError(f"-o {name}: no such option; see 'attachfs mount --help'")
    return options


def load(
    command_line: Mapping[str, str],
    o_words: Mapping[str, str] | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
) -> Config:
    """Return the configuration from all its layers.

    Args:
        command_line: option key to text, as given.
        o_words: the same from `-o`, which the command line's own options override.
        environ: the environment.
        cwd: what relative paths are relative to, the current directory if None. Those in the file are
            relative to the file.

    Raises:
        UsageError: a value cannot be used; the message names where it was given.
    """
    cwd = cwd or Path.cwd()
    layers = (command_line, o_words or {}, environ)
    file, profile = _file(layers, cwd)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    in_file = file.layer(profile.text if profile else None, FILE_KEYS)
    for option in OPTIONS:
        given, base = _first(option, *layers), cwd
        if option.name == "profile":
            given = profile
        elif given is None and option.key in in_file:
            given, base = in_file[option.key], file.path.parent
        if given is None and option.default is not None:
            given = Given(option.default, "default")
        origins[option.key] = given.origin if given is not None else "default"
        values[option.key] = _parse(option, given, base) if given is not None else None
    host = re.sub("[^A-Za-z0-9.-]", "_", urlsplit(values["url"]).netloc)
    values["cache_dir"] = values["cache_dir"] or platformdirs.user_cache_path(APP) / (
        values["profile"] or host
    )
    values["config"] = file.path if file.found else None
    if values["uid"] is None:
        values["uid"] = os.getuid()
    if values["gid"] is None:
        values["gid"] = os.getgid()
    return Config(**values, state_dir=platformdirs.user_state_path(APP), origins=origins)


def _file(
    layers: tuple[Mapping[str, str], Mapping[str, str], Mapping[str, str]], cwd: Path
) -> tuple[ConfigFile, Given | None]:
    """Return the configuration file, and the profile that is used."""
    named, profile = _first(_BY_KEY["config"], *layers), _first(_BY_KEY["profile"], *layers)
    path = _parse(_BY_KEY["config"], named, cwd) if named is not None else default_path()
    file = ConfigFile(path, required=named is not None)
    if profile is None:
        profile = file.default_profile
    if profile is not None:
        _parse(_BY_KEY["profile"], profile, cwd)
    return file, profile


def _parse(option: Option, given: Given, base: Path) -> Any:
    text = given.text
    try:
        if option.parse is _path and text and "\0" not in text:
            text = str(base / Path(text).expanduser())
        return option.parse(text)
    except (ValueError, RuntimeError) as error:  # RuntimeError: ~somebody who is not there
        raise UsageError(f"{given.origin}: {error}") from error


def _first(
    option: Option, command_line: Mapping[str, str], o_words: Mapping[str, str], environ: Mapping[str, str]
) -> Given | None:
    if option.key in command_line:
        return Given(command_line[option.key], f"--{option.name}")
    if option.key in o_words:
        return Given(o_words[option.key], f"-o {option.key}")
    for variable in option.variables:
        if environ.get(variable):
            return Given(environ[variable], variable)
    return None
