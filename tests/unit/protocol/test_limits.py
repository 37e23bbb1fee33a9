"""A keep's limits: what may be asked for, and both ways they travel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse, table_of
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.limits import (
    BOUNDS,
    DEFAULT_LIMITS,
    DEFAULTS,
    MIB,
    OVERHEAD_BYTES,
    Limits,
    check_limit,
    limits_from_text,
)
from keep_protocol.states import State

HOW_TO = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "limits.md"
LIMITS = st.fixed_dictionaries({}, optional={name: st.integers(*BOUNDS[name]) for name in BOUNDS}).map(
    lambda values: Limits(**values)
)
FIT_FOR_A_UNIT = re.compile(r"[a-z0-9_=,]{1,1024}", re.ASCII)
"""No space, quote, `%`, `$`, backslash or newline: nothing that systemd reads as anything but itself."""


def test_every_limit_has_a_default_within_its_bounds() -> None:
    assert set(DEFAULTS) == set(BOUNDS) == set(table_of(Limits))
    assert all(BOUNDS[name][0] <= DEFAULTS[name] <= BOUNDS[name][1] for name in BOUNDS)
    assert Limits() == DEFAULT_LIMITS
    assert DEFAULT_LIMITS.fields() == DEFAULTS


def test_the_how_to_has_every_limit_with_its_default_and_its_bounds() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9]+) \| ([0-9]+) \| ([0-9]+) \|", HOW_TO.read_text(), re.MULTILINE)
    assert {name: (int(default), (int(low), int(high))) for name, default, low, high in rows} == {
        name: (DEFAULTS[name], BOUNDS[name]) for name in BOUNDS
    }


def test_the_units_memory_is_wider_than_the_guests() -> None:
    little = Limits(memory_bytes=64 * MIB, compile_memory_bytes=512 * MIB)
    assert little.unit_memory_bytes == 512 * MIB + OVERHEAD_BYTES, "while its module is compiled there is no guest"
    assert little.running_memory_bytes == 64 * MIB + OVERHEAD_BYTES
    assert little.replace(memory_bytes=1024 * MIB).unit_memory_bytes == 1024 * MIB + OVERHEAD_BYTES


@given(LIMITS)
def test_limits_come_back_as_they_were_from_json_and_from_text(limits: Limits) -> None:
    assert parse(Limits, limits.to_wire(), "limits") == limits
    assert limits_from_text(limits.to_text()) == limits
    assert FIT_FOR_A_UNIT.fullmatch(limits.to_text())
    info = KeepInfo(kuuid=1, state=State.LISTENING, limits=limits)
    assert keep_from_wire(info.to_wire()).limits == limits


def test_what_is_not_named_has_its_default() -> None:
    assert limits_from_text("") == Limits() == DEFAULT_LIMITS
    assert (
        limits_from_text("wall_seconds=10") == parse(Limits, {"wall_seconds": 10}, "limits") == Limits(wall_seconds=10)
    )
    assert Limits(wall_seconds=10).cpu_seconds == DEFAULTS["cpu_seconds"]


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bounds_themselves_are_allowed_and_one_beyond_is_not(name: str) -> None:
    low, high = BOUNDS[name]
    assert (check_limit(name, low), check_limit(name, high)) == (low, high)
    for value in (low - 1, high + 1):
        with pytest.raises(
            KeepfleetError, match=f"invalid limits: field '{name}' must be .* {low} … {high}"
        ) as refused:
            Limits(**{name: value})
        assert refused.value.kind is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize("value", [True, False, 1.5, 2.0, "10", None, [], {}, float("nan"), float("inf"), 10**400])
def test_a_limit_that_is_no_whole_number_is_refused_in_words(value: object) -> None:
    with pytest.raises(KeepfleetError, match="invalid limits: field 'wall_seconds' must be") as refused:
        check_limit("wall_seconds", value)
    assert refused.value.kind is ErrorKind.BAD_REQUEST
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("name", ["", "memory", "MEMORY_BYTES", "memory_bytes ", "__class__", "x" * 1000])
def test_a_limit_that_is_none_is_refused_and_all_are_named(name: str) -> None:
    with pytest.raises(KeepfleetError, match="it takes memory_bytes, ") as refused:
        check_limit(name, 1)
    assert refused.value.kind is ErrorKind.BAD_REQUEST
    assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "wall_seconds",
        "wall_seconds=",
        "=10",
        "wall_seconds=+1",
        "wall_seconds=-1",
        "wall_seconds=1.0",
        "wall_seconds= 1",
        "wall_seconds=٣",
        "wall_seconds=1,",
        "wall_seconds=1,wall_seconds=1",
        "wall_seconds=1,wall_seconds=2",
        "wall_seconds=1\n",
        "wall_seconds=1;tasks=16",
        "wall_seconds=0",
        "wall_seconds=9999999999999",
        "speed=1",
    ],
)
def test_text_that_was_not_written_by_us_is_refused(text: str) -> None:
    with pytest.raises(KeepfleetError, match="invalid ") as refused:
        limits_from_text(text)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


@given(st.text(max_size=100))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        limits_from_text(text)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.BAD_REQUEST


@given(
    st.dictionaries(
        st.sampled_from(list(BOUNDS)) | st.text(max_size=20),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers()),
        max_size=6,
    )
)
def test_no_object_does_more_than_be_refused(value: dict[str, object]) -> None:
    try:
        parse(Limits, value, "limits", strict=True)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize("limits", [[], "x", 5, {"wall_seconds": 0}])
def test_a_keep_with_limits_of_another_shape_is_a_bad_request(limits: object) -> None:
    with pytest.raises(KeepfleetError) as refused:
        keep_from_wire({**KeepInfo(kuuid=7, state=State.LISTENING).to_wire(), "limits": limits})
    assert refused.value.kind is ErrorKind.BAD_REQUEST
