"""Modules that are none, that cannot run, or that cost too much to compile: 422, and the keep goes on waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.system import hostile
from tests.system.calm import undisturbed
from tests.system.fleet import Fleet
from tests.system.life import Bystanders, Life, example

GOOD = example("hello-wat/hello")
EMPTY = hostile.wat('(module (func (export "_start")))')
COMPILE_SECONDS = 4
"""Of processor time, for a bomb that does not meet the limit of memory before; by default one takes 25 seconds."""
REFUSED = {
    "an empty file": (b"", "it is empty"),
    "three bytes": (GOOD[:3], "it ends within its first eight bytes"),
    "a truncated module": (GOOD[:-10], "unexpected end"),
    "a module with something behind it": (GOOD + b"\xff\xff", ""),
    "a text file": (b"Once upon a time there was a keep.\n" * 100, "does not begin as a WebAssembly file does"),
    "a module in text form": (b'(module (func (export "_start")))', "it is WebAssembly text"),
    "a native program": (Path("/bin/true").read_bytes(), "it is a native program"),
    "a shell script": (b"#!/bin/sh\ntouch /tmp/x\n", "does not begin as a WebAssembly file does"),
    "a component": (b"\0asm\x0d\0\1\0", "it does not export wasi:cli/run"),
    "version 2": (b"\0asm\2\0\0\0" + EMPTY[8:], "its version 02000000 is not 1"),
    "a module with nothing to run": (hostile.wat('(module (func (export "run")))'), "it exports nothing to run"),
    "a module with nothing at all": (hostile.HEADER, "it exports nothing to run"),
    "a _start that is a memory": (hostile.wat('(module (memory (export "_start") 1))'), "nothing to run"),
    "a _start with parameters": (hostile.wat('(module (func (export "_start") (param i32)))'), "takes parameters"),
    "shared memory": (hostile.wat('(module (memory 1 1 shared) (func (export "_start")))'), "threads"),
    "64-bit memory": (hostile.wat('(module (memory i64 1) (func (export "_start")))'), "memory64"),
    "two memories": (hostile.wat('(module (memory 1) (memory 1) (func (export "_start")))'), "multi"),
    "garbage collection": (hostile.wat('(module (type (struct)) (func (export "_start")))'), "gc"),
    "exceptions in their first form": (hostile.of_functions(1, b"\x06\x40\x0b"), "--translate-to-exnref"),
    "a foreign import before a feature": (
        hostile.wat('(module (import "js" "eval" (func)) (memory i64 1) (func (export "_start")))'),
        "imports what a keep does not have: 'js' 'eval'",
    ),
    "a body that is not typed right": (hostile.of_functions(1, b"\x6a"), "type mismatch"),
    "a length of four gigabytes": (hostile.HEADER + b"\1\xff\xff\xff\xff\x0f", ""),
}


@pytest.fixture(scope="module")
def life(installed_fleet: Fleet) -> Iterator[Life]:
    """One keep for all of this; after it, it is the same process and takes a workload, and no other was disturbed."""
    fleet = installed_fleet
    fleet.clear()
    bystanders, life = Bystanders(fleet), Life.awaiting(fleet, compile_seconds=COMPILE_SECONDS)
    loader, endpoint = life.loader_pid, life.endpoint_pid
    with undisturbed(fleet):
        yield life
        assert (life.loader_pid, life.endpoint_pid) == (loader, endpoint)
    assert life.upload(GOOD).status == 200
    outcome = life.until(State.STARTED, State.COMPLETE).outcome
    assert outcome is not None
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.EXITED, 0)
    bystanders.check()
    fleet.clear()


def refused(life: Life, module: bytes) -> dict[str, object]:
    """The refusal of `module`, raw and as the original sends it; the keep goes on waiting and says why."""
    reply = life.upload(module)
    assert reply.status == 422, reply
    error = reply.error()
    assert error.message.startswith(("cannot take the module: ", "cannot take the component: "))
    info = life.look()
    assert (info.state, info.outcome) == (State.STARTED, None)
    return error.to_wire()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_module_that_can_run_is_refused_with_the_reason(life: Life, name: str) -> None:
    module, words = REFUSED[name]
    error = refused(life, module)
    assert error["kind"] == "invalid-module"
    assert words in f"{error['message']} {error['evidence']}"


def test_the_original_s_upload_is_refused_in_the_same_way(life: Life) -> None:
    assert life.upload_numbers(GOOD[:-10]).status == 422
    assert life.upload_numbers(b"").status == 422


def test_unknown_imports_are_named(life: Life) -> None:
    error = refused(life, example("unknown-import/unknown-import"))
    assert error["evidence"]
    hostile_names = hostile.wat('(module (import "\\1b[31m" "<0>\\n" (func)) (func (export "_start")))')
    error = refused(life, hostile_names)
    assert f"{error['message']}{error['evidence']}".isprintable()


@pytest.mark.parametrize("bomb", hostile.BOMBS)
@pytest.mark.rare
def test_a_module_that_costs_too_much_to_compile_is_too_complex(life: Life, bomb: str) -> None:
    module = hostile.BOMBS[bomb]()
    assert refused(life, module)["kind"] == "too-complex"
    assert life.show("NRestarts") == "0"
    assert life.host.run(["pgrep", "--parent", str(life.runner_pid)], check=False).stdout == ""


@pytest.mark.parametrize("bomb", hostile.BOMBS)
@pytest.mark.heavy
def test_the_default_limits_end_it_too(life: Life, bomb: str) -> None:
    another = Life.awaiting(life.fleet)
    assert refused(another, hostile.BOMBS[bomb]())["kind"] == "too-complex"
    another.remove()
