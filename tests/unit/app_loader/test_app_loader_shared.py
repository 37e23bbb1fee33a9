"""Compiled code from the cache is mapped: every process that runs one module has the same pages of it, and may write
to none of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from keep_protocol.compiling import VARIABLE, Job
from module_store.artifacts import Artifact, Artifacts
from module_store.sealing import Key
from tests.unit.app_loader.app_loader_process import wasm

ROOT = Path(__file__).resolve().parents[3]
COMPILER = ROOT / "app_loader/compile/__main__.py"
DATA_BYTES = 2 << 20
PROGRAM = f"""(module
  (memory (export "memory") 64)
  (data (i32.const 65536) "{"0123456789abcdef" * (DATA_BYTES // 16)}")
  (func (export "_start")
    (if (i32.ne (i32.load8_u (i32.const 65537)) (i32.const 49)) (then unreachable))
    (i32.store (i32.const 65536) (i32.const 1))))"""
RUNNING = """
import os, sys
from app_loader.engine.compiled import Module
from app_loader.engine.settings import Settings, make_engine
from app_loader.engine.store import Linker, Store
engine = make_engine(Settings(images=True, stack_bytes=2 << 20))
module = Module.load(engine, int(sys.argv[1]))
linker, store = Linker(engine), Store(engine)
instance = linker.instantiate(store, module)
store.call(store.export(instance, "_start"))
print("ran", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Iterator[Artifact]:
    """PROGRAM, compiled as a unit does it, and opened from the cache."""
    module = tmp_path / "module.wasm"
    module.write_bytes(wasm(PROGRAM))
    with Artifacts(str(tmp_path / "artifacts")) as cache, cache.scratch() as scratch, module.open() as source:
        environment = {VARIABLE: Job().to_text()}
        command = [sys.executable, "-I", str(COMPILER)]
        subprocess.run(command, check=True, stdin=source, stdout=scratch, env=environment)
        made = cache.put(Key("sha256:" + "1" * 64, "e" * 64), scratch)
        if not cache.maps_code:
            pytest.skip("the test's own directory is mounted with noexec")
        yield made
        os.close(made.descriptor)


@contextmanager
def running(artifact: Artifact) -> Iterator[int]:
    """A process that has run the program, and waits; its process ID."""
    command = [sys.executable, "-c", RUNNING, str(artifact.descriptor)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[artifact.descriptor], text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ran\n"
        yield process.pid
        process.communicate()


def mapped(pid: int, name: str) -> dict[str, int]:
    """Sums of what the kernel counts of a file's mappings, in kB; and how many are both writable and shared."""
    sums: dict[str, int] = {"writable shared": 0}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = name in line
            sums["writable shared"] += inside and line.split()[1].startswith("rw-s")
        elif inside and (match := re.fullmatch(r"(\w+): +([0-9]+) kB", line)):
            sums[match[1]] = sums.get(match[1], 0) + int(match[2])
    return sums


def test_two_processes_share_the_pages_of_code_and_of_a_memory_s_first_contents(artifact: Artifact) -> None:
    with ExitStack() as stack:
        pids = [stack.enter_context(running(artifact)) for _ in range(2)]
        for pid in pids:
            sums = mapped(pid, artifact.key.name)
            assert sums["Shared_Clean"] + sums["Shared_Dirty"] > 0  # dirty on a tmpfs, which has no disk behind it
            own = sums["Private_Clean"] + sums["Private_Dirty"] - sums["Anonymous"]
            assert own <= 64, "of two megabytes: all that it has read is the other's, too"
            assert sums["Anonymous"] <= 64, "one page of the memory that it wrote to, and what was relocated"
            assert sums["writable shared"] == 0


def test_what_one_process_writes_to_its_memory_is_in_no_other_s_and_not_in_the_file(artifact: Artifact) -> None:
    before = os.pread(artifact.descriptor, artifact.size, 0)
    with running(artifact), running(artifact):
        assert os.pread(artifact.descriptor, artifact.size, 0) == before


def test_a_process_that_holds_the_descriptor_cannot_open_it_for_writing_unless_it_is_the_owner_s(
    artifact: Artifact,
) -> None:
    assert os.fstat(artifact.descriptor).st_mode & 0o222 == 0
