"""The namespace: what exists, what is asked for, what is told, and that impossible names cost nothing."""

import hashlib
import json
from operator import attrgetter

import pytest
import trio
from trio.testing import MockClock

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NoAttribute,
    NotDirectory,
    NotFound,
    Unreachable,
)
from attachfs.ledger.view import Ledger
from attachfs.model import AssetRef, AttachmentRef, EventRef
from attachfs.namespace.directory import Directory, Entry
from attachfs.namespace.nodes import ROOT, ByNameNode, EventsDir, Node, Place, parent_of
from attachfs.namespace.tree import Tree
from tests.services.memory_source import (
    FakePage,
    FakeSource,
    as_json,
    asset_record,
    asset_ref,
    attribute,
    event_record,
    event_ref,
    file_ref,
    info_body,
    uuid,
)

BORN = 42
ASSET, EVENT, FILE, ON_EVENT = asset_ref(), event_ref(), file_ref(), file_ref(event=2)
EVENTS = EventsDir("assets", uuid(1))
PUBLIC = asset_ref(realm="publicassets")
TIME = 1_672_531_200 * 10**9


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource()
    attributes = {"x": attribute(3), "y": [attribute(4)], "again": attribute(3), "n": 1}
    asset = asset_record(ASSET, attributes, at_time="2023-01-01T00:00:00Z")
    event = event_record(EVENT, {"x": attribute(3)}, timestamp_accepted="2023-01-01T00:00:00Z")
    event["asset_attributes"] = {"y": attribute(4)}
    source.records = {ASSET: as_json(asset), EVENT: as_json(event)}
    source.infos = {FILE: info_body(FILE), ON_EVENT: info_body(ON_EVENT, b"other")}
    source.asset_pages = {"": FakePage([asset], "t"), "t": FakePage([asset_record(asset_ref(9))])}
    source.event_pages = {(ASSET, ""): FakePage([event])}
    return source


@pytest.fixture
async def tree(source: FakeSource, nursery: trio.Nursery) -> Tree:
    return Tree(Ledger(source, nursery, metadata_ttl=60, negative_ttl=5), "https://ledger.example", BORN)


async def contents(directory: Directory) -> list[Entry]:
    index = 0
    while await directory.load_to(index):
        index += 1
    assert directory.available == index
    return [directory[i] for i in range(index)]


NODES: list[Node] = [ROOT, Place.ASSETS, Place.PUBLICASSETS, ASSET, PUBLIC, EVENTS, EVENT, FILE, ON_EVENT]


class TestPaths:
    def test_every_node_has_its_path(self) -> None:
        a, e, f = uuid(1), uuid(2), uuid(3)
        assert [node.path for node in NODES] == [
            *("", "assets", "publicassets", f"assets/{a}", f"publicassets/{a}", f"assets/{a}/events"),
            *(f"assets/{a}/events/{e}", f"assets/{a}/{f}", f"assets/{a}/events/{e}/{f}"),
        ]

    @pytest.mark.parametrize("node", NODES, ids=attrgetter("path"))
    def test_a_nodes_parent_is_the_directory_of_its_path(self, node: Node) -> None:
        assert parent_of(node).path == node.path.rpartition("/")[0]

    def test_an_asset_and_its_events_are_not_the_same_node(self) -> None:
        assert len({*NODES}) == len(NODES)


