"""Calendar events as systemd means them, and what timers say of them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from keep_manager.systemd.programs import Calendar, moments_in
from keep_manager.systemd.timers import timer_properties
from keep_manager.timer_signals import TimerSignals, fired
from keep_protocol.errors import ErrorKind, KeepfleetError

NIGHT = 1764297000.0
"""2025-11-28 02:30:00 UTC."""


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


@pytest.mark.usefixtures("utc")
async def test_the_next_moment_is_systemd_s() -> None:
    calendar = Calendar()
    assert await calendar.check("daily") == "*-*-* 00:00:00"
    assert await calendar.after("*-*-* 03:00", NIGHT) == NIGHT + 1800
    assert await calendar.after("*-*-* 03:00", NIGHT + 1800) == NIGHT + 1800 + 86400
    assert await calendar.after("2020-01-01", NIGHT) is None


async def test_a_moment_is_the_same_where_the_local_time_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert await Calendar().after("*-*-* 04:00", NIGHT) == NIGHT + 1800


@pytest.mark.parametrize("event", ["bogus", "2020-01-01", "-h"])
async def test_what_is_no_event_or_never_comes_is_refused_with_the_reason(event: str) -> None:
    with pytest.raises(KeepfleetError) as refused:
        await Calendar().check(event)
    assert refused.value.kind is ErrorKind.BAD_REQUEST
    assert "(man 7 systemd.time)" in refused.value.message


async def test_without_the_program_a_schedule_cannot_be_understood() -> None:
    with pytest.raises(KeepfleetError) as refused:
        await Calendar("/nonexistent/program").check("daily")
    assert refused.value.kind is ErrorKind.UNSUPPORTED


def test_only_lines_that_say_a_moment_are_read() -> None:
    assert moments_in("") == []
    assert moments_in("    Next elapse: never\n") == []
    assert moments_in("    Next elapse: Fri 2025-11-28 03:00:00 UTC\n       From now: 1h\n") == [NIGHT + 1800]


def test_a_timer_has_the_event_and_starts_the_service_of_its_name() -> None:
    properties = {name: value for name, _, value in timer_properties("report", "*-*-* 03:00:00")}
    assert properties["TimersCalendar"] == [["OnCalendar", "*-*-* 03:00:00"]]
    assert "Persistent" not in properties


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"STATUS=report", "report"),
        (b"STATUS=report\n", "report"),
        (b"STATUS=../x", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_a_datagram_names_a_job_or_nothing(data: bytes, name: str | None) -> None:
    assert fired(data) == name


async def test_what_timers_say_is_heard_and_a_socket_of_a_manager_that_was_killed_is_no_obstacle(
    tmp_path: Path,
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    (tmp_path / "keep-manager").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(tmp_path / "keep-manager/jobs"))
    signals = TimerSignals(str(tmp_path), heard.put_nowait)
    signals.open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"nonsense", str(tmp_path / "keep-manager/jobs"))
        sender.sendto(b"STATUS=report", str(tmp_path / "keep-manager/jobs"))
    async with asyncio.timeout(60):
        assert await heard.get() == "report"
    signals.close()
    assert not (tmp_path / "keep-manager/jobs").exists()
