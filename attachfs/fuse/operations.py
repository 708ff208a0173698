"""The kernel's side: `pyfuse3.Operations` as a thin adapter over the tree and the blobs.

Owns: bytes to str, nodes to inodes, and the deadline of each request. Every handler is guarded; see guard.py.
"""

import errno
import logging
import math
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import pyfuse3
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

from attachfs.blobs.handle import BlobHandle
from attachfs.blobs.store import BlobStore
from attachfs.errors import (
    AttachfsError,
    BadAnswer,
    IsDirectory,
    NoAttribute,
    NotFound,
)
from attachfs.fuse.deadlines import RequestDeadlines
from attachfs.fuse.entries import IO_SIZE, Entries, Ownership
from attachfs.fuse.fault_log import ErrorLog
from attachfs.fuse.guard import guard
from attachfs.fuse.inodes import HandleTable, InodeTable
from attachfs.fuse.kernel_cache import KernelCache
from attachfs.fuse.observer import Opened, OpenObserver
from attachfs.fuse.readahead import ReadAhead
from attachfs.model import STATUS_XATTR, AttachmentRef
from attachfs.namespace.directory import Directory
from attachfs.namespace.nodes import Node, parent_of
from attachfs.namespace.tree import Tree

log = logging.getLogger(__name__)

_LARGEST_READ = 2**20  # bytes; no kernel asks for more at a time
_DF_UNIT = 4096  # bytes
_DOTS = 2  # "." and ".." come before the entries
# Asked for by the kernel and by ls -l for every file; answered without a request.
_FOREIGN_XATTRS = (b"security.", b"system.", b"trusted.")
CLAIM_PREFIX = "user.attachfs."


class File(NamedTuple):
    """An open file: its inode's number, its bytes, and whether they were unverified when it was opened."""

    inode: int
    blob: BlobHandle
    streamed: bool


class OpenDirectory(NamedTuple):
    """An open directory, and the process that opened it: a request to read it does not name its caller."""

    directory: Directory
    pid: int


# How a request's path is named in the log, by what its first argument is.


def _path(fs: "Filesystem", inode: InodeT, *_: object) -> str:
    live = fs.inodes.peek(inode)
    return "?" if live is None else live.node.path or "/"


def _path_of_name(fs: "Filesystem", parent: InodeT, name: FileNameT, *_: object) -> str:
    return f"{_path(fs, parent).removesuffix('/')}/{name.decode('utf-8', 'replace')!a}"


def _path_of_file(fs: "Filesystem", fh: FileHandleT, *_: object) -> str:
    return _path(fs, InodeT(fs.files[fh].inode)) if fh in fs.files else "?"


def _path_of_directory(fs: "Filesystem", fh: FileHandleT, *_: object) -> str:
    return fs.directories[fh].directory.node.path or "/" if fh in fs.directories else "?"


def _no_path(*_: object) -> str:
    return "/"


