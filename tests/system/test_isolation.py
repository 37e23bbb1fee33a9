"""The isolation check of a keep, and what happens where isolation is missing."""

from __future__ import annotations

from typing import Any

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from tests.system import inside
from tests.system.fleet import Fleet
from tests.system.host import until
from tests.system.life import Life
from tests.system.wire import ask, request

KILLED = "SIGSYS"
FIRST, SECOND = 7, 8
MOUNTS = 18
"""Each costs the start of a keep half a millisecond."""
GONE = {"ENOENT", "EACCES", "empty"}
"""What a hidden place answers."""


@pytest.fixture(scope="module")
def found(installed_fleet: Fleet) -> dict[str, Any]:
    """The probe's report from within a keep, while another keep is there."""
    fleet = installed_fleet
    other = fleet.client().create()
    report = inside.probe(fleet.host, FIRST, fleet.port, fleet.manager_pid)
    fleet.client().remove(other.kuuid)
    return report


def test_nothing_of_the_host_s_buses_can_be_reached(found: dict[str, Any]) -> None:
    tried = {name: how for name, how in found["attempts"].items() if name.startswith("connect /")}
    assert len(tried) == 6
    assert set(tried.values()) == {"ENOENT"}


def test_there_is_no_network_and_no_way_to_the_manager(found: dict[str, Any]) -> None:
    attempts = found["attempts"]
    assert attempts["connect to the manager"] == "EAFNOSUPPORT"
    sockets = {how for name, how in attempts.items() if name.startswith("socket ")}
    assert sockets == {"EAFNOSUPPORT"}
    assert found["interfaces"] == ["lo"]


def test_only_the_interpreter_can_be_executed(found: dict[str, Any]) -> None:
    tried = {name: how for name, how in found["attempts"].items() if name.startswith(("execute", "map code"))}
    assert len(tried) == 11
    assert tried.pop("execute /bin/sh") == "ENOENT"
    assert set(tried.values()) == {"EACCES", "EPERM", "refused by the linker"}


def test_a_keep_writes_in_its_own_temporary_places_and_nowhere_else(found: dict[str, Any]) -> None:
    written = {name.removeprefix("write in ") for name, how in found["attempts"].items() if how == "done"}
    assert written & {"/tmp", "/var/tmp", found["own"]} == {"/tmp", "/var/tmp", found["own"]}
    refused = {how for name, how in found["attempts"].items() if name.startswith("write in ")} - {"done"}
    assert refused == {"EROFS", "EACCES", "ENOENT"}
    assert written - {"make shared memory"} == {"/tmp", "/var/tmp", found["own"]}


def test_no_place_is_both_writable_and_executable(found: dict[str, Any]) -> None:
    flags: dict[str, str] = found["mounts"]
    assert [place for place, flag in flags.items() if flag == "wx"] == []
    assert {place for place, flag in flags.items() if "w" in flag} == {"/tmp", "/var/tmp", found["own"]}
    assert flags["/"] == "x", "a root of its own, which holds nothing but what may run"
    assert len(flags) <= MOUNTS, sorted(flags)


def test_secrets_and_homes_cannot_be_read(found: dict[str, Any]) -> None:
    tried = {name: how for name, how in found["attempts"].items() if name.startswith("read /")}
    assert len(tried) == 10
    assert set(tried.values()) <= GONE


def test_no_other_process_can_be_seen_signalled_or_read(found: dict[str, Any]) -> None:
    attempts = found["attempts"]
    assert found["processes"] == [found["me"]]
    assert attempts["signal PID 1"] == attempts["signal the manager"] == "EPERM"
    assert {how for name, how in attempts.items() if name.startswith("read the manager's")} == {"ENOENT"}


def test_another_keep_s_directory_is_not_there(found: dict[str, Any]) -> None:
    assert found["keeps"] == [str(FIRST)]


def test_no_system_call_beyond_an_ordinary_service_s_is_let_through(found: dict[str, Any]) -> None:
    tried = {name.removeprefix("call "): how for name, how in found["attempts"].items() if name.startswith("call ")}
    refused = {name for name, how in tried.items() if how == "EPERM"}
    assert refused == {"unshare", "setns", "personality"}  # RestrictNamespaces= and LockPersonality= answer an error
    assert {how for name, how in tried.items() if name not in refused} == {KILLED}


def test_no_privilege_is_there_or_can_be_gained(found: dict[str, Any]) -> None:
    status = found["status"]
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert found["attempts"]["make a set-user-ID file"] == "EPERM"
    assert found["attempts"]["make a device"] == "EPERM"


def test_only_harmless_devices_are_there(found: dict[str, Any]) -> None:
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "fd", "stdin", "stdout", "stderr"}
    directories = {"char", "hugepages", "log", "mqueue", "shm", "core", "initctl"}
    assert set(found["devices"]) <= harmless | directories


