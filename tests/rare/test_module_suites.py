"""The parser of modules against the engine: on WebAssembly's test suite, on binaryen's, and on thousands changed."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

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
