"""A keep's profile and compiler on a real systemd: a strict one has no executable memory that was not there before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keep_protocol.constants import unit_name
from keep_protocol.keep import OutcomeKind
from keep_protocol.spec import Compiler, Profile
from tests.system import hostile, inside, modules
from tests.system.fleet import Fleet
from tests.system.host import message_of, until
from tests.system.life import Life, example
from tests.unit.app_loader.guests import PRINTS

SECONDS = 60
KUUID = 11
TRIES = """
import _ctypes, errno, json, mmap
class Long(_ctypes._SimpleCData):
    _type_ = "l"
class Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = Long
program = _ctypes.dlopen(None, 2)
def call(name, *arguments):
    return _ctypes.get_errno() if Function(_ctypes.dlsym(program, name))(*map(Long, arguments)) == -1 else 0
plain = mmap.mmap(-1, 4096)
address = _ctypes.addressof((Long * 1).from_buffer(plain))
tries = {
    "a page": call("mmap", 0, 4096, 3, 0x22, -1, 0),
    "a page that is written and run": call("mmap", 0, 4096, 7, 0x22, -1, 0),
    "a written page to be run": call("mprotect", address, 4096, 5),
    "the same by a key": call("pkey_mprotect", address, 4096, 5, -1),
}
print("tried", json.dumps({name: errno.errorcode.get(error, error) for name, error in tries.items()}))
"""
"""What makes code of data; each call's errno, or 0."""


def test_no_memory_becomes_executable_in_a_strict_unit_from_its_first_instruction_on(fleet: Fleet) -> None:
    fleet.host.run(["tee", inside.PROBE], input=TRIES)
    cursor = fleet.host.cursor()
    shown = f"BindReadOnlyPaths={inside.PROBE}:{inside.SEEN}\nMemoryDenyWriteExecute=yes"
    command = f"ExecStart=\nExecStart={inside.PYTHON} {inside.SEEN}"
    with inside.drop_in(fleet.host, f"[Service]\nType=exec\nRestart=no\n{shown}\n{command}\n"):
        inside.start_unit(fleet.host, KUUID)
        entry = fleet.host.wait_journal("tried {", since_cursor=cursor)
    tried = json.loads(message_of(entry).removeprefix("tried "))
    assert tried.pop("a page") == 0
    assert set(tried.values()) <= {"EPERM", "EACCES"}, tried  # systemd's own filter, or from 256 on PR_SET_MDWE


def strict(fleet: Fleet, module: Path | str, *options: str) -> tuple[int, str, str]:
    """`keepctl run` of a module in a strict keep: its exit code, its output, and what keepctl said."""
    done = fleet.host.run(
        ["keepctl", "run", "--rm", "--profile", "strict", *options, str(module)],
        check=False,
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"},
        timeout=SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


def placed(fleet: Fleet, name: str, module: bytes) -> Path:
    """A module in a file that the host has."""
    path = fleet.host.path / f"{name}.wasm"
    path.write_bytes(module)
    return path


def test_a_strict_keep_runs_a_c_program_a_component_and_what_traps_or_exits(fleet: Fleet) -> None:
    hello = strict(fleet, placed(fleet, "hello", example("hello-c/hello")))
    assert (hello[0], hello[1].splitlines()[0]) == (0, "Hello from C, inside a keep!"), hello
    prints = strict(fleet, placed(fleet, "prints", PRINTS))
    assert prints[:2] == (0, "hello from a component\n"), prints
    code, _, said = strict(fleet, placed(fleet, "trap", example("trap-wat/trap")))
    assert (code, "trapped: out of bounds memory access" in said, "read_past" in said) == (134, True, True), said
    assert strict(fleet, placed(fleet, "leaves", hostile.exits(200)))[0] == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cpu-time", "1s"), "over its processor time limit of 1 s"),
        (("--time", "1s"), "over its time limit of 1 s"),
    ],
)
def test_a_strict_keep_s_limits_end_it(fleet: Fleet, options: tuple[str, ...], words: str) -> None:
    code, _, said = strict(fleet, placed(fleet, "spin", example("spin-wat/spin")), *options)
    assert (code, words in said) == (124, True), said


def test_a_strict_keep_over_its_memory_limit_says_so(fleet: Fleet) -> None:
    big = placed(fleet, "big", example("big-wat/big"))
    code, _, said = strict(fleet, big, "--memory", "16M")
    assert (code, "over its memory limit of 16 MiB" in said) == (124, True), said


def test_nothing_executable_is_in_a_strict_keep_that_is_not_of_a_file_and_read_only(fleet: Fleet) -> None:
    made = fleet.client().create(profile="strict")
    assert fleet.host.show(unit_name(made.kuuid), "MemoryDenyWriteExecute") == {"MemoryDenyWriteExecute": "yes"}
    life = Life(fleet, made.kuuid)
    assert life.info.profile is Profile.STRICT
    life.start()
    assert life.upload(modules.sleeps()).status == 200
    life.line("asleep")
    until(lambda: not life.forks("keep-endpoint"), lambda: "the endpoint has accepted, and stays")
    children = fleet.host.assistant.children(life.loader_pid)
    assert children
    for process in (life.loader_pid, *children):
        maps = fleet.host.run(["cat", f"/proc/{process}/maps"]).stdout.splitlines()
        code = [line.split(None, 5) for line in maps if "x" in line.split()[1]]
        assert {line[1] for line in code} <= {"r-xp", "--xp"}
        assert all(line[5:] for line in code), "code that is of no file"
    life.remove()


def test_a_strict_keep_whose_unit_was_changed_takes_no_workload(fleet: Fleet) -> None:
    with inside.drop_in(fleet.host, "[Service]\nMemoryDenyWriteExecute=no\n"):
        made = fleet.client().create(profile="strict")
    assert made.isolation_failures == (
        "memory can be made that is both writable and executable (MemoryDenyWriteExecute=)",
    )
    fleet.client().remove(made.kuuid)


def test_the_fast_compiler_is_a_keep_s_own(fleet: Fleet) -> None:
    made = fleet.client().create(compiler="fast")
    life = Life(fleet, made.kuuid)
    assert life.info.compiler is Compiler.FAST
    life.start()
    assert life.upload(example("hello-c/hello")).status == 200
    _, outcome = life.end(SECONDS)
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.EXITED, 0)
    life.remove()
