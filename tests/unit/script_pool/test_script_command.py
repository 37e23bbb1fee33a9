"""QuickJS and MicroPython as WASI commands: run by wasmtime's own package, as any command is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import wasmtime

from app_loader.check.programs import words_of
from keep_protocol.program import Program
from script_pool.program.command import make, make_python
from script_pool.program.merging import join


@dataclass(frozen=True)
class Ran:
    """How a script ended, and what it wrote."""

    code: int
    out: str
    err: str


class Command:
    """The command of a language, compiled once."""

    def __init__(self, place: Path, module: bytes, language: str = "javascript", script: str = "main.js") -> None:
        self._place, self._language, self._script = place, language, script
        self.module_bytes = module
        config = wasmtime.Config()
        config.wasm_exceptions = language == "python"
        config.cranelift_opt_level = "none"
        self.engine = wasmtime.Engine(config)
        self.module = wasmtime.Module(self.engine, self.module_bytes)
        self._linker = wasmtime.Linker(self.engine)
        self._linker.define_wasi()

    def run(self, source: str, *arguments: str, given: bytes = b"") -> Ran:
        """Runs a script once, as a keep of 16 MiB does."""
        files = {name: self._place / name for name in ("in", "out", "err")}
        files["in"].write_bytes(given)
        wasi = wasmtime.WasiConfig()
        program = Program(self._language, self._script, source.encode())
        wasi.argv = [*words_of(program, 16 << 20), *arguments]
        wasi.stdin_file, wasi.stdout_file, wasi.stderr_file = (str(files[name]) for name in ("in", "out", "err"))
        store = wasmtime.Store(self.engine)
        store.set_wasi(wasi)
        start = self._linker.instantiate(store, self.module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        code = 0
        try:
            start(store)
        except wasmtime.ExitTrap as left:
            code = left.code
        store.close()
        return Ran(code, *(files[name].read_text() for name in ("out", "err")))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(tmp_path_factory.mktemp("command"), make())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(tmp_path_factory.mktemp("python"), make_python(), "python", "main.py")


def test_it_imports_wasi_alone_and_exports_its_entry(command: Command) -> None:
    module = command.module
    assert {item.module for item in module.imports} == {"wasi_snapshot_preview1"}
    assert [item.name for item in module.exports] == ["memory", "_start"]


@pytest.mark.parametrize(
    ("source", "ran"),
    [
        ("print('a', 1, [2, {b: null}], undefined)", Ran(0, 'a 1 [2,{"b":null}] undefined\n', "")),
        ("print(scriptArgs.join('|'))", Ran(0, "main.js|x|y z\n", "")),
        ("console.error('no'); write('out'); exit(7)", Ran(7, "out", "no\n")),
        ("exit()", Ran(0, "", "")),
        ("exit(100)", Ran(100, "", "")),
        ("#!/usr/bin/env keepctl\nwith ({sloppy: 1}) print(sloppy)", Ran(0, "1\n", "")),
        ("'use strict'; print(await Promise.resolve(3))", Ran(0, "3\n", "")),
        ("let x = 1; await 0; Promise.resolve().then(() => print('job'))", Ran(0, "job\n", "")),
        ("await new Promise(() => 0)", Ran(13, "", "the program waits for a promise that nothing will resolve\n")),
        ("throw 'text'", Ran(1, "", "uncaught text\n")),
        ("const nul = 'a\\0b'; print(nul.length)", Ran(0, "3\n", "")),
    ],
)
def test_a_script_runs_to_its_end(command: Command, source: str, ran: Ran) -> None:
    assert command.run(source, "x", "y z") == ran


def test_what_it_throws_has_the_scripts_own_lines(command: Command) -> None:
    for before in ("", "await 0;"):
        ran = command.run(f"function f() {{\n  null.x\n}}\n{before}\nf()")
        assert ran.code == 1
        assert ran.err.startswith("uncaught TypeError: cannot read property 'x' of null\n    at f (main.js:2:")
        assert "main.js:5:" in ran.err
        assert "native" not in ran.err
    assert "SyntaxError" in command.run("let a = ;").err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("async function f() { throw new Error('lost') }\nf(); print('on')", "Error: lost"),
        ("await 0; Promise.reject('text'); print('on')", "text"),
        ("Promise.reject(undefined); print('on')", "undefined"),
        ("Promise.reject(1.5); print('on')", "1.5"),
        ("Promise.reject(12n ** 40n); print('on')", str(12**40)),
        ("Promise.resolve().then(() => { throw 'a' + 1 }).finally(() => 0).then(() => 0); print('on')", "a1"),
        ("Promise.reject('lost'); print('on'); await new Promise(() => 0)", "lost"),
    ],
)  # fmt: skip
def test_a_rejection_without_a_handler_is_reported_and_ends_with_1(command: Command, source: str, said: str) -> None:
    ran = command.run(source)
    assert (ran.code, ran.out) == (1, "on\n")
    assert ran.err.startswith(f"uncaught (in promise) {said}\n")


@pytest.mark.parametrize(
    "source",
    [
        "const p = Promise.reject(1); await null; p.catch(() => 0)",
        "for (let i = 0; i < 20000; i++) try { await Promise.reject(new Error('a'.repeat(1000))) } catch {}",
        "async function f() { throw 1 }\nf().catch(() => 0)",
        "const all = []; for (let i = 0; i < 1000; i++) all.push(Promise.reject(i)); await Promise.allSettled(all)",
        "Promise.reject(1); exit(0)",
    ],
)
def test_one_that_is_handled_later_is_none(command: Command, source: str) -> None:
    assert command.run(source) == Ran(0, "", "")


def test_standard_input_is_read_by_lines_or_whole_across_any_cut(command: Command) -> None:
    text = "ä€😀\n" * 20_000 + "end"
    lines = "let n = 0, last; for (let l; (l = readline()) !== null; last = l) n++; print(n, last)"
    assert command.run(lines, given=text.encode()).out == "20001 end\n"
    whole = "const t = readAll(); print(t.length, readline(), readAll() === '')"
    assert command.run(whole, given=text.encode()).out == f"{len(text.encode('utf-16-le')) // 2} null true\n"
    assert command.run("print(readline())").out == "null\n"
    assert "standard input is not text in UTF-8" in command.run("readAll()", given=b"a\xff").err
    assert "standard input is not text in UTF-8" in command.run("readAll()", given="€".encode()[:2]).err


def test_nothing_of_its_own_can_be_called_or_changed_from_a_script(command: Command) -> None:
    hostile = """
