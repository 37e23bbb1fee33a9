"""An ordinary user's own service manager: the main job without root, and the isolation that holds there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system import inside, modules, volume_guests
from tests.system.fleet import TIDIED_LATER, free_port
from tests.system.host import Host, message_of, until
from tests.system.in_process import IN_PROCESS, keepctl_here
from tests.system.life import example, spare_units

USER = "ada"
SCORE = 0.7
"""`systemd-analyze security`; 0.4 of it is for a root that a user's service never is."""
MANAGER = "keep-manager.service"
KILLED = "SIGSYS"


@dataclass(frozen=True)
class UserFleet:
    """A manager of USER's, installed and started as USER would."""

    host: Host
    port: int
    home: str
    pki: Path

    def keepctl(self, *arguments: str, check: bool = True) -> str:
        """One call of the manager, and what it printed; what runs or uploads a module is typed by USER."""
        if arguments[0] in IN_PROCESS:
            done = keepctl_here(self.port, self.pki, arguments, check=check)
        else:
            command = ["keepctl", *arguments, "--manager", f"127.0.0.1:{self.port}"]
            done = self.host.run(command, user=USER, check=check)
        return done.stdout.strip() or done.stderr.strip()

    def inspect(self, kuuid: str) -> dict[str, Any]:
        """Everything the manager knows of a keep."""
        found: dict[str, Any] = json.loads(self.keepctl("inspect", kuuid))
        return found

    def unit(self, kuuid: str) -> str:
        return f"keep@{kuuid}.service"

    def output(self, kuuid: str) -> list[str]:
        """The keep's own lines; the field KEEP_ID is the system manager's alone to give."""
        return [message_of(entry) for entry in self.host.journal(SYSLOG_IDENTIFIER=f"keep-{kuuid}")]

    def pid(self, unit: str) -> int:
        return int(self.host.show(unit, "MainPID", user=USER)["MainPID"])

    def left_over(self, kuuid: str) -> list[str]:
        """What is there of a keep: its unit, and what bears its ID in the user's runtime directory."""
        units = self.host.units(self.unit(kuuid), user=USER)
        runtime = self.host.run(["find", "/run/user", "/tmp", "/var/tmp", "-name", f"*{kuuid}*"]).stdout
        return [*units, *runtime.split()]


@pytest.fixture(scope="module")
def ada(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserFleet]:
    """USER's manager, made by the three commands of the docs."""
    host.with_user_manager(USER)
    home = host.run(["sh", "-c", "echo ~"], user=USER).stdout.strip()
    host.run(["keepctl", "install", "--user"], user=USER)
    host.run(["keepctl", "init"], user=USER)
    pki = tmp_path_factory.mktemp("ada") / "pki"  # with files of our own: a key of another user's is not used
    shutil.copytree(f"{host.root}{home}/.config/keepfleet/pki", pki)
    fleet = UserFleet(host, free_port(), home, pki)
    settings = f"{home}/.config/keepfleet/manager.yaml"
    host.run(["sed", "-i", f"s/^port: .*/port: {fleet.port}/", settings], user=USER)
    host.systemctl("start", "keep-manager", user=USER)
    yield fleet
    for unit in host.units("keep@*.service", user=USER):
        host.systemctl("stop", unit, user=USER)
    host.systemctl("stop", MANAGER, user=USER)


@pytest.fixture(scope="module")
def found(ada: UserFleet) -> dict[str, Any]:
    """The probe's report from within a keep of USER's, while another keep is there."""
    other = ada.keepctl("new")
    report = inside.probe(ada.host, 7, ada.port, ada.pid(MANAGER), USER)
    ada.keepctl("rm", other)
    return report


def test_the_lines_of_a_workload_that_ended_before_journald_looked_are_shown(ada: UserFleet) -> None:
    """journald finds a user's unit by the process alone, which has gone by then."""
    journald = ada.host.show("systemd-journald.service", "MainPID")["MainPID"]
    module = ada.host.path / "hello-early.wasm"
    module.write_bytes(example("hello-c/hello"))
    module.chmod(0o644)
    ada.host.run(["kill", "-STOP", journald])
    try:
        kuuid = ada.keepctl("run", "--detach", str(module))
        ada.keepctl("wait", kuuid)
    finally:
        ada.host.run(["kill", "-CONT", journald])
    ada.host.run(["journalctl", "--sync"])
    assert "Hello from C, inside a keep!" in ada.keepctl("logs", kuuid).splitlines()
    ada.keepctl("rm", kuuid)


