"""Whose files decide: what others may write says nothing here, as with ssh(1).

Owns: the rule for the configuration file, which says where a token is sent, and for the state directory,
whose pins say which hash was first seen.
"""

import grp
import os
import pwd
import stat
from pathlib import Path

from attachfs.errors import UsageError


def require_own(path: Path, status: os.stat_result, what: str, mode: str) -> None:
    """Refuse a file or directory that somebody else owns or may write.

    Args:
        path: where it is.
        status: of the opened file, so that it is the very one.
        what: it is, for the message.
        mode: it should have, for chmod(1).

    Raises:
        UsageError: it is another user's (and not root's), or others may write it.
    """
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return  # /dev/null, or a pipe of the caller's own
    user = os.geteuid()
    if status.st_uid not in (0, user):
        raise UsageError(
            f"{what} {path} belongs to user {_user(status.st_uid)}, who could change it: "
            f"make one of your own, or run: sudo chown {_user(user)} {path}"
        )
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid)):
        raise UsageError(f"{what} {path} can be written by other users: run: chmod {mode} {path}")


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _is_private(group: int) -> bool:
    """Whether a group is the user's own and nobody else is in it, as Debian and Ubuntu make one for each."""
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user.pw_name and user.pw_gid == group and set(found.gr_mem) <= {user.pw_name}
