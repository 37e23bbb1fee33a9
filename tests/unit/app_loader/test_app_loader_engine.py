"""The engines a workload may have: by its profile, its compiler, and where its compiled file lies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app_loader.check import advice
from app_loader.check.compiler import examine, warm_up
from app_loader.engine import settings as engine_settings
from app_loader.engine.compiled import Module
from app_loader.engine.foreign import EngineError, GuestExit, Trap
from app_loader.engine.settings import Settings, make_engine, settings_for
from app_loader.engine.store import EXIT_MODULE, Linker, Store, Wasi
from app_loader.run.guest import Unfit, load_guest
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.spec import Compiler, Profile
from keep_protocol.workload import Workload
from tests.unit.app_loader.app_loader_process import as_root, wasm
from tests.unit.app_loader.guests import component

STRICT, FAST = Workload(profile=Profile.STRICT), Workload(compiler=Compiler.FAST)
HAS_DATA = wasm("""(module (memory (export "memory") 2) (data (i32.const 70000) "data")
  (func (export "read") (result i32) (i32.load (i32.const 70000))))""")
LEAVES = wasm("""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (func (export "_start") (call $exit (i32.const 200))))""")
TRAPS = wasm('(module (func $divides (export "_start") (drop (i32.div_s (i32.const 1) (i32.const 0)))))')
TAIL_CALL = wasm('(module (func $f (export "_start") return_call $f))')


def compiled(directory: Path, guest: bytes, workload: Workload, result: int | None = None) -> int:
    """The guest's compiled file, `result` or a new one, open. Raises the KeepfleetError it is refused with."""
    (directory / "guest.wasm").write_bytes(guest)
    module = os.open(directory / "guest.wasm", os.O_RDONLY)
    result = os.open(directory, os.O_RDWR | os.O_TMPFILE) if result is None else result
    found = examine(module, result, DEFAULT_LIMITS, workload)
    os.close(module)
    if isinstance(found, KeepfleetError):
        os.close(result)
        raise found
    return result


def ran(directory: Path, guest: bytes, workload: Workload, result: int | None = None) -> tuple[int, list[object]]:
    """The guest, compiled, loaded from its file and run."""
    file = compiled(directory, guest, workload, result)
    loaded = load_guest(file, DEFAULT_LIMITS, workload)
    os.close(file)
    loaded.link(Wasi())
    return loaded.run()


@pytest.mark.parametrize("workload", [Workload(), STRICT, FAST], ids=["standard", "strict", "fast"])
def test_a_core_module_runs_leaves_and_traps_by_every_engine(tmp_path: Path, workload: Workload) -> None:
    assert ran(tmp_path, HAS_DATA, workload.replace(export="read")) == (0, [int.from_bytes(b"data", "little")])
    with pytest.raises(GuestExit) as left:
        ran(tmp_path, LEAVES, workload)
    assert left.value.code == 200
    with pytest.raises(Trap, match="integer divide by zero") as trapped:
        ran(tmp_path, TRAPS, workload)
    assert [name for name, _, _ in trapped.value.frames] == ["divides"]


@pytest.mark.parametrize("workload", [Workload(), STRICT], ids=["standard", "strict"])
def test_a_component_runs_compiled_and_interpreted(tmp_path: Path, workload: Workload) -> None:
    assert ran(tmp_path, component("(i32.const 1)"), workload) == (1, [])
    with pytest.raises(EngineError, match="unreachable"):
        ran(tmp_path, component("unreachable"), workload)


def test_the_fast_compiler_refuses_a_component_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="compiler fast is for core modules alone; leave it out") as refused:
        compiled(tmp_path, component("(i32.const 0)"), FAST)
    assert refused.value.kind is ErrorKind.INVALID_MODULE


def test_what_the_fast_compiler_does_not_know_is_refused_with_what_to_do(tmp_path: Path) -> None:
    os.close(compiled(tmp_path, TAIL_CALL, Workload()))
    with pytest.raises(KeepfleetError, match=r"tail calls.*; compiler fast knows less of WebAssembly: try without it"):
        compiled(tmp_path, TAIL_CALL, FAST)


@pytest.mark.parametrize(("made", "loaded"), [(STRICT, Workload()), (Workload(), STRICT)], ids=["strict", "standard"])
def test_what_was_compiled_for_the_other_profile_does_not_fit(tmp_path: Path, made: Workload, loaded: Workload) -> None:
    file = compiled(tmp_path, LEAVES, made)
    with pytest.raises(Unfit):
        load_guest(file, DEFAULT_LIMITS, loaded)
    os.close(file)


