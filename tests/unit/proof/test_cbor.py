"""CBOR: what is written is read back; what is not in the accepted part is refused, in bounded time."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.proof import cbor
from attachfs.proof.cbor import CborError, Tag

keys = st.integers(-(2**63), 2**63) | st.text(max_size=8)
values = st.recursive(
    st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=30)
        | st.dictionaries(keys, inner, max_size=5)
        | st.builds(Tag, st.integers(0, 2**64 - 1), inner)
    ),
    max_leaves=20,
)


def depth(value: object) -> int:
    if isinstance(value, Tag):
        return 1 + depth(value.value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((depth(one) for one in inner), default=0)


@given(values.filter(lambda value: depth(value) < 8))
def test_what_is_written_is_read_back(value: cbor.Value) -> None:
    written = cbor.encode(value)
    assert cbor.decode(written) == value
    assert cbor.encode(cbor.decode(written)) == written


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(CborError):
        cbor.decode(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends early"),
        (b"\x18\x17", "shortest"),
        (b"\x19\x00\xff", "shortest"),
        (b"\x1b" + bytes(4) + b"\xff" * 4, "shortest"),
        (b"\x5f\x41a\xff", "definite"),
        (b"\x1c", "definite"),
        (b"\xf9\x00\x00", "floats"),
        (b"\xf6", "floats"),
        (b"\xa2\x01\x01\x01\x02", "twice"),
        (b"\xa1\x80\x01", "neither"),
        (b"\x61\xff", "UTF-8"),
        (b"\x01\x01", "1 bytes follow"),
        (b"\x5b" + b"\xff" * 8, "ends early"),
        (b"\x9b" + b"\xff" * 8, "ends early"),
        (b"\xbb\x00" + b"\xff" * 7, "ends early"),
        (b"\x81" * 60_000, "nested"),
        (b"\xc1" * 60_000, "nested"),
        (b"\x99\x80\x00" + bytes(65_000), "too many items"),
        (bytes(70_000), "more than"),
    ],
)
def test_what_is_refused_says_why(data: bytes, why: str) -> None:
    with pytest.raises(CborError, match=why):
        cbor.decode(data)