Object.prototype.toString = Array.prototype.join = String.prototype.split = () => { throw 1 };
JSON.stringify = RegExp.prototype[Symbol.replace] = null;
print(Object.getOwnPropertyNames(globalThis).filter((n) => n.startsWith('__')).length);
print([1, 2]);
"""
    assert command.run(hostile).out == "0\n[1,2]\n"


def test_each_run_draws_random_numbers_of_its_own(command: Command) -> None:
    assert len({command.run("print(Math.random())").out for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("source", "ran"),
    [
        ("import sys\nprint(sys.argv, __name__)", Ran(0, "['main.py', 'x', 'y z'] __main__\n", "")),
        ("import sys\nsys.stderr.write('no\\n')\nsys.exit(7)", Ran(7, "", "no\n")),
        ("import sys\nsys.exit('no reason')", Ran(1, "", "no reason\n")),
        ("raise SystemExit", Ran(0, "", "")),
        ("import sys\nsys.exit(None)", Ran(0, "", "")),
        ("#!/usr/bin/env keepctl\nprint('é', 2 ** 70)", Ran(0, "é 1180591620717411303424\n", "")),
        ("x = bytearray(8 << 20)\nprint(len(x))", Ran(0, "8388608\n", "")),
    ],
)
def test_a_python_script_runs_to_its_end(python: Command, source: str, ran: Ran) -> None:
    assert python.run(source, "x", "y z") == ran


def test_a_python_script_reads_standard_input(python: Command) -> None:
    lines = "import sys\nfor line in sys.stdin: print(repr(line))\nprint(repr(sys.stdin.read()))"
    assert python.run(lines, given="é\n\nrest".encode()).out == "'\\xe9\\n'\n'\\n'\n'rest'\n''\n"
    assert python.run("print(input('name? '))", given=b"Ann\n").out == "name? Ann\n"


def test_a_traceback_has_the_python_scripts_own_lines_alone(python: Command) -> None:
    ran = python.run("def f():\n    return 1 / 0\n\nf()")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "Traceback (most recent call last):",
        '  File "main.py", line 4, in <module>',
        '  File "main.py", line 2, in f',
        "ZeroDivisionError: divide by zero",
    ]
    assert python.run("x = = 1").err.splitlines()[1:] == ['  File "main.py", line 1', "SyntaxError: invalid syntax"]


def test_a_python_script_has_no_host_functions(python: Command) -> None:
    module = wasmtime.Module(python.engine, python.module_bytes)
    assert {item.module for item in module.imports} == {"wasi_snapshot_preview1"}
    ran = python.run("import host\nhost.call('source', '')")
    assert (ran.code, ran.out) == (1, "")


def test_what_cannot_be_joined_is_refused(command: Command) -> None:
    guest = bytes(wasmtime.wat2wasm(
        '(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (memory 1) (table 1 funcref)'
        ' (func $f v128.const i64x2 0 0 drop) (export "f" (func $f)) (elem (i32.const 0) $f))'
    ))  # fmt: skip
    glue = bytes(wasmtime.wat2wasm('(module (import "guest" "f" (func $f)) (func (export "_start") call $f))'))
    with pytest.raises(ValueError, match="cannot join the modules: there is an instruction 0xfd"):
        join(guest, glue)
