"""The configuration: one table of options, where each value came from, and the frozen result.

The command line (with its `-o` words) wins, then the environment, then the configuration file's
profile, then its top level, then the defaults. Every layer gives text, and one parser an option turns it
into a value, so that a mistake is told the same way wherever it was made.
"""

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attachfs.config.directories import current_directory, user_directory
from attachfs.config.file import ConfigFile, Given, default_path
from attachfs.config.options import (
    BY_KEY,
    FILE_KEYS,
    LOG_KEY_NAME,
    MOUNT_WORDS,
    OPTIONS,
    Option,
    parse_log_keys,
    parse_path,
)
from attachfs.errors import UsageError
from attachfs.model import ScanPolicy, Verify
from attachfs.units import MinFree


@dataclass(frozen=True)
class Config:
    """What a mount runs with. Sizes in bytes, times in seconds."""

    url: str
    token_file: Path
    client_id: str | None
    client_secret_file: Path | None
    no_auth: bool
    insecure_http: bool
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
    soft_timeout: float
    offline: bool
    archive: Path | None
    metrics: str | None
    allow_other: bool
    uid: int
    gid: int
    umask: int
    fsname: str | None
    log_level: str
    log_file: Path | None
    log_format: str
    log_url: str | None
    log_key: tuple[str, ...] | None
    custody_log: Path | None
    custody_log_optional: bool
    profile: str | None
    config: Path | None
    state_dir: Path
    shared_cache: str | None
    shared_cache_write: bool
    shared_cache_credentials_file: Path | None
    shared_cache_ca_file: Path | None
    shared_cache_insecure: bool
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
        option = BY_KEY.get(key)
        if option is not None and (equals or option.flag):
            options[key] = value.strip('"') if equals else "yes"
        elif name in MOUNT_WORDS or name.startswith(("x-", "X-")) or name in ("", "comment"):
            continue
        elif name == "remount":
            raise UsageError("-o remount: a mount cannot be changed: unmount it, and mount it again")
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
        cwd: what relative paths are relative to, the current directory if None (it is asked for only if
            there are any, as it may be gone). Those in the file are relative to the file.

    Raises:
        UsageError: a value cannot be used; the message names where it was given.
    """
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
    if values["archive"] is not None:
        _turn_to_archive(values, origins)
    host = re.sub("[^A-Za-z0-9.-]", "_", urlsplit(values["url"]).netloc)
    values["cache_dir"] = values["cache_dir"] or user_directory("CACHE") / (values["profile"] or host)
    values["config"] = file.path if file.found else None
    if values["uid"] is None:
        values["uid"] = os.getuid()
    if values["gid"] is None:
        values["gid"] = os.getgid()
    return Config(**values, state_dir=user_directory("STATE"), origins=origins)


# What says which ledger is asked and how; beside `--archive` it would be a mistake.
_OF_A_SERVICE = (
    *("url", "token_file", "client_id", "client_secret_file", "no_auth", "ca_file", "offline"),
    *("cache_dir", "cache_size", "cache_min_free", "shared_cache", "shared_cache_write"),
)


def _turn_to_archive(values: dict[str, Any], origins: Mapping[str, str]) -> None:
    """Settle what an archive leaves no choice of: no service is asked, and its bytes are compared.

    Raises:
        UsageError: the same command line names a ledger too, or wants bytes that nobody has compared.
    """
    for key in _OF_A_SERVICE:
        if origins[key].startswith("-"):
            raise UsageError(f"{origins[key]} cannot be combined with --archive: leave one of them out")
    if values["verify"] == "off":
        raise UsageError(f"{origins['verify']}: the bytes of an archive are always verified; leave it out")
    values["url"] = values["archive"].as_uri()
    values["offline"] = True


def _file(
    layers: tuple[Mapping[str, str], Mapping[str, str], Mapping[str, str]], cwd: Path | None
) -> tuple[ConfigFile, Given | None]:
    """Return the configuration file, and the profile that is used."""
    named, profile = _first(BY_KEY["config"], *layers), _first(BY_KEY["profile"], *layers)
    path = _parse(BY_KEY["config"], named, cwd) if named is not None else default_path()
    file = ConfigFile(path, required=named is not None)
    if profile is None:
        profile = file.default_profile
    if profile is not None:
        _parse(BY_KEY["profile"], profile, cwd)
    return file, profile


def _parse(option: Option, given: Given, base: Path | None) -> Any:
    text = given.text
    try:
        if option.parse is parse_path and text and "\0" not in text:
            text = _absolute(text, base)
        elif option.parse is parse_log_keys:
            names = (
                name if name in ("", LOG_KEY_NAME) else _absolute(name, base) for name in text.split(":")
            )
            text = ":".join(names)
        value = option.parse(text)
        if option.metavar == "FILE":
            _check_kind(value)
        return value
    except ValueError as error:
        raise UsageError(f"{given.origin}: {error}") from error


def _check_kind(value: object) -> None:
    """Refuse a pipe: opening it may wait for ever.

    Raises:
        ValueError: it is one.
    """
    for path in value if isinstance(value, tuple) else (value,):
        with contextlib.suppress(OSError):
            mode = Path(path).stat().st_mode
            if stat.S_ISFIFO(mode):
                raise ValueError(f"{path} is a pipe, which cannot be read again: name a file")


def _absolute(text: str, base: Path | None) -> str:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        if text == BY_KEY["token_file"].default:
            return "/nonexistent" + text.removeprefix("~")  # it is the default only: others can be named
        raise ValueError(f"{text}: there is no such home directory; write the whole path") from None
    return str(path if path.is_absolute() else (base or current_directory(text)) / path)


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
