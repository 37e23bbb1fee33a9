"""What people type and see, without a manager: sizes, times, endings, references, tables, bars."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.outcome import LIMIT, NOT_RUN, REFUSED, STOPPED, TRAP, exit_code_of
from keep_protocol.states import State
from keepctl import describe, job
from keepctl.describe import (
    EXIT_CODES,
    INTERRUPTED,
    UNREAD,
    moment_text,
)
from keepctl.display import UploadBar, WaitingLine, plain_table, show_table
from keepctl.references import choose
from tests.unit.keepctl.conftest import Run

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("65536", 65536), ("64K", 65536), ("64M", 64 << 20), ("1GiB", 1 << 30), ("5b", 5)]
)
def test_a_size_is_bytes_with_an_optional_unit(text: str, number: int) -> None:
    assert job.parse_size(text) == number


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("10s", 10), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("1d2h3m4s", 93784)]
)
def test_a_time_is_seconds_or_days_hours_minutes(text: str, seconds: int) -> None:
    assert job.parse_duration(text) == seconds


@pytest.mark.parametrize("at", [253402300799.0, 253402300800.0, 1e12])
def test_a_moment_that_no_calendar_has_is_said_in_seconds(at: float) -> None:
    assert moment_text(at) in (f"@{at:.0f}", "9999-12-31 23:59:59")
    assert moment_text(1e12) == "@1000000000000"


@pytest.mark.parametrize(("text", "percent"), [("0.5", 50), ("2", 200), ("0.25", 25), ("1.5", 150)])
def test_processors_are_percent_of_one(text: str, percent: int) -> None:
    assert job.parse_cpus(text) == percent


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((job.parse_size, text) for text in ("", "M", "-1", "1.5G", "1T", "٣", "1 M", "1M\n", "9" * 20)),
        *((job.parse_duration, text) for text in ("", "s", "-1", "1.5s", "10ms", "1m1h", "1 s", "1s\n")),
        *((job.parse_cpus, text) for text in ("", ".5", "-1", "1.234", "1e3", "nan", "1\n")),
        *((job.parse_pair, text) for text in ("", "a", "=b")),
        *((job.parse_directory, text) for text in ("", "/a", ":/a", "/a:", "/a:/b:rx", "/a:/b:rw:x")),
    ],
)
def test_anything_else_is_refused_in_words(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot read"):
        parse(text)


def test_a_limit_has_a_friendly_and_an_exact_name() -> None:
    assert job.parse_limit("memory", "64M") == job.parse_limit("memory_bytes", "64M") == ("memory_bytes", 64 << 20)
    assert job.parse_limit("cpus", "0.5") == job.parse_limit("cpu_percent", "50") == ("cpu_percent", 50)
    with pytest.raises(KeepfleetError, match="the limits are memory, time"):
        job.parse_limit("speed", "1")
    with pytest.raises(KeepfleetError, match="'wall_seconds' must be a whole number in 1"):
        job.parse_limit("time", "0")


@pytest.mark.parametrize(
    ("number", "text"), [(None, ""), (0, "0 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (3 << 30, "3 GiB")]
)
def test_bytes_are_written_for_people(number: int | None, text: str) -> None:
    assert describe.size_text(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.25, "0.25 s"),
        (90, "90 s"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (266400, "3 d 2 h"),
    ],
)
def test_times_are_written_for_people(seconds: float | None, text: str) -> None:
    assert describe.seconds_text(seconds) == text


def test_every_way_to_end_has_an_exit_code_and_only_a_good_end_has_0() -> None:
    assert exit_code_of(None) == 125
    for kind in OutcomeKind:
        assert 0 < exit_code_of(Outcome(kind, "x", exit_code=7)) < 256
    assert exit_code_of(Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0)) == 0


def test_a_name_wins_over_the_beginning_of_an_id() -> None:
    keeps = [KeepInfo(12, State.LISTENING, name="x"), KeepInfo(34, State.LISTENING, name="12")]
    assert choose(keeps, "12") == keeps[1]
    assert choose(keeps, "1") == keeps[0]
    assert choose(keeps, "9") is None
    with pytest.raises(KeepfleetError, match="2 are called so"):
        choose([*keeps, KeepInfo(35, State.LISTENING)], "3")


def test_of_keeps_with_one_name_the_living_one_is_meant() -> None:
    ended = [KeepInfo(number, State.COMPLETE, name="web") for number in (1, 2)]
    assert choose([*ended, KeepInfo(3, State.STARTED, name="web")], "web") == KeepInfo(3, State.STARTED, name="web")
    with pytest.raises(KeepfleetError, match="2 are called so"):
        choose(ended, "web")


def test_a_plain_table_has_no_control_characters_and_no_empty_cells() -> None:
    assert plain_table(("A", "B"), [("\x1b[31m", ""), ("x", "y\nz")]) == "A         B\n\\x1b[31m  -\nx         y z"


def test_a_table_on_a_terminal_shows_what_a_guest_wrote_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    show_table(("ID", "DETAIL"), [("7", "[red]\x1b[31m")])
    assert "[red]\\x1b[31m" in capsys.readouterr().out


def test_an_upload_that_takes_long_gets_a_bar_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("keepctl.display.PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with UploadBar(10, shown=True) as bar:
        for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
            timer.join()  # or it has run already, and is gone
        bar(10)
    assert "checking and compiling" in capsys.readouterr().err


def test_an_upload_without_a_terminal_or_that_is_quick_gets_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("keepctl.display.PATIENCE_SECONDS", 3600.0)  # to which each upload is quick
    for shown in (True, False):
        with UploadBar(10, shown) as bar:
            bar(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("shell", "said"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --")])
def test_every_shell_gets_its_completion(run: Run, shell: str, said: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert said in result.output and "_KEEPCTL_COMPLETE" in result.output


def test_the_completion_knows_commands_and_options(run: Run) -> None:
    del run
    from click.shell_completion import ShellComplete

    from keepctl.commands.shared import build

    complete = ShellComplete(build(), {}, "keepctl", "_KEEPCTL_COMPLETE")
    assert "run" in [item.value for item in complete.get_completions([], "r")]
    assert "--memory" in [item.value for item in complete.get_completions(["run"], "--m")]


def test_every_command_has_help_with_an_example(run: Run) -> None:
    from keepctl.commands import COMMANDS

    for name in set(COMMANDS) - {"init", "pki", "install", "uninstall"}:
        text = run(name, "--help").output
        assert "keepctl " + name.replace("new", "create") in text.split("Usage:")[1].split("\n", 1)[1], name


def test_the_how_to_lists_the_exit_codes_there_are() -> None:
    page = (ROOT / "docs/how-to/keepctl.md").read_text(encoding="utf-8")
    for code in (LIMIT, NOT_RUN, REFUSED, INTERRUPTED, TRAP, UNREAD, STOPPED):
        assert f"| {code} |" in page and f"\n{code}  " in EXIT_CODES


def test_what_is_waited_for_is_one_line_that_goes_on_a_terminal_and_one_that_stays_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with WaitingLine(terminal=True) as line:
        line("compiling the module, 2 s")
        line("done")
    assert capsys.readouterr().err == (
        "\rkeepctl: compiling the module, 2 s\rkeepctl: done" + " " * 21 + "\r" + " " * 13 + "\r"
    )
    drawn: list[str] = []
    line = WaitingLine(terminal=True, before=lambda: drawn.append("before"))
    for text in ("one", "two", "", "", "three"):
        line(text)
    assert capsys.readouterr().err == ("\rkeepctl: one\rkeepctl: two\r" + " " * 12 + "\r" + "\rkeepctl: three")
    assert len(drawn) == 2
    with WaitingLine(terminal=False) as line:
        line("compiling the module, 2 s")
        line("compiling the module, 4 s")
    assert capsys.readouterr().err == "keepctl: compiling the module, 2 s; the next start finds it compiled\n"
