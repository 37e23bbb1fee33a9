"""The lock: its program run by a small machine for every system call, and the real one in a process of its own."""

from __future__ import annotations

import errno
import json
import socket
import struct
import subprocess
import sys

import pytest

from app_loader.run.lock import (
    ALLOW,
    ARCHITECTURES,
    ERRNO,
    JUMP_AT_LEAST,
    JUMP_BITS,
    JUMP_EQUAL,
    KILL,
    LD_WORD,
    RETURN,
    SENDING,
    SYSCALLS,
    Instruction,
    endpoint_program,
    program,
)

PID = 4711
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
READ = {"x86_64": 0, "aarch64": 63}


def decide(
    machine: str,
    number: int,
    *arguments: int,
    kind: int | None = None,
    compiler: bool = False,
    files: bool = False,
) -> int:
    """What the filter returns for one system call."""
    return run(program(machine, PID, executable_memory=compiler, files=files), machine, number, *arguments, kind=kind)


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
        else:
            holds = {JUMP_EQUAL: word == value, JUMP_AT_LEAST: word >= value, JUMP_BITS: bool(word & value)}[operation]
            at += yes if holds else no


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("name", SYSCALLS)
def test_every_listed_call_is_refused_at_least_for_some_arguments(machine: str, name: str) -> None:
    number = SYSCALLS[name][list(ARCHITECTURES).index(machine)]
    if number is not None:
        assert decide(machine, number, 0, 0, 4) == (ENOSYS if name == "clone3" else EPERM)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_a_guest_needs_is_allowed(machine: str) -> None:
    def number(name: str) -> int:
        found = SYSCALLS[name][list(ARCHITECTURES).index(machine)]
        assert found is not None
        return found

    assert decide(machine, READ[machine]) == ALLOW
    assert decide(machine, number("mmap"), 0, 4096, 3) == ALLOW
    assert decide(machine, number("mprotect"), 0, 4096, 3) == ALLOW
    assert decide(machine, number("clone"), 0x10000) == ALLOW
    assert decide(machine, number("tgkill"), PID, PID, 6) == ALLOW
    assert decide(machine, number("tgkill"), PID + 1, PID + 1, 6) == EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_checker_may_make_code_and_nothing_else(machine: str) -> None:
    column = list(ARCHITECTURES).index(machine)
    for name, row in SYSCALLS.items():
        number = row[column]
        if number is not None:
            makes_code = name in ("mmap", "mprotect", "pkey_mprotect")
            assert (decide(machine, number, 0, 0, 4, compiler=True) == ALLOW) is makes_code


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_guest_with_files_opens_them_from_its_directories_and_nothing_else_changes(machine: str) -> None:
    column, working_directory = list(ARCHITECTURES).index(machine), 0xFFFFFFFFFFFFFF9C
    for name, row in SYSCALLS.items():
        number = row[column]
        if number is None:
            continue
        opens = name in ("openat", "openat2")
        assert (decide(machine, number, 4, 0, 4, files=True) == ALLOW) is opens
        if opens:
            assert decide(machine, number, working_directory, files=True) == EPERM
            assert decide(machine, number, 0xFFFFFF9C, files=True) == EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_calls_of_another_kind_kill(machine: str) -> None:
    assert decide(machine, READ[machine], kind=0x40000003) == KILL
    assert decide(machine, READ[machine] | 0x40000000) == EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_endpoint_may_send_and_start_programs_but_not_connect(machine: str) -> None:
    column, code = list(ARCHITECTURES).index(machine), endpoint_program(machine)
    for name, row in SYSCALLS.items():
        number = row[column]
        if number is not None:
            allowed = run(code, machine, number, 0, 0, 4) == ALLOW
            assert allowed is (name not in ("socket", "connect", "bind", "listen"))
    for row3 in SENDING.values():
        flags = [0, 0, 0, 0]
        assert run(code, machine, row3[column], *flags) == ALLOW
        flags[row3[2]] = socket.MSG_FASTOPEN
        assert run(code, machine, row3[column], *flags) == EPERM
    assert run(code, machine, READ[machine], kind=0x40000003) == KILL


