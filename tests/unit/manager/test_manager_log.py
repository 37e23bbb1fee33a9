"""Log lines: one line an event, nothing forged, floods counted."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import socket
from pathlib import Path

from keep_manager import log
from keep_manager.log import STRANGERS, LineFormatter, Ration, RationingHandler, escape


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


class Clock:
    """A clock that the test moves, and a log that writes by it."""

    def __init__(self) -> None:
        self.now = 10.0
        self.written = io.StringIO()
        self.handler = RationingHandler(self.written, lambda: self.now)
        self.handler.setFormatter(LineFormatter(priorities=True))

    def log(self, message: str, level: int = logging.INFO, name: str = "keepfleet.x", times: int = 1) -> None:
        for _ in range(times):
            self.handler.handle(record(message, level=level, name=name))

    @property
    def lines(self) -> list[str]:
        return self.written.getvalue().splitlines()


def test_a_flood_is_cut_counted_and_said_by_kind() -> None:
    clock = Clock()
    clock.log("hello", times=Ration.OTHER.per_second + 7)
    clock.log("a stranger", name=STRANGERS.name, times=Ration.STRANGERS.per_second + 3)
    assert len(clock.lines) == Ration.OTHER.per_second + Ration.STRANGERS.per_second
    clock.now = 11.0
    clock.log("next")
    assert clock.lines[-3:] == [
        "<4>left out 7 lines: more than 50 a second",
        "<4>security: left out 3 lines about clients without a good certificate: more than 20 a second",
        "<6>next",
    ]


def test_a_flood_of_strangers_hides_no_error_and_no_refusal_of_a_known_client() -> None:
    clock = Clock()
    clock.log("a stranger", name=STRANGERS.name, level=logging.WARNING, times=5000)
    clock.log("refused serial 7", name="keepfleet.security", level=logging.WARNING)
    clock.log("cannot accept connections", level=logging.ERROR)
    clock.log("ready")
    assert clock.lines[-3:] == ["<4>security: refused serial 7", "<3>cannot accept connections", "<6>ready"]
    assert len(clock.lines) == Ration.STRANGERS.per_second + 3


def test_errors_have_a_ration_too() -> None:
    clock = Clock()
    clock.log("broken", level=logging.ERROR, times=Ration.ERRORS.per_second + 1)
    clock.log("critical", level=logging.CRITICAL)
    assert len(clock.lines) == Ration.ERRORS.per_second


def test_all_rations_together_are_under_two_hundred_lines_a_second_and_strangers_under_a_hundred() -> None:
    assert sum(ration.per_second for ration in Ration) < 200
    assert 2 * Ration.STRANGERS.per_second < 100, "a second of the flood can touch two of the clock's"


def test_what_was_left_out_is_said_when_the_log_is_closed() -> None:
    clock = Clock()
    clock.log("hello", times=Ration.OTHER.per_second + 2)
    clock.handler.close()
    assert clock.lines[-1] == "<4>left out 2 lines: more than 50 a second"


async def test_what_was_left_out_is_said_without_another_line() -> None:
    clock = Clock()
    clock.now = 10.99
    clock.log("hello", times=Ration.OTHER.per_second + 2)
    while "left out 2 lines" not in clock.written.getvalue():  # noqa: ASYNC110 # a log has no event for it
        await asyncio.sleep(0.001)


def lines_sent(journald: socket.socket) -> list[dict[str, str]]:
    journald.setblocking(False)
    found: list[dict[str, str]] = []
    while True:
        try:
            found.append(dict(line.split("=", 1) for line in journald.recv(4096).decode().splitlines()))
        except BlockingIOError:
            return found


def test_a_journald_that_has_hung_up_gets_lines_over_its_own_socket_and_how_many_it_missed(
    tmp_path: Path, journald: socket.socket
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = log.JournalStream(ours.fileno(), str(tmp_path / "socket"))
        stream.write("<6>first\n")
        assert theirs.recv(100) == b"<6>first\n"
        theirs.close()
        stream.write("<4>second\n<3>of two lines\n")
        own = {"SYSLOG_IDENTIFIER": "keep-manager"}
        assert lines_sent(journald) == [
            {"PRIORITY": "4", "MESSAGE": "second", **own},
            {"PRIORITY": "3", "MESSAGE": "of two lines", **own},
        ]
        os.rename(tmp_path / "socket", tmp_path / "away")
        stream.write("<6>lost\n<6>too\n")
        os.rename(tmp_path / "away", tmp_path / "socket")
        stream.write("<6>back\n")
        assert [one["MESSAGE"] for one in lines_sent(journald)] == [
            "2 lines were lost while there was no journald",
            "back",
        ]
        assert "0 lines lost" in repr(stream)
