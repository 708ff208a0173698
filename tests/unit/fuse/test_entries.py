"""What the kernel is told of files: made once for each record, and never told longer than that is good."""

import stat
from types import SimpleNamespace

import pytest
import trio

from attachfs.errors import IntegrityError
from attachfs.fuse import entries as entries_module
from attachfs.fuse import inodes as inodes_module
from attachfs.fuse.entries import Entries, Ownership
from attachfs.fuse.inodes import InodeTable
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef
from attachfs.namespace.nodes import ROOT, Node, Place
from attachfs.namespace.tree import Attributes, Tree
from tests.services.memory_source import FakeSource, event_ref, file_ref, info_body

EVENT, FILE, OTHER = event_ref(), file_ref(3, event=2), file_ref(4, event=2)
TIME = 1_672_531_200 * 10**9


class World:
    """A ledger with files, and what the kernel does."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.source = FakeSource()
        self.source.infos = {one: info_body(one) for one in (FILE, OTHER)}
        self.now = 1000.0
        self.ledger = Ledger(self.source, nursery, metadata_ttl=60, clock=lambda: self.now)
        self.tree = Tree(self.ledger, "https://ledger.example", 42)
        self.inodes = InodeTable()
        self.entries = Entries(self.tree, self.inodes, Ownership(7, 8, 0o022))

    async def look_up(self, file: AttachmentRef = FILE, parent: Node = EVENT) -> int:
        """Look a file up as if it had never been; return its inode number."""
        node, attributes = await self.tree.lookup(parent, file.attachment)
        return self.entries.found(parent, file.attachment.encode(), node, attributes).st_ino

    def again(self, file: AttachmentRef = FILE, parent: Node = EVENT) -> tuple[int, int, float, float] | None:
        """Look it up again; return number, size and both timeouts if nothing had to be made or asked."""
        entry = self.entries.ready(parent, file.attachment.encode())
        if entry is None:
            return None
        return (entry.st_ino, entry.st_size, entry.entry_timeout, entry.attr_timeout)

    async def renew(self, file: AttachmentRef = FILE, data: bytes = b"evidence", **more: object) -> None:
        """Have the ledger ask again, with this answer."""
        self.source.infos[file] = info_body(file, data, **more)
        await self.ledger.info(file, anew=True)


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


class TestWhatIsTold:
    async def test_the_kernel_is_given_the_entry_of_a_file(self, world: World) -> None:
        entry = world.entries.make(9, Attributes(False, 1025, TIME, 30.0), 20.0)
        assert (entry.st_ino, entry.st_mode, entry.st_nlink) == (9, stat.S_IFREG | 0o444, 1)
        assert (entry.st_uid, entry.st_gid, entry.st_size, entry.st_blocks) == (7, 8, 1025, 3)
        assert entry.st_mtime_ns == entry.st_ctime_ns == entry.st_atime_ns == TIME
        assert (entry.entry_timeout, entry.attr_timeout) == (20, 30)

    async def test_the_kernel_is_given_the_entries_of_a_directory_and_of_a_link(self, world: World) -> None:
        entry = world.entries.make(9, Attributes(True, 0, TIME, 30.0), 20.0)
        assert entry.st_mode == stat.S_IFDIR | 0o555
        entry = world.entries.make(9, Attributes(False, 5, TIME, 30.0, is_link=True), 20.0)
        assert entry.st_mode == stat.S_IFLNK | 0o777

    async def test_the_umask_is_taken_away(self, world: World) -> None:
        entries = Entries(world.tree, world.inodes, Ownership(0, 0, 0o077))
        assert entries.make(9, Attributes(False, 0, 0, 1.0), 1.0).st_mode == stat.S_IFREG | 0o400
        assert entries.make(9, Attributes(True, 0, 0, 1.0), 1.0).st_mode == stat.S_IFDIR | 0o500

    async def test_a_size_that_is_not_known_is_asked_for_again(self, world: World) -> None:
        entry = world.entries.make(9, Attributes(False, 0, 0, 30.0, size_known=False), 20.0)
        assert (entry.entry_timeout, entry.attr_timeout) == (20, 0)

    async def test_an_absence_is_remembered_for_an_hour_at_most(self, world: World) -> None:
        assert [world.entries.absent(s).entry_timeout for s in (5, float("inf"))] == [5, 3600]
        assert world.entries.absent(5).st_ino == 0


class TestKnownFiles:
    async def test_known_files_are_looked_up_again_without_a_request(self, world: World) -> None:
        number = await world.look_up()
        asked = list(world.source.calls)
        assert world.again() == (number, 8, 60, 60)
        assert world.source.calls == asked

    async def test_each_time_with_what_is_left_of_the_records_time(self, world: World) -> None:
        number = await world.look_up()
        for left in (59.5, 30.0, 0.25):
            world.now = 1060 - left
            assert world.again() == (number, 8, left, left)
        for later in (0.25, 100):
            world.now += later
            assert world.again() is None

    async def test_each_lookup_of_a_known_file_counts(self, world: World) -> None:
        number = await world.look_up()
        for _ in range(3):
            world.again()
        assert world.inodes[number].lookups == 4
        world.inodes.forget([(number, 3)])
        assert world.inodes[number].lookups == 1
        world.again()
        world.inodes.forget([(number, 2)])
        assert world.inodes.peek(number) is None

    async def test_known_files_that_the_kernel_has_forgotten_are_new_inodes(self, world: World) -> None:
        number = await world.look_up()
        world.inodes.forget([(number, 1)])
        assert world.again() == (number, 8, 60, 60)
        inode = world.inodes[number]
        assert (inode.node, inode.lookups, inode.opens) == (FILE, 1, 0)
        assert inode.attributes is not None
        assert inode.attributes.size == 8

    async def test_a_file_that_was_never_looked_up_is_not_known(self, world: World) -> None:
        await world.look_up(OTHER)
        assert world.again() is None
        assert len(world.inodes) == 2

    async def test_one_attachment_in_two_directories_is_two_files(self, world: World) -> None:
        elsewhere = file_ref(3, event=9)
        world.source.infos[elsewhere] = info_body(elsewhere, b"other bytes")
        first = await world.look_up()
        second = await world.look_up(elsewhere, event_ref(1, 9))
        assert first != second
        assert world.again() == (first, 8, 60, 60)
        assert world.again(elsewhere, event_ref(1, 9)) == (second, 11, 60, 60)

    async def test_what_is_learnt_of_others_changes_nothing(self, world: World) -> None:
        number = await world.look_up()
        await world.renew(OTHER)
        assert world.again() == (number, 8, 60, 60)

    async def test_directories_are_not_kept(self, world: World) -> None:
        attributes = world.tree.cached_attributes(Place.ASSETS)
        world.entries.found(ROOT, b"assets", Place.ASSETS, attributes)
        assert world.entries.ready(ROOT, b"assets") is None
        assert len(world.entries) == 0

    async def test_a_size_that_is_not_known_is_not_kept(self, world: World) -> None:
        world.entries.found(EVENT, FILE.attachment.encode(), FILE, world.tree.cached_attributes(FILE))
        assert world.again() is None

    async def test_only_so_many_known_files_are_kept_and_the_oldest_goes(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(entries_module, "_READY", 2)
        third = file_ref(5, event=2)
        world.source.infos[third] = info_body(third)
        for file in (FILE, OTHER, third):
            await world.look_up(file)
        assert len(world.entries) == 2
        assert world.again() is None
        assert world.again(OTHER)
        assert world.again(third)


class TestRecordsThatChange:
    async def test_what_is_forgotten_is_not_told(self, world: World) -> None:
        await world.look_up()
        world.ledger.clear()
        assert world.again() is None

    async def test_a_newer_record_is_told_instead(self, world: World) -> None:
        number = await world.look_up()
        await world.renew(timestamp_accepted="2024-01-01T00:00:00Z")
        assert world.again() is None
        assert await world.look_up() == number
        entry = world.entries.ready(EVENT, FILE.attachment.encode())
        assert entry is not None
        assert entry.st_mtime_ns > TIME

    async def test_a_newer_record_of_the_same_is_good_for_its_own_time(self, world: World) -> None:
        number = await world.look_up()
        world.now += 50
        await world.renew()
        assert world.again() is None
        await world.look_up()
        world.now += 20
        assert world.again() == (number, 8, 40, 40)

    async def test_another_size_is_told_if_nobody_has_it_open(self, world: World) -> None:
        number = await world.look_up()
        await world.renew(data=b"longer evidence")
        await world.look_up()
        assert world.again() == (number, 15, 60, 60)
        assert world.inodes[number].lookups == 3

    async def test_another_size_is_refused_while_it_is_open(self, world: World) -> None:
        number = await world.look_up()
        inode = world.inodes[number]
        inode.opened(verified=True)
        await world.renew(data=b"longer evidence")
        assert world.again() is None
        with pytest.raises(IntegrityError, match="records 15 bytes where it recorded 8"):
            await world.look_up()
        assert inode.lookups == 1
        inode.released(streamed=False, verified=True)
        await world.look_up()
        assert world.again() == (number, 15, 60, 60)

    async def test_an_entry_at_hand_is_refused_if_the_open_file_was_told_another_size(
        self, world: World
    ) -> None:
        number = await world.look_up()
        inode = world.inodes[number]
        inode.returned(Attributes(False, 9, TIME, 1.0))
        inode.opened(verified=True)
        with pytest.raises(IntegrityError):
            world.again()
        assert inode.lookups == 1

    async def test_attributes_of_a_record_replaced_meanwhile_are_not_kept(self, world: World) -> None:
        _, old = await world.tree.lookup(EVENT, FILE.attachment)
        await world.renew(data=b"longer evidence")
        entry = world.entries.found(EVENT, FILE.attachment.encode(), FILE, old)
        assert entry.st_size == 8
        assert world.again() is None


class TestDisputedNumbers:
    """Two live files whose paths have one hash: the later one has the next number."""

    @pytest.fixture(autouse=True)
    def _collide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        digest = SimpleNamespace(digest=lambda: bytes(7) + b"\x10")
        monkeypatch.setattr(inodes_module, "hashlib", SimpleNamespace(blake2b=lambda *_, **__: digest))

    async def test_each_is_told_its_own(self, world: World) -> None:
        first, second = await world.look_up(), await world.look_up(OTHER)
        assert second == first + 1
        assert world.again() == (first, 8, 60, 60)
        assert world.again(OTHER) == (second, 8, 60, 60)

    async def test_a_number_that_another_has_now_is_not_told(self, world: World) -> None:
        first = await world.look_up()
        world.inodes.forget([(first, 1)])
        assert await world.look_up(OTHER) == first
        assert world.again() is None
        assert await world.look_up() == first + 1

    async def test_a_file_never_has_two_numbers(self, world: World) -> None:
        own = await world.look_up()
        world.inodes.forget([(own, 1)])
        await world.look_up(OTHER)
        moved, inode = world.inodes.remember(FILE)  # by a listing, say
        assert moved == own + 1
        world.inodes.forget([(own, 1)])
        assert world.again() is None
        assert await world.look_up() == moved
        assert world.inodes[moved] is inode
