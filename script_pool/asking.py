"""What both clients of a pool say and read: requests and answers as lines, the application's functions, and the pool's
process. Import rule: the standard library alone.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Functions = Sequence[str] | Mapping[str, Mapping[str, float]]
"""The host functions that a script may call: names, or for each of them `calls`, `bytes` and `seconds` that differ."""
MAX_VALUE = 5 * 1024 * 1024
"""Bytes of a host function's value: a longer line the pool does not read."""
MAX_ANSWER = 64 * 1024 * 1024
"""One line of a pool: an output of 5 MiB, or what its operator has set."""
END_SECONDS = 30.0
"""From the end of its standard input to the end of a pool's process, which answers what it was asked first."""
START_SECONDS = 180.0
"""To the first answer of a pool that is started: the first one of an installation may compile its engine."""
PROGRAM = (sys.executable, "-m", "script_pool", "--stdio")
"""The pool of this installation."""


class PoolError(Exception):
    """The pool is not there, or has gone."""


class ScriptError(Exception):
    """A request that was not done: `reason` is the pool's word for why, the rest is its evidence."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.reason = str(answer.get("reason", ""))
        self.name = str(answer.get("name", ""))
        self.message = str(answer.get("message", ""))
        self.stack = tuple(map(str, answer.get("stack", ())))
        self.console = tuple(map(str, answer.get("console", ())))
        evidence = ": ".join(part for part in (self.name, self.message) if part)
        super().__init__(f"{self.reason}: {evidence}" if evidence else self.reason)


@dataclass(frozen=True, slots=True)
class Ran:
    """A run: the sandbox as the script left it, what it logged, and the seconds it took."""

    output: dict[str, Any]
    console: tuple[str, ...]
    seconds: float


def line_of(request: dict[str, object]) -> bytes:
    """The request's line."""
    return json.dumps(request, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\r\n"


def done(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer. Raises ScriptError for one that says that the request was not done."""
    if answer.get("ok") is not True:
        raise ScriptError(answer)
    return answer


def ran(answer: dict[str, Any]) -> Ran:
    """What an answer says of a run. Raises ScriptError."""
    done(answer)
    return Ran(answer["outputSandbox"], tuple(answer.get("console", ())), answer.get("timeTaken", 0.0) / 1000)


def add_request(name: str, code: str, language: str, functions: Functions) -> dict[str, object]:
    """The request that adds a script."""
    asked: dict[str, object] = {"cmd": "AddCode", "name": name, "code": code, "language": language}
    if functions:
        asked["hostFunctions"] = dict(functions) if isinstance(functions, Mapping) else list(functions)
    return asked


def run_request(
    name: str, sandbox: Mapping[str, Any], session: str | None, clock: float | None, zone: str | None
) -> dict[str, object]:
    """The request that runs one."""
    asked: dict[str, object] = {"cmd": "ExecCode", "name": name, "inputSandbox": dict(sandbox)}
    more = {"session": session, "clock": clock, "zone": zone}
    return asked | {key: value for key, value in more.items() if value is not None}


def result_line(asked: Mapping[str, Any], value: object) -> bytes:
    """The line that answers a call of a host function."""
    head = {"cmd": "HostResult", "id": asked["id"], "call": asked["hostCall"]["call"]}
    try:
        line = line_of({**head, "value": value})
    except (TypeError, ValueError, RecursionError) as error:
        return line_of({**head, "error": f"its value has no JSON: {error}"})
    return line if len(line) <= MAX_VALUE else line_of({**head, "error": f"its value has over {MAX_VALUE} bytes"})


def failure_line(asked: Mapping[str, Any], error: Exception) -> bytes:
    """The same for one that has raised. The script sees the kind of error and its message."""
    message = f"{type(error).__name__}: {error}"[:4096]
    return line_of({"cmd": "HostResult", "id": asked["id"], "call": asked["hostCall"]["call"], "error": message})


class Offered:
    """The application's functions, by name."""

    def __init__(self) -> None:
        self._known: dict[str, Callable[..., Any]] = {}

    def offer(self, function: Function | None, name: str | None) -> Any:
        """As a decorator, with a name or without one."""
        if function is None:
            return lambda given: self.offer(given, name)
        self._known[name or function.__name__] = function
        return function

    def find(self, asked: Mapping[str, Any]) -> Callable[..., Any]:
        """What a script calls. Raises LookupError."""
        name = asked["hostCall"]["name"]
        if name not in self._known:
            raise LookupError(f"the application has no function {name}")
        return self._known[name]


def answer_of(line: bytes) -> dict[str, Any]:
    """An answer, or a call of a host function. Raises PoolError."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PoolError(f"cannot read the pool's answer: {error}") from error
    if not isinstance(answer, dict):
        raise PoolError("cannot read the pool's answer: it is no object")
    if not isinstance(answer.get("id", 0), int | None):
        raise PoolError("cannot read the pool's answer: its id is no number")
    return answer


def connect(path: str | None, program: Sequence[str]) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    """A connection, and the process that serves it where there is one of our own. Raises PoolError."""
    if path is not None:
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(path)
        except OSError as error:
            made.close()
            raise PoolError(f"cannot reach the pool at {path}: {error.strerror}") from error
        return made, None
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            started = subprocess.Popen(program, stdin=theirs.fileno(), stdout=theirs.fileno())
        except OSError as error:
            ours.close()
            raise PoolError(f"cannot start a pool: {program[0]}: {error.strerror}") from error
    return ours, started


def await_end(program: subprocess.Popen[bytes]) -> None:
    """Waits for the process, which answers what it was asked first, and kills it where that takes too long."""
    try:
        program.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
