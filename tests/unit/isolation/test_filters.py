"""The system call filters: each program run by a small machine, for every call and on every architecture."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from keep_isolation import filters
from keep_isolation.filters import (
    ALLOW,
    ARCHITECTURES,
    BENEATH,
    CODE,
    CONNECTIONS,
    ERRNO,
    JUMP,
    JUMP_AT_LEAST,
    JUMP_BITS,
    JUMP_EQUAL,
    KILL,
    LD_WORD,
    NEVER,
    OTHERS,
    PATHS,
    PROCESSES,
    RETURN,
    SENDING,
    Instruction,
    closed_program,
    endpoint_program,
    loader_program,
)
from keep_isolation.kernel import MACHINES

PID = 4711
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
READ = {"x86_64": 0, "aarch64": 63}
WORKING_DIRECTORY = 0xFFFFFFFFFFFFFF9C
ALL: dict[str, tuple[int | None, int | None]] = {
    **NEVER, **PROCESSES, **CONNECTIONS, **PATHS, **BENEATH, **CODE, **OTHERS,
}  # fmt: skip


def programs_for(machine: str) -> dict[str, list[Instruction]]:
    return {
        "loader": loader_program(machine),
        "endpoint": endpoint_program(machine, PID),
        "checker": closed_program(machine, PID, executable_memory=True, files=False),
        "runner": closed_program(machine, PID, executable_memory=False, files=False),
        "runner with files": closed_program(machine, PID, executable_memory=False, files=True),
    }


ROLES = tuple(programs_for("x86_64"))
EACH = [(role, machine) for role in ROLES for machine in MACHINES]
LEAF = tuple(role for role in ROLES if role != "loader")
CLOSED = ("checker", "runner", "runner with files")


def number(machine: str, name: str) -> int:
    found = ALL[name][MACHINES.index(machine)]
    assert found is not None
    return found


def decide(role: str, machine: str, name: str, *arguments: int) -> int:
    """What the filter of `role` returns for the call `name`."""
    return run(programs_for(machine)[role], machine, number(machine, name), *arguments)


def run(code: list[Instruction], machine: str, number: int, *arguments: int, kind: int | None = None) -> int:
    """What the program `code` returns for one system call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, ARCHITECTURES[machine] if kind is None else kind, 0, *padded)
    at = word = 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == LD_WORD:
            (word,) = struct.unpack_from("<I", data, value)
        elif operation == RETURN:
            return value
        elif operation == JUMP:
            at += value
        else:
            holds = {JUMP_EQUAL: word == value, JUMP_AT_LEAST: word >= value, JUMP_BITS: bool(word & value)}[operation]
            at += yes if holds else no


def refused(role: str, machine: str, calls: dict[str, tuple[int | None, int | None]]) -> set[str]:
    """Those of `calls` that are refused whatever their arguments; `clone` is not asked."""
    code, column = programs_for(machine)[role], MACHINES.index(machine)
    there = {name: row[column] for name, row in calls.items()}
    return {name for name, number in there.items() if number is None or run(code, machine, number) == EPERM}


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_what_no_process_needs_is_refused_to_each(role: str, machine: str) -> None:
    assert refused(role, machine, NEVER) == set(NEVER)
    assert decide(role, machine, "clone3") == ENOSYS


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_none_connects_as_it_sends(role: str, machine: str) -> None:
    for x86_64, aarch64, flags_at in SENDING.values():
        flags = [0, 0, 0, 0]
        sending = (x86_64, aarch64)[MACHINES.index(machine)]
        assert run(programs_for(machine)[role], machine, sending, *flags) == ALLOW
        flags[flags_at] = socket.MSG_FASTOPEN | socket.MSG_NOSIGNAL
        assert run(programs_for(machine)[role], machine, sending, *flags) == EPERM


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_none_has_the_kernel_signal_another_or_asks_a_socket_for_the_host_s_devices(role: str, machine: str) -> None:
    for command in (8, 10, 15):  # F_SETOWN, F_SETSIG, F_SETOWN_EX
        assert decide(role, machine, "fcntl", 4, command) == EPERM
    for command in (0, 2, 3, 4, 1030):
        assert decide(role, machine, "fcntl", 4, command) == ALLOW
    for request in (0x8901, 0x8902, 0x8912, 0x8946, 0x89FF):
        assert decide(role, machine, "ioctl", 4, request) == EPERM
    for request in (0x5401, 0x5421, 0x541B, 0x88FF, 0x8A00):
        assert decide(role, machine, "ioctl", 4, request) == ALLOW


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_none_but_a_fork_that_is_not_locked_yet_becomes_readable_again(role: str, machine: str) -> None:
    assert decide(role, machine, "prctl", 4, 1) == EPERM
    assert decide(role, machine, "prctl", 4, 0) == decide(role, machine, "prctl", 15, 1) == ALLOW


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_none_changes_another_s_limits(role: str, machine: str) -> None:
    assert decide(role, machine, "prlimit64", 0) == ALLOW
    assert decide(role, machine, "prlimit64", PID + 1) == EPERM


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_none_makes_a_pair_of_sockets_that_could_send_to_an_address(role: str, machine: str) -> None:
    pairs = {kind: decide(role, machine, "socketpair", 1, kind | 0x80800) for kind in (1, 2, 3, 5)}
    assert (pairs[2], pairs[3]) == (EPERM, EPERM), "SOCK_DGRAM, SOCK_RAW"
    assert {pairs[1], pairs[5]} == {EPERM if role in CLOSED else ALLOW}, "SOCK_STREAM, SOCK_SEQPACKET"
    assert decide(role, machine, "socketpair", 30, 1) == EPERM, "AF_TIPC"


