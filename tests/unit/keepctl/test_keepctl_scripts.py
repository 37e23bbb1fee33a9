"""`keepctl scripts`, typed against a pool on a Unix socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, scripts_cache: str) -> Iterator[str]:
    """Where a pool serves."""
    directory = tmp_path_factory.mktemp("pool")
    path = str(directory / "pool.sock")
    command = [
        sys.executable,
        "-m",
        "script_pool",
        "--socket",
        path,
        "--time=20",
        "--max=2",
        f"--cache={scripts_cache}",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as program:
        assert program.stderr is not None
        while b"listening on" not in program.stderr.readline():
            assert program.poll() is None
        yield path
        program.terminate()


def typed(path: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keepctl", "scripts", *words, "--socket", path]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, input=given)


def test_a_script_is_added_run_listed_and_removed(path: str, tmp_path: Path) -> None:
    (tmp_path / "discount.js").write_text("console.log('of', price); price *= 0.9\n")
    (tmp_path / "typed.ts").write_text("const n: number = 2; twice = n * 2\n")
    assert typed(path, "add", "discount", str(tmp_path / "discount.js")).returncode == 0
    assert typed(path, "add", "typed", str(tmp_path / "typed.ts")).returncode == 0
    ran = typed(path, "exec", "discount", '{"price": 100}')
    assert (json.loads(ran.stdout), ran.stderr) == ({"price": 90}, "of 100\n")
    assert json.loads(typed(path, "exec", "typed", "-", given="{}").stdout) == {"twice": 4}
    listed = json.loads(typed(path, "ls", "-o", "json").stdout)["scripts"]
    assert listed == [{"name": "discount", "language": "js"}, {"name": "typed", "language": "ts"}]
    rounds = json.loads(typed(path, "bench", "discount", '{"price": 1}', "--calls", "20", "-o", "json").stdout)[
        "rounds"
    ]
    assert [(each["in_flight"], each["refused"]) for each in rounds] == [(1, 0), (2, 0), (8, 0)]
    assert typed(path, "rm", "discount").returncode == 0
    gone = typed(path, "exec", "discount")
    assert gone.returncode == 1
    assert "cannot do what was asked of the pool: no such script" in gone.stderr


def test_why_a_script_was_not_taken_or_run_is_said_with_its_lines(path: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.js").write_text("let a = ;\n")
    assert "syntax error: SyntaxError" in typed(path, "add", "wrong", str(tmp_path / "wrong.js")).stderr
    (tmp_path / "throws.js").write_text("function f() {\n  null.x\n}\nf()\n")
    typed(path, "add", "throws", str(tmp_path / "throws.js"))
    said = typed(path, "exec", "throws")
    assert "exception: TypeError" in said.stderr
    assert "script:2:" in said.stderr
    assert json.loads(typed(path, "exec", "throws", "-o", "json").stdout)["reason"] == "exception"


def test_which_pool_must_be_said_once(path: str) -> None:
    done = typed(path, "ls", "--pool", "rules")
    assert done.returncode == 2
    assert "say which pool: --pool, or --socket" in done.stderr
    done = typed(os.path.join(path, "none"), "ls")
    assert (done.returncode, "cannot reach the pool at" in done.stderr) == (3, True)
