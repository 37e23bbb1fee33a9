"""The parser of modules against the engine: on WebAssembly's test suite, on binaryen's, and on thousands changed."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from benchmarks.modules import leb128
from tests.fakes import engine_opinion
from tests.rare.hosts import in_machines_network
from tests.unit.module_store.modules import COMPONENT, FULL

LARGEST_BYTES = 1 << 20
"""The engine compiles what it takes, to say what it imports: a large one takes seconds, and shows nothing else."""
PARTS = [(5, 10), pytest.param(1, 1, marks=pytest.mark.heavy)]
"""One file in five, and at least a tenth of the modules; the heavy lane reads all.

By name, since neighbours in a suite are about one instruction or section.
"""
CHANGES = 10_000
"""Some ten at each byte of the two, which have 468 and 517; the heavy lane tries ten times as many."""
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|;;[^\n]*|\(;.*?;\)|[()]|[^\s()";]+', re.DOTALL)


@pytest.fixture(scope="module")
def suites() -> Path:
    made = in_machines_network("module-suites")
    if made.returncode == os.EX_UNAVAILABLE:
        pytest.skip(made.stderr.splitlines()[-1])
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


def _modules(text: str) -> Iterator[str]:
    """Every `(module …)` of a script, also those inside an assertion."""
    depth, begun = 0, -1
    tokens = list(_TOKEN.finditer(text))
    for token, following in zip(tokens, tokens[1:] + tokens[-1:], strict=True):
        if token[0] == "(":
            depth += 1
            if begun < 0 and following[0] == "module":
                begun, outside = token.start(), depth - 1
        elif token[0] == ")":
            depth -= 1
            if begun >= 0 and depth == outside:
                yield text[begun : token.end()]
                begun = -1


def _in_binary(text: str) -> bytes | None:
    """A module's binary form; None for text that is meant to be wrong."""
    try:
        return bytes(wasmtime.wat2wasm(text))
    except wasmtime.WasmtimeError:
        return None


@pytest.mark.parametrize(("one_in", "fewer"), PARTS)
def test_each_module_of_the_suites_is_read_as_the_engine_reads_it(suites: Path, one_in: int, fewer: int) -> None:
    taken = refused = 0
    for path in sorted(suites.rglob("*.wasm"))[::one_in]:
        if path.stat().st_size <= LARGEST_BYTES:
            valid = engine_opinion.agree(path.read_bytes())
            taken, refused = taken + valid, refused + (not valid)
    assert taken > 2500 / fewer and refused > 4500 / fewer, (taken, refused)


@pytest.mark.parametrize(("one_in", "fewer"), PARTS)
def test_each_module_in_a_script_of_the_suites_is_read_as_the_engine_reads_it(
    suites: Path, one_in: int, fewer: int
) -> None:
    taken = refused = 0
    for path in sorted(suites.rglob("*.wast"))[::one_in]:
        if path.stat().st_size > LARGEST_BYTES:
            continue
        for text in _modules(path.read_text(encoding="utf-8", errors="replace")):
            data = _in_binary(text)
            if data is not None:
                valid = engine_opinion.agree(data)
                taken, refused = taken + valid, refused + (not valid)
    assert taken > 2500 / fewer and refused > 2500 / fewer, (taken, refused)


# --- wabt's tests, which write modules down byte by byte, or as text --------------------------------------------------


class Written:
    """The modules of wabt's `test/binary`, in the language of its gen-wasm.py; `names`: what words stand for there."""

    def __init__(self, names: dict[str, int | tuple[int, ...]]) -> None:
        self._names = names

    def module(self, text: str) -> bytes:
        """Its bytes. Raises KeyError, ValueError for what is not in this language."""
        code = re.sub(r"\(;.*?;\)", "", text, flags=re.DOTALL)
        tokens = [found[0] for found in _PIECE.finditer(re.sub(r";;[^\n]*", "", code))]
        data, rest = self._data(tokens)
        if rest:
            raise ValueError(rest[0])
        return data

    def _data(self, tokens: list[str]) -> tuple[bytes, list[str]]:
        """What stands up to the end of a list, and what comes behind that."""
        found = bytearray()
        while tokens and tokens[0] not in "]}":
            word, following = tokens[0], tokens[1:2]
            if following == ["["]:  # named for people alone
                data, tokens = self._data(tokens[2:])
                found += data
                tokens = tokens[1:]
            elif word == "section":
                data, behind = self._data(tokens[tokens.index("{") + 1 :])
                name = tokens[2]
                if name[0] in "'\"":
                    code, data = 0, _counted(name[1:-1].encode()) + data
                else:
                    code = int(self._names[name])  # type: ignore[arg-type]  # a number, as every section's code
                found += bytes([code]) + _counted(data)
                tokens = behind[1:]
            elif word == "func":
                data, tokens = self._data(tokens[2:])
                found += _counted(data + b"\x0b")
                tokens = tokens[1:]
            elif following == ["("]:
                found += _value(word, tokens[2])
                tokens = tokens[4:]
            else:
                found += self._plain(word)
                tokens = tokens[1:]
        return bytes(found), tokens

    def _plain(self, word: str) -> bytes:
        if word[0] in "'\"":
            return word[1:-1].encode()
        value = self._names[word] if word[0].isalpha() else int(word, 0)
        return bytes(value) if isinstance(value, tuple) else bytes([value])


