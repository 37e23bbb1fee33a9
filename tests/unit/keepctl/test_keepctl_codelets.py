"""`keepctl codelets`, against a whole manager's API and a real application."""

from __future__ import annotations

import json
import os
import pwd
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.manager_thread import manager_thread
from tests.fakes.running_manager import RunningManager
from tests.unit.codelets.application import COUNTER, Application, one, packet
from tests.unit.keepctl.conftest import Run, let_operator_in

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="module")
def manager() -> Iterator[RunningManager]:
    with tempfile.TemporaryDirectory(prefix="km") as name, manager_thread(Path(name)) as made:
        yield made


@pytest.fixture(autouse=True)
def let_in(manager: RunningManager, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lets the operator in, and the manager chosen."""
    let_operator_in(manager, directory)
    monkeypatch.setenv("KEEPFLEET_MANAGER", f"127.0.0.1:{manager.port}")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    """One with the codelet `counter:1` in its store, its socket `lcm.sock` and its descriptor `counter.yaml`."""
    made = Application(tmp_path, in_c=False, lcm_socket=str(tmp_path / "lcm.sock"))
    made.add("counter", COUNTER)
    (tmp_path / "counter.yaml").write_text(one("${NAME}", "choose", path="counter:1"))
    yield made
    made.close()


@pytest.fixture
def attached(run: Run, manager: RunningManager, application: Application) -> Iterator[Application]:
    """Known to the manager as `app`."""
    where = str(manager.attached)
    done = run("codelets", "attach", "app", "lcm.sock", "--owner", "ann", "--directory", where)
    assert done.stdout == f"attached app: operators and ann load; {where}/app.yaml\n"
    yield application
    assert run("codelets", "detach", "app", "--directory", where).stdout == "detached app\n"


def test_a_set_is_loaded_listed_counted_and_unloaded(run: Run, attached: Application, tmp_path: Path) -> None:
    assert run("codelets", "load", "app", "counter.yaml", "--variable", "NAME=counter").stdout == "loaded counter\n"
    attached.choose(packet())
    assert run("codelets", "ls").stdout.splitlines()[1].split() == ["app", "ann", f"{tmp_path}/lcm.sock", ME]
    assert run("codelets", "ls", "app").stdout.splitlines()[1].split()[:6] == (
        ["counter", "loaded", "counter", "choose", "1", "0"]
    )
    rows = [line.split() for line in run("codelets", "stats", "app").stdout.splitlines()]
    assert ["choose", "1", "0", "0", "counter.counter"] in rows
    assert run("codelets", "unload", "app", "counter").stdout == "unloaded counter\n"
    assert json.loads(run("codelets", "ls", "app", "-o", "json").stdout) == []


def test_as_json_each_command_says_what_it_did(run: Run, attached: Application) -> None:
    loaded = run("codelets", "load", "app", "counter.yaml", "--variable", "NAME=counter", "-o", "json")
    assert json.loads(loaded.stdout) == {"codeletset_id": "counter"}
    assert json.loads(run("codelets", "ls", "-o", "json").stdout)[0]["owner"] == "ann"
    assert json.loads(run("codelets", "ls", "app", "-o", "json").stdout)[0]["loaded"] is True
    assert "times" in json.loads(run("codelets", "stats", "app", "-o", "json").stdout)[0]
    assert json.loads(run("codelets", "unload", "app", "counter", "-o", "json").stdout) == {"unloaded": ["counter"]}


@pytest.mark.parametrize("output", ["text", "json"])
def test_watching_shows_sets_until_the_application_ends(
    run: Run, attached: Application, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    attached.load("counter", COUNTER)
    attached.choose(packet())
    wait = attached.runtime.wait_for_change

    def wait_or_end(seen: int, seconds: float) -> int | None:
        if seen >= 0:  # the first look was sent
            threading.Thread(target=attached.runtime.close).start()
        return wait(seen, seconds)

    monkeypatch.setattr(attached.runtime, "wait_for_change", wait_or_end)
    done = run("codelets", "watch", "app", "-o", output)
    assert done.exit_code != 0
    assert "cannot ask the application app" in done.stderr
    if output == "text":
        assert done.stdout.splitlines() == ["counter: loaded", "counter.counter: 1 calls more, 0 faults"]
    else:
        assert json.loads(done.stdout)["codelets"][0]["calls"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("load", "app", "counter.yaml"), "unknown variable ${NAME}"),
        (("load", "app", "counter.yaml", "--variable", "NAME"), "must be NAME=VALUE"),
        (("load", "app", "nowhere.yaml"), "No such file"),
        (("unload", "app", "nothing"), "nothing"),
        (("unload", "app", "../stats"), "invalid ID"),
        (("ls", "other"), "none of that name is attached"),
        (("ls", "APP"), "invalid name 'APP'"),
        (("ls", "app", "app"), "name one application"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    run: Run, attached: Application, words: tuple[str, ...], said: str
) -> None:
    done = run("codelets", *words)
    assert (done.exit_code != 0, said in done.stderr) == (True, True), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("attach", "app", "nothing.sock"), "start the application, or say with --user"),
        (("attach", "app", "counter.yaml"), "it is no socket"),
        (("attach", "a/b", "lcm.sock"), "invalid name 'a/b'"),
        (("attach", "app", "lcm.sock", "--owner", "not a name"), "a caller's name"),
        (("attach", "app", "lcm.sock", "--user", "not a user"), "a user's name or ID"),
        (("attach", "app", "x" * 200, "--user", "root"), "at most 107 characters"),
        (("detach", "app"), "there is no"),
    ],
)
def test_what_is_no_application_is_not_attached(
    run: Run, application: Application, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = run("codelets", *words, "--directory", str(tmp_path / "d"))
    assert (done.exit_code != 0, said in done.stderr) == (True, True), done.stderr
    assert not (tmp_path / "d/app.yaml").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the system's manager is root's")
def test_a_socket_that_the_manager_s_unit_does_not_show_it_is_not_attached(run: Run) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{name}/lcm.sock")
        done = run("codelets", "attach", "app", f"{name}/lcm.sock")
    assert "the manager's unit hides that directory from it" in done.stderr
