"""`by-name`: what is listed opens, is unique, and is the same on every mount and in every order; its cost."""

import contextlib
import json
import random
from collections.abc import Awaitable, Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NoAttribute,
    NotDirectory,
    NotFound,
    RateLimited,
    TimedOut,
    Unreachable,
)
from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.listings import Listing
from attachfs.ledger.offline import RecordingSource, StoredAnswers
from attachfs.ledger.view import Ledger
from attachfs.model import AssetRef, AttachmentRef, EventRef
from attachfs.namespace import by_name as by_name_module
from attachfs.namespace import safe_names
from attachfs.namespace.by_name import ByName
from attachfs.namespace.directory import Directory
from attachfs.namespace.nodes import ByNameNode, Place, parent_of
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

T = TypeVar("T")
TIME = "2026-03-02T10:40:52Z"
ASSET, EVENT = asset_ref(), event_ref()


def identity(head: int, tail: int) -> str:
    return f"{head:08x}-0000-4000-8000-{tail:012x}"


def run(source: FakeSource, work: Callable[[ByName, Ledger], Awaitable[T]]) -> T:
    """Run `work` on a view of the ledger that knows nothing yet."""

    async def main() -> T:
        async with trio.open_nursery() as nursery:
            ledger = Ledger(source, nursery)
            result = await work(ByName(ledger), ledger)
            nursery.cancel_scope.cancel()
        return result

    return trio.run(main)


async def everything(listing: Listing) -> list[str]:
    while await listing.load_to(len(listing.ids)):
        pass
    return listing.ids


def pages(records: list[dict[str, object]], size: int) -> dict[str, FakePage | Exception]:
    """Return records as pages of a size, by token."""
    starts = range(0, max(1, len(records)), size)
    return {
        str(start or ""): FakePage(
            records[start : start + size], str(start + size) if start + size < len(records) else ""
        )
        for start in starts
    }


fewer = settings(max_examples=50, deadline=None)  # an example is dozens of views of a ledger

# -- every ledger ---------------------------------------------------------------------------------------

ODD = [
    *("X", "X/", " X", "X.", "./X", "X (00000001)", "X (00000001) (00000002)", "Y/Z", "Y\u2215Z", "Y//Z"),
    *(
        "\u00e9",
        "e\u0301",
        "",
        ".",
        "..",
        "../..",
        "*",
        "-rf",
        "\0",
        "\u202eX",
        "events",
        "x" * 300,
        "x" * 301,
    ),
    *("x" * 216, "x" * 217, identity(0, 1), f"X ({identity(0, 1)})"),
]
TEXT = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
IDS = st.builds(identity, st.integers(0, 2), st.integers(0, 5))
ASSETS = st.dictionaries(IDS, TEXT, max_size=12)
ORDERS = st.lists(st.tuples(st.randoms(use_true_random=False), st.integers(1, 5)), min_size=2, max_size=2)


def ledger_of(assets: dict[str, str], rng: random.Random, size: int) -> FakeSource:
    source = FakeSource()
    records = {
        one: asset_record(AssetRef("assets", one), {"arc_display_name": name} if name else {})
        for one, name in assets.items()
    }
    source.records = {AssetRef("assets", one): as_json(record) for one, record in records.items()}
    source.asset_pages = pages(rng.sample([*records.values()], len(records)), size)
    return source


def check_names(found: list[str]) -> None:
    assert len(set(found)) == len(found)
    for name in found:
        assert name
        assert safe_names.safe(name) == name


@fewer
@given(ASSETS, ORDERS)
def test_assets_listed_are_opened_unique_and_the_same_in_every_order_and_page_size(
    assets: dict[str, str], orders: list[tuple[random.Random, int]]
) -> None:
    meant: list[dict[str, str]] = []

    async def listed(by_name: ByName, _: Ledger) -> list[str]:
        return await everything(by_name.assets())

    for rng, size in orders:
        source = ledger_of(assets, rng, size)
        found = run(source, listed)
        check_names(found)
        outcome: dict[str, str] = {}
        for name in found:

            async def look(by_name: ByName, _: Ledger, name: str = name) -> str:
                owner = await by_name.resolve(ByNameNode((name,)))
                assert isinstance(owner, AssetRef)
                return owner.asset

            source.calls.clear()
            outcome[name] = run(source, look)
            assert len(source.calls) == 1
        assert sorted(outcome.values()) == sorted(assets)
        meant.append(outcome)
    assert meant[0] == meant[1]
    for name, one in meant[0].items():
        text = assets[one]
        ordinary = text not in ("", "*") and safe_names.origin(safe_names.safe(text, 216)) == text
        alone = sum(safe_names.safe(other) == text for other in assets.values()) == 1
        if ordinary and alone and safe_names.first_level(text) == safe_names.PLAIN:
            assert name == text