def test_a_module_of_the_user_s_store_is_compiled_once_below_their_cache_home(ada: UserFleet) -> None:
    module = ada.host.path / "stored.wasm"
    module.write_bytes(example("hello-c/hello"))
    module.chmod(0o644)
    ada.keepctl("store", "add", str(module), "hello:1")
    cache, seen = f"{ada.home}/.cache/keepfleet/artifacts", set[str]()
    for _ in range(2):
        assert ada.keepctl("run", "--rm", "hello:1").startswith("Hello from C, inside a keep!")
        seen.add(ada.host.run(["ls", "-iA", cache], user=USER).stdout)
    assert [len(listing.split()) for listing in seen] == [4], "the key and one artifact, the same both times"


def declare(ada: UserFleet, name: str, text: str, *, check: bool = True) -> str:
    """What `keepctl apply --wait` says of a manifest of ADA's, whose module is in ADA's store by its name."""
    module, manifest = ada.host.path / f"{name}.wasm", ada.host.path / f"{name}.yaml"
    module.write_bytes(volume_guests.shows_secret("token") if "secrets" in text else example("hello-c/hello"))
    manifest.write_text(f"module: {name}:1\n{text}")
    for path in (module, manifest):
        path.chmod(0o644)
    ada.keepctl("store", "add", str(module), f"{name}:1")
    return ada.keepctl("apply", "--wait", "-f", str(manifest), check=check)


def test_what_a_user_declares_has_its_secret_which_lies_as_it_is_in_a_file_of_the_user_s_alone(ada: UserFleet) -> None:
    value = ada.host.path / "value"
    value.write_text("hunter2-of-ada")
    value.chmod(0o644)
    said = ada.keepctl("secret", "set", "token", "--from-file", str(value))
    assert said == "token: set, stored as it is: this manager's host encrypts none"
    assert declare(ada, "shows", "secrets: [{name: token}]\n").endswith("; done: exited 0")
    kuuid = json.loads(ada.keepctl("get", "-o", "json", "shows"))[0]["kuuid"]
    ada.host.systemctl("restart", MANAGER, user=USER)
    assert json.loads(ada.keepctl("get", "-o", "json", "shows"))[0]["kuuid"] == kuuid
    assert ada.keepctl("logs", "--raw", "shows") == "hunter2-of-ada"
    found = ada.host.run(["find", ada.home, "-name", "token.plain", "-printf", "%m %u\n"], user=USER).stdout
    assert found == f"600 {USER}\n"
    ada.keepctl("delete", "shows")
    ada.keepctl("secret", "rm", "token")


def test_a_job_of_a_user_s_is_run_by_a_timer_of_the_user_s_own_systemd(ada: UserFleet) -> None:
    declare(ada, "often", 'schedule: "OnCalendar=*:*:0/2"\n')

    def timers() -> list[str]:
        return ada.host.units("keep-job@*.timer", user=USER)

    def history() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(ada.keepctl("history", "-o", "json", "often"))
        return found

    until(lambda: timers() == ["keep-job@often.timer"], timers)  # soon after it was declared
    until(lambda: [run for run in history() if run["why"] == "schedule"], history)
    ada.keepctl("delete", "often")
    until(lambda: not timers(), timers)
    assert ada.host.units("keep-job@*.timer") == []


def test_a_user_s_manager_has_no_volumes_and_says_why_before_it_makes_one(ada: UserFleet) -> None:
    said = declare(ada, "keeps", "volume: {name: data, size: 16M, guest: /data}\n", check=False)
    assert "unmet: cannot have volume data: no user may mount a file system; declare it to the system's manager" in said
    assert ada.keepctl("volume", "ls", "-o", "json") == "[]"
    ada.keepctl("delete", "keeps")


