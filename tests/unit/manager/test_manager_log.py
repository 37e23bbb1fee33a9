"""Log lines: one line an event, nothing forged, floods counted."""

from __future__ import annotations

import logging

from keep_manager.log import LINES_PER_SECOND, FloodFilter, LineFormatter, escape


def record(message: str, *args: object, level: int = logging.INFO, name: str = "keepfleet.x") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, args, None)


def test_control_characters_are_escaped() -> None:
    assert escape("a\nb\x1b[31m\0é") == "a\\nb\\x1b[31m\\x00é"


def test_a_client_cannot_forge_a_line_or_a_priority() -> None:
    line = LineFormatter(priorities=True).format(record("refused %s", "x\n<0>all is lost"))
    assert line == "<6>refused x\\n<0>all is lost"


def test_priorities_are_journald_s() -> None:
    formatter = LineFormatter(priorities=True)
    levels = (logging.ERROR, logging.WARNING, logging.DEBUG)
    assert [formatter.format(record("m", level=level)) for level in levels] == ["<3>m", "<4>m", "<7>m"]


def test_a_refusal_is_marked() -> None:
    line = LineFormatter(priorities=False).format(record("refused", name="keepfleet.security"))
    assert line == "security: refused"


def test_every_line_of_a_traceback_carries_the_priority() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        entry = record("failed", level=logging.ERROR)
        entry.exc_info = (ValueError, error, error.__traceback__)
    lines = LineFormatter(priorities=True).format(entry).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("<3>") for line in lines)


def test_a_flood_is_cut_and_counted() -> None:
    now = [10.0]
    flood = FloodFilter(lambda: now[0])
    passed = sum(flood.filter(record("m")) for _ in range(LINES_PER_SECOND + 7))
    assert passed == LINES_PER_SECOND
    now[0] = 11.0
    first = record("next %d", 1)
    assert flood.filter(first)
    assert first.getMessage() == "next 1 (after 7 lines left out)"
    second = record("then")
    assert flood.filter(second)
    assert second.getMessage() == "then"