@pytest.mark.parametrize("machine", MACHINES)
def test_a_loader_forks_without_namespaces(machine: str) -> None:
    role = "loader"
    assert refused(role, machine, PROCESSES) <= {"fork", "vfork", "inotify_init"}, "not there on every machine"
    assert decide(role, machine, "clone", 0x01200011) == ALLOW  # what fork() asks for
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(role, machine, "clone", bit | 17) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("role", LEAF)
def test_a_process_without_children_starts_threads_alone_and_signals_itself_alone(role: str, machine: str) -> None:
    assert refused(role, machine, PROCESSES) == set(PROCESSES)
    assert decide(role, machine, "clone", 0x10000) == ALLOW
    assert decide(role, machine, "clone", 17) == EPERM
    assert decide(role, machine, "tgkill", PID, PID, 6) == ALLOW
    assert decide(role, machine, "tgkill", PID + 1, PID + 1, 6) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_who_accepts_and_who_does_not(machine: str) -> None:
    for role in ROLES:
        connections = {"accept": CONNECTIONS["accept"], "accept4": CONNECTIONS["accept4"]}
        assert refused(role, machine, connections) == (set(connections) if role in CLOSED else set())


@pytest.mark.parametrize("machine", MACHINES)
def test_new_code_is_the_checker_s_and_before_it_the_loader_s(machine: str) -> None:
    read, write, execute = 1, 2, 4
    makes_code = {role for role in ROLES if decide(role, machine, "mmap", 0, 4096, write | execute) == ALLOW}
    assert makes_code == {"checker", "loader"}
    for role in ROLES:
        for name in ("mprotect", "pkey_mprotect"):
            assert (decide(role, machine, name, 0, 4096, read | execute) == ALLOW) is (role in makes_code)
        assert decide(role, machine, "mmap", 0, 4096, read | write) == ALLOW
    assert decide("endpoint", machine, "mmap", 0, 4096, read | execute) == ALLOW, "a library"
    assert decide("runner", machine, "mmap", 0, 4096, read | execute) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_a_guest_with_files_has_them_from_its_directories_and_nothing_else_changes(machine: str) -> None:
    assert refused("runner", machine, {**PATHS, **BENEATH}) == {*PATHS, *BENEATH}
    assert refused("runner with files", machine, PATHS) == set(PATHS)
    for name in BENEATH:
        assert decide("runner with files", machine, name, 4) == ALLOW
        assert decide("runner with files", machine, name, WORKING_DIRECTORY) == EPERM
        assert decide("runner with files", machine, name, 0xFFFFFF9C) == EPERM


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_calls_of_another_kind_kill_and_what_is_not_listed_is_allowed(role: str, machine: str) -> None:
    code = programs_for(machine)[role]
    assert run(code, machine, READ[machine]) == ALLOW
    assert run(code, machine, READ[machine], kind=0x40000003) == KILL
    assert run(code, machine, READ[machine] | 0x40000000) == EPERM


def test_no_number_stands_for_two_calls() -> None:
    for column, machine in enumerate(MACHINES):
        numbers = [row[column] for row in ALL.values() if row[column] is not None]
        numbers += [row[column] for row in SENDING.values()]
        assert len(numbers) == len(set(numbers)), machine


@pytest.mark.parametrize(("role", "machine"), EACH)
def test_every_other_call_is_allowed(role: str, machine: str) -> None:
    column, code = MACHINES.index(machine), programs_for(machine)[role]
    listed = {row[column] for row in (*ALL.values(), *SENDING.values())}
    assert {run(code, machine, number) for number in range(600) if number not in listed} == {ALLOW}


def test_a_machine_without_a_filter_is_an_error() -> None:
    with pytest.raises(KeyError):
        filters.begin("riscv64")
