"""Which fields records have: names in order, once for many records, and a bounded table."""

import json

from attachfs import model
from attachfs.fields import UNKNOWN, VALUE_LIMIT, FieldNames

RECORD = {"identity": "x", "attributes": {"b": {"c": 1, "d": {}}, "a": None, "list": [1, {"e": 2}]}}


def test_the_names_are_those_of_the_flattened_record() -> None:
    names = FieldNames()
    found = names.names(names.number_of(RECORD))
    assert found == tuple(model.flatten(json.dumps(RECORD).encode(), "x"))
    assert found == ("identity", "attributes.b.c", "attributes.b.d", "attributes.a", "attributes.list")


def test_records_with_the_same_fields_have_the_same_number_whatever_their_values() -> None:
    names = FieldNames()
    number = names.number_of({"a": "1", "b": {"c": 2}})
    assert number != UNKNOWN
    assert names.number_of({"a": "other", "b": {"c": None}}) == number
    assert names.number_of({"b": {"c": 2}, "a": "1"}) != number  # listed in another order


def test_a_value_that_no_attribute_can_have_is_not_named() -> None:
    names = FieldNames()
    record = {
        "text": "x" * (VALUE_LIMIT + 1),
        "wide": "é" * (VALUE_LIMIT // 2 + 1),
        "list": ["x" * VALUE_LIMIT],
        "most": "é" * (VALUE_LIMIT // 2),
    }
    assert names.names(names.number_of(record)) == ("most",)


def test_a_full_table_is_emptied_and_no_number_comes_to_mean_something_else() -> None:
    names = FieldNames(most=10)
    numbers = [names.number_of({f"key {number}.{n}": 1 for n in range(3)}) for number in range(20)]
    assert len(set(numbers)) == 20
    assert names.names(numbers[0]) is None
    assert names.names(numbers[-1]) == ("key 19.0", "key 19.1", "key 19.2")
    assert sum(names.names(number) is not None for number in numbers) <= 3
    assert names.names(UNKNOWN) is None
