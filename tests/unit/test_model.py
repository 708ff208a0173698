"""The parsers: every shape a ledger has used, and nothing believed that a hostile one may send."""

import hashlib
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attachfs import model
from attachfs.errors import BadAnswer
from attachfs.model import AssetRef, AttachmentRef, Digest, EventRef
from attachfs.service.pages import parse_page
from tests.services.memory_source import as_json, attribute, file_ref, info_body, uuid

HEX = hashlib.sha256(b"evidence").hexdigest()
SHA = Digest("sha256", HEX)
ID, OTHER = uuid(0xABC), uuid(0xDEF)
ASSET, EVENT = uuid(1), uuid(2)

# What must never become a path or a URL, for a place where `<prefix><uuid>` is right.
HOSTILE = [
    "",
    "..",
    "../" + ID,
    "blobs/../" + ID,
    "blobs/../../" + ID,
    f"blobs/{ID}/..",
    f"blobs/{ID}/",
    f"/blobs/{ID}",
    f"//host/{ID}",
    f"https://host/{ID}",
    f"blobs//{ID}",
    f"blobs/x/{ID}",
    f"assets/{ID}",
    f"publicassets/{ID}",
    f"assets/{ASSET}/events/{ID}",
    f"blobs/%2e%2e%2f{ID}",
    f"%2e%2e/{ID}",
    f"./{ID}",
    f"blobs\\{ID}",
    f"blobs/{ID}?x=1",
    f"blobs/{ID}#x",
    f"user@host/{ID}",
    f"blobs/{ID}\n",
    f"\nblobs/{ID}",
    f"blobs/{ID}\0",
    f"blobs/\0{ID}",
    f"blobs/{ID.upper()}",
    f"BLOBS/{ID.upper()}",
    f"blobs/{ID.replace('-', '')}",
    f"blobs/{{{ID}}}",
    f"urn:uuid:{ID}",
    f"blobs/{ID[:-1]}",
    f"blobs/{ID}0",
    f"blobs/{ID.replace('0', chr(0x660))}",  # Arabic-Indic zeros
    f"blobs/{ID.replace('a', chr(0x430))}",  # a Cyrillic letter
    f"blobs/{ID.replace('-', chr(0x2010))}",  # a typographic hyphen
    f"bl\u043ebs/{ID}",  # a Cyrillic letter
    "blobs/" + "x" * 100_000,
]
NOT_TEXT: list[Any] = [None, 0, 1.5, True, [], {}, [f"blobs/{ID}"], {"identity": f"blobs/{ID}"}]


def parsed(attributes: dict[str, Any]) -> tuple[list[model.Attachment], list[str]]:
    notes: list[str] = []
    return list(model.parse_attachments(attributes, notes.append)), notes