class TestLookup:
    async def test_walks_down_to_a_file_of_an_asset(self, tree: Tree, source: FakeSource) -> None:
        node: Node = ROOT
        for name in FILE.path.split("/"):
            node, _ = await tree.lookup(node, name)
        assert node == FILE
        assert source.calls == [("asset", ASSET), ("info", FILE)]

    async def test_walks_down_to_a_file_of_an_event(self, tree: Tree, source: FakeSource) -> None:
        node: Node = ROOT
        for name in ON_EVENT.path.split("/"):
            node, _ = await tree.lookup(node, name)
        assert node == ON_EVENT
        assert source.calls == [("asset", ASSET), ("event", EVENT), ("info", ON_EVENT)]

    async def test_what_no_listing_shows_is_found_by_its_name(self, tree: Tree, source: FakeSource) -> None:
        hidden = file_ref(77)
        source.infos[hidden] = info_body(hidden)
        assert (await tree.lookup(ASSET, uuid(77)))[0] == hidden

    async def test_public_assets_are_entered_by_name(self, tree: Tree, source: FakeSource) -> None:
        source.records[PUBLIC] = as_json(asset_record(PUBLIC))
        assert (await tree.lookup(Place.PUBLICASSETS, PUBLIC.asset))[0] == PUBLIC
        assert source.calls == [("asset", PUBLIC)]

    @pytest.mark.parametrize(
        "parent", [node for node in NODES if node not in (FILE, ON_EVENT)], ids=attrgetter("path")
    )
    @pytest.mark.parametrize(
        "name",
        [
            *(
                "",
                ".",
                "..",
                "x",
                ".git",
                "autorun.inf",
                "desktop.ini",
                ".Trash-1000",
                "CON",
                "%2e%2e",
                "a/b",
            ),
            *("../" + uuid(3), uuid(3) + "/", uuid(3) + "\n", "\0" + uuid(3), uuid(3) + ".jpg", uuid(3)[:-1]),
            *(
                uuid(0xABC).upper(),
                uuid(3).replace("-", ""),
                "blobs/" + uuid(3),
                "Events",
                "ASSETS",
                "x" * 4096,
            ),
            chr(0x660) + uuid(3)[1:],
        ],
        ids=ascii,
    )
    async def test_a_name_that_cannot_exist_costs_no_request(
        self, tree: Tree, source: FakeSource, parent: Node, name: str
    ) -> None:
        with pytest.raises(NotFound):
            await tree.lookup(parent, name)
        assert source.calls == []

    @pytest.mark.parametrize(
        ("parent", "name"),
        [(ROOT, "assets"), (ROOT, "publicassets"), (ASSET, "events"), (PUBLIC, "events")],
    )
    async def test_what_is_always_there_costs_no_request(
        self, tree: Tree, source: FakeSource, parent: Node, name: str
    ) -> None:
        assert (await tree.lookup(parent, name))[0].path.endswith(name)
        assert source.calls == []

    @pytest.mark.parametrize(
        ("parent", "name"),
        [
            *(
                (ROOT, uuid(1)),
                (ROOT, "events"),
                (EVENTS, "events"),
                (EVENT, "events"),
                (Place.ASSETS, "events"),
            ),
            *((Place.ASSETS, "assets"), (ASSET, "assets")),
        ],
    )
    async def test_a_name_from_another_level_does_not_exist(
        self, tree: Tree, source: FakeSource, parent: Node, name: str
    ) -> None:
        with pytest.raises(NotFound):
            await tree.lookup(parent, name)
        assert source.calls == []

    @pytest.mark.parametrize("name", ["x", uuid(3), "events", ".."])
    async def test_nothing_is_below_a_file(self, tree: Tree, source: FakeSource, name: str) -> None:
        with pytest.raises(NotDirectory):
            await tree.lookup(FILE, name)
        assert source.calls == []

    @pytest.mark.parametrize(
        ("parent", "name"),
        [(Place.ASSETS, uuid(99)), (EVENTS, uuid(99)), (ASSET, uuid(99)), (EVENT, uuid(99))],
    )
    async def test_what_the_service_does_not_have_does_not_exist(
        self, tree: Tree, source: FakeSource, parent: Node, name: str
    ) -> None:
        for _ in range(3):
            with pytest.raises(NotFound):
                await tree.lookup(parent, name)
        assert len(source.calls) == 1

    @pytest.mark.parametrize("error", [Unreachable("x"), BadAnswer("x")], ids=lambda e: type(e).__name__)
    async def test_an_outage_is_never_an_absence(
        self, tree: Tree, source: FakeSource, error: AttachfsError
    ) -> None:
        source.records = {ASSET: error, EVENT: error}
        source.infos = {FILE: error}
        for parent, name in ((Place.ASSETS, uuid(1)), (EVENTS, uuid(2)), (ASSET, uuid(3))):
            with pytest.raises(type(error)):
                await tree.lookup(parent, name)

    async def test_a_refused_asset_or_event_can_be_passed_through_but_not_listed(
        self, tree: Tree, source: FakeSource
    ) -> None:
        source.records = {ASSET: AccessDenied("403"), EVENT: AccessDenied("403")}
        assert (await tree.lookup(Place.ASSETS, uuid(1)))[0] == ASSET
        assert (await tree.lookup(EVENTS, uuid(2)))[0] == EVENT
        assert (await tree.lookup(EVENT, uuid(3)))[0] == ON_EVENT
        for node in (ASSET, EVENT):
            with pytest.raises(AccessDenied):
                await tree.open_directory(node)

    async def test_a_refused_file_is_refused(self, tree: Tree, source: FakeSource) -> None:
        source.infos[FILE] = AccessDenied("403")
        with pytest.raises(AccessDenied):
            await tree.lookup(ASSET, uuid(3))
        assert (await tree.lookup(EVENT, uuid(3)))[0] == ON_EVENT  # its neighbour is not


