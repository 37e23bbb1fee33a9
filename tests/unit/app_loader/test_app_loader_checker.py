"""What is refused at upload, and with which words; and bombs that end within the checker's limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_loader.check.checking import result_of_end
from app_loader.check.compiler import check_head
from app_loader.limits import MAX_EXPORTS, MAX_IMPORTS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.reports import ReportType
from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import (
    Answer,
    AppLoaderProcess,
    as_root,
    ask,
    descriptors_of,
    listening,
    put,
    read_answer,
    run,
    wasm,
)

HEADER = b"\0asm\1\0\0\0"
NOTHING = wasm('(module (func (export "_start")))')


def leb(number: int) -> bytes:
    """An unsigned LEB128 number."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def section(number: int, contents: bytes) -> bytes:
    """One section of a module."""
    return bytes([number]) + leb(len(contents)) + contents


def many_functions(count: int, body: bytes) -> bytes:
    """A command of `count` equal functions without locals."""
    code = leb(len(body) + 1) + b"\0" + body
    types, kinds = section(1, b"\1\x60\0\0"), section(3, leb(count) + b"\0" * count)
    exports = section(7, b"\1\6_start\0\0")
    return HEADER + types + kinds + exports + section(10, leb(count) + code * count)


def refused(process: AppLoaderProcess, client: Path, module: bytes, status: int = 422) -> Answer:
    """The refusal of `module`, after which the endpoint takes a good one."""
    answer = ask(process, client, put(module))
    assert answer.status == status, answer
    process.expect(ReportType.RECEIVING, ReportType.AWAITING)
    assert process.children() == set()
    assert ask(process, client, put(NOTHING)).status == 200
    process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    assert process.outcome().exit_code == 0
    return answer


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (b"", "it is empty"),
        (b"\0as", "it ends within its first eight bytes"),
        (HEADER[:7], "it ends within its first eight bytes"),
        (b"(module)", "it is WebAssembly text"),
        (b"\n;; text", "it is WebAssembly text"),
        (b"\x7fELF\2\1\1\0", "it is a native program"),
        (b"\x1f\x8b\x08\x08\x44\xa4\x05\x6b", "it is a gzip file; unpack it first"),
        (b"PK\x03\x04\x14\0\0\0", "it is a zip file; unpack it first"),
        (b"\0asm\x0e\0\1\0", "it is a component of another version, 0e00"),
        (b"\0asm\2\0\0\0", "its version 02000000 is not 1"),
        (b"#!/bin/s", "it does not begin as a WebAssembly file does, but with 23 21"),
    ],
)
def test_a_file_that_is_no_core_module_is_named_by_what_it_is(module: bytes, words: str) -> None:
    with pytest.raises(KeepfleetError) as caught:
        check_head(module[:8])
    assert caught.value.kind is ErrorKind.INVALID_MODULE
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (b"", "it is empty"),
        (b'(module (func (export "_start")))', "it is WebAssembly text"),
        (Path("/bin/true").read_bytes(), "it is a native program"),
        (NOTHING[:-3], "unexpected end"),
        (NOTHING + b"\xff", "cannot take the module"),
        (wasm('(module (memory i64 1) (func (export "_start")))'), "build it for wasm32, not wasm64"),
        (wasm('(module (memory 1) (memory 1) (func (export "_start")))'), "build it with one memory"),
        (wasm('(module (memory 1 1 shared) (func (export "_start")))'), "build it without threads"),
        (wasm('(module (type (struct)) (func (export "_start")))'), "no garbage-collected types"),
        (
            wasm('(module (type $t (func)) (func (param (ref $t))) (func (export "_start")))'),
            "no garbage-collected types",
        ),
        (many_functions(1, b"\x06\x40\x07\x00\x0b\x0b"), "wasm-opt --translate-to-exnref"),
        (wasm("(module (func))"), "it exports nothing to run"),
        (wasm('(module (memory (export "_start") 1))'), "it exports nothing to run"),
        (wasm('(module (func (export "") (param i32)))'), "it takes 1 argument, 0 given"),
        (wasm('(module (func (export "_start") (result i32) i32.const 1))'), "returns values"),
        (wasm('(module (import "wasi_snapshot_preview1" "fd_close" (func)) (func (export "_start")))'), "incompatible"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_module_that_cannot_run_is_answered_422_with_the_reason(
    process: AppLoaderProcess, client: Path, module: bytes, words: str
) -> None:
    error = refused(process, client, module).error
    assert error["kind"] == "invalid-module"
    assert words in str(error["message"]) + str(error["evidence"])


def test_unknown_imports_are_named(process: AppLoaderProcess, client: Path) -> None:
    module = wasm("""(module
      (import "env" "launch" (func)) (import "wasi_snapshot_preview1" "sock_open" (func))
      (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
      (func (export "_start")))""")
    error = refused(process, client, module).error
    assert error["evidence"] == ["'env' 'launch'", "'wasi_snapshot_preview1' 'sock_open'"]


def test_wasis_first_snapshot_is_named_with_what_to_build_for_instead(process: AppLoaderProcess, client: Path) -> None:
    module = wasm("""(module (import "wasi_unstable" "proc_exit" (func (param i32))) (func (export "_start")))""")
    error = refused(process, client, module).error
    assert error["evidence"] == ["'wasi_unstable' 'proc_exit'"]
    assert "build the module for wasm32-wasip1" in str(error["message"])


SLOW = many_functions(10_000, b"\x10\0" * 400 + b"\x0b")


def checker_of(process: AppLoaderProcess) -> int:
    """The checker at work, once it is."""
    while not (children := process.children()):
        assert not process.ended, "there was none"
    (checker,) = children
    return checker


def test_a_checker_that_is_killed_from_outside_is_not_the_modules_fault(
    process: AppLoaderProcess, client: Path
) -> None:
    with process.connect(client) as connection:
        connection.sendall(put(SLOW))
        os.kill(checker_of(process), signal.SIGKILL)
        answer = read_answer(connection)
    process.expect(ReportType.RECEIVING)
    assert (answer.status, answer.error["kind"]) == (503, "unavailable")
    assert "the checker was killed from outside (SIGKILL)" in str(answer.error["message"])
    process.expect(ReportType.AWAITING)
    assert ask(process, client, put(NOTHING)).status == 200


@pytest.fixture
def small(tmp_path: Path, authority: Authority) -> Iterator[AppLoaderProcess]:
    """What compiles within 256 MiB, which are reached in a sixth of the time of the default's."""
    with listening(tmp_path, authority, {"KEEPFLEET_LIMITS": "compile_memory_bytes=268435456"}) as process:
        yield process


def test_a_bomb_of_functions_ends_at_the_memory_limit(small: AppLoaderProcess, client: Path) -> None:
    process = small
    error = refused(process, client, many_functions(1_000_000, b"\x0b")).error
    assert error["kind"] == "too-complex"
    assert "takes more memory than compile_memory_bytes=268435456" in str(error["message"])
    assert "raise it, to compile_memory_bytes=536870912" in str(error["message"])
    assert "memory allocation of" in str(error["evidence"])
    process.end()
    assert b"memory allocation of" not in process.output


@as_root
def test_the_checker_has_the_module_and_nothing_of_the_endpoint(process: AppLoaderProcess, client: Path) -> None:
    with process.connect(client) as connection:
        connection.sendall(put(SLOW))
        checker = checker_of(process)
        while not Path(f"/proc/{checker}/comm").read_text().startswith("keep-checker"):
            continue  # it has not its own descriptors yet
        opened = descriptors_of(checker)
        library = {number for number, name in opened.items() if "/libffi.so." in name}  # a newer libffi opens its file
        assert set(opened) - library <= {0, 1, 2, 3, 4, 5, 6}, opened
        assert opened.get(6, opened[4]) == opened[4], "the module, mapped"
        assert [opened[number].split(":")[0] for number in (0, 1, 2, 3)] == ["/dev/null", "/dev/null", "pipe", "socket"]


LOOKS = """
import os, sys, time
from app_loader.check import compiler
from app_loader.check.checking import Check, read_result
from keep_protocol.limits import DEFAULT_LIMITS

def looks(*_):
    try:
        os.close(os.open("/", os.O_RDONLY))
        return "open"
    except OSError:
        return f"locked, components: {'app_loader.engine.component' in sys.modules}"

compiler.examine = looks
module = os.open(sys.argv[1], os.O_RDONLY)
check = Check(compiler.check, module, DEFAULT_LIMITS, None, frozenset(), time.monotonic())
refusal, note = read_result(check.wait())
check.close()
print(refusal, note)
"""


@pytest.mark.parametrize(("head", "needed"), [(HEADER, False), (b"\0asm\x0d\0\1\0", True), (b"", False)])
def test_the_checker_is_locked_when_it_looks_at_a_module_and_has_what_its_kind_needs(
    tmp_path: Path, head: bytes, needed: bool
) -> None:
    (tmp_path / "module").write_bytes(head)
    command = [sys.executable, "-c", LOOKS, str(tmp_path / "module")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"None locked, components: {needed}\n"


def test_a_bomb_of_blocks_ends_at_the_memory_limit(small: AppLoaderProcess, client: Path) -> None:
    bomb = many_functions(1, b"\x02\x40" * 1_000_000 + b"\x0b" * 1_000_001)
    assert refused(small, client, bomb).error["kind"] == "too-complex"


def test_a_module_that_takes_too_much_processor_time_is_answered_with_the_limit_to_raise(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    limits = {"KEEPFLEET_LIMITS": "compile_seconds=1"}
    with listening(tmp_path, authority, limits, CHECKER_WALL_FACTOR=100) as process:
        error = refused(process, client, SLOW).error
        assert error["kind"] == "too-complex"
        assert "takes more processor time than compile_seconds=1 gives a module with this much code" in str(
            error["message"]
        )
        assert "raise it, to compile_seconds=2" in str(error["message"])


def test_a_check_that_takes_too_long_says_nothing_of_the_module(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    with listening(tmp_path, authority, CHECKER_WALL_FACTOR=0.002) as process:
        answer = ask(process, client, put(SLOW))
        assert (answer.status, answer.error["kind"]) == (503, "unavailable")
        assert "not done after 0.48 s, which says nothing of the module" in str(answer.error["message"])
        process.expect(ReportType.RECEIVING, ReportType.AWAITING)
        assert process.children() == set()


def test_what_can_never_run_is_refused_before_it_is_compiled(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    """With as little processor time as there can be, which compiling this would use up many times over."""
    body = b"\x10\0" * 400 + b"\x0b"
    no_entry = many_functions(100_000, body).replace(b"\6_start", b"\6_stort", 1)
    foreign = HEADER + section(1, b"\1\x60\0\0") + section(2, b"\1\2js\4eval\0\0")
    foreign += section(10, leb(1) + leb(len(body) + 1) + b"\0" + body)
    limits = {"KEEPFLEET_LIMITS": "compile_seconds=1"}
    with listening(tmp_path, authority, limits, CHECKER_WALL_FACTOR=100) as process:
        for module, words in ((no_entry, "it exports nothing to run"), (foreign, "'js' 'eval'")):
            answer = ask(process, client, put(module))
            assert (answer.status, answer.error["kind"]) == (422, "invalid-module")
            assert words in str(answer.error["message"])
            process.expect(ReportType.RECEIVING, ReportType.AWAITING)


@pytest.mark.parametrize(
    ("number", "most", "what"), [(7, MAX_EXPORTS, "exports"), (2, MAX_IMPORTS, "imports")], ids=["exports", "imports"]
)
def test_a_module_with_hundreds_of_thousands_of_exports_or_imports_is_refused(
    process: AppLoaderProcess, client: Path, number: int, most: int, what: str
) -> None:
    row = b"\1x\0\0" if number == 7 else b"\1m\1x\0\0"
    names = section(1, b"\1\x60\0\0") + (section(3, b"\1\0") if number == 7 else b"")
    code = section(10, b"\1\2\0\x0b") if number == 7 else b""
    module = HEADER + names + section(number, leb(380_000) + row * 380_000) + code
    error = refused(process, client, module).error
    assert error["kind"] == "invalid-module"
    assert f"it has 380000 {what}, and a keep takes {most}" in str(error["message"])


def test_a_module_with_as_many_exports_as_it_may_have_runs(process: AppLoaderProcess, client: Path) -> None:
    names = b"".join(bytes([5]) + f"{number:05}".encode() + b"\0\0" for number in range(MAX_EXPORTS - 1))
    types, kinds = section(1, b"\1\x60\0\0"), section(3, b"\1\0")
    exports = section(7, leb(MAX_EXPORTS) + b"\6_start\0\0" + names)
    assert run(process, client, HEADER + types + kinds + exports + section(10, b"\1\2\0\x0b")).exit_code == 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((-number, "too-complex") for number in (signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV)),
        *((-number, "unavailable") for number in (signal.SIGKILL, signal.SIGTERM, 40)),
        (1, "internal"),
    ],
)
def test_the_end_of_a_checker_without_a_result_has_a_kind(code: int, kind: str) -> None:
    assert result_of_end(code, DEFAULT_LIMITS).kind.value == kind


def test_a_fault_of_the_engine_is_said_to_be_one() -> None:
    found = result_of_end(-signal.SIGABRT, DEFAULT_LIMITS, "thread 'x' panicked at crates/x.rs:1:1:\ninvalid adapter")
    assert found.kind is ErrorKind.INVALID_MODULE
    assert "by a fault of its own" in found.message
    assert found.evidence[1] == "invalid adapter"
