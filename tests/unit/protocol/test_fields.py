"""Records and the table of their fields: values that cannot be changed, and what is read and written of them."""

from __future__ import annotations

import re
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import (
    Flag,
    Items,
    Maybe,
    Nested,
    Pairs,
    Record,
    Seconds,
    Text,
    Whole,
    Word,
    field,
    members,
    parse,
    table_of,
)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(Record):
    x: int
    y: int = 0


class Named(Point):
    name: str = ""


class Inner(Record):
    size: int = field(Whole(1, 5), about="how large it is")


class Wire(Record):
    word: Colour = field(Word(Colour))
    text: str = field(Text(5, re.compile("[a-z]*"), "up to five of a-z"), default="", name="on-the-wire")
    inner: Inner | None = field(Maybe(Nested(Inner, "inner")), default=None)
    numbers: tuple[int, ...] = field(Items(Whole(0, 9), 3), default=())
    pairs: tuple[tuple[str, str], ...] = field(Pairs(Text(3), Text(3), 2, ordered=True), default=())
    at: float = field(Seconds(), default=0.0)
    on: bool = field(Flag(), default=False)
    private: int = 7


VALUE: dict[str, object] = {
    "word": "red",
    "on-the-wire": "abc",
    "inner": {"size": 3},
    "numbers": [1, 2],
    "pairs": {"b": "2", "a": "1"},
    "at": 1,
    "on": True,
}


def test_a_record_is_a_value_that_cannot_be_changed() -> None:
    point = Point(1, 2)
    assert (point == Point(1, 2), point == Point(2, 1), point == (1, 2)) == (True, False, False)
    assert hash(point) == hash(Point(1, 2))
    assert repr(point) == "Point(x=1, y=2)"
    assert point.fields() == {"x": 1, "y": 2}
    assert point.replace(y=5) == Point(1, 5)
    with pytest.raises(AttributeError, match=r"Point\.x is read-only"):
        point.x = 3  # type: ignore[misc] # what is tested
    with pytest.raises(AttributeError, match=r"Point\.x is read-only"):
        del point.x
    with pytest.raises(AttributeError):
        object.__setattr__(point, "z", 1)


def test_a_record_inherits_fields_and_is_of_one_class() -> None:
    assert Named(1, 2, "a").fields() == {"x": 1, "y": 2, "name": "a"}
    assert Named(1, 2) != Point(1, 2)
    match Named(1, name="b"):
        case Named(x, _, name):
            assert (x, name) == (1, "b")


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_a_record_takes_exactly_its_fields(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point takes x, y"):
        Point(*values, **named)


def test_a_record_comes_back_as_it_was() -> None:
    record = parse(Wire, VALUE, "thing", strict=True)
    assert record == Wire(Colour.RED, "abc", Inner(3), (1, 2), (("a", "1"), ("b", "2")), 1.0, True)
    assert parse(Wire, record.to_wire(), "thing", strict=True) == record
    assert "private" not in record.to_wire()
    assert parse(Wire, {"word": "blue"}, "thing") == Wire(Colour.BLUE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"word": "green"}, "field 'word' must be one of red, blue, not 'green'"),
        ({"word": True}, "field 'word' must be one of red, blue"),
        ({"word": []}, "field 'word' must be one of red, blue"),
        ({"on-the-wire": "ABC"}, "field 'on-the-wire' must be up to five of a-z, not 'ABC'"),
        ({"on-the-wire": "abcdef"}, "field 'on-the-wire' must be up to five of a-z"),
        ({"on-the-wire": None}, "field 'on-the-wire' must be up to five of a-z"),
        ({"inner": {"size": 6}}, "field 'size' must be a whole number in 1 … 5"),
        ({"inner": {"size": True}}, "field 'size' must be a whole number in 1 … 5"),
        ({"inner": {}}, "field 'size' is missing"),
        ({"inner": []}, "field 'inner' must be null or an object"),
        ({"numbers": [1, 2, 3, 4]}, "field 'numbers' must be a list of at most 3"),
        ({"numbers": "12"}, "field 'numbers' must be a list of at most 3"),
        ({"pairs": {"a": 1}}, "field 'pairs': the value of 'a' must be a string"),
        ({"pairs": {"long": ""}}, "field 'pairs': a name must be a string, not 'long'"),
        ({"numbers": [1, 10]}, "field 'numbers': item 2 must be a whole number in 0 … 9"),
        ({"pairs": {"a": "", "b": "", "c": ""}}, "field 'pairs' must be an object of at most 2 strings"),
        ({"at": float("inf")}, "field 'at' must be a number of seconds"),
        ({"at": float("nan")}, "field 'at' must be a number of seconds"),
        ({"at": -1}, "field 'at' must be a number of seconds"),
        ({"at": True}, "field 'at' must be a number of seconds"),
        ({"on": 1}, "field 'on' must be true or false"),
        ({"private": 1}, "unknown field 'private'; it takes word, on-the-wire, "),
    ],
)
def test_what_the_table_does_not_allow_is_refused_by_name(change: dict[str, object], why: str) -> None:
    with pytest.raises(KeepfleetError, match=f"^invalid .*{re.escape(why)}") as refused:
        parse(Wire, {**VALUE, **change}, "thing", strict=True)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_a_missing_field_is_named() -> None:
    with pytest.raises(KeepfleetError, match="invalid thing: field 'word' is missing"):
        members(Wire, {}, "thing")


def test_another_version_s_fields_are_passed_over_where_it_is_not_strict() -> None:
    assert parse(Wire, {**VALUE, "later": 1}, "thing") == parse(Wire, VALUE, "thing")
    assert list(table_of(Wire)) == ["word", "text", "inner", "numbers", "pairs", "at", "on"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*VALUE, "size", "a"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*VALUE, "x"]), JSON))
def test_no_value_does_more_than_be_refused(value: dict[str, object]) -> None:
    try:
        record = parse(Wire, value, "thing", strict=True)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.BAD_REQUEST
    else:
        assert parse(Wire, record.to_wire(), "thing", strict=True) == record
