"""Extended attributes of known files: told without asking, and only while their record is believed."""

import contextlib
import json

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from attachfs import model
from attachfs.errors import BadAnswer, NoAttribute, NotFound
from attachfs.ledger.view import Ledger
from attachfs.model import AssetRef, AttachmentRef, EventRef
from attachfs.namespace import xattrs
from attachfs.namespace.tree import Tree
from attachfs.namespace.xattrs import FileXattrs
from tests.services.memory_source import (
    FakeSource,
    as_json,
    asset_record,
    asset_ref,
    event_record,
    event_ref,
    file_ref,
    info_body,
)

FILE, OTHER = file_ref(3), file_ref(4)
SIZE, MIME, SHA256 = b"user.attachment.size", b"user.mime_type", b"user.hash.sha256"


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.source = FakeSource()
        self.source.infos = {one: info_body(one) for one in (FILE, OTHER)}
        self.now = 1000.0
        self.ledger = Ledger(self.source, nursery, metadata_ttl=60, clock=lambda: self.now)
        self.xattrs = FileXattrs(self.ledger, "https://ledger.example")

    async def renew(self, file: AttachmentRef = FILE, **more: object) -> None:
        self.source.infos[file] = info_body(file, **more)  # type: ignore[arg-type]
        await self.ledger.info(file, anew=True)


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    world = World(nursery)
    await world.ledger.info(FILE)
    return world


async def test_the_values_are_those_that_are_asked_for(world: World) -> None:
    info = await world.ledger.info(FILE)
    everything = world.xattrs.all(FILE, info)
    assert world.xattrs.cached_names(FILE) == [name.encode() for name in everything]
    for name, value in everything.items():
        assert world.xattrs.cached(FILE, name.encode()) == world.xattrs.value(FILE, info, name) == value
    assert world.xattrs.cached(FILE, b"user.attachment.json") == info.raw
    assert world.source.count("info") == 1


async def test_hash_and_type_need_no_json_and_the_others_need_it_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    flatten = model.flatten

    def counted(raw: bytes, what: str) -> dict[str, str]:
        read.append(what)
        return flatten(raw, what)

    monkeypatch.setattr(model, "flatten", counted)
    for _ in range(3):
        assert world.xattrs.cached(FILE, MIME) == b"text/plain"
        assert len(world.xattrs.cached(FILE, SHA256) or b"") == 64
    assert read == []
    for _ in range(3):
        assert world.xattrs.cached(FILE, SIZE) == b"8"
        assert world.xattrs.cached_names(FILE)
        with pytest.raises(NoAttribute):
            world.xattrs.cached(FILE, b"user.attachment.nothing")
    assert len(read) == 1


async def test_values_of_a_file_that_is_not_known_have_to_be_requested(world: World) -> None:
    assert world.xattrs.cached(OTHER, SIZE) is None
    assert world.xattrs.cached_names(OTHER) is None
    assert world.source.count("info") == 1


@pytest.mark.parametrize("name", [b"user.attachfs.cached", b"user.x", b"user.asset.identity", b"\xff"])
async def test_what_no_record_has_is_left_to_others(world: World, name: bytes) -> None:
    assert world.xattrs.cached(FILE, name) is None


async def test_a_file_that_is_not_there_has_no_values(world: World) -> None:
    with pytest.raises(NotFound):
        await world.ledger.info(file_ref(9))
    with pytest.raises(NotFound):
        world.xattrs.cached(file_ref(9), SIZE)
    with pytest.raises(NotFound):
        world.xattrs.cached_names(file_ref(9))


async def test_without_a_sha256_there_is_none(world: World) -> None:
    await world.renew(hash={"alg": "md5", "value": "0" * 32})
    with pytest.raises(NoAttribute):
        world.xattrs.cached(FILE, SHA256)


async def test_an_empty_value_is_a_value(world: World) -> None:
    await world.renew(mime_type="")
    assert world.xattrs.cached(FILE, MIME) == b""
    assert world.xattrs.cached(FILE, b"user.attachment.scanned_bad_reason") == b""