def executable() -> set[str]:
    """The memory of this process that is executable and of no file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return {line[0] for line in lines if "x" in line[1] and len(line) == 5}


def test_a_strict_engine_makes_no_executable_memory(tmp_path: Path) -> None:
    before = executable()
    assert ran(tmp_path, HAS_DATA, STRICT.replace(export="read"))[0] == 0
    strict = make_engine(Settings(images=True, profile=Profile.STRICT))
    kept = Module.compile(strict, LEAVES)
    assert executable() == before
    native = Module.compile(make_engine(Settings()), LEAVES)
    assert executable() > before, "what is looked for is found where it is"
    assert kept.exports().functions == native.exports().functions == ["_start"]


WITHOUT_CODE = """
import sys
from pathlib import Path
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.workload import Workload
from tests.unit.app_loader.test_app_loader_engine import HAS_DATA, STRICT, ran, settings_for
directory, opened_before = Path(sys.argv[1]), int(sys.argv[2])
read, strict = Workload(export="read"), STRICT.replace(export="read")
for file, workload in ((None, read), (None, strict), (opened_before, read)):
    images = settings_for(str(directory) if file is None else file, DEFAULT_LIMITS, workload).images
    print(images, ran(directory, HAS_DATA, workload, file)[0])
"""


@as_root
def test_a_memorys_first_contents_are_mapped_where_code_can_be_and_in_a_strict_keep_everywhere(tmp_path: Path) -> None:
    before = os.open(tmp_path / "compiled", os.O_RDWR | os.O_CREAT)
    assert settings_for(before, DEFAULT_LIMITS, Workload()).images
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,noexec "$1" && exec "$3" -c "$4" "$1" "$2"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), str(before), sys.executable, WITHOUT_CODE]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, check=True, text=True, env=environment, pass_fds=(before,))
    os.close(before)
    assert ended.stdout == "False 0\nTrue 0\nTrue 0\n", "what was opened where code may be is mapped as code"


def test_the_exit_module_is_what_its_comment_says() -> None:
    text = """(module (global (export "left") (mut i64) (i64.const -1))
      (func (export "proc_exit") (param i32) (global.set 0 (i64.extend_i32_u (local.get 0))) unreachable))"""
    assert wasm(text) == EXIT_MODULE


@pytest.mark.parametrize("code", [0, 1, 125, 126, 255, 256, 0x7FFFFFFF, 0xFFFFFFFF])
def test_every_exit_code_arrives_whole(code: int) -> None:
    store = Store(make_engine(Settings()))
    store.take(Wasi())
    leave = Linker(store.engine).replace_exit(store)
    with pytest.raises(GuestExit) as left:
        store.call(leave, (("i32", code),))
    assert left.value.code == code


@pytest.mark.parametrize("workload", [Workload(), STRICT, FAST], ids=["standard", "strict", "fast"])
def test_the_engine_that_is_made_ready_is_the_one_that_runs(tmp_path: Path, workload: Workload) -> None:
    warm_up(DEFAULT_LIMITS, workload)
    made = len(engine_settings._engines)
    warm_up(DEFAULT_LIMITS, workload)
    assert len(engine_settings._engines) == made


def test_a_strict_keep_has_no_fast_compiler() -> None:
    with pytest.raises(KeepfleetError, match="cannot have compiler fast with profile strict"):
        Settings(profile=Profile.STRICT, compiler=Compiler.FAST)


CATCHES = wasm("""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (tag $error (param i32)) (memory (export "memory") 1)
  (func $throws (param i32) (throw $error (local.get 0)))
  (func (export "_start") (local $caught exnref)
    (block $once (result i32 exnref)
      (try_table (catch_ref $error $once) (call $throws (i32.const 42))) unreachable)
    (local.set $caught) drop
    (block $again (result i32)
      (try_table (catch $error $again) (throw_ref (local.get $caught))) unreachable)
    (call $exit)))""")
"""An exception that is thrown, caught, thrown again by its reference, and caught again."""
COMPOSED = wasm("""(component
  (component $reader
    (core module $m (memory (export "memory") 1)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 8) (func (export "read") (param i32 i32)))
    (core instance $i (instantiate $m))
    (func (export "read") (param "text" string)
      (canon lift (core func $i "read") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))
  (component $writer
    (import "read" (func $read (param "text" string)))
    (core module $its-memory (memory (export "memory") 1))
    (core instance $l (instantiate $its-memory))
    (core func $lowered (canon lower (func $read) (memory (core memory $l "memory"))))
    (core module $m (import "" "read" (func $read (param i32 i32)))
      (func (export "run") (result i32) (call $read (i32.const 0) (i32.const 3)) i32.const 0))
    (core instance $i (instantiate $m (with "" (instance (export "read" (func $lowered))))))
    (func (export "run") (result (result)) (canon lift (core func $i "run"))))
  (instance $r (instantiate $reader))
  (instance $w (instantiate $writer (with "read" (func $r "read"))))
  (instance $command (export "run" (func $w "run")))
  (export "wasi:cli/run@0.2.0" (instance $command)))""")
"""A component of two, each with a memory, and a text that goes from one into the other."""


def test_exceptions_are_thrown_caught_and_thrown_again_by_their_reference(tmp_path: Path) -> None:
    with pytest.raises(GuestExit) as left:
        ran(tmp_path, CATCHES, Workload())
    assert left.value.code == 42


@pytest.mark.parametrize("workload", [STRICT, FAST], ids=["strict", "fast"])
def test_exceptions_are_off_where_the_optimizing_compiler_is_not_with_what_to_do(
    tmp_path: Path, workload: Workload
) -> None:
    with pytest.raises(KeepfleetError, match="leave out compiler fast and profile strict, or build it with") as refused:
        compiled(tmp_path, CATCHES, workload)
    assert refused.value.kind is ErrorKind.INVALID_MODULE


def of_core(fields: str, body: str = "") -> bytes:
    return wasm(f'(module {fields} (func (export "_start") {body}))')


def of_component(field: str) -> bytes:
    """A command with one thing more in it."""
    return wasm(f"""(component {field} (core module $m (func (export "r") (result i32) i32.const 0))
      (core instance $i (instantiate $m)) (func $run (result (result)) (canon lift (core func $i "r")))
      (instance $e (export "run" (func $run))) (export "wasi:cli/run@0.2.0" (instance $e)))""")


OFF = {
    "legacy_exceptions": (
        b"\0asm\1\0\0\0\1\4\1\x60\0\0\3\2\1\0\7\n\1\6_start\0\0\n\7\1\5\0\x06\x40\x0b\x0b",
        Workload(),
    ),
    "exception refs not supported": (of_core("(func (param exnref))"), FAST),
    "exceptions proposal not enabled": (of_core("(tag)"), STRICT),
    "threads must be enabled": (of_core("(memory 1 1 shared)"), Workload()),
    "threads support is not enabled": (of_core("(memory 1)", "atomic.fence"), Workload()),
    "shared-everything-threads": (of_core("(global (shared i32) (i32.const 0))"), Workload()),
    "memory64": (of_core("(memory i64 1)"), Workload()),
    "multiple memories": (of_core("(memory 1) (memory 1)"), Workload()),
    "gc feature": (of_core("(type (struct))"), Workload()),
    "`gc` proposal": (of_core("(rec (type (func)) (type (func)))"), Workload()),
    "gc support is not enabled": (of_core("", "(drop (ref.i31 (i32.const 0)))"), Workload()),
    "function references required": (of_core("(type $t (func)) (func (param (ref $t)))"), Workload()),
    "stack switching": (of_core("(type $f (func)) (type (cont $f))"), Workload()),
    "wide arithmetic": (of_core("", "i64.const 0 i64.const 0 i64.mul_wide_s drop drop"), Workload()),
    "custom page sizes": (of_core("(memory 1 (pagesize 1))"), Workload()),
    "relaxed SIMD": (of_core("", "v128.const i32x4 0 0 0 0 i32x4.relaxed_trunc_f32x4_s drop"), Workload()),
    "component model async feature": (of_component("(type (stream u8))"), Workload()),
    "component model error-context feature": (of_component("(type error-context)"), Workload()),
    "component model map feature": (of_component("(type (map string u32))"), Workload()),
    "component model fixed-length lists": (of_component("(type (list u8 4))"), Workload()),
}
"""What is off, by the part of the engine's words that is known for it: a module of it, for an engine without it."""


def test_each_feature_that_is_off_has_its_module_here() -> None:
    assert list(OFF) == [part for part, _ in advice._OF_FEATURES]


@pytest.mark.parametrize("part", OFF)
def test_what_uses_a_feature_that_is_off_is_refused_by_the_engine_s_words_with_what_to_build(
    tmp_path: Path, part: str
) -> None:
    module, workload = OFF[part]
    with pytest.raises(KeepfleetError) as refused:
        compiled(tmp_path, module, workload)
    assert refused.value.kind is ErrorKind.INVALID_MODULE
    assert part in refused.value.message + " ".join(refused.value.evidence)
    assert refused.value.message.endswith(advice.on_features(part))


def test_a_component_of_two_with_a_memory_each_runs(tmp_path: Path) -> None:
    assert ran(tmp_path, COMPOSED, Workload()) == (0, [])
    assert ran(tmp_path, COMPOSED, STRICT) == (0, [])
