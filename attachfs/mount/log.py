"""Where the log goes and how it looks: stderr, the journal, syslog or a file; lines for people, or JSON.

Levels: error, evidence is at stake or the mount cannot go on; warning, a program got an error that
somebody should look into, or the ledger is out of reach; info, what a mount does once in a while; debug,
each request, and what is part of ordinary life, such as a name that is not there.
"""

import json
import logging
import logging.handlers
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attachfs.config.settings import Config
from attachfs.errors import UsageError
from attachfs.mount import log_place
from attachfs.text import printable

_TEXT = "%(asctime)s %(levelname)-7s %(message)s"
_FILE_BYTES = 2**20  # of a log file of our own, before it is put aside; one that was is kept
_QUIET = ("httpx", "httpcore", "pyfuse3")  # some print headers, and so tokens
_FOLDED_FOR = 60.0  # seconds for which the same warning is counted instead of told
_FOLDED = 256  # warnings remembered
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def set_up(config: Config, *, background: bool, mountpoint: Path = Path("/")) -> str:
    """Send the log to `--log-file`; else to stderr, or in the background to the system's log; else to a file.

    Args:
        config: the settings.
        background: whether nobody reads stderr.
        mountpoint: names a file of the mount's own, on a machine without a system log.

    Returns:
        Where it goes: a file's path, "journal", "syslog" or "stderr".

    Raises:
        UsageError: the log file cannot be written.
    """
    place = log_place.place_of(config.log_file, config.state_dir, mountpoint, background=background)
    handler = _handler(config, place)
    handler.addFilter(Folding())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    set_level(config.log_level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    return place


def set_level(level: str) -> None:
    """Log from this level on."""
    logging.getLogger().setLevel(level.upper())


def _handler(config: Config, place: str) -> logging.Handler:
    plain: logging.Formatter = Json() if config.log_format == "json" else Text(_TEXT)
    handler: logging.Handler
    if config.log_file is not None:
        try:
            handler = logging.handlers.WatchedFileHandler(config.log_file, encoding="utf-8")
        except OSError as error:
            reason = f"the log file {config.log_file} cannot be written ({error.strerror})"
            raise UsageError(f"{reason}: name another with --log-file") from error
        handler.setFormatter(plain)
        return handler
    bare: logging.Formatter = Json() if config.log_format == "json" else Text("%(message)s")
    if place == "stderr" or log_place.journal_stream(os.environ):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(plain if place == "stderr" else Journal(bare))
        return handler
    logging.raiseExceptions = False  # there is nowhere to complain to
    if place not in ("journal", "syslog"):
        return _own_file(Path(place), plain)
    syslog = logging.handlers.SysLogHandler(log_place.SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    syslog.ident = f"attachfs[{os.getpid()}]: "
    syslog.setFormatter(bare)
    return syslog


def _own_file(path: Path, formatter: logging.Formatter) -> logging.Handler:
    """Log to a bounded file of the mount's own; a state directory that cannot be written has none."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
        )
        path.chmod(0o600)
    except OSError:
        return logging.NullHandler()
    handler.setFormatter(formatter)
    return handler


class Text(logging.Formatter):
    """Lines for people. What came from outside cannot begin a line, nor move a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the line."""
        record.message = printable(record.message)
        return super().formatMessage(record)


class Json(logging.Formatter):
    """One JSON object a line: time, level, logger, message; path and errno of a fault; a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("path", "errno"):
            if name in record.__dict__:
                fields[name] = record.__dict__[name]
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True, default=str)


class Journal(logging.Formatter):
    """Each line with its priority, as the journal reads it from a stream; see sd-daemon(3).

    Args:
        inner: makes the lines.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).split("\n"))


class Folding(logging.Filter):
    """Lets a warning through once a minute, and tells how often it was held back.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to tell it."""
        if record.levelno < logging.WARNING:
            return True
        key = record.name, record.getMessage()
        now = self._clock()
        since, count = self._seen.get(key, (-_FOLDED_FOR, 0))
        if now - since < _FOLDED_FOR:
            self._seen[key] = since, count + 1
            return False
        if count:
            record.msg, record.args = f"{key[1]} (and {count} times more before)", ()
        self._seen[key] = now, 0
        self._seen.move_to_end(key)
        if len(self._seen) > _FOLDED:
            self._seen.popitem(last=False)
        return True
