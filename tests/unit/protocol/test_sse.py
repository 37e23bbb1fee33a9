"""The events of the manager's streams, as bytes and back."""

from __future__ import annotations

import pytest

from keep_protocol import sse
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State


def test_a_line_of_the_log_comes_back_as_it_was() -> None:
    line = sse.LogLine(1.5, "workload", "a\x1b[31m\u2028\n", "s=1")
    assert sse.line_from_wire(line.to_wire(), "s=1") == line


@pytest.mark.parametrize("event_type", sse.EventType)
def test_what_happened_to_a_keep_comes_back_as_it_was(event_type: sse.EventType) -> None:
    event = sse.KeepEvent(3.0, event_type, KeepInfo(7, State.LISTENING, phase="idle"), "alice", "s=1")
    assert sse.event_from_wire(event.to_wire(), "s=1") == event


@pytest.mark.parametrize(
    "change", [{"at": True}, {"event": "melted"}, {"event": 3}, {"keep": 3}, {"keep": {"state": 99}}, {"by": None}]
)
def test_an_event_of_another_shape_is_refused(change: dict[str, object]) -> None:
    event = sse.KeepEvent(3.0, sse.EventType.CREATED, KeepInfo(7, State.LISTENING))
    with pytest.raises(KeepfleetError, match=r"^invalid "):
        sse.event_from_wire({**event.to_wire(), **change})


def test_an_event_is_one_id_one_name_and_one_line_of_data() -> None:
    assert sse.encode("line", {"text": "a\nb"}, "s=1") == b'id: s=1\nevent: line\ndata: {"text":"a\\nb"}\n\n'


@pytest.mark.parametrize("event_id", ["a\nb", "a b", "\u00e9", "x" * 513])
def test_an_id_that_would_break_out_of_its_line_is_refused(event_id: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot resume there"):
        sse.encode("line", {}, event_id)


@pytest.mark.parametrize(
    "value",
    [{}, {"at": 1, "source": "keep"}, {"at": "1", "source": "", "text": ""}, {"at": -1, "source": "", "text": ""}],
)
def test_a_line_of_another_shape_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(KeepfleetError, match=r"^invalid log line"):
        sse.line_from_wire(value)


@pytest.mark.parametrize("text", ["", 'a"b\\c', "\x1b[31m\0\u2028 ü \U0001f600"])
def test_a_line_is_written_quickly_as_any_event_is(text: str) -> None:
    line = sse.LogLine(1795248000.25, "stderr", text, "p=1f;o=2;e=3;m=4")
    assert sse.encode_line(line) == sse.encode(sse.LINE, line.to_wire(), line.cursor)
