"""Foreign text made fit to look at: what is escaped, what stays, and how long it may be."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.text import EXCERPT, excerpt, printable

ANY = st.text(st.characters(codec=None))  # surrogates included


@pytest.mark.parametrize(
    ("foreign", "safe"),
    [
        ("plain, Straße, 東京 🚢", "plain, Straße, 東京 🚢"),
        ("\x1b]0;gone\x07\x1b[2J", r"\x1b]0;gone\x07\x1b[2J"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x85\u2028\u2029", r"\x85\u2028\u2029"),
        ("invoice\u202egpj.exe", r"invoice\u202egpj.exe"),
        ("\u2066\u2069\u200e\u200f\ufeff", r"\u2066\u2069\u200e\u200f\ufeff"),
        ("\x9b31m\x7f\0", r"\x9b31m\x7f\x00"),
        ("\udcff.txt", r"\xff.txt"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_text_that_could_steer_a_terminal_is_escaped(foreign: str, safe: str) -> None:
    assert printable(foreign) == safe


def test_every_character_comes_out_visible_and_encodable() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(every)
    shown.encode()
    assert not {unicodedata.category(one) for one in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert {one for one in shown if unicodedata.category(one) == "Zs"} == {" "}


@given(ANY)
def test_printable_text_is_left_alone(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@given(ANY, st.integers(1, 20))
def test_an_excerpt_is_the_beginning_of_the_printable_text(text: str, limit: int) -> None:
    whole = printable(text)
    assert excerpt(text, limit) == (whole if len(whole) <= limit else whole[:limit] + "…")


def test_an_excerpt_of_an_object_is_one_of_its_text() -> None:
    assert excerpt(ValueError("a\n" + "b" * 1000)) == ("a\\n" + "b" * 1000)[:EXCERPT] + "…"
