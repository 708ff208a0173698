"""Inode numbers that survive a remount, and a table that holds what the kernel holds, no more."""

import hashlib
from types import SimpleNamespace

import pytest

from attachfs.errors import NotFound, Unexpected
from attachfs.fuse import inodes
from attachfs.fuse.inodes import ROOT_INODE, HandleTable, Inode, InodeTable
from attachfs.namespace.nodes import ROOT, EventsDir, Node, Place
from tests.services.memory_source import asset_ref, event_ref, file_ref, uuid

NODES: list[Node] = [
    Place.ASSETS,
    Place.PUBLICASSETS,
    asset_ref(),
    asset_ref(realm="publicassets"),
    EventsDir("assets", uuid(1)),
    event_ref(),
    file_ref(),
    file_ref(event=2),
]


def collide(monkeypatch: pytest.MonkeyPatch, digest: bytes) -> None:
    fake = SimpleNamespace(blake2b=lambda *_, **__: SimpleNamespace(digest=lambda: digest))
    monkeypatch.setattr(inodes, "hashlib", fake)


class TestNumbers:
    def test_the_root_is_1(self) -> None:
        table = InodeTable()
        assert table.number(ROOT) == ROOT_INODE == 1
        assert table[1].node is ROOT

    def test_inode_numbers_are_the_same_in_every_run(self) -> None:
        assert [InodeTable().number(node) for node in NODES] == [InodeTable().number(node) for node in NODES]
        # Written down: a change here changes every inode number that a backup has recorded.
        digest = hashlib.blake2b(b"assets", digest_size=8).digest()
        assert InodeTable().number(Place.ASSETS) == int.from_bytes(digest, "big") >> 1

    def test_differ_and_fit_63_bits(self) -> None:
        numbers = {InodeTable().number(node) for node in NODES}
        assert len(numbers) == len(NODES)
        assert all(ROOT_INODE < number < 2**63 for number in numbers)

    def test_asking_for_one_counts_nothing(self) -> None:
        table = InodeTable()
        number = table.number(file_ref())
        assert table.peek(number) is None
        assert len(table) == 1
        with pytest.raises(NotFound):
            table[number]

    @pytest.mark.parametrize("digest", [bytes(8), b"\0" * 7 + b"\3", b"\xff" * 8, b"\xff" * 7 + b"\xfe"])
    def test_paths_with_one_hash_get_numbers_of_their_own(
        self, monkeypatch: pytest.MonkeyPatch, digest: bytes
    ) -> None:
        collide(monkeypatch, digest)
        table = InodeTable()
        numbers = [table.remember(node)[0] for node in NODES]
        assert len(set(numbers)) == len(NODES)
        assert all(ROOT_INODE < number < 2**63 for number in numbers)
        assert [table.number(node) for node in NODES] == numbers
        assert [table[number].node for number in numbers] == NODES

    def test_the_same_node_again_is_the_same_inode(self) -> None:
        table = InodeTable()
        number, inode = table.remember(file_ref())
        assert table.remember(file_ref()) == (number, inode)
        assert inode.lookups == 2

    def test_paths_of_all_nodes_differ(self) -> None:
        assert len({node.path for node in NODES}) == len(NODES)


class TestForgetting:
    def test_the_last_lookup_taken_back_removes_it(self) -> None:
        table = InodeTable()
        numbers = {table.remember(file_ref())[0] for _ in range(3)}
        (number,) = numbers
        table.forget([(number, 2)])
        assert table[number].lookups == 1
        table.forget([(number, 1)])
        assert table.peek(number) is None
        assert len(table) == 1

    def test_many_inodes_are_forgotten_at_once(self) -> None:
        table = InodeTable()
        numbers = [table.remember(node)[0] for node in NODES]
        table.forget((number, 1) for number in numbers)
        assert len(table) == 1

    def test_the_root_is_never_forgotten(self) -> None:
        table = InodeTable()
        table.forget([(ROOT_INODE, 10**6)])
        assert table[ROOT_INODE].node is ROOT

    def test_unknown_numbers_and_too_large_counts_do_no_harm(self) -> None:
        table = InodeTable()
        number, _ = table.remember(file_ref())
        table.forget([(12345, 1), (number, 99), (number, 1)])
        assert len(table) == 1

    def test_looked_up_again_it_is_a_new_inode_with_its_old_number(self) -> None:
        table = InodeTable()
        number, inode = table.remember(file_ref())
        table.forget([(number, 1)])
        again, new = table.remember(file_ref())
        assert again == number
        assert new is not inode
        assert new.attributes is None


class TestWhatTheKernelMayKeep:
    def test_pages_of_verified_bytes_are_kept_across_opens(self) -> None:
        inode = Inode(file_ref())
        assert [inode.opened(verified=True) for _ in range(3)] == [True] * 3
        for _ in range(3):
            inode.released(streamed=False, verified=True)
        assert inode.opened(verified=True)

    def test_pages_that_are_not_verified_yet_are_never_kept(self) -> None:
        inode = Inode(file_ref())
        assert not inode.opened(verified=False)
        assert not inode.opened(verified=True)  # while the other may still hand out unverified bytes

    def test_a_stream_found_right_is_kept_afterwards(self) -> None:
        inode = Inode(file_ref())
        inode.opened(verified=False)
        inode.released(streamed=True, verified=True)
        assert inode.opened(verified=True)

    def test_a_stream_that_was_not_found_right_has_its_pages_dropped_once(self) -> None:
        inode = Inode(file_ref())
        inode.opened(verified=False)
        inode.released(streamed=True, verified=False)
        assert not inode.opened(verified=True)
        inode.released(streamed=False, verified=True)
        assert inode.opened(verified=True)

    def test_while_somebody_has_it_open_suspect_pages_stay_suspect(self) -> None:
        inode = Inode(file_ref())
        inode.opened(verified=True)
        inode.opened(verified=False)
        inode.released(streamed=True, verified=False)
        assert not inode.opened(verified=True)
        assert not inode.opened(verified=True)
        for _ in range(3):
            inode.released(streamed=False, verified=True)
        assert inode.opens == inode.streams == 0
        assert not inode.opened(verified=True)
        inode.released(streamed=False, verified=True)
        assert inode.opened(verified=True)


class TestHandles:
    def test_a_handle_is_found_until_it_is_closed(self) -> None:
        table: HandleTable[str] = HandleTable()
        first, second = table.add("a"), table.add("b")
        assert (table[first], table[second], len(table)) == ("a", "b", 2)
        assert table.values() == ["a", "b"]
        assert table.pop(first) == "a"
        assert first not in table
        assert second in table

    def test_numbers_are_not_used_again(self) -> None:
        table: HandleTable[str] = HandleTable()
        first = table.add("a")
        table.pop(first)
        assert table.add("b") != first

    def test_a_handle_that_is_not_open_is_not_found(self) -> None:
        table: HandleTable[str] = HandleTable()
        assert table.pop(7) is None
        with pytest.raises(Unexpected, match="7"):
            table[7]