class TestAttachmentShapes:
    def test_flat_attachments_are_found(self) -> None:
        value = attribute(0xABC, HEX, arc_file_name="cat.jpg", arc_display_name="Cat", arc_other=[1])
        (found,), notes = parsed({"arc_primary_image": value})
        assert found == model.Attachment(ID, "arc_primary_image", "cat.jpg", "Cat", SHA)
        assert notes == []

    def test_wrapped_in_a_list(self) -> None:
        found, notes = parsed({"arc_primary_image": [attribute(0xABC, HEX), attribute(0xDEF)]})
        assert [(a.id, a.anchor) for a in found] == [(ID, SHA), (OTHER, None)]
        assert notes == []

    @pytest.mark.parametrize("prefix", ["blobs/", "attachments/", "blobsV1/", ""])
    def test_attachments_in_the_older_list_are_found(self, prefix: str) -> None:
        old = {
            "arc_display_name": "cat",
            "arc_attachment_identity": prefix + ID,
            "arc_hash_alg": "sha256",
            "arc_hash_value": HEX,
        }
        (found,), notes = parsed({"arc_attachments": [old]})
        assert found == model.Attachment(ID, "arc_attachments", "", "cat", SHA)
        assert notes == []

    def test_new_entries_inside_the_older_list(self) -> None:
        old = {"arc_attachment_identity": f"attachments/{OTHER}"}
        found, _ = parsed({"arc_attachments": [attribute(0xABC, HEX), old]})
        assert [(a.id, a.anchor) for a in found] == [(ID, SHA), (OTHER, None)]

    @pytest.mark.parametrize("value", [[], [[]], [None], [1, "x"], None, {}, "x", [f"blobs/{ID}"]])
    def test_an_older_list_with_nothing_in_it(self, value: object) -> None:
        assert parsed({"arc_attachments": value})[0] == []

    def test_a_bare_string_is_none(self) -> None:
        assert parsed({"picture": f"blobs/{ID}", "pictures": [f"blobs/{ID}"]}) == ([], [])

    def test_a_hash_of_external_content_is_none(self) -> None:
        external = {
            "arc_blob_hash_value": HEX,
            "arc_blob_hash_alg": "SHA256",
            "arc_blob_identity": f"blobs/{ID}",
        }
        assert parsed({"external": external, "listed": [external]}) == ([], [])

    @pytest.mark.parametrize("kind", ["arc_location", "ARC_ATTACHMENT", "", None, ["arc_attachment"], 1])
    def test_another_attribute_type_is_none(self, kind: object) -> None:
        assert parsed({"x": {**attribute(0xABC, HEX), "arc_attribute_type": kind}}) == ([], [])

    def test_nested_deeper_is_none(self) -> None:
        assert parsed({"x": {"y": attribute(0xABC)}, "z": [[attribute(0xABC)]]}) == ([], [])

    def test_every_mention_is_told_in_the_records_order(self) -> None:
        found, _ = parsed({"b/c d.e": attribute(0xABC), "a": attribute(0xDEF), "ü": attribute(0xABC)})
        assert [(a.key, a.id) for a in found] == [("b/c d.e", ID), ("a", OTHER), ("ü", ID)]

    @pytest.mark.parametrize("value", [None, 1, [], {}, True])
    def test_names_that_are_not_text_are_empty(self, value: object) -> None:
        (found,), _ = parsed({"x": attribute(0xABC, arc_file_name=value, arc_display_name=value)})
        assert (found.file_name, found.display_name) == ("", "")

    @pytest.mark.parametrize("identity", [*HOSTILE, *NOT_TEXT], ids=ascii)
    def test_a_hostile_identity_is_noted_and_left_out(self, identity: object) -> None:
        found, notes = parsed(
            {"x": {**attribute(0xDEF), "arc_blob_identity": identity}, "y": attribute(0xABC)}
        )
        assert [a.id for a in found] == [ID]
        assert len(notes) == 1

    @pytest.mark.parametrize("identity", HOSTILE, ids=ascii)
    def test_a_note_is_one_short_printable_line(self, identity: str) -> None:
        (note,) = parsed({"x": {**attribute(0xDEF), "arc_blob_identity": identity}})[1]
        assert note.isprintable()
        assert note.isascii() or note.endswith("…")
        assert len(note) < 300

    def test_an_unreadable_anchor_is_none(self) -> None:
        (found,), _ = parsed({"x": attribute(0xABC, "123")})
        assert found.anchor is None


class TestAssets:
    @pytest.mark.parametrize("realm", ["assets", "publicassets"])
    def test_an_assets_fields_are_parsed(self, realm: str) -> None:
        record = {
            "identity": f"{realm}/{ASSET}",
            "at_time": "2023-01-01T00:00:00Z",
            "attributes": {"arc_display_name": "Box", "x": attribute(0xABC)},
        }
        asset = model.parse_asset(record, AssetRef("assets", ASSET), pytest.fail)
        assert asset is not None
        assert (asset.id, asset.time_ns, asset.display_name) == (ASSET, 1_672_531_200 * 10**9, "Box")
        assert [a.id for a in asset.attachments] == [ID]

    @pytest.mark.parametrize("attributes", [None, [], "x", 1, [["a", {}]]])
    def test_attributes_of_a_wrong_type_are_none(self, attributes: object) -> None:
        record = {"identity": f"assets/{ASSET}", "attributes": attributes, "at_time": 7}
        asset = model.parse_asset(record, None, pytest.fail)
        assert asset == model.Asset(ASSET, fields=asset.fields if asset else -1)

    def test_another_asset_is_ignored(self) -> None:
        notes: list[str] = []
        record = {"identity": f"assets/{OTHER}"}
        assert model.parse_asset(record, AssetRef("assets", ASSET), notes.append) is None
        assert OTHER in notes[0]

    @pytest.mark.parametrize("identity", [*(i for i in HOSTILE if ID not in i), *NOT_TEXT, f"blobs/{ID}", ID])
    def test_a_hostile_identity_is_ignored(self, identity: object) -> None:
        notes: list[str] = []
        assert model.parse_asset({"identity": identity}, None, notes.append) is None
        assert len(notes) == 1

    @pytest.mark.parametrize(
        "identity",
        [
            f"assets/{ID.upper()}",
            f"assets/../{ID}",
            f"assets/{ID}/",
            f"assets/{ID}\n",
            f"/assets/{ID}",
            f"assets/{ID}/events/{ID}",
            f"Assets/{ID}",
            f"privateassets/{ID}",
            f"assets/{ID}%2f..",
            f"assets%2f{ID}",
        ],
    )
    def test_nearly_an_asset_is_ignored(self, identity: str) -> None:
        assert model.parse_asset({"identity": identity}, None, lambda _: None) is None