class TestDirectories:
    async def test_the_root_lists_its_directories(self, tree: Tree, source: FakeSource) -> None:
        entries = await contents(await tree.open_directory(ROOT))
        assert entries == [Entry(p.value, p) for p in (Place.ASSETS, Place.PUBLICASSETS, Place.BY_NAME)]
        assert source.calls == []

    async def test_assets_come_page_by_page(self, tree: Tree, source: FakeSource) -> None:
        directory = await tree.open_directory(Place.ASSETS)
        assert directory.available == 0
        assert await directory.load_to(0)
        assert directory[0] == Entry(uuid(1), ASSET)
        assert len(source.calls) == 1
        assert await contents(directory) == [Entry(uuid(1), ASSET), Entry(uuid(9), asset_ref(9))]

    async def test_public_assets_show_nothing(self, tree: Tree, source: FakeSource) -> None:
        assert await contents(await tree.open_directory(Place.PUBLICASSETS)) == []
        assert source.calls == []

    async def test_an_asset_shows_events_and_each_attachment_once(self, tree: Tree) -> None:
        entries = await contents(await tree.open_directory(ASSET))
        assert entries == [Entry("events", EVENTS), Entry(uuid(3), FILE), Entry(uuid(4), file_ref(4))]

    async def test_a_directory_of_events_lists_them(self, tree: Tree) -> None:
        assert await contents(await tree.open_directory(EVENTS)) == [Entry(uuid(2), EVENT)]

    async def test_public_events_stay_public(self, tree: Tree, source: FakeSource) -> None:
        event = event_ref(realm="publicassets")
        source.event_pages[PUBLIC, ""] = FakePage([event_record(event)])
        directory = await tree.open_directory(EventsDir("publicassets", PUBLIC.asset))
        assert await contents(directory) == [Entry(uuid(2), event)]

    async def test_an_event_shows_the_attachments_of_both_kinds_of_attributes(self, tree: Tree) -> None:
        entries = await contents(await tree.open_directory(EVENT))
        assert entries == [Entry(uuid(3), ON_EVENT), Entry(uuid(4), file_ref(4, event=2))]

    async def test_entries_keep_their_places_while_it_is_open(
        self, tree: Tree, source: FakeSource, mock_clock: MockClock
    ) -> None:
        directory = await tree.open_directory(Place.ASSETS)
        assert await directory.load_to(0)
        mock_clock.jump(1000)
        source.asset_pages[""] = FakePage([asset_record(asset_ref(50))])
        assert await contents(directory) == [Entry(uuid(1), ASSET), Entry(uuid(9), asset_ref(9))]

    async def test_a_file_is_none(self, tree: Tree) -> None:
        with pytest.raises(NotDirectory):
            await tree.open_directory(FILE)

    async def test_a_directory_whose_listing_fails_cannot_be_read(
        self, tree: Tree, source: FakeSource
    ) -> None:
        source.asset_pages["t"] = Unreachable("x")
        with pytest.raises(Unreachable):
            await contents(await tree.open_directory(Place.ASSETS))

    async def test_listing_asks_for_no_info(self, tree: Tree, source: FakeSource) -> None:
        for node in (ROOT, Place.ASSETS, ASSET, EVENTS, EVENT):
            for _, child in await contents(await tree.open_directory(node)):
                tree.cached_attributes(child)
        assert source.count("info") == 0
        # The listings bring the records.
        assert source.count("asset") == source.count("event") == 0