async def test_a_type_that_is_too_long_to_be_told_is_not(world: World) -> None:
    await world.renew(mime_type="x" * 65_537)
    with pytest.raises(NoAttribute):
        world.xattrs.cached(FILE, MIME)


class TestRecordsThatChange:
    @pytest.fixture(params=[MIME, SIZE], ids=["some", "all"])
    async def world(self, world: World, request: pytest.FixtureRequest) -> World:
        world.xattrs.cached(FILE, request.param)
        return world

    async def test_a_newer_one_is_told(self, world: World) -> None:
        await world.renew(mime_type="image/png", size=9)
        assert world.xattrs.cached(FILE, MIME) == b"image/png"
        assert world.xattrs.cached(FILE, SIZE) == b"9"

    async def test_attributes_of_an_invalidated_record_have_to_be_fetched(self, world: World) -> None:
        world.ledger.clear()
        assert world.xattrs.cached(FILE, MIME) is None

    async def test_attributes_of_an_expired_record_have_to_be_fetched(self, world: World) -> None:
        world.now += 59
        assert world.xattrs.cached(FILE, MIME) == b"text/plain"
        for later in (1, 100):
            world.now += later
            assert world.xattrs.cached(FILE, MIME) is None
            assert world.xattrs.cached_names(FILE) is None

    async def test_what_is_learnt_of_others_changes_nothing(self, world: World) -> None:
        await world.renew(OTHER, mime_type="image/png")
        assert world.xattrs.cached(FILE, MIME) == b"text/plain"

    async def test_a_record_that_is_gone_has_no_cached_attributes(self, world: World) -> None:
        world.source.infos[FILE] = NotFound("404")
        with pytest.raises(NotFound):
            await world.ledger.info(FILE, anew=True)
        with pytest.raises(NotFound):
            world.xattrs.cached(FILE, MIME)


async def test_only_so_many_values_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xattrs, "_READY", 2)
    for number in range(10, 15):
        await world.renew(file_ref(number), mime_type=f"text/{number}")
        world.xattrs.cached(file_ref(number), MIME)
    assert len(world.xattrs) == 2
    assert world.xattrs.cached(file_ref(10), MIME) == b"text/10"


async def test_names_that_are_no_utf_8_are_answered(world: World) -> None:
    await world.renew(ü="1")
    assert world.xattrs.cached(FILE, "user.attachment.ü".encode()) == b"1"
    with pytest.raises(NoAttribute):
        world.xattrs.cached(FILE, b"user.attachment.\xfc")
    assert json.loads(world.xattrs.cached(FILE, b"user.attachment.json") or b"")["ü"] == "1"


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 131_072, 200_000])
def test_a_record_of_any_length_can_be_told_in_pieces(length: int) -> None:
    raw = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
    pieces = list[bytes]()
    while not pieces or len(pieces[-1]) == 65_536:
        piece = xattrs.record_value(raw, "path", f"user.asset.json.{len(pieces)}")
        assert piece is not None
        pieces.append(piece)
    assert b"".join(pieces) == raw
    with pytest.raises(NoAttribute):
        xattrs.record_value(raw, "path", f"user.asset.json.{len(pieces) + 1}")
    if length > 65_536:
        with pytest.raises(NoAttribute, match="larger"):
            xattrs.record_value(raw, "path", "user.asset.json")
    else:
        assert xattrs.record_value(raw, "path", "user.asset.json") == raw


@pytest.mark.parametrize(
    "name", ["user.asset.json.", "user.asset.json.01", "user.asset.json.-1", "user.asset.x"]
)
def test_other_names_are_no_piece_of_a_record(name: str) -> None:
    assert xattrs.record_value(b"{}", "path", name) is None


async def test_a_files_record_comes_in_pieces_whether_it_is_known_or_not(world: World) -> None:
    await world.renew(long="x" * 70_000)
    whole = world.source.infos[FILE]
    assert isinstance(whole, bytes)
    assert world.xattrs.cached(FILE, b"user.attachment.json.0") == whole[:65_536]
    assert world.xattrs.cached(FILE, b"user.attachment.json.1") == whole[65_536:]
    info = await world.ledger.info(FILE)
    assert world.xattrs.value(FILE, info, "user.attachment.json.1") == whole[65_536:]