class TestEvents:
    def test_attachments_of_both_kinds_of_attributes(self) -> None:
        record = {
            "identity": f"publicassets/{ASSET}/events/{EVENT}",
            "timestamp_accepted": "2023-01-01T00:00:00Z",
            "operation": "Record",
            "event_attributes": {"arc_display_type": "Publish", "x": attribute(0xABC)},
            "asset_attributes": {"y": attribute(0xDEF)},
        }
        found = model.parse_event(record, ASSET, pytest.fail)
        assert found is not None
        assert found[0] == ASSET
        event = found[1]
        assert (event.id, event.time_ns, event.display_type) == (EVENT, 1_672_531_200 * 10**9, "Publish")
        assert [a.id for a in event.attachments] == [ID, OTHER]

    def test_an_event_without_a_display_type_shows_its_operation(self) -> None:
        record = {"identity": f"assets/{ASSET}/events/{EVENT}", "operation": "Record"}
        found = model.parse_event(record, None, pytest.fail)
        assert found is not None
        assert found[1].display_type == "Record"

    @pytest.mark.parametrize(
        "identity",
        [
            f"assets/{OTHER}/events/{EVENT}",
            f"assets/{ASSET}/events/../{EVENT}",
            f"assets/{ASSET}/events/{EVENT}/",
            f"assets/{ASSET}/events/{EVENT.replace('2', 'E')}",
            f"assets/{ASSET}/{EVENT}",
            f"assets/{ASSET}",
            f"events/{EVENT}",
            f"assets/{ASSET}/events/{EVENT}\n",
            *NOT_TEXT,
        ],
    )
    def test_an_unusable_identity_is_ignored(self, identity: object) -> None:
        notes: list[str] = []
        assert model.parse_event({"identity": identity}, ASSET, notes.append) is None
        assert len(notes) == 1