class TestAttributes:
    async def test_attributes_of_a_file_are_its_infos(
        self, tree: Tree, source: FakeSource, mock_clock: MockClock
    ) -> None:
        found = await tree.attributes(FILE)
        assert (found.is_dir, found.size, found.time_ns, found.size_known) == (False, 8, TIME, True)
        assert found.valid_for == 60
        mock_clock.jump(50)
        assert tree.cached_attributes(FILE).valid_for == 10
        assert source.calls == [("info", FILE)]

    async def test_attributes_of_a_file_not_requested_yet_are_not_known_and_must_not_be_kept(
        self, tree: Tree, source: FakeSource
    ) -> None:
        found = tree.cached_attributes(FILE)
        assert (found.is_dir, found.size_known, found.valid_for) == (False, False, 0)
        assert source.calls == []

    async def test_attributes_of_a_file_whose_time_is_up_are_not_known(
        self, tree: Tree, mock_clock: MockClock
    ) -> None:
        await tree.attributes(FILE)
        mock_clock.jump(61)
        assert not tree.cached_attributes(FILE).size_known

    async def test_a_file_that_is_not_there_has_no_attributes(self, tree: Tree) -> None:
        with pytest.raises(NotFound):
            await tree.attributes(file_ref(99))
        assert not tree.cached_attributes(file_ref(99)).size_known

    @pytest.mark.parametrize("file", [FILE, ON_EVENT], ids=attrgetter("path"))
    @pytest.mark.parametrize("unusable", ["", "yesterday", "1969-01-01T00:00:00Z", None, 7])
    async def test_a_file_without_a_usable_time_has_its_owners(
        self, tree: Tree, source: FakeSource, file: AttachmentRef, unusable: object
    ) -> None:
        source.infos[file] = info_body(file, timestamp_accepted=unusable)
        for _ in range(2):
            found = await tree.attributes(file)
            assert (found.time_ns, found.size_known) == (TIME, True)
            assert found.valid_for > 50
            assert tree.cached_attributes(file)[:3] == found[:3]
        assert len(source.calls) == 2

    @pytest.mark.parametrize("owner", [AccessDenied("403"), Unreachable("x"), None], ids=repr)
    async def test_a_file_without_a_usable_time_whose_owner_has_none_either_is_of_1970(
        self, tree: Tree, source: FakeSource, owner: Exception | None
    ) -> None:
        source.infos[FILE] = info_body(FILE, timestamp_accepted="")
        source.records[ASSET] = owner or as_json(asset_record(ASSET, at_time="soon"))
        found = await tree.attributes(FILE)
        assert (found.time_ns, found.size, found.size_known) == (0, 8, True)
        assert (await tree.attributes(ASSET)).time_ns == 0

    async def test_a_time_that_is_not_known_yet_is_asked_for_rather_than_made_up(
        self, tree: Tree, source: FakeSource
    ) -> None:
        source.infos[FILE] = info_body(FILE, timestamp_accepted="")
        await tree.ledger.info(FILE)
        assert not tree.cached_attributes(FILE).size_known

    async def test_what_is_always_there(self, tree: Tree, source: FakeSource) -> None:
        for place in Place:
            found = await tree.attributes(place)
            assert (found.is_dir, found.size, found.time_ns, found.size_known) == (True, 0, BORN, True)
            assert found.valid_for == 3600
        assert source.calls == []

    @pytest.mark.parametrize("node", [ASSET, EVENTS, EVENT], ids=attrgetter("path"))
    async def test_attributes_of_a_record_that_is_known_are_its(
        self, tree: Tree, mock_clock: MockClock, node: Node
    ) -> None:
        await tree.lookup(Place.ASSETS, ASSET.asset)
        await tree.lookup(EVENTS, EVENT.event)
        mock_clock.jump(20)
        found = await tree.attributes(node)
        assert (found.is_dir, found.time_ns, found.valid_for) == (True, TIME, 40)

    @pytest.mark.parametrize("node", [ASSET, EVENTS, EVENT], ids=attrgetter("path"))
    async def test_attributes_of_a_record_that_is_not_known_are_not_kept(
        self, tree: Tree, source: FakeSource, node: Node
    ) -> None:
        found = await tree.attributes(node)
        assert (found.is_dir, found.time_ns, found.valid_for) == (True, 0, 0)
        assert source.calls == []

    async def test_attributes_of_a_refused_record_are_not_kept(self, tree: Tree, source: FakeSource) -> None:
        source.records[ASSET] = AccessDenied("403")
        await tree.lookup(Place.ASSETS, ASSET.asset)
        assert (await tree.attributes(ASSET)).valid_for == 0


