"""Names for people: safe whatever the text, the same everywhere, and never two alike."""

import random
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.namespace import safe_names
from attachfs.namespace.safe_names import PLAIN, SHORT, WHOLE, NameTable

FAMILY = "\U0001f469\u200d\U0001f680"
ANY = st.text(st.characters(), max_size=400)
NASTY = st.text(
    st.sampled_from("a.é /\\\0\n\x7f\u202e\u2066\ufeff\ud800-~ \u3000e\u0301\u2215("), max_size=30
)
TEXTS = st.one_of(ANY, NASTY, st.sampled_from(["", ".", "..", " ", "...", "/", "a/../b", "-rf", FAMILY]))


def identity(head: int, tail: int = 0) -> str:
    return f"{head:08x}-0000-4000-8000-{tail:012x}"


def check_safe(name: str) -> None:
    assert name not in ("", ".", "..")
    assert len(name.encode()) <= 255
    assert unicodedata.is_normalized("NFC", name)
    assert not {"/", "\0"} & set(name)
    assert not {unicodedata.category(char) for char in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert name == name.strip()
    assert not name.startswith((".", " ", "-"))
    assert not name.endswith((".", " "))


class TestSafe:
    @given(TEXTS)
    def test_any_text_becomes_a_safe_name(self, text: str) -> None:
        for name in (
            safe_names.safe(text),
            safe_names.safe_file(text),
            safe_names.safe(text, safe_names.SHARED_LIMIT),
        ):
            if name:
                check_safe(name)
                assert safe_names.safe(name) == name
        assert bool(safe_names.safe(text)) == bool(safe_names.safe_file(text))
        assert len(safe_names.safe(text, 216).encode()) <= 216

    @given(TEXTS)
    def test_a_files_extension_is_kept(self, text: str) -> None:
        name = safe_names.safe_file(text + ".jpg")
        assert safe_names.extension(name) == ".jpg" or not safe_names.safe(text)

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            *(("cat.jpg", "cat.jpg"), ("./cat.jpg", "cat.jpg"), ("a/b", "a\u2215b"), ("a//b/", "a\u2215b")),
            *(
                ("../../etc/passwd", "etc\u2215passwd"),
                ("..", ""),
                (".", ""),
                ("", ""),
                (" \t", "_"),
                ("/", ""),
            ),
            *((".hidden", "hidden"), ("-rf", "_-rf"), (" x. ", "x"), ("a\0b\nc\x9f", "a_b_c_")),
            *(("invoice\u202egpj.exe", "invoice_gpj.exe"), ("\u2066x\u2069", "_x_"), ("cafe\u0301", "café")),
            *(("\ud800x", "_x"), ('"q" \\ *?', '"q" \\ *?'), ("x" * 300, "x" * 255), ("é" * 200, "é" * 127)),
            ("a" * 254 + "é", "a" * 254),
        ],
        ids=ascii,
    )
    def test_names_become_safe_as_in_these_examples(self, text: str, name: str) -> None:
        assert safe_names.safe(text) == name

    def test_every_character_that_this_python_calls_control_or_format_is_replaced(self) -> None:
        left = [
            hex(code)
            for code in range(sys.maxunicode + 1)
            if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
            and safe_names.safe(f"a{chr(code)}b") != "a_b"
        ]
        assert left == []

    def test_long_file_names_are_cut_before_the_extension(self) -> None:
        assert safe_names.safe_file("é" * 300 + ".tar.gz") == "é" * 124 + ".tar.gz"


class TestExtensions:
    @pytest.mark.parametrize(
        ("name", "ending"),
        [
            *(("a.jpg", ".jpg"), ("a.tar.gz", ".tar.gz"), ("a.7z", ".7z"), ("a.b.c", ".c"), ("a", "")),
            *(("Report 2.0", ""), ("Dr. No", ""), ("a.", ""), ("jpg", ""), ("a.averyveryverylong", "")),
        ],
    )
    def test_the_extension_of_a_name(self, name: str, ending: str) -> None:
        assert safe_names.extension(name) == ending

    @pytest.mark.parametrize(
        ("mime", "ending"),
        [
            *(("image/jpeg", ".jpg"), ("Text/CSV; charset=utf-8", ".csv"), ("application/pdf", ".pdf")),
            *(("application/octet-stream", ""), ("", ""), ("../x", ""), ("image/jpeg/..", "")),
        ],
    )
    def test_the_extension_of_a_type(self, mime: str, ending: str) -> None:
        assert safe_names.extension_for(mime) == ending

    def test_every_one_that_is_given_is_recognised(self) -> None:
        assert all(safe_names.extension(f"a{ending}") == ending for ending in safe_names._EXTENSIONS.values())

    @given(TEXTS, st.sampled_from(sorted(set(safe_names._EXTENSIONS.values()))))
    def test_added_they_leave_a_name_safe(self, text: str, ending: str) -> None:
        if stem := safe_names.safe_file(text):
            check_safe(safe_names.with_extension(stem, ending))