def total(names: list[bytes]) -> int:
    return sum(len(name) + 1 for name in names)


WIDE = {f"key {number}": "x" for number in range(2000)}
EVENT_OF_MANY_FILES = {
    f"{number:030}": {
        "arc_attribute_type": "arc_attachment",
        "arc_blob_identity": f"blobs/{number}",
        "arc_blob_hash_alg": "SHA256",
        "arc_blob_hash_value": "0" * 64,
        "arc_display_name": "x",
        "arc_file_name": "x",
    }
    for number in range(150)
}


@pytest.mark.parametrize("attributes", [WIDE, EVENT_OF_MANY_FILES], ids=["attributes", "attachments"])
@pytest.mark.parametrize("kind", ["asset", "event"])
async def test_names_that_are_more_than_a_list_may_be_are_listed_as_far_as_they_fit_the_plain_ones_first(
    nursery: trio.Nursery, kind: str, attributes: dict[str, object]
) -> None:
    source = FakeSource()
    ref: AssetRef | EventRef = asset_ref() if kind == "asset" else event_ref()
    long = {f"asset_attributes.{'y' * 80}{key}": value for key, value in attributes.items()}
    if isinstance(ref, AssetRef):
        source.records[ref] = as_json(asset_record(ref, long, at_time="2026-03-02T10:40:52Z"))
    else:
        source.records[ref] = as_json(event_record(ref, long, operation="Record"))
    tree = Tree(Ledger(source, nursery), "https://ledger.example", 42)
    names = await tree.xattr_names(ref)
    last = "at_time" if kind == "asset" else "operation"  # plain, and behind all the others in the record
    assert {f"user.{kind}.identity".encode(), f"user.{kind}.{last}".encode()} <= set(names)
    assert 60_000 < total(names) <= 65_536
    for name in names[:3] + names[-3:]:
        assert isinstance(await tree.xattr(ref, name.decode()), bytes)
    raw = source.records[ref]
    assert isinstance(raw, bytes)
    fields = model.flatten(raw, "")
    assert len(names) < len(fields)
    for field, value in [*fields.items()][-5:]:  # not listed, and there all the same
        assert await tree.xattr(ref, f"user.{kind}.{field}") == value.encode()


FOREIGN = st.text(st.characters(codec="utf-8"), max_size=80)
RECORDS = st.dictionaries(
    FOREIGN,
    st.recursive(FOREIGN, lambda inner: st.dictionaries(FOREIGN, inner, max_size=4), max_leaves=8),
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(RECORDS, st.sampled_from([1, 60]))
def test_no_record_makes_a_list_too_long_or_unsafe_and_every_listed_name_has_a_value(
    record: dict[str, object], times: int
) -> None:
    several = {f"{key}{number}": value for key, value in record.items() for number in range(times)}
    raw = json.dumps(several if times > 1 else record).encode()
    values = xattrs.encoded({f"user.asset.{key}": v for key, v in model.flatten(raw, "").items()})
    names = xattrs.listed(values)
    assert total(names) <= 65_536
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= 255
        assert name.decode().isprintable()
        assert len(values[name.decode()]) <= 65_536


async def test_a_name_with_control_characters_is_listed_escaped_and_found_so(world: World) -> None:
    await world.renew(FILE, **{"\x1b[2J\n\u202e": "1"})
    name = rb"user.attachment.\x1b[2J\n\u202e"
    assert name in (world.xattrs.cached_names(FILE) or ())
    assert world.xattrs.cached(FILE, name) == b"1"


def test_a_record_deeper_than_the_stack_has_attributes_or_is_a_bad_answer() -> None:
    for depth in (200, 900, 5_000):
        raw = b'{"x":' * depth + b"1" + b"}" * depth
        with contextlib.suppress(BadAnswer):
            assert len(model.flatten(raw, "")) == 1
