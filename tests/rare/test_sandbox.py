"""The private systemd: it is real, it is private, and nothing of it is left behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from tests.system.host import Host
from tools.sandbox import cgroups, state
from tools.sandbox.channel import state_directory
from tools.sandbox.command import Command
from tools.sandbox.errors import SandboxError
from tools.sandbox.layout import Layout, parse_bind
from tools.sandbox.sandbox import Sandbox
from tools.sandbox.users import start_user_manager

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


def traces(name: str) -> list[str]:
    """What the machine holds of the sandbox `name`: its state, its cgroups, and with them its processes."""
    directories = [state_directory(name), *(hierarchy.of(name) for hierarchy in cgroups.hierarchies())]
    return [directory for directory in directories if os.path.exists(directory)]


def lines_of(process: Command) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def test_systemd_journald_and_the_bus_run_and_nothing_of_the_machine_does(box: Sandbox) -> None:
    assert box.exec(["systemctl", "is-system-running"]).stdout == "running\n"
    assert box.exec(["busctl", "status", "org.freedesktop.systemd1"]).returncode == 0
    services = box.exec(["systemctl", "list-units", "--type=service", "--plain", "--no-legend"]).stdout.splitlines()
    assert [line.split()[0] for line in services] == ["dbus.service", "systemd-journald.service"]
    processes = box.exec(["ps", "-A", "-o", "comm="]).stdout.split()
    assert {"systemd", "systemd-journal", "dbus-daemon", "ps"} <= set(processes)
    assert len(processes) == 6  # and the agent, and the one that watches ps


def test_a_service_has_its_own_cgroup_inside_the_sandbox(box: Sandbox) -> None:
    done = box.exec(["systemd-run", "--wait", "--pipe", "--quiet", "cat", "/proc/self/cgroup"])
    assert re.search(r":/system\.slice/run-[^/]+\.service$", done.stdout, re.MULTILINE)
    pids = cgroups.members(cgroups.hierarchies()[0].of(box.name))
    assert box.pid in pids
    assert os.getpid() not in pids


def test_the_journal_is_the_sandbox_s_own_and_bounded(box: Sandbox) -> None:
    box.exec(["logger", "--tag", "probe", "only in here"])
    box.exec(["journalctl", "--sync"])
    assert box.exec(["journalctl", "--output=cat", "--identifier=probe"]).stdout == "only in here\n"
    assert box.exec(["journalctl", "--output=cat", "_TRANSPORT=kernel"]).stdout in ("", "-- No entries --\n")
    machine_id = Path("/etc/machine-id")
    inside = box.exec(["cat", "/etc/machine-id"]).stdout
    assert not machine_id.exists() or inside != machine_id.read_text()
    said = box.exec(["journalctl", "--output=cat", "--unit=systemd-journald"]).stdout
    assert re.search(r"max 256(\.0)?M", said)


@pytest.mark.parametrize("place", ["/etc", "/opt", "/home", "/run", "/tmp", "/var/tmp", "/dev/shm"])
def test_what_is_written_in_shared_places_stays_inside(box: Sandbox, place: str) -> None:
    file = f"{place}/written-by-{box.name}"
    assert box.exec(["sh", "-c", f"echo x > {file}"]).returncode == 0
    assert not os.path.exists(file)


def test_the_machine_s_kernel_settings_cannot_be_changed(box: Sandbox) -> None:
    assert box.exec(["sh", "-c", "echo 1 > /proc/sys/kernel/sysrq"]).returncode != 0


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
    shown = Shown(box, "sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")
    before = termios.tcgetattr(shown.descriptor)
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
    assert box.exec(["pgrep", "--full", "^sleep 1234"]).stdout == ""


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


def test_the_network_is_the_sandbox_s_own_with_a_loopback_that_works(box: Sandbox) -> None:
    devices = [line.split()[1].rstrip(":@") for line in box.exec(["ip", "-o", "link"]).stdout.splitlines()]
    assert [device.partition("@")[0] for device in devices] == ["lo", "host1", "host0"]
    assert "state UNKNOWN" in box.exec(["ip", "-o", "link", "show", "lo", "up"]).stdout


def test_the_same_port_is_free_in_each_sandbox_whatever_listens_on_it_on_the_machine(box: Sandbox, name: str) -> None:
    with socket.socket() as machine:
        machine.bind(("127.0.0.1", 0))
        machine.listen()
        address = machine.getsockname()
        with Sandbox(name) as other:
            for sandbox in (box, other):
                with sandbox.network(), socket.socket() as inside:
                    inside.bind(address)
                    inside.listen()


def test_the_network_is_entered_for_a_while_and_left_again(box: Sandbox) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    with box.network():
        assert os.readlink("/proc/thread-self/ns/net") == box.exec(["readlink", "/proc/self/ns/net"]).stdout.strip()
    assert os.readlink("/proc/thread-self/ns/net") == before
    with pytest.raises(SandboxError, match="it is not running"), Sandbox(f"none-{os.getpid()}").network():
        pass


def test_a_command_runs_as_another_user_in_its_own_environment(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPFLEET_SECRET", "outside")
    done = box.exec(["sh", "-c", "id -un; id -G; pwd; env"], user="nobody", env={"ADDED": "yes"})
    assert done.stdout.startswith("nobody\n65534\n/\n")
    assert "ADDED=yes" in done.stdout
    assert "KEEPFLEET_SECRET" not in done.stdout


def test_network_namespaces_can_be_made_inside(box: Sandbox) -> None:
    assert box.exec(["ip", "netns", "add", "other"]).returncode == 0
    assert "lo" in box.exec(["ip", "netns", "exec", "other", "ip", "link"]).stdout
    assert not os.path.exists("/run/netns/other")


def test_a_user_manager_lays_out_sandboxed_units_of_its_own(box: Sandbox) -> None:
    env = start_user_manager(box, "tester")
    assert box.exec(["systemctl", "--user", "is-system-running"], user="tester", env=env).stdout == "running\n"
    unit = ["systemd-run", "--user", "--wait", "--pipe", "--quiet", "-p", "PrivateUsers=yes", "-p", "ProtectHome=tmpfs"]
    done = box.exec([*unit, "sh", "-c", "id -un; ls /home"], user="tester", env=env)
    assert (done.returncode, done.stdout) == (0, "tester\n")
    assert "tester" not in Path("/etc/passwd").read_text()


def test_a_user_sees_the_journal_of_units_of_its_own(box: Sandbox) -> None:
    env = start_user_manager(box, "reader")
    speaker = ["systemd-run", "--user", "--quiet", "--unit=speaker", "sh", "-c", "echo said; exec sleep 1000"]
    assert box.exec(speaker, user="reader", env=env).returncode == 0
    follow = ["journalctl", "--follow", "--lines=all", "--output=cat", "_SYSTEMD_USER_UNIT=speaker.service"]
    with box.popen(follow, user="reader", env=env) as process:
        assert next(lines_of(process)) == "said\n"
        process.kill()


def test_binds_and_empty_directories_show_where_asked_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("seen")
    layout = Layout(
        ((str(tmp_path), "/opt/shown", True), (str(tmp_path), str(tmp_path), False)), tmpfs=("/etc/keepfleet",)
    )
    with Sandbox(name, layout) as sandbox:
        assert sandbox.exec(["cat", "/opt/shown/file", f"{tmp_path}/file"]).stdout == "seenseen"
        assert sandbox.exec(["touch", "/opt/shown/other"]).returncode != 0
        assert sandbox.exec(["touch", f"{tmp_path}/other", "/etc/keepfleet/mine"]).returncode == 0
    assert (tmp_path / "other").exists()
    assert not os.path.exists("/opt/shown")


def test_a_mount_point_that_only_the_machine_could_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"cannot boot .* it does not exist on this machine; choose a place"):
        Sandbox(name, Layout(((str(tmp_path), "/usr/no-such-place", False),))).boot()
    assert not os.path.exists("/usr/no-such-place")
    assert traces(name) == []


@pytest.mark.parametrize("text", ["", "x", "/a:", ":/b", "/a:/b:maybe"])
def test_a_bind_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_bind(text)


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/"])
def test_a_place_that_is_not_a_plain_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="must be an absolute path"):
        Layout(tmpfs=(path,))


@pytest.mark.parametrize("bad", ["", "A", "a/b", "..", "a" * 33, "-a"])
def test_a_name_that_could_be_a_path_is_refused(bad: str) -> None:
    with pytest.raises(SandboxError, match="name"):
        Sandbox(bad)


def test_several_run_at_once_and_do_not_see_each_other(box: Sandbox, name: str) -> None:
    with Sandbox(name) as other:
        assert {box.name, name} <= set(state.names())
        assert other.exec(["hostname"]).stdout != box.exec(["hostname"]).stdout
        with pytest.raises(SandboxError, match="it is running already"):
            Sandbox(name).boot()
        assert other.exec(["true"]).returncode == 0


def test_power_off_leaves_nothing_and_may_be_repeated(name: str) -> None:
    sandbox = Sandbox(name)
    sandbox.boot()
    sandbox.exec(["systemd-run", "--quiet", "sleep", "1000"])
    sandbox.exec(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
    mounts = Path("/proc/self/mounts").read_text()
    sandbox.off()
    assert traces(name) == []
    assert Path("/proc/self/mounts").read_text() == mounts
    sandbox.off()
    with pytest.raises(SandboxError, match="it is not running; boot it first"):
        sandbox.exec(["true"])


def test_power_off_does_not_wait_for_a_stopped_caller(name: str) -> None:
    sandbox = Sandbox(name)
    sandbox.boot()
    command = sandbox.command(["sh", "-c", "echo ready; exec sleep 1000"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert next(process.stdout) == "ready\n"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        sandbox.off()
        assert traces(name) == []
        process.send_signal(signal.SIGCONT)
    assert process.returncode == -signal.SIGTERM


def reached(name: str, stage: str) -> bool:
    """Whether a boot has come as far as `stage`."""
    if stage == "cgroups":
        return os.path.isdir(cgroups.hierarchies()[-1].of(name))
    return os.path.exists(f"{state_directory(name)}/{stage}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["units", "cgroups", "console", "booting"])
def test_an_interrupted_boot_leaves_nothing_that_off_and_boot_do_not_remove(
    name: str, stage: str, number: signal.Signals
) -> None:
    with subprocess.Popen([*CLI, "boot", name], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not reached(name, stage):
            continue
        process.send_signal(number)
    if number is signal.SIGKILL:
        Sandbox(name).boot()
        assert Sandbox(name).exec(["systemctl", "is-system-running"]).stdout == "running\n"
        Sandbox(name).off()
    elif process.returncode == 0:  # the boot was faster than the signal
        Sandbox(name).off()
    assert traces(name) == []


def test_what_lies_on_a_tmp_that_is_a_mount_of_its_own_is_shown_too(name: str) -> None:
    boot = f"{sys.executable} -m tools.sandbox boot --bind /tmp/own:/opt/shown:ro {name}"
    keep = f"mount --rbind {ROOT} /mnt; mount -t tmpfs tmpfs /tmp; mkdir -p {ROOT}; mount --move /mnt {ROOT}"
    script = f"{keep}; mkdir /tmp/own; echo hello >/tmp/own/file; {boot}"  # the checkout may itself be below /tmp
    subprocess.run(["unshare", "--mount", "sh", "-ec", script], cwd=ROOT, check=True, timeout=SECONDS)
    assert Sandbox(name).exec(["cat", "/opt/shown/file"]).stdout == "hello\n"
    assert Sandbox(name).exec(["ls", "-A", "/tmp"]).stdout == ""


def test_a_first_process_that_outlives_its_boot_makes_nothing_again(name: str) -> None:
    first = [sys.executable, "-I", "-S", str(ROOT / "tools/sandbox/first.py"), name, state_directory(name)]
    done = subprocess.run(first, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, "cannot set the sandbox up" in done.stderr) == (1, True)
    assert traces(name) == []


def test_the_command_line_says_in_one_sentence_what_is_wrong(name: str) -> None:
    bad = (["exec", name, "--", "true"], 125), (["boot", "--bind", "nonsense", name], 1), (["boot", "../x"], 1)
    for arguments, status in bad:
        done = subprocess.run([*CLI, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status
        assert re.fullmatch(r"cannot [^\n]+\n", done.stderr)


def test_the_command_line_boots_lists_runs_and_ends(name: str) -> None:
    subprocess.run([*CLI, "boot", name], cwd=ROOT, check=True)
    listed = subprocess.run([*CLI, "list"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert f"Sandbox({name}, running)" in listed.stdout
    done = subprocess.run([*CLI, "exec", name, "--", "printf", "%s|", "a", "--", "b"], cwd=ROOT, capture_output=True)
    assert done.stdout == b"a|--|b|"
    subprocess.run([*CLI, "off", name], cwd=ROOT, check=True)
    assert traces(name) == []


def test_without_root_one_sentence_says_so(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # the checkout may be in a home that is closed to others
        shutil.copytree(ROOT / "tools", f"{place}/tools", ignore=shutil.ignore_patterns("__pycache__"))
        Path(place).chmod(0o755)
        done = subprocess.run([*CLI, "boot", name], cwd=place, capture_output=True, text=True, user="nobody", env={})
    assert done.stderr.startswith("cannot boot a sandbox: it needs root")


def test_the_installed_programs_run_inside_as_any_user(host: Host) -> None:
    for program in ("keepctl", "keep-manager", "keep-manager-tester", "app-loader-tester"):
        assert "usage" in host.run([f"/opt/keepfleet/bin/{program}", "--help"], user="nobody").stdout.lower()