@fewer
@given(ASSETS, ORDERS, st.data())
def test_a_name_means_the_same_while_a_listing_runs_and_after_it(
    assets: dict[str, str], orders: list[tuple[random.Random, int]], data: st.DataObject
) -> None:
    rng, size = orders[0]
    source = ledger_of(assets, rng, size)

    async def partly(by_name: ByName, _: Ledger) -> None:
        listing = by_name.assets()
        await listing.load_to(data.draw(st.integers(0, len(assets))))
        early = {name: await by_name.resolve(ByNameNode((name,))) for name in listing.ids}
        await everything(listing)
        for name, owner in early.items():
            assert await by_name.resolve(ByNameNode((name,))) == owner

    run(source, partly)


@fewer
@given(ASSETS)
def test_a_name_with_the_whole_identity_always_opens(assets: dict[str, str]) -> None:
    source = ledger_of(assets, random.Random(1), 3)

    async def look(by_name: ByName, _: Ledger) -> None:
        for one, text in assets.items():
            base = safe_names.safe(text, 216)
            name = safe_names.at_level(base, one, safe_names.WHOLE)
            assert await by_name.resolve(ByNameNode((name,))) == AssetRef("assets", one)

    run(source, look)


STEMS = st.sampled_from(
    ["cat", "cat (00000000)", "cat (00000001)", "events", "Report 2.0", "x" * 251, "x" * 255]
)
LONG_GAP = "x" + " " * 250 + "yz"  # what is cut off to make room for an extension leaves a short name
FILE_TEXT = st.one_of(
    st.builds(str.__add__, STEMS, st.sampled_from(["", "", ".jpg", ".JPG", ".tar.gz", ".jpg.txt"])),
    st.sampled_from([LONG_GAP, "x", "x.jpg"]),
    TEXT,
)
MENTION = st.fixed_dictionaries(
    {
        "arc_file_name": st.one_of(FILE_TEXT, st.just("")),
        "arc_display_name": st.one_of(FILE_TEXT, st.just("arc_primary_image")),
    }
)
# (attribute's key, attachment, its names): few attachments, so that many are mentioned more than once.
MENTIONS = st.lists(st.tuples(FILE_TEXT, st.integers(0, 3), MENTION), max_size=8)
SHAPES = st.sampled_from(["flat", "list", "arc_attachments"])
TYPES = st.lists(st.sampled_from(["image/jpeg", "text/plain", "odd/../type", ""]), min_size=4, max_size=4)
LOST = st.sampled_from([None, NotFound("404"), AccessDenied("403"), BadAnswer("500")])


def attributes_of(mentions: list[tuple[str, int, dict[str, str]]], shape: str) -> dict[str, object]:
    """Return a record's attributes that mention attachments in one of the shapes that ledgers have."""
    if shape == "flat":
        return {key: attribute(number, **names) for key, number, names in mentions}
    groups: dict[str, list[object]] = {}
    for key, number, names in mentions:
        group = "arc_attachments" if shape == "arc_attachments" else key
        groups.setdefault(group, []).append(attribute(number, **names))
    return {**groups}


