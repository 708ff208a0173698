"""The handlers: what is known is answered at once; whatever goes wrong becomes one errno and one fault."""

import errno
import logging
from typing import cast

import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, XAttrNameT
from trio.testing import wait_all_tasks_blocked

from attachfs.blobs.handle import BlobHandle
from attachfs.blobs.store import BlobStore
from attachfs.errors import BadAnswer, IntegrityError, NotFound, TimedOut
from attachfs.fuse.deadlines import Deadline, RequestDeadlines
from attachfs.fuse.entries import Ownership
from attachfs.fuse.fault_log import ErrorLog
from attachfs.fuse.inodes import ROOT_INODE, InodeTable
from attachfs.fuse.observer import Opened
from attachfs.fuse.operations import File, Filesystem
from attachfs.fuse.readahead import ReadAhead
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef
from attachfs.namespace.nodes import Node
from attachfs.namespace.tree import Tree
from tests.services.memory_source import FakeSource, event_ref, file_ref, info_body

EVENT, FILE, OTHER = event_ref(), file_ref(3, event=2), file_ref(4, event=2)
CTX = pyfuse3.RequestContext()


class CountedRoom(RequestDeadlines):
    """Counts those who may have to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.came = 0

    def wait(self, pid: int, seconds: float = float("inf")) -> Deadline:
        self.came += 1
        return super().wait(pid, seconds)


class Heard:
    """Hears what readahead would."""

    def __init__(self) -> None:
        self.looked_at: list[Node] = []

    def stat(self, file: Node) -> None:
        self.looked_at.append(file)


class Claims:
    """Blobs that are asked for claims only."""

    async def mount_attribute(self, ref: AttachmentRef, name: str) -> bytes:
        return f"{name} of {ref.attachment}".encode()


class Bytes:
    """An open blob: at hand, to be waited for, or broken."""

    def __init__(self, at_hand: bytes | Exception | None) -> None:
        self.at_hand = at_hand

    def read_nowait(self, _offset: int, _size: int, _buffer: bytearray) -> bytes | None:
        if isinstance(self.at_hand, Exception):
            raise self.at_hand
        return self.at_hand

    async def read(self, _offset: int, _size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"waited for"


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.source = FakeSource()
        self.source.infos = {one: info_body(one) for one in (FILE, OTHER)}
        self.ledger = Ledger(self.source, nursery, metadata_ttl=60)
        self.inodes = InodeTable()
        self.heard, self.room = Heard(), CountedRoom()
        self.faults = ErrorLog(trio.current_time)
        self.fs = Filesystem(
            Tree(self.ledger, "https://ledger.example", 42),
            cast("BlobStore", Claims()),
            self.inodes,
            cast("ReadAhead", self.heard),
            self.room,
            self.faults,
            Ownership(0, 0, 0),
            timeout=60,
            negative_ttl=5,
            status=lambda: b"{}",
            space=lambda: (10 * 2**30, 2**20 + 1),
        )
        self.event = InodeT(self.inodes.remember(EVENT)[0])

    async def look_up(self, file: AttachmentRef = FILE) -> pyfuse3.EntryAttributes:
        return await self.fs.lookup(self.event, FileNameT(file.attachment.encode()), CTX)

    async def xattr(self, inode: int, name: str) -> bytes:
        return await self.fs.getxattr(InodeT(inode), XAttrNameT(name.encode()), CTX)

    def opened(self, at_hand: bytes | Exception | None) -> FileHandleT:
        file = File(self.event, cast("BlobHandle", Bytes(at_hand)), streamed=False)
        return FileHandleT(self.fs.files.add(file))


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


def last_fault(world: World) -> tuple[str, str, int]:
    fault = world.faults.latest()[-1]
    return fault["operation"], fault["path"], fault["errno"]


class TestKnownFiles:
    async def test_known_files_are_answered_without_waiting_and_readahead_hears_of_others_only(
        self, world: World
    ) -> None:
        number = (await world.look_up()).st_ino
        assert (world.room.came, world.heard.looked_at) == (1, [FILE])
        for _ in range(2):
            assert (await world.look_up()).st_ino == number
            assert (await world.fs.getattr(number, CTX)).st_size == 8
            assert await world.xattr(number, "user.attachment.size") == b"8"
            assert b"user.hash.sha256" in await world.fs.listxattr(number, CTX)
        assert (world.room.came, world.heard.looked_at) == (1, [FILE])
        assert world.source.calls == [("info", FILE)]
        assert world.inodes[number].lookups == 3

    async def test_known_files_that_a_listing_has_brought_need_no_lookup_before(self, world: World) -> None:
        await world.ledger.info(FILE)
        number = (await world.look_up()).st_ino
        assert world.room.came == 0
        assert world.inodes[number].lookups == 1

    async def test_known_files_are_requested_again_once_they_are_forgotten(self, world: World) -> None:
        number = (await world.look_up()).st_ino
        world.ledger.clear()
        await world.look_up()
        world.ledger.clear()
        await world.fs.getattr(number, CTX)
        world.ledger.clear()
        await world.xattr(number, "user.mime_type")
        world.ledger.clear()
        await world.fs.listxattr(number, CTX)
        assert world.source.count("info") == world.room.came == 5
        assert world.heard.looked_at == [FILE] * 3

    async def test_a_known_file_that_is_gone_is_reported_as_absent(self, world: World) -> None:
        await world.look_up()
        world.ledger.clear()
        world.source.infos[FILE] = NotFound("404")
        entry = await world.look_up()
        assert (entry.st_ino, entry.entry_timeout) == (0, 5)

    async def test_a_file_that_was_gone_before_all_was_invalidated_is_not_kept_as_absent(
        self, world: World
    ) -> None:
        """As by SIGHUP: nor by the kernel, which was told to forget before it hears of it."""
        world.source.gate = trio.Event()
        world.source.infos[FILE] = NotFound("404")
        entries = []

        async def look() -> None:
            entries.append(await world.look_up())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            world.ledger.clear()
            world.source.gate.set()
        assert [(entry.st_ino, entry.entry_timeout) for entry in entries] == [(0, 0)]

    async def test_an_open_one_never_changes_its_size(self, world: World) -> None:
        number = (await world.look_up()).st_ino
        world.inodes[number].opened(verified=True)
        world.source.infos[FILE] = info_body(FILE, b"longer evidence")
        await world.ledger.info(FILE, anew=True)
        with pytest.raises(FUSEError) as caught:
            await world.look_up()
        assert caught.value.errno == errno.EBADMSG
        assert last_fault(world) == ("lookup", f"{EVENT.path}/{FILE.attachment!a}", errno.EBADMSG)
        with pytest.raises(FUSEError) as caught:
            await world.fs.getattr(number, CTX)
        assert caught.value.errno == errno.EBADMSG
        assert world.inodes[number].lookups == 1


class TestExtendedAttributes:
    async def test_attributes_that_the_system_asks_for_are_not_there_whatever_it_is(
        self, world: World
    ) -> None:
        for number in (ROOT_INODE, world.event, (await world.look_up()).st_ino):
            for name in ("security.capability", "system.posix_acl_access", "trusted.x"):
                with pytest.raises(FUSEError) as caught:
                    await world.xattr(number, name)
                assert caught.value.errno == errno.ENODATA

    async def test_the_mounts_figures_are_the_roots(self, world: World) -> None:
        assert await world.xattr(ROOT_INODE, "user.attachfs.status") == b"{}"
        with pytest.raises(FUSEError) as caught:
            await world.xattr(world.event, "user.attachfs.status")
        assert caught.value.errno == errno.ENODATA

    async def test_claims_are_the_blobs_business(self, world: World) -> None:
        number = (await world.look_up()).st_ino
        assert await world.xattr(number, "user.attachfs.cached") == f"cached of {FILE.attachment}".encode()

    async def test_an_extended_attribute_that_is_not_there_is_enodata(self, world: World) -> None:
        number = (await world.look_up()).st_ino
        for name in ("user.attachment.nothing", "user.x"):
            with pytest.raises(FUSEError) as caught:
                await world.xattr(number, name)
            assert caught.value.errno == errno.ENODATA


class TestReading:
    @pytest.mark.parametrize(("at_hand", "read"), [(b"x", b"x"), (b"", b""), (None, b"waited for")])
    async def test_what_is_at_hand_is_not_waited_for(
        self, world: World, at_hand: bytes | None, read: bytes
    ) -> None:
        assert await world.fs.read(world.opened(at_hand), 0, 10) == read


class TestWhatGoesWrong:
    """In answers that are had at once, and in those that are waited for."""

    @pytest.mark.parametrize(
        ("error", "number"),
        [
            (IntegrityError("x"), errno.EBADMSG),
            (TimedOut("x"), errno.ETIMEDOUT),
            (ExceptionGroup("x", [BadAnswer("x")]), errno.EIO),
        ],
    )
    async def test_what_goes_wrong_at_once_becomes_its_errno_and_is_logged(
        self, world: World, error: Exception, number: int
    ) -> None:
        with pytest.raises(FUSEError) as caught:
            await world.fs.read(world.opened(error), 0, 10)
        assert caught.value.errno == number
        assert last_fault(world) == ("read", EVENT.path, number)

    async def test_a_fault_of_our_own_at_once_does_not_end_the_mount(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(FUSEError) as caught:
            await world.fs.read(world.opened(ZeroDivisionError("x")), 0, 10)
        assert caught.value.errno == errno.EIO
        assert [one.message for one in caplog.records if one.levelno == logging.ERROR]

    @pytest.mark.parametrize("number", [12345, 2**63 - 1])
    async def test_an_inode_that_is_not_known(self, world: World, number: int) -> None:
        for ask in (world.fs.getattr, world.fs.listxattr, world.fs.readlink, world.fs.opendir):
            with pytest.raises(FUSEError) as caught:
                await ask(InodeT(number), CTX)
            assert caught.value.errno == errno.ENOENT

    async def test_what_goes_wrong_while_waiting_becomes_its_errno(self, world: World) -> None:
        world.source.infos[FILE] = BadAnswer("500")
        with pytest.raises(FUSEError) as caught:
            await world.look_up()
        assert caught.value.errno == errno.EIO
        assert last_fault(world)[0] == "lookup"


async def test_statfs_shows_the_cache(world: World) -> None:
    shown = await world.fs.statfs(CTX)
    assert shown.f_blocks * shown.f_frsize == 10 * 2**30
    assert shown.f_bfree == shown.f_bavail == (10 * 2**30 - 2**20 - 1) // 4096


class OneBlob:
    """A store with one blob, or an error."""

    def __init__(self, error: BadAnswer | None = None) -> None:
        self.error = error
        self.closed = False
        self.size, self.verified, self.digest = 3, True, None

    async def open(self, ref: AttachmentRef) -> "OneBlob":
        del ref
        if self.error is not None:
            raise self.error
        return self

    def close(self) -> None:
        self.closed = True


class Observer:
    def __init__(self, error: BadAnswer | None = None) -> None:
        self.error = error
        self.seen: list[Opened] = []

    async def opened(self, file: Opened) -> None:
        self.seen.append(file)
        if self.error is not None:
            raise self.error


def observed(nursery: trio.Nursery, blob: OneBlob, observer: Observer) -> tuple[Filesystem, InodeT]:
    world = World(nursery)
    world.heard.opened = lambda _: None  # type: ignore[attr-defined]
    world.fs._blobs = cast("BlobStore", blob)
    world.fs._observer = observer
    return world.fs, InodeT(world.inodes.remember(FILE)[0])


async def test_whoever_takes_note_of_opens_is_told_before_they_succeed(nursery: trio.Nursery) -> None:
    observer = Observer()
    filesystem, inode = observed(nursery, OneBlob(), observer)
    await filesystem.open(inode, FlagT(0), CTX)
    (seen,) = observer.seen
    assert (seen.path, seen.size, seen.error) == (FILE.path, 3, None)


async def test_an_open_of_which_no_note_can_be_taken_fails_and_holds_nothing(nursery: trio.Nursery) -> None:
    blob = OneBlob()
    filesystem, inode = observed(nursery, blob, Observer(BadAnswer("no note")))
    with pytest.raises(FUSEError) as caught:
        await filesystem.open(inode, FlagT(0), CTX)
    assert caught.value.errno == errno.EIO
    assert blob.closed
    assert not list(filesystem.files.values())


async def test_an_open_that_fails_is_noted_with_its_reason(nursery: trio.Nursery) -> None:
    observer = Observer()
    filesystem, inode = observed(nursery, OneBlob(BadAnswer("short")), observer)
    with pytest.raises(FUSEError):
        await filesystem.open(inode, FlagT(0), CTX)
    assert [str(seen.error) for seen in observer.seen] == ["short"]
