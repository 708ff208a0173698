"""Where a mount's log is: named in messages and in its figures, found again by `attachfs logs`."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SYSLOG = "/dev/log"  # of the journal, or of a syslog daemon
_JOURNAL = "/run/systemd/journal/socket"
_LONGEST = 200  # characters of a file's name


def journal_stream(environ: Mapping[str, str], descriptor: int = 2) -> bool:
    """Whether stderr is a stream to the journal; see JOURNAL_STREAM in systemd.exec(5)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def place_of(log_file: Path | None, state_dir: Path, mountpoint: Path, *, background: bool) -> str:
    """Return where a mount logs: a file's path, "journal", "syslog" or "stderr"."""
    if log_file is not None:
        return str(log_file)
    if not background:
        return "journal" if journal_stream(os.environ) else "stderr"
    if Path(SYSLOG).is_socket():
        return "journal" if Path(_JOURNAL).exists() else "syslog"
    return str(file_of(state_dir, mountpoint))


def file_of(state_dir: Path, mountpoint: Path) -> Path:
    """Return the log file of a mount on a machine without a system log."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", str(mountpoint).strip("/").replace("/", "-"))
    return state_dir / f"{name[-_LONGEST:] or 'root'}.log"


def command_for(
    status: Mapping[str, Any] | None, state_dir: Path, mountpoint: Path
) -> list[str] | Path | str:
    """Return what shows a mount's log: a file, a command, or a sentence for a person.

    Args:
        status: the running mount's figures; None where none runs.
        state_dir: of the user.
        mountpoint: where it is or was mounted.
    """
    place = status.get("log") if status is not None else None
    if place is None:  # none runs there: what the last one left
        place = place_of(None, state_dir, mountpoint, background=True)
    if place == "journal":
        journalctl = shutil.which("journalctl")
        which = "--identifier=attachfs" if status is None else f"_PID={status['pid']}"
        if journalctl is None:
            return "it logs to the journal, and journalctl(1) is not installed"
        return [journalctl, "--no-pager", which]
    if place == "syslog":
        return (
            "it logs to syslog, as attachfs: look into the files of your syslog daemon, often /var/log/syslog"
        )
    if place == "stderr":
        return "it runs in the foreground and logs to the standard error of that process"
    return Path(str(place))