@settings(max_examples=100, deadline=None)
@given(MENTIONS, SHAPES, TYPES, LOST, st.booleans(), st.randoms(use_true_random=False))
def test_files_listed_are_opened_unique_and_the_same_in_every_order(
    mentions: list[tuple[str, int, dict[str, str]]],
    shape: str,
    types: list[str],
    lost: AttachfsError | None,
    of_event: bool,  # noqa: FBT001
    rng: random.Random,
) -> None:
    owner: AssetRef | EventRef = EVENT if of_event else ASSET
    outcomes = []
    mentioned: set[str] = set()
    attributes = attributes_of(mentions, shape)
    for _ in range(2):
        source = FakeSource()
        if isinstance(owner, EventRef):
            source.records[owner] = as_json(event_record(owner, attributes))
        else:
            source.records[owner] = as_json(asset_record(owner, attributes))
        for number, mime_type in enumerate(types):
            file = file_ref(number, event=2 if of_event else None)
            source.infos[file] = info_body(file, mime_type=mime_type)
            if lost is not None and not number:
                source.infos[file] = lost

        async def listed(by_name: ByName, _: Ledger) -> dict[str, AttachmentRef]:
            found = await by_name.files.all(owner)
            known = by_name.files.cached(owner)
            assert known is None or known == found
            return found

        found = run(source, listed)
        check_names([*found])
        if not of_event:
            assert "events" not in found
        mentioned = {file["arc_blob_identity"][6:] for file in every_attachment(attributes)}
        assert {file.attachment for file in found.values()} == mentioned
        for name, file in found.items():

            async def look(by_name: ByName, _: Ledger, name: str = name) -> AttachmentRef:
                return await by_name.files.find(owner, name)

            assert run(source, look) == file
        outcomes.append(found)
        attributes = shuffled(attributes, rng)
    assert outcomes[0] == outcomes[1]


def shuffled(attributes: dict[str, object], rng: random.Random) -> dict[str, object]:
    """Return the same attributes in another order, and so in their lists."""
    items = [
        (key, rng.sample(value, len(value)) if isinstance(value, list) else value)
        for key, value in attributes.items()
    ]
    return dict(rng.sample(items, len(items)))


def every_attachment(attributes: dict[str, object]) -> list[dict[str, str]]:
    found: list[Any] = []
    for value in attributes.values():
        found += value if isinstance(value, list) else [value]
    return found


EVENTS = st.dictionaries(
    IDS,
    st.tuples(
        TEXT, st.sampled_from([TIME, "2026-03-02T10:40:00Z", "2026-03-02T10:41:00Z", "1970-01-01T00:00:00Z"])
    ),
    max_size=8,
)


@fewer
@given(EVENTS, ORDERS)
def test_events_listed_are_opened_unique_and_the_same_in_every_order_and_page_size(
    events: dict[str, tuple[str, str]], orders: list[tuple[random.Random, int]]
) -> None:
    meant: list[dict[str, str]] = []
    for rng, size in orders:
        source = FakeSource()
        refs = {one: EventRef("assets", ASSET.asset, one) for one in events}
        records = {
            one: event_record(refs[one], {"arc_display_type": kind}, timestamp_accepted=time)
            for one, (kind, time) in events.items()
        }
        source.records = {refs[one]: as_json(record) for one, record in records.items()}
        shuffled = pages(rng.sample([*records.values()], len(records)), size)
        source.event_pages = {(ASSET, token): page for token, page in shuffled.items()}

        async def listed(by_name: ByName, _: Ledger) -> list[str]:
            return await everything(by_name.events(ASSET))

        found = run(source, listed)
        check_names(found)
        outcome: dict[str, str] = {}
        for name in found:

            async def look(by_name: ByName, _: Ledger, name: str = name) -> str:
                return await by_name._events_of(ASSET).resolve(name)

            source.calls.clear()
            outcome[name] = run(source, look)
            assert len(source.calls) == 1 or name.startswith("undated")
        assert sorted(outcome.values()) == sorted(events)
        meant.append(outcome)
    assert meant[0] == meant[1]


# -- one ledger -----------------------------------------------------------------------------------------


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource()
    attributes = {
        "arc_display_name": "Container 7",
        "photo": attribute(3, arc_file_name="photo.jpg"),
        "arc_primary_image": attribute(4, arc_display_name="arc_primary_image"),
    }
    asset = asset_record(ASSET, attributes, at_time=TIME)
    same = asset_record(asset_ref(5), {"arc_display_name": "Container 7"}, at_time=TIME)
    event = event_record(EVENT, {"arc_display_type": "Sealed", "x": attribute(3)}, timestamp_accepted=TIME)
    source.records = {ASSET: as_json(asset), asset_ref(5): as_json(same), EVENT: as_json(event)}
    for file in (file_ref(3), file_ref(4), file_ref(event=2)):
        source.infos[file] = info_body(file, mime_type="image/png")
    source.asset_pages = {"": FakePage([same], "t"), "t": FakePage([asset])}
    source.event_pages = {(ASSET, ""): FakePage([event])}
    return source


