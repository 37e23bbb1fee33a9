"""Commands in the private systemd: started by its agent, in scripts and in terminals, and ended with their callers."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from tests.system.host import until
from tools.sandbox import cgroups
from tools.sandbox.command import Command
from tools.sandbox.errors import SandboxError
from tools.sandbox.sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
CLI = [sys.executable, "-m", "tools.sandbox"]
SECONDS = 30


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(f"box-{os.getpid()}") as sandbox:
        yield sandbox


@pytest.fixture
def name() -> Iterator[str]:
    name = f"own-{os.getpid()}"
    yield name
    Sandbox(name).off()


def lines_of(process: Command) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_the_exit_status_is_the_command_s(box: Sandbox, status: int) -> None:
    assert box.exec(["sh", "-c", f"exit {status}"]).returncode == status


def test_a_command_that_a_signal_ends_is_seen_to_end_by_it(box: Sandbox) -> None:
    assert box.exec(["sh", "-c", "kill -TERM $$"]).returncode == -signal.SIGTERM
    assert box.exec(["sh", "-c", "kill -SEGV $$"]).returncode == -signal.SIGSEGV


def test_a_command_that_is_not_there_or_not_executable_is_127_or_126_as_in_a_shell(box: Sandbox) -> None:
    missing = box.exec(["no-such-program"])
    assert (missing.returncode, missing.stderr) == (
        127,
        "cannot run no-such-program in the sandbox: No such file or directory\n",
    )
    assert box.exec(["/etc/hosts"]).returncode == 126


def test_input_and_output_pass_through(box: Sandbox) -> None:
    done = box.exec(["sh", "-c", "cat; echo error >&2"], input="text\n")
    assert (done.stdout, done.stderr) == ("text\n", "error\n")


def test_commands_run_while_systemd_reloads_and_trims_the_cgroups_it_did_not_make(box: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        pairs = [(["systemctl", "daemon-reload"], ["true"], ["true"], ["true"]) for _ in range(10)]
        done = list(pool.map(box.exec, [command for pair in pairs for command in pair]))
    assert [result.stderr for result in done if result.returncode] == []


def test_commands_have_a_cgroup_outside_every_unit(box: Sandbox) -> None:
    scopes = {line.rpartition(":")[2] for line in box.exec(["cat", "/proc/self/cgroup"]).stdout.splitlines()}
    assert scopes <= {f"/{cgroups.COMMANDS}", "/"}  # systemd takes the controllers that it manages itself from it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_command(box: Sandbox, number: signal.Signals) -> None:
    script = (
        f"trap 'echo got; exit 9' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 1 & wait $!; done"
    )
    with box.popen(["bash", "-c", script]) as process:
        output = lines_of(process)
        assert next(output) == "ready\n"
        process.send_signal(number)
        assert next(output) == "got\n"
        assert process.wait(SECONDS) == 9


def test_a_killed_command_is_gone_with_what_it_started(box: Sandbox) -> None:
    with box.popen(["sh", "-c", "echo ready; sleep 1000; true"]) as process:
        assert next(lines_of(process)) == "ready\n"
        process.kill()
        assert lines_of(process).read() == ""  # the pipe ends when the last process that holds it does


class Shown:
    """The outer end of a terminal, in which `exec` runs a command in the sandbox."""

    def __init__(self, box: Sandbox, *words: str) -> None:
        self.child, self.descriptor = pty.fork()
        if self.child == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
            os.execv(CLI[0], [*CLI, "exec", box.name, "--", *words])  # noqa: S606
        self.text = b""

    def until(self, wanted: bytes) -> None:
        """Reads on until `wanted` was shown."""
        while wanted not in self.text:
            assert select.select([self.descriptor], [], [], SECONDS)[0], self.text
            self.text += os.read(self.descriptor, 1000)

    def type(self, keys: bytes) -> None:
        """What was shown before counts no longer."""
        self.text = b""
        os.write(self.descriptor, keys)

    def end(self) -> int:
        """The exit status."""
        ended = os.pidfd_open(self.child)
        assert select.select([ended], [], [], SECONDS)[0], self.text
        os.close(ended)
        status = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        os.close(self.descriptor)
        return status


def test_with_a_terminal_ctrl_c_interrupts_the_command_and_its_status_is_seen(box: Sandbox) -> None:
    shown = Shown(box, "bash", "-c", "trap 'echo got; exit 9' INT; tty; while :; do sleep 1 & wait $!; done")
    shown.until(b"/dev/pts/")
    shown.type(b"\x03")
    shown.until(b"got")
    assert shown.end() == 9


def test_a_terminal_inside_is_as_large_as_the_one_outside_and_follows_it(box: Sandbox) -> None:
    shown = Shown(box, "bash", "-c", "trap 'stty size; exit 3' WINCH; stty size; while :; do sleep 1 & wait $!; done")
    shown.until(b"33 99")
    fcntl.ioctl(shown.descriptor, termios.TIOCSWINSZ, struct.pack("4H", 44, 77, 0, 0))
    shown.until(b"44 77")
    assert shown.end() == 3


def test_a_shell_in_a_terminal_has_job_control(box: Sandbox) -> None:
    shown = Shown(box, "bash", "--norc", "-i")
    shown.type(b"sh -c 'printf \"%s-%s\" up now; exec sleep 1000'\n")
    shown.until(b"up-now")
    shown.type(b"\x1a")
    shown.until(b"Stopped")
    shown.type(b"kill %1; exit 5; exit 5\n")  # bash refuses the first where it has not noticed the job's end yet
    assert shown.end() == 5


def test_ctrl_z_stops_the_command_for_the_shell_outside_which_continues_it(box: Sandbox) -> None:
    shown = Shown(box, "bash", "-c", "trap 'echo on' CONT; echo ready; read -r line; echo \"read $line\"; exit 4")
    shown.until(b"ready")
    shown.type(b"\x1a")
    _, status = os.waitpid(shown.child, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(shown.child, signal.SIGCONT)
    shown.until(b"on")
    shown.type(b"words\n")
    shown.until(b"read words")
    assert shown.end() == 4


def test_all_that_a_command_writes_to_a_terminal_is_shown_and_the_terminal_is_given_back(box: Sandbox) -> None:
    fresh = os.openpty()  # as the command's own is, which may have been changed already when it is looked at
    before = termios.tcgetattr(fresh[0])
    for descriptor in fresh:
        os.close(descriptor)
    shown = Shown(box, "sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")
    shown.until(b"line 4999\r\n")
    assert shown.text.count(b"line ") == 5000
    _, status = os.waitpid(shown.child, 0)
    assert (status, termios.tcgetattr(shown.descriptor)) == (0, before)
    os.close(shown.descriptor)


def test_a_command_in_a_script_has_the_caller_s_streams_themselves(box: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(box.command(["sh", "-c", "echo x; echo y >&2"]), stdout=out, stderr=subprocess.STDOUT)
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "x\ny\n")
    pipe = f"{shlex.join(box.command(['yes']))} | head -n 1"
    assert subprocess.run(["sh", "-c", pipe], capture_output=True, timeout=SECONDS).stdout == b"y\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_caller_that_a_signal_ends_takes_the_command_with_it(box: Sandbox, number: signal.Signals) -> None:
    command = box.command(["sh", "-c", "echo ready; exec sleep 1000"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert next(process.stdout) == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == ""  # the pipe ends when the last process that holds it does
    assert process.returncode == -number


def test_much_input_and_output_at_the_same_time_pass_whole(box: Sandbox) -> None:
    text = "0123456789abcdef" * 100_000
    done = box.exec(["tee", "/dev/stderr"], input=text, timeout=SECONDS)
    assert (done.returncode, done.stdout == text, done.stderr == text) == (0, True, True)


def test_a_command_that_takes_too_long_is_killed_with_what_it_started(box: Sandbox) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        box.exec(["sh", "-c", "sleep 1234; true"], timeout=0.1)
    until(lambda: not box.exec(["pgrep", "--full", "^sleep 1234"]).stdout, lambda: "what it started runs on")


def test_a_command_starts_with_the_three_streams_alone_open(box: Sandbox) -> None:
    assert box.exec(["sh", "-c", "ls /proc/$$/fd"]).stdout.split() == ["0", "1", "2"]


def test_commands_run_concurrently(box: Sandbox) -> None:
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda number: box.exec(["sh", "-c", f"exit {number}"]).returncode, range(100)))
    assert done == list(range(100))


def test_a_command_that_was_there_before_power_off_ends_by_it_and_a_later_one_is_refused(name: str) -> None:
    sandbox = Sandbox(name)
    sandbox.boot()
    with sandbox.popen(["sh", "-c", "trap 'exit 8' TERM; echo ready; while :; do sleep 1; done"]) as process:
        assert next(lines_of(process)) == "ready\n"
        sandbox.off()
        assert process.wait(SECONDS) == 8
    with pytest.raises(SandboxError, match="it is not running; boot it first"):
        sandbox.exec(["true"])


def test_a_command_runs_as_another_user_in_its_own_environment(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPFLEET_SECRET", "outside")
    done = box.exec(["sh", "-c", "id -un; id -G; pwd; env"], user="nobody", env={"ADDED": "yes"})
    assert done.stdout.startswith("nobody\n65534\n/\n")
    assert "ADDED=yes" in done.stdout
    assert "KEEPFLEET_SECRET" not in done.stdout
