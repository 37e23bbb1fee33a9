"""The private systemd: it is real, it is private, and nothing of it is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.system.host import Host
from tools.sandbox import cgroups, linux, state
from tools.sandbox.channel import state_directory
from tools.sandbox.command import Command
from tools.sandbox.errors import SandboxError
from tools.sandbox.layout import Layout, parse_bind
from tools.sandbox.sandbox import Sandbox
from tools.sandbox.users import start_user_manager

ROOT = Path(__file__).resolve().parent.parent.parent
CLI = [sys.executable, "-m", "tools.sandbox"]
SECONDS = 120


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
    shown = [line.split() for line in box.exec(["ps", "-A", "-o", "pid=,ppid=,comm="]).stdout.splitlines()]
    parents = {pid: parent for pid, parent, _ in shown}
    (ps,) = (pid for pid, _, name in shown if name == "ps")
    agent = parents[parents[ps]]  # who watches a command, its child, may end a moment after the command
    others = sorted(name for pid, parent, name in shown if agent not in (pid, parent))
    assert others == ["dbus-daemon", "ps", "systemd", "systemd-journal"]


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


@pytest.mark.parametrize("place", ["/etc", "/opt", "/home", "/var/lib", "/run", "/tmp", "/var/tmp", "/dev/shm"])
def test_what_is_written_in_shared_places_stays_inside(box: Sandbox, place: str) -> None:
    file = f"{place}/written-by-{box.name}"
    assert box.exec(["sh", "-c", f"echo x > {file}"]).returncode == 0
    assert not os.path.exists(file)


def test_the_machine_s_kernel_settings_cannot_be_changed(box: Sandbox) -> None:
    assert box.exec(["sh", "-c", "echo 1 > /proc/sys/kernel/sysrq"]).returncode != 0


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


def test_several_run_concurrently_and_do_not_see_each_other(box: Sandbox, name: str) -> None:
    with Sandbox(name) as other:
        assert {box.name, name} <= set(state.names())
        assert other.exec(["hostname"]).stdout != box.exec(["hostname"]).stdout
        with pytest.raises(SandboxError, match="it is running already"):
            Sandbox(name).boot()
        assert other.exec(["true"]).returncode == 0


def mounts_before_and_after(work: Callable[[], object]) -> str:
    """Whether they are the same, or else those after it; in a process with mounts of its own, since another worker's
    tests may mount and unmount something meanwhile."""
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        try:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
            before = Path("/proc/self/mounts").read_text()
            work()
            after = Path("/proc/self/mounts").read_text()
            os.write(theirs, b"the same" if after == before else after.encode())
        except BaseException:  # noqa: BLE001 # the other process raises it
            os.write(theirs, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as said:
        found = said.read()
    os.waitpid(child, 0)
    return found


def test_power_off_leaves_nothing_and_may_be_repeated(name: str) -> None:
    sandbox = Sandbox(name)
    sandbox.boot()
    sandbox.exec(["systemd-run", "--quiet", "sleep", "1000"])
    sandbox.exec(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
    assert mounts_before_and_after(sandbox.off) == "the same"
    assert traces(name) == []
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
    if number is signal.SIGKILL and not Sandbox(name).pid:
        Sandbox(name).boot()
        assert Sandbox(name).exec(["systemctl", "is-system-running"]).stdout == "running\n"
        Sandbox(name).off()
    elif process.returncode in (0, -signal.SIGKILL):  # the boot was faster than the signal
        Sandbox(name).off()
    assert traces(name) == []


def test_what_lies_on_a_tmp_that_is_a_mount_of_its_own_is_shown_too(name: str) -> None:
    boot = f"{sys.executable} -m tools.sandbox boot --bind /tmp/own:/opt/shown:ro {name}"
    keep = f"mount --rbind {ROOT} /mnt; mount -t tmpfs tmpfs /tmp; mkdir -p {ROOT}; mount --move /mnt {ROOT}"
    script = f"{keep}; mkdir /tmp/own; echo hello >/tmp/own/file; {boot}"  # the checkout may itself be below /tmp
    subprocess.run(["unshare", "--mount", "sh", "-ec", script], cwd=ROOT, check=True, timeout=SECONDS)
    assert Sandbox(name).exec(["cat", "/opt/shown/file"]).stdout == "hello\n"
    assert Sandbox(name).exec(["ls", "-A", "/tmp"]).stdout == ""


@pytest.mark.parametrize("boot", ["it ended", "nothing is prepared"])
def test_a_first_process_that_outlives_its_boot_makes_nothing_again(name: str, boot: str) -> None:
    parent = 1 if boot == "it ended" else os.getpid()
    first = [str(ROOT / "tools/sandbox/first.py"), name, state_directory(name), str(parent)]
    done = subprocess.run([sys.executable, "-I", "-S", *first], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, "cannot set the sandbox up" in done.stderr) == (1, True)
    assert ("its boot was interrupted" in done.stderr) == (boot == "it ended")
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
