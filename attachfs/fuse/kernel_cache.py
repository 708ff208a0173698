"""What the kernel remembers of names and attributes, and how it is made to forget. It keeps the bytes."""

import functools
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import FileNameT, InodeT

from attachfs.fuse.inodes import InodeTable
from attachfs.namespace.nodes import Place

log = logging.getLogger(__name__)

_MANY = 100_000  # inodes, some 400 bytes each, above which the kernel is asked to let go of unused ones
_TOP = tuple(place.value for place in Place if place.value)


class KernelCache:
    """The kernel's entries and attributes of one mount.

    Args:
        inodes: what the kernel knows.
    """

    def __init__(self, inodes: InodeTable) -> None:
        self._inodes = inodes
        self._many = _MANY
        self._crowded = trio.Event()

    def check_size(self) -> None:
        """Have entries trimmed if the kernel knows a great many names."""
        if len(self._inodes) > self._many:
            self._crowded.set()

    async def invalidate_metadata(self, mountpoint: Path) -> None:
        """Let the kernel forget names and attributes.

        With a directory of the root goes all that is known below it, except what is in use; that is asked
        for again when its time is over.
        """
        await self._drop_entries(mountpoint, self._inodes.numbers())

    async def trim_dentries(self, mountpoint: Path) -> None:
        """Have the kernel let go of what is not in use whenever it knows a great many names, while this runs.

        A crawl over a large ledger would otherwise leave an inode here for everything that it has met.
        """
        while True:
            await self._crowded.wait()
            live = len(self._inodes)
            await self._drop_entries(mountpoint, ())
            log.debug("of %d inodes %d are left", live, len(self._inodes))
            self._many = max(_MANY, len(self._inodes) + _MANY // 2)  # those in use stay
            self._crowded = trio.Event()

    async def _drop_entries(self, mountpoint: Path, numbers: Iterable[int]) -> None:
        # In threads: the kernel may wait for a request of its own, which this event loop answers.
        await trio.to_thread.run_sync(_invalidate, numbers)
        for name in _TOP:  # looked up again, for those whose working directory it is
            work = functools.partial(os.path.exists, mountpoint / name)
            await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def _invalidate(numbers: Iterable[int]) -> None:
    """Let the kernel forget the root's entries, what is below them, and live inodes' attributes. Blocks."""
    for name in _TOP:
        with suppress(OSError):  # it does not know it
            pyfuse3.invalidate_entry(pyfuse3.ROOT_INODE, FileNameT(name.encode()))
    for number in numbers:
        with suppress(OSError):
            pyfuse3.invalidate_inode(InodeT(number), attr_only=True)