@pytest.mark.rare
def test_keeps_that_flood_leave_room_in_the_journal_for_the_user_s_other_units(ada: UserFleet) -> None:
    """All units of a user share one limit of journald's, 10,000 entries in 30 s; each line costs them one of those."""
    line, times = b"".join(b"flood %07d\n" % number for number in range(1000)), 300
    module = ada.host.path / "floods.wasm"
    module.write_bytes(modules.repeats(line, times))
    module.chmod(0o644)
    cursor = ada.host.cursor()
    kuuids = [ada.keepctl("run", "--detach", str(module)) for _ in range(4)]
    said = ["systemd-run", "--user", "--quiet", "--wait", "sh", "-c", "for i in $(seq 500); do echo other $i; done"]
    ada.host.run(said, user=USER)
    for kuuid in kuuids:
        ada.keepctl("wait", kuuid)
        outcome = ada.inspect(kuuid)["outcome"]
        assert (outcome["output_bytes"], outcome["lost_bytes"]) == (len(line) * times, 0)
        entries = ada.host.journal(SYSLOG_IDENTIFIER=f"keep-{kuuid}")
        got = sum(len(message_of(entry)) + 1 for entry in entries if entry.get("KEEP_STREAM") == "stdout")
        assert got + outcome["journal_skipped_bytes"] == len(line) * times
        ada.keepctl("rm", kuuid)
    found = [message_of(entry) for entry in ada.host.journal(since_cursor=cursor)]
    assert [f"other {number}" in found for number in range(1, 501)] == [True] * 500
    assert [message for message in found if message.startswith("Suppressed ")] == []


@pytest.mark.rare
def test_one_who_may_not_read_the_journal_sees_all_of_a_run_its_reason_and_its_exit_code(host: Host) -> None:
    user, port = "eve", free_port()
    host.run(["useradd", "--create-home", "--no-log-init", "--shell", "/bin/bash", user])  # in no group but its own
    host.with_user_manager(user)
    home = host.run(["sh", "-c", "echo ~"], user=user).stdout.strip()
    for command in ("install --user", "init"):
        host.run(["keepctl", *command.split()], user=user)
    host.run(["sed", "-i", f"s/^port: .*/port: {port}/", f"{home}/.config/keepfleet/manager.yaml"], user=user)
    host.systemctl("start", "keep-manager", user=user)
    module = host.path / "speaks.wasm"
    module.write_bytes(modules.says(*(b"line %d \t\n" % number for number in range(100)), code=3))
    module.chmod(0o644)
    own = {"KEEPFLEET_MANAGER": f"127.0.0.1:{port}"}
    try:
        assert "line 1" not in host.run(["journalctl", "--no-pager"], user=user, check=False).stdout
        done = host.run(["keepctl", "run", "--rm", str(module)], user=user, env=own, check=False)
        assert done.returncode == 3, done.stderr
        assert done.stdout == "".join(f"line {number} \t\n" for number in range(100))
        kept = host.run(["keepctl", "run", "-d", str(module)], user=user, env=own).stdout.strip()
        host.run(["keepctl", "wait", kept], user=user, env=own, check=False)
        assert host.run(["keepctl", "logs", kept], user=user, env=own).stdout == done.stdout
        host.run(["keepctl", "rm", kept], user=user, env=own)
        assert host.units("keep@*.service", user=user) == []
    finally:
        host.systemctl("stop", MANAGER, user=user)


def started(ada: UserFleet) -> str:
    """A keep that awaits its workload."""
    kuuid = ada.keepctl("new")
    ada.keepctl("start", kuuid, "--port", str(free_port()))
    return kuuid


def test_the_main_job_is_done_without_root(ada: UserFleet) -> None:
    kuuid = started(ada)
    assert ada.inspect(kuuid)["isolation_failures"] == []
    assert ada.host.run(["ps", "-o", "user=", "-p", str(ada.pid(ada.unit(kuuid)))]).stdout.strip() == USER
    module = ada.host.path / "hello-of-ada.wasm"
    module.write_bytes(example("hello-wat/hello"))
    assert "received whole" in ada.keepctl("upload", kuuid, str(module), "--wait")
    outcome = ada.inspect(kuuid)["outcome"]
    assert (outcome["kind"], outcome["exit_code"]) == ("exited", 0)
    assert any("hello" in line.lower() for line in ada.output(kuuid))
    assert outcome["lost_bytes"] == 0
    ada.keepctl("rm", kuuid)
    assert [trace for trace in ada.left_over(kuuid) if TIDIED_LATER not in trace] == []
    until(lambda: not ada.left_over(kuuid), lambda: ada.left_over(kuuid))
    events = map(json.loads, ada.keepctl("events", "--no-follow", "-o", "json", kuuid).splitlines())
    assert [event["event"] for event in events] == ["created", "started", "running", "ended", "removed"]


