"""The pool with its JavaScript engine, as a customer's application has it: the examples of Jefe's repository, and
thousands of calls of which many loop, eat memory, throw or have their process killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from script_pool.client import Pool, ScriptError
from script_pool.decisions import Settings
from script_pool.engine.interface import Limits
from script_pool.pool import ScriptPool
from script_pool.protocol import Answer

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 600.0
RUN_SECONDS = 0.05
"""A loop's time; long enough for each other script on a busy machine, as they are known by what they answer."""


@pytest.fixture
async def scripts(scripts_cache: str) -> AsyncIterator[Pool]:
    async with Pool(options=("--time=1", "--memory=32", f"--cache={scripts_cache}", "--deadline=600")) as pool:
        yield pool


async def fails(pool: Pool, name: str, sandbox: dict[str, Any]) -> ScriptError:
    with pytest.raises(ScriptError) as caught:
        await pool.run(name, sandbox)
    return caught.value


async def test_the_examples_of_jefe(scripts: Pool) -> None:
    await scripts.add("geometry", "function area(r) { return Math.PI * r * r }\nresult = area(radius)")
    await scripts.add("simple", "greeting = 'hello ' + name")
    await scripts.add("infinite", "while (true) {}")
    await scripts.add("memory", "var all = []; while (true) { all.push(new Array(1000).fill(0)) }")
    assert await scripts.run("geometry", {"radius": 1}) == {"radius": 1, "result": 3.141592653589793}
    assert await scripts.run("simple", {"name": "you"}) == {"name": "you", "greeting": "hello you"}
    assert (await fails(scripts, "infinite", {})).reason == "time limit exceeded"
    assert (await fails(scripts, "memory", {})).reason in ("memory limit exceeded", "exception")
    assert await scripts.run("simple", {"name": "again"}) == {"name": "again", "greeting": "hello again"}


async def test_nothing_of_one_call_is_seen_by_the_next(scripts: Pool) -> None:
    await scripts.add(
        "leave",
        "globalThis.left = 1; Object.prototype.left = 1; Symbol.for('left').description; JSON.parse = null;"
        "Array.prototype.push = () => 'mine'; delete globalThis.Map; r = Math.random()",
    )
    await scripts.add(
        "look",
        "seen = [typeof left, typeof {}.left, typeof JSON.parse, [].push(1), typeof Map]; r = Math.random()",
    )
    drawn = set()
    for _ in range(20):
        drawn.add((await scripts.run("leave", {}))["r"])
        found = await scripts.run("look", {})
        drawn.add(found["r"])
        assert found["seen"] == ["undefined", "undefined", "function", 1, "function"]
    assert len(drawn) == 40


@pytest.mark.parametrize("calls", [600, pytest.param(10_000, marks=pytest.mark.heavy)])
async def test_among_loops_bombs_throws_and_crashes_every_other_call_is_right_and_each_is_answered_once(
    calls: int, scripts_cache: str
) -> None:
    """5 % of each; a crash is a child that is killed while others wait."""
    limits = Limits(wall_seconds=RUN_SECONDS, memory_bytes=8 << 20)
    settings = Settings(1, 2, queue=calls, deadline_seconds=SECONDS)
    pool = ScriptPool(settings, limits, say=lambda line: None, cache=scripts_cache)
    await pool.start()
    choose = random.Random(calls)
    answers: list[list[Answer]] = [[] for _ in range(calls)]
    kinds: list[str] = []
    done = asyncio.Event()

    def reply(number: int, answer: Answer) -> None:
        answers[number].append(answer)
        if kinds[number] == "good" and number in killing:
            pids = [pid for pid in pool.children.values() if pid > 0]
            if pids:
                with contextlib.suppress(ProcessLookupError):  # it has ended, which the pool hears in a moment
                    os.kill(choose.choice(pids), signal.SIGKILL)
        if all(answers):
            done.set()

    sources = {
        "good": "y = x * 2",
        "loop": "for (;;);",
        "bomb": "var a = 'x'.repeat(1000); for (;;) a += a",
        "throw": "null.x",
    }
    for name, source in sources.items():
        added: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        pool.add(name, source, "js", added.set_result)
        assert (await added).reason is None
    kinds += choose.choices([*sources], weights=[85, 5, 5, 5], k=calls)
    killing = {number for number in range(calls) if choose.random() < 0.06}
    for number, kind in enumerate(kinds):
        pool.run(kind, b'{"x":%d}' % number, lambda answer, number=number: reply(number, answer))  # type: ignore[misc]
    await done.wait()
    await pool.stop()

    assert {len(got) for got in answers} == {1}
    ends = Counter[tuple[str, str]]()
    for number, (kind, (answer,)) in enumerate(zip(kinds, answers, strict=True)):
        ends[kind, answer.reason or "done"] += 1
        if kind == "good" and answer.reason is None:
            assert answer.output == b'{"x":%d,"y":%d}' % (number, 2 * number)
    killed = sum(count for (_, reason), count in ends.items() if reason == "crashed")
    assert killed <= len(killing), ends
    assert {reason for kind, reason in ends if kind == "good"} <= {"done", "crashed", "time limit exceeded"}
    assert {reason for kind, reason in ends if kind == "loop"} <= {"time limit exceeded", "crashed"}
    assert {reason for kind, reason in ends if kind == "throw"} <= {"exception", "crashed", "time limit exceeded"}
    assert not any(reason == "done" for kind, reason in ends if kind != "good")
    assert ends["good", "done"] >= calls * 0.7, ends


PAGES = ("scripts", "from-jefe", "from-vm2", "from-isolated-vm")


def programs(language: str) -> list[tuple[str, str]]:
    """Each program of the how-tos, and what the page says it prints."""
    page = "\n".join((ROOT / f"docs/how-to/{page}.md").read_text(encoding="utf-8") for page in PAGES)
    pattern = rf"^```{language}\n(.*?)^```$\n+^```\n(.*?)^```$"
    return re.findall(pattern, page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("language", "command"), [("python", [sys.executable, "-c"]), ("javascript", ["node", "-e"]), ("sh", ["sh", "-c"])]
)
def test_the_how_tos_programs_print_what_it_says(
    language: str, command: list[str], scripts_cache: str, tmp_path: Path
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    script_pool = tmp_path / "script-pool"
    script_pool.write_text(f'#!/bin/sh\nexec {sys.executable} -m script_pool "$@"\n')
    script_pool.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "CACHE_DIRECTORY": scripts_cache,
    }
    found = programs(language)
    assert found
    for program, printed in found:
        done = subprocess.run([*command, program], capture_output=True, text=True, cwd=ROOT, env=environment)
        assert (done.stdout.replace("\r\n", "\n"), done.returncode) == (printed, 0), done.stderr


def test_the_how_to_for_language_models_runs_by_the_protocol(scripts_cache: str, tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/agents.md").read_text(encoding="utf-8")
    (program, printed), *_ = re.findall(r"^```python\n(.*?)^```$\n+^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    script_pool = tmp_path / "script-pool"
    path, home = (
        os.pathsep.join([os.environ["PYTHONPATH"], *sys.path]),
        f"CACHE_DIRECTORY={scripts_cache}",
    )  # the client passes little of our environment on
    script_pool.write_text(f'#!/bin/sh\n{home} PYTHONPATH={path} exec {sys.executable} -m script_pool "$@"\n')
    script_pool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.stdout, done.returncode) == (printed, 0), done.stderr
