"""The configuration file: which one, its profiles, and mistakes told by file, line and key.

Top-level keys are defaults; those of a table `[profile.NAME]` win over them where that profile is used.
Every value becomes text here, with its origin, and is parsed like one from the command line.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from attachfs.config.directories import APP, user_directory
from attachfs.config.permissions import require_own
from attachfs.errors import UsageError

SYSTEM_FILE = Path("/etc") / APP / "config.toml"
_LIMIT = 1024 * 1024  # bytes
_SECRETS = ("token", "secret", "password", "client-secret", "bearer-token")
_OCTAL = ("umask",)
_LISTS = ("log-key",)  # may be a list of texts


class Given(NamedTuple):
    """A value as text, and where it was given: `FILE:LINE: KEY`."""

    text: str
    origin: str


def default_path(system: Path = SYSTEM_FILE) -> Path:
    """Return the user's file, or the system's where only that exists."""
    own = user_directory("CONFIG") / "config.toml"
    return system if not _exists(own) and _exists(system) else own


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # a home directory that this user may not enter


class ConfigFile:
    """A file that was read, its keys not checked yet.

    Args:
        path: the file.
        required: whether it must exist.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """

    def __init__(self, path: Path, *, required: bool = True) -> None:
        self.path = path
        self.found = False
        self._text = ""
        try:
            self._text = _read(path)
            self.found = True
        except FileNotFoundError:
            if required:
                raise UsageError(f"{path}: there is no such configuration file") from None
        except OSError as error:
            if required:
                raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            self._tables = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(_syntax(path, self._text, error)) from error
        except RecursionError as error:
            raise UsageError(f"{path}: nested too deeply") from error

    @property
    def profiles(self) -> list[str]:
        """The names of its profiles."""
        profiles = self._tables.get("profile")
        return list(profiles) if isinstance(profiles, dict) else []

    @property
    def default_profile(self) -> Given | None:
        """The profile that it uses by itself: `profile = "NAME"` at the top level."""
        name = self._tables.get("profile")
        return Given(name, self._at("profile")) if isinstance(name, str) else None

    def layer(self, profile: str | None, option_keys: Collection[str]) -> dict[str, Given]:
        """Return the values of a profile over those at the top level, by key with `_`.

        Args:
            profile: its name, or None for the top level alone.
            option_keys: the keys that may be there, with `-`.

        Raises:
            UsageError: a key is not known, a value is no text, number or truth value, or there is no such
                profile. All profiles are looked at, also those that are not used.
        """
        values: dict[str, Given] = {}
        for key, value in self._tables.items():
            if key != "profile" or not isinstance(value, dict | str):
                self._take(values, (key,), value, option_keys)
        profiles = self._tables.get("profile")
        chosen: dict[str, Given] = {}
        for name, table in profiles.items() if isinstance(profiles, dict) else ():
            if not isinstance(table, dict):
                raise UsageError(f"{self._at('profile', name)}: a profile is a table: [profile.NAME]")
            found: dict[str, Given] = {}
            for key, value in table.items():
                self._take(found, ("profile", name, key), value, option_keys)
            if name == profile:
                chosen = found
        if profile is not None and profile not in self.profiles:
            raise UsageError(f"{self.path}: there is no profile {profile!r}{self._which(profile)}")
        return values | chosen

    def _which(self, profile: str) -> str:
        close = difflib.get_close_matches(profile, self.profiles, 1)
        if close:
            return f"; did you mean {close[0]!r}?"
        if self.profiles:
            return f"; there are: {', '.join(self.profiles)}"
        return f"; make one with a table [profile.{profile}]"

    def _take(
        self, values: dict[str, Given], path: tuple[str, ...], value: object, option_keys: Collection[str]
    ) -> None:
        name = path[-1].replace("_", "-")
        origin = self._at(*path)
        if name not in option_keys:
            close = difflib.get_close_matches(name, option_keys, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            if isinstance(value, dict):
                hint = "; a profile is a table [profile.NAME]"
            if name in _SECRETS:
                hint = "; secrets stay in files of their own: see token-file and client-secret-file"
            raise UsageError(f"{origin}: no such key{hint}")
        key = name.replace("-", "_")
        if key in values:
            raise UsageError(f"{origin}: given twice, with '-' and with '_'")
        values[key] = Given(_text_of(name, value, origin), origin)

    def _at(self, *path: str) -> str:
        """Return `FILE:LINE: KEY`, without the line where it cannot be told."""
        line = next((number for number, key in _keys(self._text) if key == path), None)
        where = f"{self.path}:{line}" if line else str(self.path)
        return f"{where}: {'.'.join(path)}"


def _read(path: Path) -> str:
    """Return the text of a file.

    Raises:
        UsageError: it is no text, or not one's own.
        OSError: it cannot be read.
    """
    if path.is_fifo():
        raise UsageError(f"{path} is a pipe, which cannot be read again: name a file")
    with path.open("rb") as file:
        require_own(path, os.fstat(file.fileno()), "the configuration file", "600")
        raw = file.read(_LIMIT + 1)
    if len(raw) > _LIMIT:
        raise UsageError(f"{path}: larger than a configuration can be")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{path}: saved as UTF-16: save it as UTF-8")
    if b"\0" in raw:
        raise UsageError(f"{path}: holds NUL bytes, so it is no text: save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}:{raw[: error.start].count(10) + 1}: not UTF-8 text") from None


def _text_of(name: str, value: object, origin: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name in _OCTAL:
            raise UsageError(f'{origin}: write it in quotes, as an octal number: "022"')
        return str(value)
    if isinstance(value, str):
        return value
    if name in _LISTS and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ":".join(value)
    raise UsageError(f"{origin}: must be a text, a number, true or false")


def _keys(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the lines on which keys and tables stand, with their whole names. For messages only."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            table = _path_of(stripped)
            yield number, table
        elif "=" in stripped and not stripped.startswith("#"):
            key = _path_of(stripped.partition("=")[0] + "= 0")
            if key:
                yield number, table + key


def _path_of(line: str) -> tuple[str, ...]:
    """Return the dotted name on a line of TOML, by reading that line alone; () if it cannot be."""
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str] = []
    while isinstance(found, Mapping) and found:
        name, found = next(iter(found.items()))
        path.append(name)
    return tuple(path)


def _syntax(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    """Return `FILE:LINE: what is wrong`, from tomllib's `… (at line 3, column 5)`."""
    what, _, where = str(error).partition(" (at ")
    line = where.removeprefix("line ").partition(",")[0]
    if not line.isdigit():  # at the end of the document
        line = str(text.rstrip().count("\n") + 1)
    key, _, value = text.split("\n")[int(line) - 1].partition("=")
    hint = ""
    if re.match(r"\s*[^\s\"'\[{0-9+-]", value):
        hint = f'; text stands in quotes: {key.strip()} = "{value.strip()}"'
    return f"{path}:{line}: {what[:1].lower()}{what[1:]}{hint}"