@pytest.fixture
async def tree(source: FakeSource, nursery: trio.Nursery) -> Tree:
    return Tree(Ledger(source, nursery, metadata_ttl=60, negative_ttl=5, stale_ttl=3600), "https://x", 42)


async def shown(directory: Directory) -> list[str]:
    index = 0
    while await directory.load_to(index):
        index += 1
    return [directory[i].name for i in range(index)]


def named(*parts: str) -> ByNameNode:
    return ByNameNode(parts)


X = "Container 7"
SEALED = "2026-03-02 1040 Sealed"
NODES = [named(X), named(X, "a"), named(X, "events"), named(X, "events", "e"), named(X, "events", "e", "f")]


@pytest.mark.parametrize("node", NODES, ids=attrgetter("path"))
def test_a_nodes_parent_is_the_directory_of_its_path(node: ByNameNode) -> None:
    assert parent_of(node).path == node.path.rpartition("/")[0]
    assert node.is_link is (node.parts[-1] in ("a", "f"))


async def test_by_name_shows_assets_events_and_files_by_their_names(tree: Tree, source: FakeSource) -> None:
    assert await shown(await tree.open_directory(Place.BY_NAME)) == [X, f"{X} (00000005)"]
    assert await shown(await tree.open_directory(named(X))) == [
        "events",
        "arc_primary_image.png",
        "photo.jpg",
    ]
    assert await shown(await tree.open_directory(named(X, "events"))) == [SEALED]
    assert await shown(await tree.open_directory(named(X, "events", SEALED))) == ["x.png"]
    assert [kind for kind, _ in source.calls] == ["assets", "assets", "info", "events", "info"]


async def test_links_lead_to_the_files_and_tell_their_length(tree: Tree) -> None:
    for node, file in (
        (named(X, "photo.jpg"), file_ref(3)),
        (named(X, "events", SEALED, "x.png"), file_ref(event=2)),
    ):
        target = await tree.link_target(node)
        assert target == "../" * len(node.parts) + file.path
        attributes = tree.cached_attributes(node)
        assert attributes.is_link
        assert not attributes.is_dir
        assert attributes.size == len(target)
    for directory in (Place.BY_NAME, named(X), named(X, "events")):
        with pytest.raises(NotFound):
            await tree.link_target(directory)


async def test_a_file_is_found_with_one_request(tree: Tree, source: FakeSource) -> None:
    node: Any = Place.BY_NAME
    for name in (X, "photo.jpg"):
        node, attributes = await tree.lookup(node, name)
    assert await tree.link_target(node) == f"../../{file_ref(3).path}"
    assert source.calls == [("assets", {"attributes.arc_display_name": X})]
    assert 59 < attributes.valid_for <= 60


async def test_an_event_is_found_with_one_request(tree: Tree, source: FakeSource) -> None:
    await tree.lookup(Place.BY_NAME, X)
    await tree.lookup(named(X), "events")
    await tree.lookup(named(X, "events"), SEALED)
    window = {
        "timestamp_accepted_since": "2026-03-02T10:39:59+00:00",
        "timestamp_accepted_before": "2026-03-02T10:41:01+00:00",
    }
    assert source.calls[1:] == [("events", (ASSET, window))]