class TestDigests:
    @pytest.mark.parametrize("alg", ["SHA256", "sha256", "SHA-256", "sha_256", "Sha 256", "sha-256"])
    def test_digests_are_read_in_every_spelling(self, alg: str) -> None:
        assert model.parse_digest(alg, HEX.upper()) == SHA
        assert str(SHA) == f"sha256:{HEX}"

    @pytest.mark.parametrize("alg", ["sha384", "SHA-512"])
    def test_longer_digests_are_read(self, alg: str) -> None:
        name = alg.replace("-", "").lower()
        value = hashlib.new(name, b"").hexdigest()
        assert model.parse_digest(alg, value) == Digest(name, value)

    @pytest.mark.parametrize(
        ("alg", "value", "reason"),
        [
            ("", HEX, "no hash"),
            (None, HEX, "no hash"),
            ("SHA256", "", "no hash"),
            ("SHA256", None, "no hash"),
            (256, HEX, "no hash"),
            ("SHA256", int(HEX, 16), "no hash"),
            (["SHA256"], HEX, "no hash"),
            ("md5", "0" * 32, "not known"),
            ("sha1", "0" * 40, "not known"),
            ("sha3-256", HEX, "not known"),
            ("blake2b", HEX, "not known"),
            ("SHA256\0", HEX, "not known"),
            ("sha\u066256", HEX, "not known"),
            ("x" * 10_000, HEX, "not known"),
            ("SHA256", HEX[:-1], "malformed"),
            ("SHA256", HEX + "0", "malformed"),
            ("SHA256", HEX[:-1] + "g", "malformed"),
            ("SHA256", HEX[:-1] + "\n", "malformed"),
            ("SHA256", "../" + HEX[3:], "malformed"),
            ("SHA256", "\u0660" * 64, "malformed"),
            ("SHA512", HEX, "malformed"),
            ("SHA256", "0x" + HEX[2:], "malformed"),
        ],
        ids=ascii,
    )
    def test_a_hash_that_cannot_be_used_is_refused_with_a_reason(
        self, alg: object, value: object, reason: str
    ) -> None:
        with pytest.raises(ValueError, match=reason) as caught:
            model.parse_digest(alg, value)
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("1970-01-01T00:00:00Z", 0),
            ("2023-01-01T00:00:00Z", 1_672_531_200),
            ("2023-01-01T01:00:00+01:00", 1_672_531_200),
            ("2023-01-01T00:00:00", 1_672_531_200),
            ("2023-01-01T00:00:00.25Z", 1_672_531_200.25),
            ("2023-01-01T00:00:00.123456789Z", 1_672_531_200.123456),
        ],
    )
    def test_times_are_read_as_rfc_3339(self, text: str, seconds: float) -> None:
        assert model.parse_time_ns(text) == round(seconds * 10**6) * 1000

    @pytest.mark.parametrize(
        "value",
        [
            *("", "yesterday", "0000-00-00T00:00:00Z", "2023-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59"),
            *(
                "1969-12-31T23:59:59Z",
                "\u0662023-01-01T00:00:00Z",
                "2023-01-01T00:00:00Z\n",
                "\ud800",
                "9" * 10_000,
            ),
            *(None, 0, 1e308, True, [], {}),
        ],
        ids=ascii,
    )
    def test_whatever_else_is_the_epoch(self, value: object) -> None:
        assert model.parse_time_ns(value) == 0


class TestInfo:
    REF = file_ref(0xABC)

    def test_an_info_records_fields_are_parsed(self) -> None:
        raw = info_body(self.REF, b"evidence", scanned_status="SCANNED_BAD", scanned_bad_reason="eicar")
        info = model.parse_info(raw, self.REF)
        assert info == model.Info(
            size=8,
            digest=SHA,
            digest_problem="",
            mime_type="text/plain",
            time_ns=1_672_531_200 * 10**9,
            scanned_status="SCANNED_BAD",
            scanned_bad_reason="eicar",
            raw=raw,
        )

    def test_the_hash_of_the_oldest_records(self) -> None:
        raw = info_body(self.REF, hash={"algorithm": "sha-256", "value": HEX})
        assert model.parse_info(raw, self.REF).digest == SHA

    @pytest.mark.parametrize("identity", [f"blobs/{ID}", f"attachments/{ID}", f"blobsV1/{ID}", ID, "", None])
    def test_spellings_of_its_identity(self, identity: object) -> None:
        assert model.parse_info(info_body(self.REF, identity=identity), self.REF).size == 8

    @pytest.mark.parametrize(
        "identity", [f"blobs/{OTHER}", *(i for i in HOSTILE if i), *(v for v in NOT_TEXT if v)]
    )
    def test_another_identity_is_refused(self, identity: object) -> None:
        with pytest.raises(BadAnswer, match="not this attachment") as caught:
            model.parse_info(info_body(self.REF, identity=identity), self.REF)
        assert caught.value.reason.isprintable()
        assert len(caught.value.reason) < 500

    @pytest.mark.parametrize("size", [0, 1, 2**31, 2**53 + 1, 2**63 - 1])
    def test_a_size_in_an_info_record_is_read(self, size: int) -> None:
        assert model.parse_info(info_body(self.REF, size=size), self.REF).size == size

    @pytest.mark.parametrize("size", [-1, 2**63, 2**64, 10**400, 1e308, 1.0, "12", True, False, None, [], {}])
    def test_a_size_that_no_file_has_is_refused(self, size: object) -> None:
        with pytest.raises(BadAnswer, match="size") as caught:
            model.parse_info(info_body(self.REF, size=size), self.REF)
        assert len(caught.value.reason) < 500

    def test_a_missing_size_is_refused(self) -> None:
        with pytest.raises(BadAnswer, match="size"):
            model.parse_info(b"{}", self.REF)

    @pytest.mark.parametrize("recorded", [None, [], "x", {}, {"alg": "md5", "value": "0"}, {"alg": "SHA256"}])
    def test_without_a_usable_hash_it_can_be_seen_and_says_why(self, recorded: object) -> None:
        info = model.parse_info(info_body(self.REF, hash=recorded), self.REF)
        assert info.size == 8
        assert info.digest is None
        assert info.digest_problem

    @pytest.mark.parametrize("value", [None, 1, [], {}, True])
    def test_text_of_a_wrong_type_is_empty(self, value: object) -> None:
        raw = info_body(
            self.REF,
            mime_type=value,
            scanned_status=value,
            scanned_bad_reason=value,
            timestamp_accepted=value,
        )
        info = model.parse_info(raw, self.REF)
        assert (info.mime_type, info.scanned_status, info.scanned_bad_reason, info.time_ns) == ("", "", "", 0)


