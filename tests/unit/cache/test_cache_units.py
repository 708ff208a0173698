"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.units import MinFree, format_size, parse_min_free, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("12B", 12),
        ("1k", 1 << 10),
        ("512M", 512 << 20),
        ("10G", 10 << 30),
        ("10 GiB", 10 << 30),
        ("10gb", 10 << 30),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        (" 7 ", 7),
    ],
)
def test_a_size_is_parsed_with_its_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.5", "ten", "10X", "1e9", "5%", "0x10", "٣G", "9" * 18 + "G", "9" * 19]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole number|larger"):
        parse_size(text)


def test_min_free_is_a_percentage_or_a_size() -> None:
    assert parse_min_free("5%") == MinFree(percent=5)
    assert parse_min_free(" 2.5 % ") == MinFree(percent=2.5)
    assert parse_min_free("1G") == MinFree(bytes=1 << 30)
    assert parse_min_free("0") == MinFree()
    assert MinFree(percent=5).of(1000) == 50
    assert MinFree(bytes=7).of(1000) == 7
    assert str(parse_min_free("5%")) == "5%"
    assert str(parse_min_free("1G")) == "1 GiB"


@pytest.mark.parametrize("text", ["", "%", "100%", "1000%", "-5%", "x%", "5%%", "5 percent"])
def test_what_is_no_min_free(text: str) -> None:
    with pytest.raises(ValueError, match=r"%|percent"):
        parse_min_free(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (10 << 30, "10 GiB"), (3 << 60, "3072 PiB")],
)
def test_a_size_is_formatted_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**63 - 1))
def test_plain_numbers_are_themselves(size: int) -> None:
    assert parse_size(str(size)) == size
