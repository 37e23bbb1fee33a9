"""How keepctl meets a person: help with examples, wrong usage in one line, tables and bars on a terminal."""

from __future__ import annotations

import importlib.metadata
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from rich.console import Console
from rich.progress import Progress

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.states import State
from keepctl import display
from keepctl.commands.shared import build
from keepctl.describe import named_ending
from keepctl.display import show_error
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.unit.keepctl.conftest import Run


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command's words, groups among them."""
    yield path
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from commands(found, (*path, name))


ALL = list(commands(build()))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_an_example(run: Run, path: tuple[str, ...]) -> None:
    typed = ("keepctl " + " ".join(path)).replace("keepctl new", "keepctl create").strip()
    text = run(*path, "--help").stdout.split("Usage:")[1].split("\n", 1)[1]
    assert re.search(rf"^ +(\w+=\$\(|\w+: +|systemctl .* && |/\S+/bin/)?{typed} ?", text, re.MULTILINE), text
    assert run(*path, "-h").stdout == run(*path, "--help").stdout


@pytest.mark.parametrize("words", [("--version",), ("--version", "ps")], ids=["read by us", "read by click"])
def test_the_version_is_that_of_the_installed_package(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    information = tmp_path / "keepfleet-7.8.9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.4\nName: keepfleet\nVersion: 7.8.9\n")
    monkeypatch.setattr("sys.path", ["/nowhere", str(tmp_path), *sys.path])
    assert run(*words).output == "keepctl 7.8.9\n"
    assert importlib.metadata.version("keepfleet") == "7.8.9", "what we leave out for its 30 ms says the same"


def test_a_checkout_that_is_not_installed_says_so_for_its_version(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    result = run("--version")
    assert (result.exit_code, result.output) == (0, "keepctl unknown (not installed)\n")


def test_no_summary_of_a_command_is_cut(run: Run) -> None:
    assert "..." not in run("--help").stdout.split("Commands:")[1]


@pytest.mark.parametrize(
    ("words", "said", "see"),
    [
        (("rnu",), "no such command 'rnu' (Did you mean 'run'?)", "keepctl"),
        (("--frob",), "no such option '--frob'", "keepctl"),
        (("context", "sett"), "no such command 'sett' (Did you mean 'set'?)", "keepctl context"),
        (("run", "--adress", "::1"), "no such option '--adress'", "keepctl run"),
        (("run", "--memory", "lots", "x"), "value for '--memory': cannot read 'lots' as a size", "keepctl run"),
        (("run",), "name the module to run", "keepctl run"),
        (("run", "trap.yaml"), "run it with: keepctl run -f trap.yaml", "keepctl run"),
        (("inspect",), "missing argument 'KEEP'", "keepctl inspect"),
        (("inspect", "a\nb"), "means no keep", "keepctl inspect"),
    ],
)
def test_wrong_usage_is_one_line_with_the_next_step(run: Run, words: tuple[str, ...], said: str, see: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("keepctl: cannot read the command line: ")
    assert said in result.stderr
    assert result.stderr.endswith(f"; see: {see} --help\n")
    assert len(result.stderr.splitlines()) == 1


def test_several_ends_are_said_apart() -> None:
    keep = KeepInfo(7, State.COMPLETE, outcome=Outcome(OutcomeKind.EXITED, "exited 3", exit_code=3), name="web")
    assert named_ending(keep, several=False) == "exited 3"
    assert named_ending(keep, several=True) == "7 web: exited 3"


def test_of_several_keeps_stopped_each_is_named(run: Run, manager: ManagerInMemory) -> None:
    for kuuid in (run("new").output.strip(), run("new", "--name", "web").output.strip()):
        run("start", kuuid)
    result = run("stop", str(FIRST_ID), "web")
    assert result.output == f"{FIRST_ID}: stopped by its owner\n{FIRST_ID + 1} web: stopped by its owner\n"
    assert len(manager.keeps) == 2


def test_evidence_that_the_message_holds_already_is_not_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(KeepfleetError(ErrorKind.INVALID_MODULE, "cannot take it: it imports 'a' 'b'", ("'a' 'b'", "'c' 'd'")))
    assert capsys.readouterr().err == "keepctl: cannot take it: it imports 'a' 'b'\n    'c' 'd'\n"


@pytest.mark.parametrize("terminal", ["xterm", "dumb", ""])
@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_a_table_folds_its_last_column_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, terminal: str
) -> None:
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    row = ("5485733526670498", "thumbnails", "2 started", "127.0.0.1:3031", "over its processor time limit of 10 s")
    display.show_table(("ID", "NAME", "STATE", "ADDRESS", "DETAIL"), [row])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert all(cell in lines[1] for cell in row[:4]), lines
    assert " ".join(" ".join(lines[1:]).split()).endswith(row[4])
    assert max(map(len, lines)) <= max(columns, sum(len(cell) + 2 for cell in row[:4]) + 16)


def test_the_clock_next_to_the_bar_runs_while_the_module_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(Progress, "start", lambda self: None)
    monkeypatch.setattr(display, "PATIENCE_SECONDS", 3600.0)
    with display.UploadBar(8, shown=True) as bar:
        bar._show()
        progress = bar._progress
        assert progress is not None
        progress.get_time = lambda: now[0]
        bar(4)
        assert (progress.tasks[0].description, progress.tasks[0].completed) == ("sending", 4)
        bar(8)
        (task,) = progress.tasks
        task.start_time, now[0] = 100.0, 107.0
        assert (task.description, task.finished) == ("checking and compiling", False)
        output = io.StringIO()
        Console(file=output, width=120).print(progress.get_renderable())
        assert "0:00:07" in output.getvalue()


def completed(*words: str) -> list[tuple[str, str]]:
    """What a shell is offered for the last of `words`."""
    shell = ShellComplete(build(), {}, "keepctl", "_KEEPCTL_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    "words",
    [("run", "exa"), ("run", "-f", "exa"), ("upload", "7", "exa"), ("manifest", "check", ""), ("ps", "--ca", "")],
    ids=" ".join,
)
def test_a_shell_completes_names_of_files(words: tuple[str, ...]) -> None:
    assert completed(*words) == [("file", words[-1])]


def test_a_shell_completes_names_of_contexts(run: Run) -> None:
    for name in ("edge", "east", "west"):
        run("context", "set", name, "--manager", "edge.example")
    assert completed("context", "use", "e") == [("plain", "east"), ("plain", "edge")]
    assert completed("ps", "--context", "w") == [("plain", "west")]