UNREADABLE = [
    b"",
    b"{",
    b'{"size": 1',
    b"null",
    b"[]",
    b"1",
    b'"x"',
    b"<html>",
    b"\xff",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": 1e999}',
    b'{"a": "\\ud800"}',
    b'{"a": "\xed\xa0\x80"}',
    b'{"a": 1} {}',
    b'\xef\xbb\xbf{"a": 1}',
    b'{"a":' + b"9" * 5000 + b"}",
    b'{"a":' * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
]


class TestDecoding:
    @pytest.mark.parametrize("raw", UNREADABLE, ids=lambda raw: ascii(raw[:20]))
    def test_what_is_no_json_object_is_a_bad_answer(self, raw: bytes) -> None:
        for parse in (
            lambda: model.decode(raw, "x"),
            lambda: model.flatten(raw, "x"),
            lambda: parse_page(raw, "assets", "x"),
            lambda: model.parse_info(raw, file_ref()),
        ):
            with pytest.raises(BadAnswer) as caught:
                parse()
            assert len(caught.value.reason) < 500

    def test_of_duplicate_keys_the_last_counts_everywhere(self) -> None:
        raw = b'{"size": 1, "size": 2}'
        assert model.parse_info(raw, file_ref()).size == 2
        assert model.flatten(raw, "x") == {"size": "2"}

    @pytest.mark.parametrize("depth", [100, 300, 500, 700, 800, 850, 900, 950, 1000, 1100, 2000])
    def test_deep_nesting_is_read_or_refused_never_a_crash(self, depth: int) -> None:
        lists = b"[" * depth + b"]" * depth
        objects = b'{"a":' * depth + b"1" + b"}" * depth
        ref = file_ref(0xABC)
        for value in (lists, objects):
            bodies = [b'{"size":1,"identity":' + value + b"}", b'{"size":' + value + b"}"]
            for raw in bodies:
                with pytest.raises(BadAnswer):
                    model.parse_info(raw, ref)
            body = b'{"identity":' + value + b',"attributes":{"x":' + value + b"}}"
            try:
                model.flatten(body, "x")
                record = model.decode(body, "x")
            except BadAnswer:
                continue
            assert model.parse_asset(record, None, lambda _: None) is None
            assert model.parse_event(record, None, lambda _: None) is None