def test_a_killed_manager_finds_its_keeps_again(ada: UserFleet) -> None:
    kuuid = started(ada)
    before, pid, cursor = ada.inspect(kuuid), ada.pid(MANAGER), ada.host.cursor()
    ada.host.systemctl("kill", "--signal=9", MANAGER, user=USER)
    ada.host.wait_journal("Started keep-manager.service", since_cursor=cursor)
    assert ada.pid(MANAGER) not in (0, pid)
    assert ada.inspect(kuuid) == before
    ada.keepctl("rm", kuuid)


def test_a_killed_loader_opens_the_same_endpoint_again(ada: UserFleet) -> None:
    kuuid = started(ada)
    before, cursor = ada.inspect(kuuid), ada.host.cursor()
    ada.host.run(["kill", "-9", str(ada.pid(ada.unit(kuuid)))])
    ada.host.wait_journal(lambda entry: "-> awaiting-workload" in message_of(entry), since_cursor=cursor)
    after = ada.inspect(kuuid)
    assert (after["fingerprint"], after["app_loader_bind_port"]) == (
        before["fingerprint"],
        before["app_loader_bind_port"],
    )
    ada.keepctl("rm", kuuid)


def test_the_exposure_is_as_low_as_promised(ada: UserFleet) -> None:
    kuuid = ada.keepctl("new")
    said = ada.host.run(["systemd-analyze", "--user", "security", "--no-pager", ada.unit(kuuid)], user=USER).stdout
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert level is not None
    assert float(level[1]) <= SCORE
    ada.keepctl("rm", kuuid)


def test_systemd_has_nothing_to_say_against_the_units(ada: UserFleet) -> None:
    done = ada.host.run(["systemd-analyze", "--user", "verify", "--man=no", MANAGER, "keep.slice"], user=USER)
    assert done.stdout + done.stderr == ""


def test_the_user_s_buses_and_every_other_are_out_of_reach(found: dict[str, Any]) -> None:
    tried = {name: how for name, how in found["attempts"].items() if name.startswith("connect /")}
    assert any(re.match(r"connect /run/user/[0-9]+/bus", name) for name in tried)
    assert any(re.match(r"connect /run/user/[0-9]+/systemd/private", name) for name in tried)
    assert set(tried.values()) == {"ENOENT"}


def test_there_is_no_network_and_no_way_to_the_manager(found: dict[str, Any]) -> None:
    assert found["attempts"]["connect to the manager"] == "EAFNOSUPPORT"
    assert {how for name, how in found["attempts"].items() if name.startswith("socket ")} == {"EAFNOSUPPORT"}
    assert found["interfaces"] == ["lo"]


def test_only_the_interpreter_can_be_executed(found: dict[str, Any]) -> None:
    tried = {how for name, how in found["attempts"].items() if name.startswith(("execute", "map code"))}
    assert tried == {"ENOENT", "EACCES", "EPERM", "refused by the linker"}


def test_no_place_is_both_writable_and_executable(found: dict[str, Any]) -> None:
    assert [place for place, flags in found["mounts"].items() if flags == "wx"] == []
    writable = {place for place, flags in found["mounts"].items() if "w" in flags}
    assert writable == {"/tmp", "/var/tmp", found["own"]}
    written = {name.removeprefix("write in ") for name, how in found["attempts"].items() if how == "done"}
    assert written - {"make shared memory", "signal the manager"} == writable


def test_the_user_s_home_keys_and_other_keeps_are_not_there(found: dict[str, Any]) -> None:
    tried = {name: how for name, how in found["attempts"].items() if name.startswith("read /")}
    assert set(tried.values()) <= {"ENOENT", "EACCES", "empty"}
    assert found["attempts"]["read /home"] == "empty"
    assert found["keeps"] == ["7"]


def test_the_user_s_other_processes_cannot_be_looked_into(found: dict[str, Any]) -> None:
    """They can be seen and signalled, which a user manager cannot prevent; the lock of the runner does."""
    tried = {name: how for name, how in found["attempts"].items() if name.startswith("read the manager's")}
    assert len(tried) == 5
    assert set(tried.values()) == {"EACCES"}