async def test_the_smallest_identity_has_the_name_and_digits_mean_it_as_well(tree: Tree) -> None:
    for name, asset in (
        *((X, ASSET), (f"{X} (00000001)", ASSET), (f"{X} (00000005)", asset_ref(5))),
        *((f"{X} ({uuid(1)})", ASSET), (f"{X} ({uuid(5)})", asset_ref(5))),
    ):
        await tree.lookup(Place.BY_NAME, name)
        assert await tree.xattr(named(name), "user.asset.identity") == asset.path.encode()
    for name in (f"{X} (00000009)", f"Y ({uuid(5)})", uuid(5), f"{X} ({uuid(9)})"):
        with pytest.raises(NotFound):
            await tree.lookup(Place.BY_NAME, name)


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        *((Place.BY_NAME, name) for name in ("", ".", "..", ".git", ".Trash-0", "a/b", "a\n", " x", "x.")),
        *((Place.BY_NAME, name) for name in ("\u202ex", "cafe\u0301", "*", "x" * 256, "x" * 217)),
        (named(X, "events"), "autorun.inf"),
        (named(X, "events"), "2026-13-02 1040 Sealed"),
        (named(X, "events", SEALED), ".hidden"),
    ],
    ids=ascii,
)
async def test_a_name_that_cannot_exist_costs_no_request_of_its_own(
    tree: Tree, source: FakeSource, parent: Place | ByNameNode, name: str
) -> None:
    if isinstance(parent, ByNameNode):
        await tree.open_directory(parent)
    source.calls.clear()
    with pytest.raises(NotFound):
        await tree.lookup(parent, name)
    assert source.calls == []


async def test_a_name_that_nobody_has_costs_one_request_and_is_remembered(
    tree: Tree, source: FakeSource, mock_clock: MockClock
) -> None:
    for _ in range(3):
        with pytest.raises(NotFound):
            await tree.lookup(Place.BY_NAME, "nobody")
    assert len(source.calls) == 1
    mock_clock.jump(6)
    with pytest.raises(NotFound):
        await tree.lookup(Place.BY_NAME, "nobody")
    assert len(source.calls) == 2


async def test_only_files_whose_names_have_no_extension_cost_an_info(tree: Tree, source: FakeSource) -> None:
    await tree.open_directory(named(X))
    assert [what for kind, what in source.calls if kind == "info"] == [file_ref(4)]


async def test_infos_are_asked_for_side_by_side(tree: Tree, source: FakeSource) -> None:
    many = {f"file {n}": attribute(n) for n in range(10, 30)}
    source.records[ASSET] = as_json(asset_record(ASSET, {"arc_display_name": X, **many}))
    source.asset_pages = {"": FakePage([asset_record(ASSET, {"arc_display_name": X, **many})])}
    for n in range(10, 30):
        source.infos[file_ref(n)] = info_body(file_ref(n))
    await tree.lookup(Place.BY_NAME, X)
    source.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.open_directory, named(X))
        await trio.testing.wait_all_tasks_blocked()
        assert source.count("info") == 20
        source.gate.set()


@pytest.mark.parametrize("error", [NotFound("404"), AccessDenied("403"), BadAnswer("x")], ids=repr)
async def test_an_info_that_says_nothing_leaves_a_file_without_an_extension(
    tree: Tree, source: FakeSource, error: AttachfsError
) -> None:
    source.infos[file_ref(4)] = error
    assert "arc_primary_image" in await shown(await tree.open_directory(named(X)))
    assert await tree.link_target(named(X, "arc_primary_image")) == f"../../{file_ref(4).path}"
    # What is broken is not therefore "not there".
    with pytest.raises(BadAnswer if isinstance(error, BadAnswer) else NotFound):
        await tree.lookup(named(X), "arc_primary_image.png")
    with pytest.raises(NotFound):
        await tree.lookup(named(X), "other.png")


@pytest.mark.parametrize("error", [Unreachable("x"), TimedOut("x"), RateLimited("x")], ids=repr)
async def test_an_outage_changes_no_names(tree: Tree, source: FakeSource, error: AttachfsError) -> None:
    source.infos[file_ref(4)] = error
    for _ in range(2):
        with pytest.raises(type(error)):
            await tree.open_directory(named(X))
        with pytest.raises(type(error)):
            await tree.lookup(named(X), "arc_primary_image")
    await tree.lookup(named(X), "photo.jpg")


async def test_an_outage_is_never_an_absence(tree: Tree, source: FakeSource) -> None:
    source.asset_pages = {"": Unreachable("x")}
    with pytest.raises(Unreachable):
        await tree.lookup(Place.BY_NAME, "nobody")
    with pytest.raises(Unreachable):
        await shown(await tree.open_directory(Place.BY_NAME))