class Filesystem(pyfuse3.Operations):
    """The handlers.

    Args:
        tree: the namespace.
        blobs: the bytes.
        inodes: what the kernel knows.
        readahead: is told what programs do.
        deadlines: bounds every wait.
        faults: is told what went wrong.
        ownership: uid, gid and umask of everything.
        timeout: seconds an answer about names and attributes may take.
        negative_ttl: seconds for which the kernel may remember that a name does not exist.
        status: returns the mount's figures as JSON.
        space: returns how large the cache may be and how much it holds, in bytes.
        observer: is told of each open before it succeeds.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        tree: Tree,
        blobs: BlobStore,
        inodes: InodeTable,
        readahead: ReadAhead,
        deadlines: RequestDeadlines,
        faults: ErrorLog,
        ownership: Ownership,
        *,
        timeout: float,
        negative_ttl: float,
        status: Callable[[], bytes],
        space: Callable[[], tuple[int, int]],
        observer: OpenObserver | None = None,
    ) -> None:
        super().__init__()
        self._observer = observer
        self._tree = tree
        self._blobs = blobs
        self._readahead = readahead
        self._deadlines = deadlines
        self.faults = faults
        self._timeout = timeout
        self._negative_ttl = negative_ttl
        self._status = status
        self._space = space
        self.inodes = inodes
        self._buffer = bytearray(_LARGEST_READ)
        self.entries = Entries(tree, inodes, ownership)
        self.kernel = KernelCache(inodes)
        self.directories: HandleTable[OpenDirectory] = HandleTable()
        self.files: HandleTable[File] = HandleTable()

    # -- names and attributes ----------------------------------------------------------------------

    def _ready_entry(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes | None:
        del ctx
        return self.entries.ready(self.inodes[parent_inode].node, name)

    @guard(_path_of_name, _ready_entry)
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self.inodes[parent_inode].node
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return self.entries.absent(math.inf)
        cached = self._tree.cached_file(parent, text)
        if cached is not None and cached[1].size_known:
            node, attributes = cached  # nothing to wait for
        else:
            if cached is not None:
                self._readahead.stat(cached[0])
            ledger, generation = self._tree.ledger, self._tree.ledger.generation
            try:
                with self._deadlines.wait(ctx.pid, self._timeout):
                    node, attributes = await self._tree.lookup(parent, text)
            except NotFound:
                return self.entries.absent(self._negative_ttl if generation == ledger.generation else 0)
        return self.entries.found(parent, name, node, attributes)

    def _cached_attributes(
        self, inode: InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes | None:
        del ctx
        live = self.inodes[inode]
        attributes = self._tree.cached_attributes(live.node)
        if not attributes.size_known:
            return None
        live.update_attributes(attributes)
        return self.entries.make(inode, attributes, attributes.valid_for)

    @guard(_path, _cached_attributes)
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        live = self.inodes[inode]
        self._readahead.stat(live.node)
        with self._deadlines.wait(ctx.pid, self._timeout):
            attributes = await self._tree.attributes(live.node)
        live.update_attributes(attributes)
        return self.entries.make(inode, attributes, attributes.valid_for)

    @guard(_path)
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileNameT:
        with self._deadlines.wait(ctx.pid, self._timeout):
            return FileNameT((await self._tree.link_target(self.inodes[inode].node)).encode())

    @guard(_no_path)
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self.inodes.forget(inode_list)

    def _cached_xattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes | None:
        del ctx
        if name.startswith(_FOREIGN_XATTRS):
            raise FUSEError(errno.ENODATA)
        return self._tree.cached_xattr(self.inodes[inode].node, name)

    @guard(_path, _cached_xattr)
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        node = self.inodes[inode].node
        text = name.decode("utf-8", "replace")
        if text == STATUS_XATTR and inode == pyfuse3.ROOT_INODE:
            return self._status()
        with self._deadlines.wait(ctx.pid, self._timeout):
            if text.startswith(CLAIM_PREFIX):
                if not isinstance(node, AttachmentRef):
                    raise NoAttribute(f"{node.path} has no attribute {text}")
                return await self._blobs.mount_attribute(node, text.removeprefix(CLAIM_PREFIX))
            return await self._tree.xattr(node, text)

    def _cached_xattr_names(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[XAttrNameT] | None:
        del ctx
        names = self._tree.cached_xattr_names(self.inodes[inode].node)
        return None if names is None else [XAttrNameT(name) for name in names]

    @guard(_path, _cached_xattr_names)
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[XAttrNameT]:
        with self._deadlines.wait(ctx.pid, self._timeout):
            names = await self._tree.xattr_names(self.inodes[inode].node)
        return [XAttrNameT(name) for name in names]

    # -- directories -------------------------------------------------------------------------------

    @guard(_path)
    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        node = self.inodes[inode].node
        self._readahead.entered(node)
        directory = self._tree.cached_directory(node)
        if directory is None:
            with self._deadlines.wait(ctx.pid, self._timeout):
                directory = await self._tree.open_directory(node)
        return FileHandleT(self.directories.add(OpenDirectory(directory, ctx.pid)))

    @guard(_path_of_directory)
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory, pid = self.directories[fh]
        if start_id < _DOTS and not self._reply_dots(directory.node, start_id, token):
            return
        first = max(0, start_id - _DOTS)
        # A reply goes out as soon as there is something in it: the first page shows while the next is
        # being fetched. Only an empty reply means the end.
        if first >= directory.available and start_id >= _DOTS and not directory.complete:
            try:
                with self._deadlines.wait(pid, self._timeout):
                    await directory.load_to(first)
            except NotFound as error:
                # To readdir(3), ENOENT is the end of the directory: what is missing would never be missed.
                raise BadAnswer(error.reason) from error
        self._reply_entries(directory, first, token)
        self.kernel.check_size()
        if first < directory.available or not first:
            self._readahead.listed(directory.behind or directory)

    def _reply_entries(self, directory: Directory, index: int, token: pyfuse3.ReaddirToken) -> None:
        """Reply with the entries from `index` on that are available and fit."""
        entry, last_attributes = None, None
        owner = self._tree.cached_attributes(directory.node)
        while index < directory.available:
            name, node = directory[index]
            number = self.inodes.number(node)
            attributes = self._tree.cached_attributes(node)
            valid_for = attributes.valid_for
            if not attributes.size_known:
                # The size goes out as what was last told, and to be asked again: a size of 0 told for
                # a file that somebody reads would cut it off under the reader.
                valid_for = owner.valid_for
                live = self.inodes.peek(number)
                if live is not None and live.attributes is not None:
                    attributes = live.attributes._replace(valid_for=0)
            if entry is not None and attributes is last_attributes:
                entry.st_ino = InodeT(number)  # files of which nothing is known yet are told alike
            else:
                entry, last_attributes = self.entries.make(number, attributes, valid_for), attributes
            index += 1
            if not pyfuse3.readdir_reply(token, FileNameT(name.encode()), entry, index + _DOTS):
                break
            _, inode = self.inodes.remember(node, number)
            inode.returned(attributes)

    def _reply_dots(self, node: Node, start_id: int, token: pyfuse3.ReaddirToken) -> bool:
        """Reply with "." and ".."; of these the kernel takes numbers and nothing else."""
        entry = pyfuse3.EntryAttributes()
        entry.st_mode = ModeT(stat.S_IFDIR)
        entry.entry_timeout = entry.attr_timeout = 0
        for position, (name, its) in enumerate(((b".", node), (b"..", parent_of(node))), 1):
            if position > start_id:
                entry.st_ino = InodeT(self.inodes.number(its))
                if not pyfuse3.readdir_reply(token, FileNameT(name), entry, position):
                    return False
        return True

    @guard(_path_of_directory)
    async def releasedir(self, fh: FileHandleT) -> None:
        self.directories.pop(fh)

    # -- files -------------------------------------------------------------------------------------

    @guard(_path)
    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise FUSEError(errno.EROFS)
        live = self.inodes[inode]
        if not isinstance(live.node, AttachmentRef):
            raise IsDirectory(f"{live.node.path} is a directory")
        self._readahead.opened(live.node)
        # No total deadline: fetching a large blob takes what it takes. Its progress is watched below.
        try:
            with self._deadlines.wait(ctx.pid):
                blob = await self._blobs.open(live.node)
        except AttachfsError as error:
            await self._observe(ctx, live.node, None, error)
            raise
        try:
            await self._observe(ctx, live.node, blob, None)
            live.update_attributes(self._tree.cached_attributes(live.node), size=blob.size)
            keep = live.opened(verified=blob.verified, content=blob.digest)
        except BaseException:
            blob.close()
            raise
        handle = FileHandleT(self.files.add(File(inode, blob, not blob.verified)))
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep)

    async def _observe(
        self,
        ctx: pyfuse3.RequestContext,
        node: AttachmentRef,
        blob: BlobHandle | None,
        error: AttachfsError | None,
    ) -> None:
        """Tell whoever takes note of opens; without one this is no point at which others run."""
        if self._observer is None:
            return
        digest, size = "", None
        if blob is not None:
            digest, size = str(blob.digest or ""), blob.size
        else:
            with suppress(AttachfsError):  # it may be the record itself that is wrong
                cached = self._tree.cached_xattr(node, XAttrNameT(b"user.hash.sha256"))
                digest = f"sha256:{cached.decode('ascii', 'replace')}" if cached else ""
        await self._observer.opened(Opened(ctx.uid, ctx.pid, node.path, digest, size, error))

    def _buffered_bytes(self, fh: FileHandleT, off: int, size: int) -> bytes | None:
        # One buffer for all: what is returned from here is sent before anything else runs.
        return self.files[fh].blob.read_nowait(off, size, self._buffer)

    @guard(_path_of_file, _buffered_bytes)
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return await self.files[fh].blob.read(off, size)

    async def flush(self, _fh: FileHandleT) -> None:
        # Nothing to flush; told so once, the kernel stops asking.
        raise FUSEError(errno.ENOSYS)

    @guard(_path_of_file)
    async def release(self, fh: FileHandleT) -> None:
        file = self.files.pop(fh)
        if file is None:
            return
        inode = self.inodes.peek(file.inode)
        if inode is not None:
            inode.released(streamed=file.streamed, verified=file.blob.verified)
        file.blob.close()

    @guard(_no_path)
    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        # df(1) and file managers show the cache: its bound, what it holds, and what it may still take.
        size, used = self._space()
        stats = pyfuse3.StatvfsData()
        stats.f_bsize = IO_SIZE
        stats.f_frsize = _DF_UNIT
        stats.f_blocks = size // _DF_UNIT
        stats.f_bfree = stats.f_bavail = max(0, size - used) // _DF_UNIT
        stats.f_namemax = 255
        return stats

    # -- helpers -----------------------------------------------------------------------------------

    def set_timeouts(self, timeout: float, negative_ttl: float) -> None:
        """Change how long answers may take, and how long absences are remembered."""
        self._timeout = timeout
        self._negative_ttl = negative_ttl

    def close(self) -> None:
        """Close what programs left open."""
        for file in self.files.values():
            file.blob.close()
        self.faults.flush()
