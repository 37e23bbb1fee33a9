"""A small engine for the pool's tests: it passes the contract test of the real one, and misbehaves when it is asked to.

A script is lines of words; each run starts from the input and nothing else. `set KEY JSON`, `double KEY`, `log TEXT`,
`throw NAME MESSAGE`; `loop` ends at the time limit, `eat` at that of memory, `large` and `deep` make such an output.
`hang`, `crash`, `fault` and `forge` are an engine that has failed: it notices no limit, aborts, dies of a signal, or
answers what it was not asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable

from script_pool.engine.interface import Fault, HostCall, Limits, Reason, Result, Script, World

_WORDS = frozenset(("set", "double", "log", "throw", "loop", "eat", "large", "deep", "hang", "crash", "fault", "forge"))


class FakeEngine:
    """The engine; see the module."""

    def __init__(self, cache: str | None = None) -> None:
        """It compiles nothing."""

    def warm(self) -> None:
        """Nothing is loaded."""

    def begin(self) -> None:
        """Nothing is started."""

    def prepare(self, name: str, source: str, language: str, limits: Limits, functions: tuple[str, ...] = ()) -> Script:
        """Checks each line's first word."""
        for number, line in enumerate(source.splitlines(), 1):
            word = line.split(" ", 1)[0]
            if word == "prepare-crash":
                os.abort()
            if word and word not in _WORDS:
                raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", f"unknown word {word!r}", (f"{name}:{number}",))
        data = source.encode("utf-8", "surrogatepass")
        return Script(name, language, data, hashlib.sha256(data).hexdigest(), (), functions)

    def settle(self) -> None:
        """Nothing is kept."""

    def resume(self, script: Script, parked: bytes, answers: bytes, limits: Limits, world: World) -> Result:
        """It suspends no run."""
        raise Fault(Reason.CRASHED, message="it has parked nothing")

    def run(
        self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None, world: World | None = None
    ) -> Result:
        """Runs line after line."""
        began = time.monotonic()
        sandbox, console = json.loads(input_text), list[str]()
        for number, line in enumerate(script.image.decode("utf-8", "surrogatepass").splitlines(), 1):
            try:
                _step(line, sandbox, console, limits, began)
            except Fault as fault:
                fault.stack = (f"{script.name}:{number}",)
                fault.console = tuple(console)
                raise
        text = json.dumps(sandbox, separators=(",", ":")).encode("ascii")
        if len(text) > limits.output_bytes:
            raise Fault(Reason.OUTPUT_TOO_LARGE, message=f"the output is over {limits.output_bytes} bytes")
        if text.count(b"[[[[") and text.count(b"[") > limits.depth:
            raise Fault(Reason.NESTED_TOO_DEEPLY, message="the output is nested too deeply")
        return Result(text, tuple(console), time.monotonic() - began)


def _step(line: str, sandbox: dict[str, object], console: list[str], limits: Limits, began: float) -> None:
    word, _, rest = line.partition(" ")
    if word == "set":
        key, _, value = rest.partition(" ")
        sandbox[key] = json.loads(value)
    elif word == "double":
        number = sandbox[rest]
        assert isinstance(number, (int, float))
        sandbox[rest] = number * 2
    elif word == "log":
        console.append(rest)
    elif word == "throw":
        name, _, message = rest.partition(" ")
        raise Fault(Reason.EXCEPTION, name, message)
    elif word == "large":
        sandbox["large"] = "x" * (limits.output_bytes + 1)
    elif word == "deep":
        sandbox["deep"] = json.loads("[" * 600 + "]" * 600)
    elif word:
        _misbehave(word, limits, began)


def _misbehave(word: str, limits: Limits, began: float) -> None:
    if word == "loop":
        while time.monotonic() - began < limits.wall_seconds:
            pass
        raise Fault(Reason.TIME_LIMIT, message=f"the run took {limits.wall_seconds:g} s")
    if word == "eat":
        held = bytearray(limits.memory_bytes)
        del held
        raise Fault(Reason.MEMORY_LIMIT, message=f"the script asked for over {limits.memory_bytes} bytes")
    ends: dict[str, Callable[[], object]] = {
        "hang": _hang,
        "crash": os.abort,
        "fault": lambda: signal.raise_signal(signal.SIGSEGV),
        "forge": lambda: os.write(3, b"\x0d" + bytes(27)),
    }
    ends[word]()


def _hang() -> None:
    while True:
        signal.pause()