class TestNesting:
    @pytest.mark.parametrize("depth", [201, 1200, 5000, 100_000])
    @pytest.mark.parametrize("opening", [b"[", b'{"a":'])
    def test_beyond_the_bound_it_is_said_clearly_on_every_python(self, depth: int, opening: bytes) -> None:
        closing = b"]" if opening == b"[" else b"}"
        value = opening * depth + b"1" + closing * depth
        record = b'{"identity":"x","attributes":{"deep":' + value + b"}}"
        for parse in (
            lambda: model.decode(record, "x"),
            lambda: model.flatten(record, "x"),
            lambda: model.parse_info(record, file_ref()),
        ):
            with pytest.raises(BadAnswer, match="nested more than 200 levels"):
                parse()
        with pytest.raises(BadAnswer):
            parse_page(b'{"assets":[' + record + b"]}", "assets", "x")

    def test_within_the_bound_it_is_read(self) -> None:
        raw = b'{"a":' * 150 + b"1" + b"}" * 150
        assert model.flatten(raw, "x") == {".".join(["a"] * 150): "1"}

    def test_brackets_in_strings_are_no_nesting(self) -> None:
        text = '[{"' * 1000 + "\\" + "\n"
        assert model.decode(as_json({"a": text, "b": [text] * 3}), "x") == {"a": text, "b": [text] * 3}

    def test_a_record_of_nothing_but_lists_is_refused_before_it_is_built(self) -> None:
        with pytest.raises(BadAnswer, match="more than 50,000 objects and lists"):
            model.decode(b'{"a":[' + b"[]," * 60_000 + b"1]}", "x")


class TestLargePages:
    @pytest.mark.parametrize("item", [b"{}", b"[]", b"0", b'""'])
    def test_ten_million_items_are_refused_at_once_and_in_little_memory(self, item: bytes) -> None:
        raw = b'{"assets":[' + (item + b",") * 10_000_000 + item + b"]}"
        tracemalloc.start()
        begun = time.process_time()
        try:
            with pytest.raises(BadAnswer, match="more than 1,000,000 values"):
                parse_page(raw, "assets", "x")
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()
        assert time.process_time() - begun < 1

    def test_some_thousand_records_are_the_most(self) -> None:
        raw = b'{"assets":[' + b",".join([b"{}"] * 5_000) + b"]}"
        assert len(parse_page(raw, "assets", "x")[0]) == 5_000
        with pytest.raises(BadAnswer, match="5,001 records on a page of the listing, 5,000 at most"):
            parse_page(raw.replace(b"[", b"[{},", 1), "assets", "x")


class TestPages:
    def test_a_page_has_records_and_a_token(self) -> None:
        raw = as_json({"assets": [{"identity": "x"}], "next_page_token": "t"})
        assert parse_page(raw, "assets", "x") == ([{"identity": "x"}], "t")

    @pytest.mark.parametrize("end", [{}, {"next_page_token": ""}, {"next_page_token": None}])
    def test_a_page_without_a_token_is_the_end(self, end: dict[str, object]) -> None:
        assert parse_page(as_json({"assets": [], **end}), "assets", "x") == ([], "")

    @pytest.mark.parametrize(
        "body", [{"assets": None}, {"next_page_token": ""}, {"assets": None, "next_page_token": ""}]
    )
    def test_an_empty_listing_may_leave_its_key_out(self, body: dict[str, object]) -> None:
        assert parse_page(as_json(body), "assets", "x") == ([], "")

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"error": "x"},
            {"events": []},
            {"assets": {}},
            {"assets": "x"},
            {"assets": [1]},
            {"assets": [{}, None]},
            {"assets": [[]]},
            {"next_page_token": "t"},
            {"assets": None, "next_page_token": "t"},
            {"assets": [], "next_page_token": 1},
            {"assets": [], "next_page_token": ["t"]},
        ],
    )
    def test_a_page_that_is_none_is_never_an_empty_one(self, body: dict[str, object]) -> None:
        with pytest.raises(BadAnswer):
            parse_page(as_json(body), "assets", "x")


class TestFlatten:
    def test_flatten_gives_every_value_its_dotted_name(self) -> None:
        raw = (
            b'{"z": {"b": "1", "a": {"c": 2}}, "empty": "", "null": null, "yes": true, "float": 1.5,'
            b' "list": [1, {"a": null}], "none": {}, "u": "\xc3\xbc", "dotted.key": "x",'
            b' "big": 18446744073709551616}'
        )
        assert model.flatten(raw, "x") == {
            "z.b": "1",
            "z.a.c": "2",
            "empty": "",
            "null": "",
            "yes": "true",
            "float": "1.5",
            "list": '[1,{"a":null}]',
            "none": "{}",
            "u": "ü",
            "dotted.key": "x",
            "big": "18446744073709551616",
        }

    def test_flattening_keeps_the_records_order(self) -> None:
        assert list(model.flatten(b'{"b": 1, "a": {"d": 1, "c": 2}}', "x")) == ["b", "a.d", "a.c"]