class TestSuffixes:
    @pytest.mark.parametrize(
        ("base", "level"),
        [
            *(("x", PLAIN), ("x (y)", PLAIN), ("x (1234567)", PLAIN), ("(12345678)", PLAIN)),
            *(("x (20240101)", SHORT), ("x(20240101)", PLAIN), ("x (ABCDEF01)", PLAIN)),
            *((identity(1), WHOLE), (f"x ({identity(1)})", WHOLE), (f"x {identity(1)})", PLAIN)),
        ],
    )
    def test_what_looks_like_one_always_gets_one(self, base: str, level: int) -> None:
        assert safe_names.first_level(base) == level

    @given(TEXTS, st.integers(0, 2**32 - 1))
    def test_a_suffix_can_be_taken_off_again(self, text: str, head: int) -> None:
        if base := safe_names.safe(text, safe_names.SHARED_LIMIT):
            one = identity(head)
            short, whole = safe_names.at_level(base, one, SHORT), safe_names.at_level(base, one, WHOLE)
            check_safe(short)
            check_safe(whole)
            assert safe_names.split(short) == (base, one[:8])
            assert safe_names.whole_identity(whole) == one


FEW = st.lists(
    st.tuples(st.sampled_from(["x", "y", "x (00000001)"]), st.integers(0, 2), st.integers(0, 3)),
    unique_by=lambda one: one[1:],
    max_size=12,
)


class TestSlots:
    @given(FEW, st.randoms(use_true_random=False))
    def test_each_record_gets_one_name_the_same_in_every_order(
        self, given: list[tuple[str, int, int]], rng: random.Random
    ) -> None:
        records = [(base, identity(h, t), safe_names.first_level(base)) for base, h, t in given]
        outcomes = []
        for _ in range(3):
            rng.shuffle(records)
            slots = NameTable()
            shown = [slots.add(*record) for record in records]
            assert None not in shown
            assert len(set(shown)) == len(records) == len(slots.owners)
            assert [slots.add(*record) for record in records] == [None] * len(records)
            assert set(slots.owners) == set(shown)
            outcomes.append(slots.owners)
        assert outcomes[0] == outcomes[1] == outcomes[2]
        assert sorted(outcomes[0].values()) == sorted(one for _, one, _ in records)

    def test_the_smallest_identity_has_the_plain_name(self) -> None:
        slots = NameTable()
        assert slots.add("x", identity(2), PLAIN) == "x"
        assert slots.add("x", identity(1), PLAIN) == "x (00000002)"
        assert slots.add("x", identity(1, 5), PLAIN) == "x (00000001)"
        assert slots.add("x", identity(1, 3), PLAIN) == f"x ({identity(1, 5)})"
        assert slots.owners["x"] == identity(1)
        assert slots.owners["x (00000001)"] == identity(1, 3)


FILES = ["x", "x.jpg", "x (00000001).jpg", "events", f"x ({identity(1)}).jpg", "y" * 251 + ".jpg", "é" * 127]


class TestDistinct:
    @given(st.lists(st.tuples(st.sampled_from(FILES), st.integers(0, 2), st.integers(0, 2)), max_size=15))
    def test_unique_safe_and_complete(self, given: list[tuple[str, int, int]]) -> None:
        pairs = {(name, identity(head, tail)) for name, head, tail in given}
        found = safe_names.distinct(pairs, ("events",))
        assert found == safe_names.distinct(sorted(pairs, reverse=True), ("events",))
        assert "events" not in found
        assert {one for _, one in pairs} == set(found.values())
        for name in found:
            check_safe(name)
        for name, one in pairs:
            if sum(other == name for other, _ in pairs) == 1 and name != "events":
                assert found[name] == one

    def test_no_record_has_a_shared_name_plain(self) -> None:
        assert safe_names.distinct([("a.jpg", identity(1)), ("a.jpg", identity(2)), ("b", identity(1))]) == {
            "a (00000001).jpg": identity(1),
            "a (00000002).jpg": identity(2),
            "b": identity(1),
        }

    def test_more_digits_where_eight_are_not_enough(self) -> None:
        assert list(safe_names.distinct([("a", identity(1, 1)), ("a", identity(1, 2))])) == [
            "a (00000001)",
            f"a ({identity(1, 2)})",
        ]
