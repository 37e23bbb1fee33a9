"""JSON Schema made of the tables of records' fields agrees with what the same tables parse."""

from __future__ import annotations

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.api import NewKeep, StartKeep
from keep_protocol.errors import KeepfleetError
from keep_protocol.fields import Record, Type, field, members
from keep_protocol.keep import KeepInfo, KeepReport
from keep_protocol.schema import record_schema
from keep_protocol.spec import KeepSpec, Lease
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State


@pytest.mark.parametrize(
    "record",
    [
        KeepInfo(7, State.LISTENING),
        KeepReport(State.STARTED, 7),
        KeepSpec(labels=(("a", "b"),)),
        KeepEvent(1.0, EventType.CREATED, KeepInfo(7, State.ERROR, "x")),
        NewKeep(limits=(("tasks", 20),), lease=Lease(5, 5)),
    ],
)
def test_what_is_written_fits_the_schema(record: Record) -> None:
    schema = record_schema(type(record), answer=True)
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.validate(schema, record.to_wire())


NAMES = ("address", "port", "names", "uploaders", "workload", "arch", "name", "labels", "limits", "lease", "replace")
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 70_000)
    | st.sampled_from(["", "wasi", "web", "127.0.0.1", "::1", "no", "name:ann", "a\n"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["arguments", "stdin", "file", "restart", "tasks", "idle_seconds"]), inner)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("record", [NewKeep, StartKeep])
@given(value=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_what_is_parsed_fits_the_schema(record: type[Record], value: dict[str, object]) -> None:
    try:
        members(record, value, "request", strict=True)
    except KeepfleetError:
        return
    jsonschema_rs.validate(record_schema(record), value)


def test_a_type_without_a_schema_is_a_defect() -> None:
    class Odd(Record):
        x: int = field(Type())

    with pytest.raises(TypeError, match="no JSON Schema of Type"):
        record_schema(Odd)