class TestPlaces:
    def test_a_reference_knows_its_path_and_owner(self) -> None:
        asset, event = AssetRef("publicassets", ASSET), EventRef("assets", ASSET, EVENT)
        assert asset.path == f"publicassets/{ASSET}"
        assert event.path == f"assets/{ASSET}/events/{EVENT}"
        on_asset = AttachmentRef("publicassets", ASSET, None, ID)
        on_event = AttachmentRef("assets", ASSET, EVENT, ID)
        assert (on_asset.owner, on_asset.path) == (asset, f"publicassets/{ASSET}/{ID}")
        assert (on_event.owner, on_event.path) == (event, f"assets/{ASSET}/events/{EVENT}/{ID}")

    @pytest.mark.parametrize("name", [*HOSTILE, "assets", "events", ID[:-1], ID + "\n", ID + "/", ID.upper()])
    def test_what_is_no_uuid(self, name: str) -> None:
        assert not model.is_uuid(name)

    def test_a_canonical_uuid_is_one(self) -> None:
        assert model.is_uuid(ID)


# Whatever a service sends: JSON of any shape, made of the keys and texts that mean something to the parsers.
KEYS = st.sampled_from(
    (
        *("identity", "attributes", "event_attributes", "asset_attributes", "arc_attachments"),
        *("arc_attribute_type", "arc_blob_identity", "arc_attachment_identity", "arc_blob_hash_alg"),
        *("arc_blob_hash_value", "hash", "alg", "algorithm", "value", "size", "assets", "events", "x", ""),
        *("next_page_token", "at_time", "timestamp_accepted", "arc_display_name", "arc_file_name"),
        *("arc_display_type", "operation", "mime_type", "scanned_status"),
    )
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *("arc_attachment", f"blobs/{ID}", f"assets/{ASSET}", f"assets/{ASSET}/events/{EVENT}"),
            *("SHA256", HEX, "2023-01-01T00:00:00Z", *HOSTILE[:-1]),
        ]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=20,
)
RECORDS = st.dictionaries(KEYS, JSON, max_size=8)


def printable(note: str) -> None:
    assert note.isprintable()


class TestAnyJson:
    @settings(max_examples=300, deadline=None)
    @given(RECORDS)
    def test_only_canonical_ids_come_out(self, record: dict[str, Any]) -> None:
        found = list(model.parse_attachments(record, printable))
        asset = model.parse_asset(record, None, printable)
        if asset is not None:
            assert model.is_uuid(asset.id)
            found += asset.attachments
        event = model.parse_event(record, None, printable)
        if event is not None:
            assert model.is_uuid(event[0])
            assert model.is_uuid(event[1].id)
            found += event[1].attachments
        for attachment in found:
            assert model.is_uuid(attachment.id)
            assert attachment.anchor is None or attachment.anchor == SHA

    @settings(max_examples=300, deadline=None)
    @given(JSON | RECORDS)
    def test_bodies_are_read_or_are_a_bad_answer(self, value: Any) -> None:
        raw = json.dumps(value).encode()
        try:
            info = model.parse_info(raw, file_ref(0xABC))
            assert 0 <= info.size < 2**63
            assert (info.digest is None) == bool(info.digest_problem)
        except BadAnswer as error:
            assert error.reason.isprintable()  # noqa: PT017 - it may be raised, and may not
        for key in ("assets", "events"):
            try:
                records, token = parse_page(raw, key, "x")
                assert isinstance(token, str)
                assert all(isinstance(record, dict) for record in records)
            except BadAnswer:
                pass
        try:
            assert all(isinstance(v, str) for v in model.flatten(raw, "x").values())
        except BadAnswer:
            assert not isinstance(value, dict)

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=60))
    def test_any_bytes_are_read_or_are_a_bad_answer(self, raw: bytes) -> None:
        for parse in (
            lambda: model.parse_info(raw, file_ref()),
            lambda: parse_page(raw, "assets", "x"),
            lambda: model.flatten(raw, "x"),
        ):
            try:
                parse()
            except BadAnswer as error:
                assert error.reason.isprintable()  # noqa: PT017 - it may be raised, and may not
