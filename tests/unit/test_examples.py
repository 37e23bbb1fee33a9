"""The examples' checked-in modules are what their sources give, and do what the README says."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import wasmtime

from keepctl.manifest.reading import read_job

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
APPLICATIONS = ("programs", "codelets-forwarder")
"""What is no workload: what fetches real programs, and a program of the host."""
WAT = sorted(EXAMPLES.glob("*/*.wat"))
COMPILED = sorted(path for path in EXAMPLES.glob("*/*") if path.suffix in (".c", ".rs", ".ts"))
NOT_CHECKED_IN = sorted(path for path in EXAMPLES.glob("*/*.py") if path.parent.name not in APPLICATIONS)
MANIFESTS = sorted(path for path in EXAMPLES.glob("*/*.yaml") if path.parent.name not in APPLICATIONS)
"""The programs that others wrote have tests of their own (tests/rare/test_real_programs.py)."""
LARGEST_BYTES = 3 << 20
"""Of what is checked in."""


def run(name: str, tmp_path: Path) -> tuple[str, str]:
    """What an example printed, and how it ended."""
    engine = wasmtime.Engine()
    linker, store, wasi = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    wasi.stdout_file = str(tmp_path / "out")
    store.set_wasi(wasi)
    linker.define_wasi()
    exports = linker.instantiate(store, wasmtime.Module.from_file(engine, str(EXAMPLES / name))).exports(store)
    main = exports.get("_start") or exports[""]
    assert isinstance(main, wasmtime.Func)
    try:
        end = f"returned {main(store)}"
    except wasmtime.ExitTrap as exit:
        end = f"exited {exit.code}"
    except wasmtime.Trap as trap:
        end = f"trapped: {trap.trap_code}"
    return (tmp_path / "out").read_text(), end


@pytest.mark.parametrize("source", WAT, ids=lambda path: path.parent.name)
def test_a_wat_example_is_byte_for_byte_what_its_source_gives(source: Path) -> None:
    assert bytes(wasmtime.wat2wasm(source.read_text())) == source.with_suffix(".wasm").read_bytes()


def test_the_build_script_finds_no_difference() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "build"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(WAT) + len(COMPILED) + len(NOT_CHECKED_IN)


def test_the_build_script_finds_a_difference(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "build").write_bytes((EXAMPLES / "build").read_bytes())
    (tmp_path / "x/x.wat").write_text("(module)")
    (tmp_path / "x/x.wasm").write_bytes(b"\0asm\1\0\0\0\0")
    command = [sys.executable, str(tmp_path / "build"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "x: DIFFERENT from what its source gives\n")


CLANG = """#!/bin/sh
case "$*" in
  --version) echo "Debian clang version 14.0.6" ;;
  *smallest*) {smallest} ;;
  *) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("smallest", "status", "said"),
    [("exit 1", 0, "x: not compared: Debian clang"), ('while [ "$1" != -o ]; do shift; done; echo >"$2"', 1, "")],
)
def test_a_compiler_without_its_library_is_no_difference_and_a_source_it_cannot_build_is_an_error(
    tmp_path: Path, smallest: str, status: int, said: str
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "build").write_bytes((EXAMPLES / "build").read_bytes())
    (tmp_path / "x/x.c").write_text("int main(void) { return 0; }")
    (tmp_path / "x/x.wasm").write_bytes(b"")
    clang = tmp_path / "bin/clang"
    clang.parent.mkdir()
    clang.write_text(CLANG.format(smallest=smallest))
    clang.chmod(0o755)
    command = [sys.executable, str(tmp_path / "build"), "--check"]
    env = {"PATH": f"{clang.parent}:/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout[: len(said)]) == (status, said)
    assert ("cannot build" in done.stderr) == (status == 1)


def test_every_source_has_its_module_and_stands_in_the_readme() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    for source in [*WAT, *COMPILED]:
        assert source.with_suffix(".wasm").stat().st_size <= LARGEST_BYTES
    for source in [*WAT, *COMPILED, *NOT_CHECKED_IN]:
        assert f"| `{source.parent.name}` |" in readme


@pytest.mark.parametrize("source", [*COMPILED, *NOT_CHECKED_IN], ids=lambda path: path.parent.name)
def test_the_readme_has_each_compiler_s_command_as_the_build_script_has_it(source: Path) -> None:
    script = runpy.run_path(str(EXAMPLES / "build"))
    compiler = script["COMPILERS"][source.suffix]
    readme = (EXAMPLES / "README.md").read_text()
    (command,) = (line for line in readme.splitlines() if f"{compiler.program} -" in line and " -o " in line)
    assert " ".join([compiler.program, *compiler.flags, "-o"]) in command


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.parent.name)
def test_a_manifest_names_its_example_and_limits_it(manifest: Path) -> None:
    job = read_job(str(manifest))
    assert (job.name, job.module) == (manifest.parent.name, str(manifest.with_suffix(".wasm")))
    assert job.limits["wall_seconds"] <= 30
    assert job.limits["memory_bytes"] <= 256 << 20


def test_every_example_with_limits_to_break_has_a_manifest() -> None:
    without = {source.parent.name for source in [*WAT, *COMPILED]} - {manifest.parent.name for manifest in MANIFESTS}
    workloads = {name for name in without if not name.startswith("codelet-")}
    assert workloads == {"hello-c", "hello-wat", "return-1", "exit-3"}


@pytest.mark.parametrize(
    ("name", "output", "end"),
    [
        ("hello-wat/hello.wasm", "Hello from WAT, inside a keep!\n", "returned None"),
        ("return-1/return-1.wasm", "", "returned 1"),
        ("exit-3/exit-3.wasm", "", "exited 3"),
        ("trap-wat/trap.wasm", "", "trapped: TrapCode.MEMORY_OUT_OF_BOUNDS"),
    ],
)
def test_an_example_does_what_it_is_for(name: str, output: str, end: str, tmp_path: Path) -> None:
    assert run(name, tmp_path) == (output, end)


def test_the_c_example_greets_and_finds_no_file_of_the_host(tmp_path: Path) -> None:
    output, end = run("hello-c/hello.wasm", tmp_path)
    assert output.startswith("Hello from C, inside a keep!\nIt is 20")
    assert "I cannot open /etc/passwd" in output
    assert end == "returned None"


def test_the_unknown_import_is_valid_and_cannot_be_linked(tmp_path: Path) -> None:
    with pytest.raises(wasmtime.WasmtimeError, match=r"unknown import.*open_the_door"):
        run("unknown-import/unknown-import.wasm", tmp_path)