async def test_in_an_outage_what_was_listed_before_still_opens(
    tree: Tree, source: FakeSource, mock_clock: MockClock
) -> None:
    await shown(await tree.open_directory(Place.BY_NAME))
    mock_clock.jump(100)
    source.asset_pages = {"": Unreachable("x")}
    await tree.lookup(Place.BY_NAME, f"{X} (00000005)")
    assert await shown(await tree.open_directory(Place.BY_NAME)) == [X, f"{X} (00000005)"]


@pytest.mark.parametrize("error", [Unreachable("x"), TimedOut("x")], ids=repr)
async def test_in_an_outage_what_an_older_listing_lacks_is_not_absent(
    tree: Tree, source: FakeSource, mock_clock: MockClock, error: AttachfsError
) -> None:
    """It may have been added since."""
    await shown(await tree.open_directory(Place.BY_NAME))
    events = await shown(await tree.open_directory(named(X, "events")))
    mock_clock.jump(100)
    source.asset_pages = {"": error}
    source.event_pages = {(ASSET, ""): error}
    for _ in range(2):  # the second time, an outage is known
        for parent, name in (
            (Place.BY_NAME, "nobody"),
            (named(X, "events"), "2020-01-01 0000 Sealed"),
            (named(X, "events"), "undated Sealed"),
        ):
            with pytest.raises((Unreachable, TimedOut)):
                await tree.lookup(parent, name)
    for name in events:
        await tree.lookup(named(X, "events"), name)


NEW_NAMES = [
    named(X, "new.jpg"),
    named(X, "events", SEALED, "new.png"),
    named(f"{X} (00000009)"),
    named(f"Renamed ({asset_ref(5).asset})"),
    named(X, "events", f"{SEALED} (00000009)"),
]


@pytest.mark.parametrize("error", [Unreachable("x"), TimedOut("x")], ids=repr)
@pytest.mark.parametrize("new", NEW_NAMES, ids=attrgetter("path"))
async def test_in_an_outage_what_an_older_record_lacks_is_not_absent(
    tree: Tree, source: FakeSource, mock_clock: MockClock, error: AttachfsError, new: ByNameNode
) -> None:
    """It may have got this file, or this name, since."""
    before = [
        named(f"{X} ({ASSET.asset[:8]})"),  # its owner has the plain name
        named(X, "photo.jpg"),
        named(X, "events", SEALED, "x.png"),
        named(f"{X} ({asset_ref(5).asset})"),
    ]
    for node in [*before, named(X, "events", SEALED)]:
        await tree.by_name.resolve(node)
    with pytest.raises(NotFound):  # as the service says so
        await tree.by_name.resolve(new)
    mock_clock.jump(100)
    records, asset_pages, event_pages = source.records, source.asset_pages, source.event_pages
    source.records = dict.fromkeys(records, error)
    source.asset_pages = {"": error}
    source.event_pages = {(ASSET, ""): error}
    for _ in range(2):  # the second time, an outage is known
        with pytest.raises((Unreachable, TimedOut)):
            await tree.by_name.resolve(new)
        for node in before:
            await tree.by_name.resolve(node)
    source.records, source.asset_pages, source.event_pages = records, asset_pages, event_pages
    await tree.ledger.info(file_ref(3), anew=True)  # which ends the outage; the record is not asked for yet
    with pytest.raises(NotFound):
        await tree.by_name.resolve(new)


async def test_a_file_that_an_older_record_lacks_opens_once_the_service_answers(
    tree: Tree, source: FakeSource, mock_clock: MockClock
) -> None:
    files = tree.by_name.files
    await files.find(ASSET, "photo.jpg")
    mock_clock.jump(100)
    record, source.records[ASSET] = source.records[ASSET], Unreachable("x")
    await files.find(ASSET, "photo.jpg")
    assert isinstance(record, bytes)
    attributes = {**json.loads(record)["attributes"], "new": attribute(6, arc_file_name="new.jpg")}
    source.records[ASSET] = as_json(asset_record(ASSET, attributes, at_time=TIME))
    await tree.ledger.info(file_ref(3), anew=True)  # which ends the outage, and the old record is still kept
    assert not tree.ledger.stale
    assert await files.find(ASSET, "new.jpg") == file_ref(6)