_PIECE = re.compile(r"'[^']*'|\"[^\"]*\"|-?0[xX][0-9a-fA-F]+|-?[0-9.]+(?:[eE]-?[0-9]+)?|[a-zA-Z][\w./]*|[][(){}]")


def _counted(data: bytes) -> bytes:
    return leb128(len(data)) + data


def _value(kind: str, text: str) -> bytes:
    """What `str("x")`, `leb_u32(1)` and the like stand for."""
    if kind == "str":
        return _counted(text[1:-1].encode())
    if kind in ("f32", "f64"):
        return struct.pack("<f" if kind == "f32" else "<d", float(text))
    number = int(text, 0)
    if kind == "leb_u32":
        return leb128(number)
    if kind not in ("leb_i32", "leb_i64"):
        raise ValueError(kind)
    encoded = bytearray()
    while True:
        low, number = number & 0x7F, number >> 7
        if (number == 0 and not low & 0x40) or (number == -1 and low & 0x40):
            return bytes([*encoded, low])
        encoded.append(low | 0x80)


def _written(suites: Path) -> Iterator[tuple[Path, bytes]]:
    """Every module of wabt's that is written byte by byte."""
    (generator,) = suites.glob("wabt-*/test/gen-wasm.py")
    tree = ast.parse(generator.read_text(encoding="utf-8"))
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "NAMED_VALUES"
    )
    for path in sorted(generator.parent.rglob("*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if re.match(r";;; TOOL: run-(?:gen-wasm|objdump-gen-wasm)", text):
            with contextlib.suppress(KeyError, ValueError, IndexError):  # wabt's own test of what is no such file
                yield path, Written(names).module(text)


def test_each_module_that_wabt_writes_byte_by_byte_is_read_as_the_engine_reads_it(suites: Path) -> None:
    opinions = {path: engine_opinion.agree(data) for path, data in _written(suites)}
    assert len(opinions) > 90
    assert sum(not valid for path, valid in opinions.items() if path.name.startswith("bad-")) > 55


@pytest.mark.parametrize(("one_in", "fewer"), PARTS)
def test_each_module_in_a_text_of_wabt_s_is_read_as_the_engine_reads_it(suites: Path, one_in: int, fewer: int) -> None:
    taken = refused = 0
    for path in sorted(suites.glob("wabt-*/test/**/*.txt"))[::one_in]:
        for text in _modules(path.read_text(encoding="utf-8", errors="replace").partition("(;; STD")[0]):
            data = _in_binary(text)
            if data is not None:
                valid = engine_opinion.agree(data)
                taken, refused = taken + valid, refused + (not valid)
    assert taken > 250 / fewer and refused > 50 / fewer, (taken, refused)


def _changed(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(8, min(len(changed), chance.choice((60, 300, 20_000))))
        length = chance.randint(0, 3)
        changed[at : at + length] = chance.randbytes(chance.randint(0, 3))
    return bytes(changed)


@pytest.mark.parametrize(("seed", "times"), [(0, 1), pytest.param(1, 10, marks=pytest.mark.heavy)])
def test_changed_modules_and_components_are_read_as_the_engine_reads_them(seed: int, times: int) -> None:
    chance = random.Random(seed)
    for _ in range(times * CHANGES):
        if chance.random() < 0.7:
            engine_opinion.agree(_changed(FULL, chance))
        else:
            engine_opinion.agree_on_component(_changed(COMPONENT, chance))