def test_nothing_but_standard_streams_and_the_unit_s_own_words_are_inherited(found: dict[str, Any]) -> None:
    assert found["descriptors"][:3] == [0, 1, 2]
    assert len(found["descriptors"]) == 4  # and the directory being listed
    own = {"LANG", "PATH", "USER", "LOGNAME", "KEEPFLEET_MAX_WORKLOAD"}
    own |= {"KEEPFLEET_SPEC"}
    systemd = {"INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "SYSTEMD_EXEC_PID"}
    systemd |= {"FDSTORE", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"}  # from 254 on
    assert set(found["environment"]) <= own | systemd | {"WATCHDOG_PID", "WATCHDOG_USEC", "HOME", "SHELL"}


def test_every_keep_is_a_user_of_its_own_and_shares_no_memory(found: dict[str, Any], fleet: Fleet) -> None:
    segments = fleet.host.run(["ipcs", "--shmems"], check=False).stdout
    assert "0x00006b66" not in segments
    second = inside.probe(fleet.host, SECOND, fleet.port, fleet.manager_pid)
    first_user, second_user = (report["status"]["Uid"].split()[0] for report in (found, second))
    assert first_user != second_user
    assert found["attempts"]["make shared memory"] == second["attempts"]["make shared memory"] == "done"


def filters_of(fleet: Fleet, pid: int) -> int:
    status = fleet.host.run(["grep", "Seccomp_filters", f"/proc/{pid}/status"]).stdout
    return int(status.split(":")[1])


def test_an_endpoint_and_a_runner_have_a_filter_of_their_own_on_top_of_the_loader_s(fleet: Fleet) -> None:
    """What each gives up is shown by tests/unit/isolation, and by test_attacks what that is worth."""
    life = Life.awaiting(fleet)
    assert ask(life.info.port, life.context, request("GET", "/")).status == 200
    until(lambda: life.forks("keep-runner"), lambda: "the first client brings no runner")
    assert filters_of(fleet, life.runner_pid) == filters_of(fleet, life.loader_pid), "it has yet to make code"
    running = Life.running(fleet)
    own = filters_of(fleet, life.loader_pid) + 1
    assert (filters_of(fleet, life.endpoint_pid), filters_of(fleet, running.runner_pid)) == (own, own)


HOLES = {
    "PrivateNetwork=no\nRestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX AF_INET AF_INET6": "AF_INET can be",
    "RestrictAddressFamilies=": "a socket of AF_INET can be made",
    "ReadWritePaths=+/etc": "/etc is not mounted read-only",
    "TemporaryFileSystem=": "/run is not mounted read-only",
    "BindReadOnlyPaths=/run/dbus": "/run/dbus/system_bus_socket can be connected to",
    "BindReadOnlyPaths=/run/systemd/journal\nInaccessiblePaths=": "/run/systemd/journal/stdout can be connected to",
    "BindReadOnlyPaths=/usr/bin": "the host's /usr/bin is there",
    "NoExecPaths=": "programs in /tmp can be run",
    "NoExecPaths=\nNoExecPaths=/tmp /var/tmp": "programs in /tmp can be run",
    "InaccessiblePaths=\nBindReadOnlyPaths=/sys": "the host's /sys/kernel is there",
    "DynamicUser=no\nUser=root": "the keep runs as root",
    "CapabilityBoundingSet=~": "capabilities are left in CapBnd",
    "TemporaryFileSystem=/run:ro /srv:mode=1777": "programs can be written to /srv and run there",
}
"""What an operator's drop-in might say, and what the loader then finds."""


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.splitlines()[0])
def test_a_keep_with_a_hole_in_its_isolation_says_so_and_takes_no_workload(fleet: Fleet, hole: str) -> None:
    with inside.drop_in(fleet.host, f"[Service]\n{hole}\n"):
        keep = fleet.client().create()
        failures = fleet.client().keep(keep.kuuid).isolation_failures
        assert any(HOLES[hole] in failure for failure in failures), failures
        with pytest.raises(KeepfleetError, match="its isolation check failed") as refused:
            fleet.client().start(keep.kuuid, "127.0.0.1", None)
    assert refused.value.kind is ErrorKind.ISOLATION_FAILURE
    assert refused.value.evidence == failures
    assert fleet.client().keep(keep.kuuid).state is State.LISTENING
    assert "refuses workloads" in fleet.host.show(keep.unit, "StatusText")["StatusText"]


def test_a_keep_whose_root_a_drop_in_takes_away_is_not_created(fleet: Fleet) -> None:
    with inside.drop_in(fleet.host, "[Service]\nRootDirectory=\n"), pytest.raises(KeepfleetError) as refused:
        fleet.client().create()
    assert refused.value.kind is ErrorKind.KEEP_FAILED
    assert any("status=203/EXEC" in line for line in refused.value.evidence), refused.value.evidence
    assert fleet.left_over() == []


def test_a_keep_of_the_installed_unit_passes_every_isolation_check(fleet: Fleet) -> None:
    assert fleet.client().create().isolation_failures == ()