async def names_of(tree: Tree, node: Node) -> list[str]:
    return [name.decode() for name in await tree.xattr_names(node)]


HEX = hashlib.sha256(b"evidence").hexdigest()


class TestExtendedAttributes:
    async def test_extended_attributes_of_a_file_take_one_request(
        self, tree: Tree, source: FakeSource
    ) -> None:
        values = {name: await tree.xattr(FILE, name) for name in await names_of(tree, FILE)}
        assert values == {
            "user.attachment.identity": f"blobs/{uuid(3)}".encode(),
            "user.attachment.hash.alg": b"SHA256",
            "user.attachment.hash.value": HEX.encode(),
            "user.attachment.size": b"8",
            "user.attachment.mime_type": b"text/plain",
            "user.attachment.timestamp_accepted": b"2023-01-01T00:00:00Z",
            "user.attachment.scanned_status": b"SCANNED_OK",
            "user.attachment.scanned_bad_reason": b"",
            "user.mime_type": b"text/plain",
            "user.xdg.origin.url": f"https://ledger.example/archivist/v2/attachments/{FILE.path}".encode(),
            "user.hash.sha256": HEX.encode(),
        }
        assert source.calls == [("info", FILE)]

    async def test_a_single_extended_attribute_costs_one_request(
        self, tree: Tree, source: FakeSource
    ) -> None:
        assert await tree.xattr(ON_EVENT, "user.attachment.size") == b"5"
        assert source.calls == [("info", ON_EVENT)]

    async def test_the_body_as_received_is_told_by_name_and_not_listed(
        self, tree: Tree, source: FakeSource
    ) -> None:
        source.infos[FILE] = b'{ "size" : 8,\n "z": 1 }'
        assert await tree.xattr(FILE, "user.attachment.json") == source.infos[FILE]
        assert "user.attachment.json" not in await names_of(tree, FILE)

    @pytest.mark.parametrize("node", [ASSET, EVENT], ids=attrgetter("path"))
    async def test_records_have_extended_attributes(
        self, tree: Tree, source: FakeSource, node: AssetRef
    ) -> None:
        prefix = "user.asset" if node == ASSET else "user.event"
        names = await names_of(tree, node)
        assert f"{prefix}.identity" in names
        assert f"{prefix}.json" not in names
        assert await tree.xattr(node, f"{prefix}.identity") == node.path.encode()
        assert await tree.xattr(node, f"{prefix}.json") == source.records[node]
        assert len(source.calls) == 1

    @pytest.mark.parametrize("node", [ROOT, Place.ASSETS, Place.PUBLICASSETS, EVENTS], ids=attrgetter("path"))
    async def test_other_directories_have_none(self, tree: Tree, source: FakeSource, node: Node) -> None:
        assert await names_of(tree, node) == []
        with pytest.raises(NoAttribute):
            await tree.xattr(node, "user.asset.json")
        assert source.calls == []

    @pytest.mark.parametrize("node", NODES, ids=attrgetter("path"))
    @pytest.mark.parametrize(
        "name",
        [
            *(
                "security.capability",
                "security.selinux",
                "system.posix_acl_access",
                "trusted.x",
                "user.x",
                "user.",
            ),
            *(
                "",
                "user.attachment",
                "user.attachmentx",
                "user.mime_typex",
                "user.assets.x",
                "user.hash.sha512",
            ),
        ],
    )
    async def test_a_name_that_cannot_exist_costs_no_request(
        self, tree: Tree, source: FakeSource, node: Node, name: str
    ) -> None:
        with pytest.raises(NoAttribute):
            await tree.xattr(node, name)
        assert source.calls == []

    @pytest.mark.parametrize(
        ("node", "name"),
        [
            *((FILE, "user.asset.identity"), (ASSET, "user.event.identity"), (EVENT, "user.asset.identity")),
            *((ASSET, "user.attachment.size"), (ASSET, "user.mime_type"), (EVENT, "user.attachment.json")),
        ],
    )
    async def test_a_name_of_another_kind_costs_no_request(
        self, tree: Tree, source: FakeSource, node: Node, name: str
    ) -> None:
        with pytest.raises(NoAttribute):
            await tree.xattr(node, name)
        assert source.calls == []

    @pytest.mark.parametrize("name", ["user.attachment.nothing", "user.attachment.hash", "user.attachment."])
    async def test_a_name_that_might_exist_and_does_not(self, tree: Tree, name: str) -> None:
        with pytest.raises(NoAttribute):
            await tree.xattr(FILE, name)

    async def test_without_a_usable_hash_there_is_no_hash_attribute(
        self, tree: Tree, source: FakeSource
    ) -> None:
        source.infos[FILE] = info_body(FILE, hash={"alg": "md5", "value": "0" * 32})
        assert "user.hash.sha256" not in await names_of(tree, FILE)
        assert await tree.xattr(FILE, "user.attachment.hash.alg") == b"md5"
        with pytest.raises(NoAttribute):
            await tree.xattr(FILE, "user.hash.sha256")

    async def test_another_hash_is_not_called_sha256(self, tree: Tree, source: FakeSource) -> None:
        source.infos[FILE] = info_body(FILE, hash={"alg": "sha512", "value": "0" * 128})
        assert "user.hash.sha256" not in await names_of(tree, FILE)

    async def test_what_the_kernel_cannot_carry_is_left_out(self, tree: Tree, source: FakeSource) -> None:
        more = {"big": "x" * 65_537, "fits": "x" * 65_536, "n" * 240: "1", "a\0b": "1", "ü" * 119: "1"}
        source.infos[FILE] = as_json({**json.loads(info_body(FILE)), **more})
        names = await names_of(tree, FILE)
        assert "user.attachment.fits" in names
        assert f"user.attachment.{'ü' * 119}" in names
        assert not {"user.attachment.big", f"user.attachment.{'n' * 240}", "user.attachment.a\0b"} & {*names}
        for name in ("user.attachment.big", "user.attachment.json"):
            with pytest.raises(NoAttribute):
                await tree.xattr(FILE, name)

    async def test_values_are_text_whatever_they_were(self, tree: Tree, source: FakeSource) -> None:
        more = {"n": None, "yes": True, "list": [1, "ü"], "deep": {"er": {"est": 1.5}}, "a/b c": "\n"}
        source.infos[FILE] = json.dumps({**json.loads(info_body(FILE)), **more}, ensure_ascii=False).encode()
        values = {
            name: await tree.xattr(FILE, f"user.attachment.{name}") for name in ("n", "yes", "list", "a/b c")
        }
        assert values == {"n": b"", "yes": b"true", "list": '[1,"ü"]'.encode(), "a/b c": b"\n"}
        assert await tree.xattr(FILE, "user.attachment.deep.er.est") == b"1.5"

    async def test_an_outage_is_not_a_missing_attribute(self, tree: Tree, source: FakeSource) -> None:
        source.infos[FILE] = Unreachable("x")
        with pytest.raises(Unreachable):
            await tree.xattr(FILE, "user.attachment.size")
        with pytest.raises(Unreachable):
            await names_of(tree, FILE)

    @pytest.mark.parametrize("node", [ASSET, EVENT], ids=attrgetter("path"))
    async def test_names_that_a_listing_brought_are_those_of_the_record_and_cost_no_request(
        self, tree: Tree, source: FakeSource, node: AssetRef | EventRef
    ) -> None:
        assert tree.cached_xattr_names(node) is None
        directory = await tree.open_directory(Place.ASSETS if node == ASSET else EVENTS)
        while await directory.load_to(directory.available):
            pass
        source.calls.clear()
        names = tree.cached_xattr_names(node)
        assert source.calls == []
        assert names
        assert names == await tree.xattr_names(node)

    async def test_names_of_what_has_no_record_are_known_to_be_none(self, tree: Tree) -> None:
        for node in (ROOT, Place.ASSETS, EVENTS, ByNameNode(("x", "events")), ByNameNode(("x", "y"))):
            assert tree.cached_xattr_names(node) == []
