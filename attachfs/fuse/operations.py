"""The kernel's side: `pyfuse3.Operations` as a thin adapter over the tree and the blobs.

Lives here and only here: bytes to str, nodes to inodes, deadlines, and the one boundary at which an
exception becomes an errno. Anything but a FUSEError that left a handler would end the mount.
"""

import errno
import functools
import logging
import math
import os
import stat
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

from attachfs.blobs.handle import BlobHandle
from attachfs.blobs.store import BlobStore
from attachfs.errors import (
    AttachfsError,
    BadAnswer,
    IsDirectory,
    NoAttribute,
    NotFound,
    Unexpected,
    errno_of,
    first_of,
)
from attachfs.fuse.deadlines import RequestDeadlines
from attachfs.fuse.entries import IO_SIZE, Entries, Ownership
from attachfs.fuse.fault_log import ErrorLog
from attachfs.fuse.inodes import HandleTable, InodeTable
from attachfs.fuse.observer import Opened, OpenObserver
from attachfs.fuse.readahead import ReadAhead
from attachfs.fuse.scarcity import scarcity_of
from attachfs.model import STATUS_XATTR, AttachmentRef
from attachfs.namespace.directory import Directory
from attachfs.namespace.nodes import Node, Place, parent_of, path_of
from attachfs.namespace.tree import Tree

log = logging.getLogger(__name__)

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")

_LARGEST_READ = 2**20  # bytes; no kernel asks for more at a time
_MANY = 100_000  # inodes, some 400 bytes each, above which the kernel is asked to let go of unused ones
_DF_UNIT = 4096  # bytes
_DOTS = 2  # "." and ".." come before the entries
# Asked for by the kernel and by ls -l for every file; answered without a request.
_FOREIGN_XATTRS = (b"security.", b"system.", b"trusted.")
_TOP = tuple(place.value for place in Place if place.value)
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


_Handler = Callable[Concatenate["Filesystem", A, P], Coroutine[Any, Any, R]]
_Quick = Callable[Concatenate["Filesystem", A, P], R | None]


