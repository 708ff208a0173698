"""The floor: a filesystem that does nothing, `python -m tests.bench.nullfs MOUNTPOINT FILES SIZE`.

FILES names that are numbers, and one called `big` of SIZE bytes, all zero. Whatever attachfs does in a
handler, this does less: what is left is the kernel's and pyfuse3's part.
"""

import errno
import os
import stat
import sys
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

_BIG = 2
_FIRST = 100  # inode of the file 0
_VALID = 60  # seconds
_ZEROS = bytes(2**20)


class NullFilesystem(pyfuse3.Operations):
    """Answers from constants."""

    def __init__(self, files: int, size: int) -> None:
        super().__init__()
        self._files = files
        self._size = size
        self._lookups = 0

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        del parent_inode, ctx
        self._lookups += 1
        if name == b"big":
            return _entry(_BIG, self._size)
        if name.isdigit() and int(name) < self._files:
            return _entry(_FIRST + int(name), 4096)
        raise FUSEError(errno.ENOENT)

    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        del ctx
        return _entry(inode, self._size if inode == _BIG else 4096)

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        del ctx
        # On the root: how often was it asked, so that the benchmark knows that it measured lookups.
        return str(self._lookups).encode() if inode == pyfuse3.ROOT_INODE else name.ljust(64)[:64]

    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        del flags, ctx
        return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        del fh
        return _ZEROS[: min(size, self._size - off)]


def _entry(inode: int, size: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = InodeT(inode)
    directory = inode == pyfuse3.ROOT_INODE
    entry.st_mode = ModeT(stat.S_IFDIR | 0o555 if directory else stat.S_IFREG | 0o444)
    entry.st_nlink = 1
    entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
    entry.st_size = 0 if directory else size
    entry.st_blksize = 128 * 1024
    entry.st_blocks = -(-size // 512)
    entry.entry_timeout = entry.attr_timeout = _VALID
    return entry


def main(argv: Sequence[str]) -> None:
    """Mount, and serve until unmounted or ended by a signal."""
    mountpoint, files, size = argv
    pyfuse3.init(NullFilesystem(int(files), int(size)), mountpoint, {"ro", "fsname=nullfs"})
    try:
        trio.run(pyfuse3.main)
    except KeyboardInterrupt:
        pass
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1:])
