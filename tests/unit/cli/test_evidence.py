"""The hash that an event records of an attachment is the one that its file has, or nothing is proven."""

import pytest

from attachfs.cli.evidence import Evidence, check_digest
from attachfs.proof.errors import ProofError, State

BLOB = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9"
DIGEST, OTHER = "ab" * 32, "cd" * 32


def event(value: str = DIGEST, where: str = "event_attributes") -> dict[str, object]:
    attachment = {
        "arc_attribute_type": "arc_attachment",
        "arc_blob_identity": f"blobs/{BLOB}",
        "arc_blob_hash_alg": "SHA256",
        "arc_blob_hash_value": value,
    }
    return {"event_attributes": {}, "asset_attributes": {}, where: {"photo": attachment}}


@pytest.mark.parametrize("where", ["event_attributes", "asset_attributes"])
def test_the_same_hash_is_right_wherever_it_is_recorded(where: str) -> None:
    check_digest(Evidence("p", event(where=where), attachment=BLOB, digest=DIGEST))


@pytest.mark.parametrize(
    ("record", "state"),
    [(event(OTHER), State.HASH_DIFFERS), (event("zz"), State.NOT_REPRODUCIBLE), ({}, State.NOT_REPRODUCIBLE)],
)
def test_another_hash_or_none_is_told_apart(record: dict[str, object], state: State) -> None:
    with pytest.raises(ProofError) as caught:
        check_digest(Evidence("p", record, attachment=BLOB, digest=DIGEST))
    assert caught.value.state is state


def test_an_event_by_itself_has_no_file_to_compare() -> None:
    check_digest(Evidence("p", event()))