def _handler(work: _Handler[A, P, R], quick: _Quick[A, P, R] | None = None) -> _Handler[A, P, R]:
    """Guard a handler: whatever goes wrong is told once and becomes an errno, and nothing else.

    The handler's first argument is most often an inode's or a handle's number; a request context, if it
    has one, is its last. `quick` is asked first, and answers what is known; None leaves it to the handler.
    """
    operation = work.__name__.lstrip("_")

    @functools.wraps(work)
    async def guarded(self: "Filesystem", number: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if quick is not None:
                answer = quick(self, number, *args, **kwargs)
                if answer is not None:
                    return answer
            return await work(self, number, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # an exception that left a handler would end the mount
            raise FUSEError(self.report(operation, number, args, error)) from error

    return guarded


def _quickly(quick: _Quick[A, P, R]) -> Callable[[_Handler[A, P, R]], _Handler[A, P, R]]:
    """Return a guard for a handler, most of whose answers are had without waiting: by `quick`."""
    return lambda work: _handler(work, quick)


class Filesystem(pyfuse3.Operations):
    """The handlers.

    Args:
        tree: the namespace.
        blobs: the bytes.
        inodes: what the kernel knows.
        readahead: is told what programs do.
        waiting: bounds every wait.
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
        waiting: RequestDeadlines,
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
        self._waiting = waiting
        self.faults = faults
        self._timeout = timeout
        self._negative_ttl = negative_ttl
        self._status = status
        self._space = space
        self.inodes = inodes
        self._buffer = bytearray(_LARGEST_READ)
        self.entries = Entries(tree, inodes, ownership)
        self._many = _MANY
        self._crowded = trio.Event()
        self.directories: HandleTable[OpenDirectory] = HandleTable()
        self.files: HandleTable[File] = HandleTable()

    # -- names and attributes ----------------------------------------------------------------------

    def _ready_entry(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes | None:
        del ctx
        return self.entries.ready(self.inodes[parent_inode].node, name)

    @_quickly(_ready_entry)
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self.inodes[parent_inode].node
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return self.entries.absent(math.inf)
        known = self._tree.known_file(parent, text)
        if known is not None and known[1].size_known:
            node, attributes = known  # nothing to wait for
        else:
            if known is not None:
                self._readahead.stat(known[0])
            try:
                with self._waiting.wait(ctx.pid, self._timeout):
                    node, attributes = await self._tree.lookup(parent, text)
            except NotFound:
                return self.entries.absent(self._negative_ttl)
        return self.entries.found(parent, name, node, attributes)

    def _known_attributes(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes | None:
        del ctx
        known = self.inodes[inode]
        attributes = self._tree.known_attributes(known.node)
        if not attributes.size_known:
            return None
        known.settle(attributes)
        return self.entries.make(inode, attributes, attributes.valid_for)

    @_quickly(_known_attributes)
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        known = self.inodes[inode]
        self._readahead.stat(known.node)
        with self._waiting.wait(ctx.pid, self._timeout):
            attributes = await self._tree.attributes(known.node)
        known.settle(attributes)
        return self.entries.make(inode, attributes, attributes.valid_for)

    @_handler
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileNameT:
        with self._waiting.wait(ctx.pid, self._timeout):
            return FileNameT((await self._tree.link_target(self.inodes[inode].node)).encode())

    @_handler
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self.inodes.forget(inode_list)

    def _known_xattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes | None:
        del ctx
        if name.startswith(_FOREIGN_XATTRS):
            raise FUSEError(errno.ENODATA)
        return self._tree.known_xattr(self.inodes[inode].node, name)

    @_quickly(_known_xattr)
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        node = self.inodes[inode].node
        text = name.decode("utf-8", "replace")
        if text == STATUS_XATTR and inode == pyfuse3.ROOT_INODE:
            return self._status()
        with self._waiting.wait(ctx.pid, self._timeout):
            if text.startswith(CLAIM_PREFIX):
                if not isinstance(node, AttachmentRef):
                    raise NoAttribute(f"{path_of(node)} has no attribute {text}")
                return await self._blobs.claim(node, text.removeprefix(CLAIM_PREFIX))
            return await self._tree.xattr(node, text)

    def _known_xattr_names(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[XAttrNameT] | None:
        del ctx
        names = self._tree.known_xattr_names(self.inodes[inode].node)
        return None if names is None else [XAttrNameT(name) for name in names]

    @_quickly(_known_xattr_names)
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[XAttrNameT]:
        with self._waiting.wait(ctx.pid, self._timeout):
            names = await self._tree.xattr_names(self.inodes[inode].node)
        return [XAttrNameT(name) for name in names]

    # -- directories -------------------------------------------------------------------------------

    @_handler
    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        node = self.inodes[inode].node
        self._readahead.entered(node)
        directory = self._tree.known_directory(node)
        if directory is None:
            with self._waiting.wait(ctx.pid, self._timeout):
                directory = await self._tree.open_directory(node)
        return FileHandleT(self.directories.add(OpenDirectory(directory, ctx.pid)))

    @_handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory, pid = self.directories[fh]
        if start_id < _DOTS and not self._reply_dots(directory.node, start_id, token):
            return
        first = max(0, start_id - _DOTS)
        # A reply goes out as soon as there is something in it: the first page shows while the next is
        # being fetched. Only an empty reply means the end.
        if first >= directory.available and start_id >= _DOTS and not directory.complete:
            try:
                with self._waiting.wait(pid, self._timeout):
                    await directory.reach(first)
            except NotFound as error:
                # To readdir(3), ENOENT is the end of the directory: what is missing would never be missed.
                raise BadAnswer(error.reason) from error
        self._reply_entries(directory, first, token)
        if len(self.inodes) > self._many:
            self._crowded.set()
        if first < directory.available or not first:
            self._readahead.listed(directory.behind or directory)

    def _reply_entries(self, directory: Directory, index: int, token: pyfuse3.ReaddirToken) -> None:
        """Reply with the entries from `index` on that are available and fit."""
        entry, told = None, None
        owner = self._tree.known_attributes(directory.node)
        while index < directory.available:
            name, node = directory[index]
            number = self.inodes.number(node)
            attributes = self._tree.known_attributes(node)
            valid_for = attributes.valid_for
            if not attributes.size_known:
                # The size goes out as what was last told, and to be asked again: a size of 0 told for
                # a file that somebody reads would cut it off under the reader.
                valid_for = owner.valid_for
                live = self.inodes.peek(number)
                if live is not None and live.attributes is not None:
                    attributes = live.attributes._replace(valid_for=0)
            if entry is not None and attributes is told:
                entry.st_ino = InodeT(number)  # files of which nothing is known yet are told alike
            else:
                entry, told = self.entries.make(number, attributes, valid_for), attributes
            index += 1
            if not pyfuse3.readdir_reply(token, FileNameT(name.encode()), entry, index + _DOTS):
                break
            _, inode = self.inodes.remember(node, number)
            inode.tell(attributes)

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

    @_handler
    async def releasedir(self, fh: FileHandleT) -> None:
        self.directories.pop(fh)

    # -- files -------------------------------------------------------------------------------------

    @_handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise FUSEError(errno.EROFS)
        known = self.inodes[inode]
        if not isinstance(known.node, AttachmentRef):
            raise IsDirectory(f"{path_of(known.node)} is a directory")
        self._readahead.opened(known.node)
        # No total deadline: fetching a large blob takes what it takes. Its progress is watched below.
        try:
            with self._waiting.wait(ctx.pid):
                blob = await self._blobs.open(known.node)
        except AttachfsError as error:
            await self._observe(ctx, known.node, None, error)
            raise
        try:
            await self._observe(ctx, known.node, blob, None)
            known.settle(self._tree.known_attributes(known.node), size=blob.size)
            keep = known.opened(verified=blob.verified, content=blob.digest)
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
                known = self._tree.known_xattr(node, XAttrNameT(b"user.hash.sha256"))
                digest = f"sha256:{known.decode('ascii', 'replace')}" if known else ""
        await self._observer.opened(Opened(ctx.uid, ctx.pid, path_of(node), digest, size, error))

    def _bytes_at_hand(self, fh: FileHandleT, off: int, size: int) -> bytes | None:
        # One buffer for all: what is returned from here is sent before anything else runs.
        return self.files[fh].blob.read_nowait(off, size, self._buffer)

    @_quickly(_bytes_at_hand)
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return await self.files[fh].blob.read(off, size)

    async def flush(self, _fh: FileHandleT) -> None:
        # Nothing to flush; told so once, the kernel stops asking.
        raise FUSEError(errno.ENOSYS)

    @_handler
    async def release(self, fh: FileHandleT) -> None:
        file = self.files.pop(fh)
        if file is None:
            return
        inode = self.inodes.peek(file.inode)
        if inode is not None:
            inode.released(streamed=file.streamed, verified=file.blob.verified)
        file.blob.close()

    @_handler
    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        # df(1) and file managers show the cache: its bound, what it holds, and what it may still take.
        size, used = self._space()
        figures = pyfuse3.StatvfsData()
        figures.f_bsize = IO_SIZE
        figures.f_frsize = _DF_UNIT
        figures.f_blocks = size // _DF_UNIT
        figures.f_bfree = figures.f_bavail = max(0, size - used) // _DF_UNIT
        figures.f_namemax = 255
        return figures

    # -- helpers -----------------------------------------------------------------------------------

    def report(self, operation: str, number: object, args: Sequence[object], error: Exception) -> int:
        """Log what went wrong in a handler; return the errno for it."""
        inner = first_of(error)
        if isinstance(inner, FUSEError):
            return inner.errno
        reason = scarcity_of(error) or inner
        foreign = not isinstance(reason, AttachfsError)
        if not isinstance(reason, AttachfsError):
            reason = Unexpected(f"{type(inner).__name__}: see the log")
        try:
            if foreign:
                log.error("%s failed for a reason of its own", operation, exc_info=error)
            path = self.describe(operation, number, args) if isinstance(number, int) else "/"
            self.faults.record(operation, path, reason)
        except Exception:  # the log must not do what it reports
            log.exception("%s failed, and its path cannot be named", operation)
        return errno_of(reason)

    def describe(self, operation: str, number: int, args: Sequence[object]) -> str:
        """Return the path that an operation was about, for the log."""
        if operation in ("readdir", "releasedir"):
            return path_of(self.directories[number].directory.node) if number in self.directories else "?"
        if operation in ("read", "release", "flush"):
            if number not in self.files:
                return "?"
            number = self.files[number].inode
        inode = self.inodes.peek(number)
        path = path_of(inode.node) if inode is not None else "?"
        if operation == "lookup" and args and isinstance(args[0], bytes):
            return f"{path}/{args[0].decode('utf-8', 'replace')!a}"
        return path or "/"

    def retime(self, timeout: float, negative_ttl: float) -> None:
        """Change how long answers may take, and how long absences are remembered."""
        self._timeout = timeout
        self._negative_ttl = negative_ttl

    async def forget_metadata(self, mountpoint: Path) -> None:
        """Let the kernel forget names and attributes; it keeps the bytes, which cannot change.

        With a directory of the root goes all that is known below it, except what is in use; that is asked
        for again when its time is over.
        """
        await self._drop_entries(mountpoint, self.inodes.numbers())

    async def thin_out(self, mountpoint: Path) -> None:
        """Have the kernel let go of what is not in use whenever it knows a great many names, while this runs.

        A walk over a large ledger would otherwise leave an inode here for everything that it has met.
        """
        while True:
            await self._crowded.wait()
            known = len(self.inodes)
            await self._drop_entries(mountpoint, ())
            log.debug("of %d inodes %d are left", known, len(self.inodes))
            self._many = max(_MANY, len(self.inodes) + _MANY // 2)  # those in use stay
            self._crowded = trio.Event()

    async def _drop_entries(self, mountpoint: Path, numbers: Iterable[int]) -> None:
        await trio.to_thread.run_sync(_kernel_forget, numbers)
        for name in _TOP:  # looked up again, for those whose working directory it is
            work = functools.partial(os.path.exists, mountpoint / name)
            await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    def close(self) -> None:
        """Close what programs left open."""
        for file in self.files.values():
            file.blob.close()
        self.faults.flush()


def _kernel_forget(numbers: Iterable[int]) -> None:
    """Let the kernel forget the root's entries, what is below them, and live inodes' attributes. Blocks."""
    for name in _TOP:
        with suppress(OSError):  # it does not know it
            pyfuse3.invalidate_entry(pyfuse3.ROOT_INODE, FileNameT(name.encode()))
    for number in numbers:
        with suppress(OSError):
            pyfuse3.invalidate_inode(InodeT(number), attr_only=True)
