"""A mount as a process: in the foreground, or in the background with its outcome told by the parent."""

import gc
import logging
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from attachfs.cache import lock_file
from attachfs.config.settings import Config
from attachfs.errors import AttachfsError, UsageError, first_of
from attachfs.mount import log as mount_log
from attachfs.mount import process, unmount
from attachfs.mount.mountinfo import mount_at
from attachfs.text import printable

log = logging.getLogger(__name__)

_READY = b"ready"
_PREDECESSOR_ENDS_WITHIN = 10.0  # seconds
_GARBAGE = 10_000  # new objects, of some hundred bytes each, before the interpreter looks for garbage

Reload = Callable[[], Config]


def run_foreground(
    config: Config,
    mountpoint: Path,
    ready: Callable[[], None] = lambda: None,
    reload: Reload | None = None,
) -> int:
    """Mount and serve until it ends; return the exit code, having told what went wrong.

    Args:
        config: the settings.
        mountpoint: an absolute path.
        ready: called once the mount answers.
        reload: reads the settings again, on SIGHUP.
    """
    process.prepare()
    try:
        place = mount_log.set_up(config, background=False, mountpoint=mountpoint)
        _serve(config, mountpoint, ready, reload, place)
    except AttachfsError as error:
        _complain(error.reason)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def run_background(config: Config, mountpoint: Path, reload: Reload | None = None) -> int:
    """Mount in a process of its own; return once the mount answers or has failed, with the exit code."""
    process.prepare()
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os._exit(_child(config, mountpoint, writing, reload))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        *warnings, said = pipe.read().split(b"\n")
    for warning in warnings:
        _complain(f"warning: {warning.decode('utf-8', 'replace')}")
    if said == _READY:
        return 0
    code, _, reason = said.decode("utf-8", "replace").partition(" ")
    _complain(reason or "the mount process ended without a word; try -f")
    return int(code) if code.isdigit() else 1


def _reason_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{printable(error.filename)}: {error.strerror}"
    return f"{type(error).__name__}: {printable(error)}"


def _complain(text: str) -> None:
    sys.stderr.write(f"attachfs: {text}\n")


def _serve(
    config: Config, mountpoint: Path, ready: Callable[[], None], reload: Reload | None, place: str
) -> None:
    # What loading makes stays: looking through it for garbage again and again takes a tenth of the start, and
    # later a twentieth of a copy.
    gc.disable()
    import trio

    from attachfs.mount.serve import serve

    gc.freeze()
    gc.set_threshold(_GARBAGE)
    gc.enable()
    unmount.clear_dead(mountpoint, config.source)
    _let_predecessor_end(config, mountpoint)
    try:
        trio.run(serve, config, mountpoint, ready, reload, place)
    except BaseExceptionGroup as group:
        error = first_of(group)
        if isinstance(error, AttachfsError):
            raise error from group
        raise


def _let_predecessor_end(config: Config, mountpoint: Path) -> None:
    """Wait for the process of a mount that was just unmounted here, which still holds the cache.

    umount(8) returns as soon as the mount has left the tree, and `umount X && mount X` is what people do.
    """
    owner = lock_file.named_in(config.cache_dir)
    if owner is None or owner.doing != printable(f"the mount {mountpoint}"):
        return
    if mount_at(mountpoint) is not None:
        return
    try:
        watch = os.pidfd_open(owner.pid)
    except OSError:
        return  # it has ended
    try:
        select.select([watch], [], [], _PREDECESSOR_ENDS_WITHIN)
    finally:
        os.close(watch)


def _child(config: Config, mountpoint: Path, pipe: int, reload: Reload | None) -> int:
    """Be the background process; say on `pipe` how the mount went."""
    os.setsid()
    os.chdir("/")
    warnings = _ToParent(pipe)

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        logging.getLogger().removeHandler(warnings)
        _send(pipe, _READY)
        os.close(pipe)

    logging.lastResort = None  # what goes wrong before there is a log is reported by the parent, once
    try:
        place = mount_log.set_up(config, background=True, mountpoint=mountpoint)
        logging.getLogger().addHandler(warnings)
        _serve(config, mountpoint, ready, reload, place)
    except AttachfsError as error:
        log.error("%s", error.reason)  # noqa: TRY400 - the sentence is what matters
        _send(pipe, f"{2 if isinstance(error, UsageError) else 1} {printable(error.reason)}".encode())
        return 1
    except BaseException as error:
        log.exception("the mount process failed")
        _send(pipe, f"1 {_reason_of(first_of(error))}".encode())
        return 1
    return 0


class _ToParent(logging.Handler):
    """Passes warnings to the process that waits for the mount, a line each."""

    def __init__(self, pipe: int) -> None:
        super().__init__(logging.WARNING)
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on; errors end the mount, and are told as its outcome."""
        if record.levelno == logging.WARNING:
            _send(self._pipe, printable(record.getMessage()).encode() + b"\n")


def _send(pipe: int, message: bytes) -> None:
    try:
        os.write(pipe, message)
    except OSError:
        return  # the mount had been up: the parent has gone, and the log has it