DOOR_TRIAL = """
import json, os, socket, subprocess, sys
from app_loader.run.lock import lock_endpoint
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
target = ("127.0.0.1", int(sys.argv[1]))
lock_endpoint()
accepted, _ = listener.accept()
accepted.sendall(b"answer")
seen = {"answer": client.recv(6).decode()}
listener.shutdown(socket.SHUT_RDWR)
for name, action in (
    ("connect", lambda: listener.connect(target)),
    ("fast open", lambda: listener.sendto(b"x", socket.MSG_FASTOPEN, target)),
    ("socket", lambda: socket.socket()),
    ("pair", lambda: socket.socketpair()),
    ("program", lambda: subprocess.run(["true"], check=True)),
):
    try:
        action()
        seen[name] = "done"
    except OSError as error:
        seen[name] = type(error).__name__
os.write(1, json.dumps(seen).encode())
"""


def test_a_locked_endpoint_answers_its_clients_and_cannot_turn_its_listener_round() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        command = [sys.executable, "-c", DOOR_TRIAL, str(target.getsockname()[1])]
        seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert seen == {
        "answer": "answer",
        **dict.fromkeys(("connect", "fast open", "socket"), "PermissionError"),
        **dict.fromkeys(("pair", "program"), "done"),
    }


TRIAL = """
import ctypes, json, mmap, os, socket, sys, threading
import wasmtime
from app_loader.engine.compiled import Module
from app_loader.engine.foreign import EngineError
from app_loader.engine.store import Linker, Store
from app_loader.engine.settings import make_engine
from app_loader.run.lock import lock
engine, other = make_engine(), make_engine()
binary = bytes(wasmtime.wat2wasm('(module (func (export "f") (result i32) i32.const 7))'))
module, store = Module.compile(engine, binary), Store(engine)
compiler = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
lock(executable_memory=compiler)
seen = {}
def trial(name, action):
    try:
        action()
        seen[name] = "done"
    except (OSError, EngineError, RuntimeError) as error:
        seen[name] = type(error).__name__
def signal_parent():
    os.kill(os.getppid(), 0)
def thread():
    started = threading.Thread(target=seen.update, args=({"in a thread": "done"},))
    started.start()
    started.join()
trial("compile", lambda: Module.compile(other, binary))
trial("socket", lambda: socket.socket(socket.AF_UNIX))
trial("open", lambda: open("/dev/null"))
trial("fork", os.fork)
trial("exec", lambda: os.execv("/bin/true", ["true"]))
trial("memfd", lambda: os.memfd_create("x"))
trial("signal", signal_parent)
trial("pidfd", lambda: os.pidfd_open(os.getppid()))
trial("code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
trial("memory", lambda: mmap.mmap(-1, 4096))
trial("thread", thread)
seen["ptrace"] = libc.ptrace(16, os.getppid(), 0, 0)
seen["guest"] = store.call(store.export(Linker(engine).instantiate(store, module), "f"), (), 1)
os.write(1, json.dumps(seen).encode())
"""


@pytest.mark.parametrize("compiler", [False, True])
def test_a_locked_process_has_lost_what_it_gave_up(compiler: bool) -> None:
    command = [sys.executable, "-c", TRIAL, json.dumps(compiler)]
    seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert seen == {
        "compile": "done" if compiler else "EngineError",
        "code": "done" if compiler else "PermissionError",
        **dict.fromkeys(("socket", "open", "fork", "exec", "memfd", "signal", "pidfd"), "PermissionError"),
        **dict.fromkeys(("memory", "thread", "in a thread"), "done"),
        "ptrace": -1,
        "guest": [7],
    }


def test_a_process_with_several_threads_is_not_locked() -> None:
    trial = """
import threading
from app_loader.run.lock import lock
threading.Thread(target=threading.Event().wait, daemon=True).start()
lock(executable_memory=False)"""
    ended = subprocess.run([sys.executable, "-c", trial], capture_output=True)
    assert b"cannot lock the process: it has several threads" in ended.stderr