def test_no_privilege_is_there_and_no_odd_system_call_is_let_through(found: dict[str, Any]) -> None:
    status = found["status"]
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    tried = {name.removeprefix("call "): how for name, how in found["attempts"].items() if name.startswith("call ")}
    assert {name for name, how in tried.items() if how == "EPERM"} == {"unshare", "setns", "personality"}
    assert set(tried.values()) == {KILLED, "EPERM"}


HOLES = {
    "PrivateUsers=no": "can be connected to",
    "TemporaryFileSystem=": "/run is not mounted read-only",
    "BindReadOnlyPaths=%t": "can be connected to",
    "PrivateNetwork=no": "there are network devices",
    "RestrictAddressFamilies=": "a socket of AF_INET can be made",
    "ProtectHome=no\nTemporaryFileSystem=\nTemporaryFileSystem=/run:ro": "/home is not hidden",
    "ProtectSystem=no": "/etc is not mounted read-only",
    "TemporaryFileSystem=/srv:mode=1777": "programs can be written to /srv and run there",
}
"""What a drop-in of the user's might say. Without PrivateUsers= the manager would silently ignore most of the rest."""


def makes_a_user_namespace_anyway(ada: UserFleet) -> bool:
    """Whether the user manager ignores PrivateUsers=no where another setting needs a user namespace."""
    unit = ["systemd-run", "--user", "--wait", "--pipe", "--quiet", "-p", "PrivateUsers=no", "-p", "PrivateTmp=yes"]
    return ada.host.run([*unit, "cat", "/proc/self/uid_map"], user=USER).stdout.split()[2] != str(2**32 - 1)


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.splitlines()[0])
def test_a_keep_with_a_hole_in_its_isolation_takes_no_workload_or_does_not_start(ada: UserFleet, hole: str) -> None:
    with inside.drop_in(ada.host, f"[Service]\n{hole}\n", USER):
        before = ada.host.units("keep@*.service", user=USER)
        kuuid = ada.keepctl("new", check=False)
        if not kuuid.isdecimal():
            assert "cannot" in kuuid
            assert ada.host.units("keep@*.service", user=USER) == before
            return
        failures = ada.inspect(kuuid)["isolation_failures"]
        if hole == "PrivateUsers=no" and makes_a_user_namespace_anyway(ada):
            assert failures == []
            ada.keepctl("rm", kuuid)
            return
        assert any(HOLES[hole] in failure for failure in failures)
        assert "its isolation check failed" in ada.keepctl("start", kuuid, check=False)
    ada.keepctl("rm", kuuid)


def test_nothing_of_the_user_s_manager_needs_or_touches_the_system_s(ada: UserFleet) -> None:
    assert ada.host.units("keep@*.service") == []
    owners = ada.host.run(["find", f"{ada.home}/.config", "!", "-user", USER]).stdout
    assert owners == ""
    pki = ada.host.run(["find", f"{ada.home}/.config/keepfleet/pki", "-name", "*.key", "-perm", "/077"]).stdout
    assert pki == ""


def test_a_spare_of_a_user_s_manager_becomes_a_keep_that_outlives_it(ada: UserFleet) -> None:
    settings = f"{ada.home}/.config/keepfleet/manager.yaml"
    ada.host.run(["sed", "-i", "$a spare_keeps: 2", settings], user=USER)
    ada.host.systemctl("reload", MANAGER, user=USER)
    # They are made one after the other: the manager has the first when there are two.
    until(lambda: len(spare_units(ada.host, USER)) == 2, lambda: spare_units(ada.host, USER))
    spares = spare_units(ada.host, USER)
    kuuid = ada.keepctl("new", "--name", "once-spare")
    assert ada.unit(kuuid) in spares
    ada.host.run(["sed", "-i", "/^spare_keeps/d", settings], user=USER)
    ada.host.systemctl("restart", MANAGER, user=USER)
    assert ada.inspect(kuuid)["name"] == "once-spare"
    until(lambda: not spare_units(ada.host, USER), lambda: spare_units(ada.host, USER))
    ada.keepctl("rm", kuuid)
