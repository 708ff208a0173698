"""Who is told of opens before they succeed."""

from typing import NamedTuple, Protocol

from attachfs.errors import AttachfsError


class Opened(NamedTuple):
    """A file that a program has asked to open.

    `uid` and `pid` are the caller's, as the kernel says; `digest` and `size` are what is known of the file,
    "" and None otherwise; `error` is why it does not open.
    """

    uid: int
    pid: int
    path: str
    digest: str
    size: int | None
    error: AttachfsError | None


class OpenObserver(Protocol):
    """Is told of each open of an attachment, before the program is."""

    async def opened(self, file: Opened) -> None:
        """Take note of it.

        Raises:
            AttachfsError: the open must not succeed. Nothing is raised where it does not anyway.
        """