async def test_what_an_earlier_mount_did_not_find_is_not_absent_in_an_outage(
    source: FakeSource, nursery: trio.Nursery, tmp_path: Path
) -> None:
    store = AnswerStore(tmp_path / "answers.sqlite")
    stored = StoredAnswers(store)
    tree = Tree(Ledger(RecordingSource(source, store), nursery, stored=stored), "https://x", 42)
    for name in ("nobody", f"{X} (00000005)"):
        with contextlib.suppress(NotFound):
            await tree.by_name.resolve(named(name))
    source.asset_pages = {"": Unreachable("x")}
    source.records = dict.fromkeys(source.records, Unreachable("x"))
    tree = Tree(Ledger(RecordingSource(source, store), nursery, stored=stored), "https://x", 42)
    for _ in range(2):
        assert await tree.by_name.resolve(named(f"{X} (00000005)")) == asset_ref(5)
        for name in ("nobody", f"{X} (00000009)"):
            with pytest.raises(Unreachable):
                await tree.by_name.resolve(named(name))
    await store.aclose()


async def test_what_was_listed_opens_even_if_the_service_filters_badly(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    class Deaf(FakeSource):
        async def assets_page(self, token: str = "", filters: Any = None) -> FakePage:
            return FakePage([]) if filters else await super().assets_page(token)

    deaf = Deaf()
    deaf.asset_pages = source.asset_pages
    by_name = ByName(Ledger(deaf, nursery))
    await by_name.assets().load_to(0)
    assert await by_name.resolve(named(X)) == asset_ref(5)
    await everything(by_name.assets())
    assert await by_name.resolve(named(X)) == ASSET


async def test_a_service_that_does_not_filter_is_not_believed(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    class Deaf(FakeSource):
        async def assets_page(self, token: str = "", _filters: Any = None) -> FakePage:
            return await super().assets_page(token)

    deaf = Deaf()
    deaf.asset_pages = source.asset_pages
    by_name = ByName(Ledger(deaf, nursery))
    assert await by_name.resolve(named(X)) == ASSET
    with pytest.raises(NotFound):
        await by_name.resolve(named("Container 8"))


async def test_a_by_name_listing_shows_a_page_before_the_next_is_fetched(
    tree: Tree, source: FakeSource
) -> None:
    directory = await tree.open_directory(Place.BY_NAME)
    assert await directory.load_to(0)
    assert len(source.calls) == 1
    assert directory.available == 1


async def test_a_link_is_no_directory(tree: Tree) -> None:
    with pytest.raises(NotDirectory):
        await tree.lookup(named(X, "photo.jpg"), "x")
    with pytest.raises(NotDirectory):
        await tree.open_directory(named(X, "photo.jpg"))


async def test_directories_have_their_owners_times_and_attributes(tree: Tree, source: FakeSource) -> None:
    await tree.lookup(Place.BY_NAME, X)
    await tree.lookup(named(X, "events"), SEALED)
    for node in (named(X), named(X, "events"), named(X, "events", SEALED)):
        assert tree.cached_attributes(node).time_ns == 1_772_448_052 * 10**9
    assert await tree.xattr(named(X, "events", SEALED), "user.event.identity") == EVENT.path.encode()
    assert b"user.asset.identity" in await tree.xattr_names(named(X))
    asked = len(source.calls)
    for node, name in ((named(X, "events"), "user.asset.json"), (named(X, "photo.jpg"), "user.mime_type")):
        with pytest.raises(NoAttribute):
            await tree.xattr(node, name)
    assert len(source.calls) == asked


async def test_the_directory_behind_links_is_told_for_reading_ahead(tree: Tree) -> None:
    directory = await tree.open_directory(named(X))
    assert directory.behind is not None
    assert directory.behind.node == ASSET
    assert [directory.behind[i].node for i in range(2)] == [file_ref(4), file_ref(3)]


async def test_what_is_remembered_for_times_is_bounded(
    source: FakeSource, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_name_module, "_RECENT", 2)
    by_name = ByName(Ledger(source, nursery))
    for name in (X, f"{X} (00000001)", f"{X} ({uuid(1)})"):
        await by_name.resolve(named(name))
    assert by_name.cached_record(named(X)) is None
    assert by_name.cached_record(named(f"{X} ({uuid(1)})")) is not None
