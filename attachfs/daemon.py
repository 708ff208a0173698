"""A mount as a process: in the foreground, or in the background with its outcome told by the parent."""

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from attachfs.config import Config
from attachfs.errors import AttachfsError, UsageError, first_of

log = logging.getLogger(__name__)

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_SYSLOG = "/dev/log"
_READY = b"ready\n"
_QUIET = ("httpx", "httpcore", "h2", "hpack", "pyfuse3", "stamina")  # some print headers, and so tokens


def run_foreground(config: Config, mountpoint: Path, ready: Callable[[], None] = lambda: None) -> int:
    """Mount and serve until it ends; return the exit code, having told what went wrong."""
    set_up_logging(config, logging.StreamHandler(sys.stderr))
    try:
        _serve(config, mountpoint, ready)
    except AttachfsError as error:
        click.echo(f"attachfs: {error.reason}", err=True)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def run_background(config: Config, mountpoint: Path) -> int:
    """Mount in a process of its own; return once the mount answers or has failed, with the exit code."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os._exit(_child(config, mountpoint, writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    if said == _READY:
        return 0
    code, _, reason = said.decode("utf-8", "replace").partition(" ")
    click.echo(f"attachfs: {reason or 'the mount process ended without a word; try -f'}", err=True)
    return int(code) if code.isdigit() else 1


def set_up_logging(config: Config, fallback: logging.Handler) -> None:
    """Send the log to `--log-file`, or else to `fallback`.

    Raises:
        UsageError: the log file cannot be written.
    """
    handler = fallback
    if config.log_file is not None:
        try:
            handler = logging.handlers.WatchedFileHandler(config.log_file, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"the log file {config.log_file} cannot be written: {error.strerror}") from error
    if not isinstance(handler, logging.handlers.SysLogHandler):
        handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _serve(config: Config, mountpoint: Path, ready: Callable[[], None]) -> None:
    import trio

    from attachfs.mount import serve

    try:
        trio.run(serve, config, mountpoint, ready)
    except BaseExceptionGroup as group:
        error = first_of(group)
        if isinstance(error, AttachfsError):
            raise error from group
        raise


def _child(config: Config, mountpoint: Path, pipe: int) -> int:
    """Be the background process; say on `pipe` how the mount went."""
    os.setsid()
    os.chdir("/")

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        os.write(pipe, _READY)
        os.close(pipe)

    try:
        set_up_logging(config, _background_handler())
        _serve(config, mountpoint, ready)
    except AttachfsError as error:
        log.error("%s", error.reason)  # noqa: TRY400 - the sentence is what matters
        _tell(pipe, 2 if isinstance(error, UsageError) else 1, error.reason)
        return 1
    except BaseException as error:
        log.exception("the mount process failed")
        _tell(pipe, 1, f"{type(first_of(error)).__name__}: {first_of(error)}")
        return 1
    return 0


def _tell(pipe: int, code: int, reason: str) -> None:
    try:
        os.write(pipe, f"{code} {reason}".encode())
    except OSError:
        return  # the mount had been up: the parent has gone, and the log has it


def _background_handler() -> logging.Handler:
    """Return a handler to the system's log (the journal listens there too), or to nowhere."""
    logging.raiseExceptions = False  # there is nowhere to complain to
    if not Path(_SYSLOG).is_socket():
        return logging.NullHandler()
    handler = logging.handlers.SysLogHandler(_SYSLOG)
    handler.setFormatter(logging.Formatter("attachfs[%(process)d]: %(message)s"))
    return handler
