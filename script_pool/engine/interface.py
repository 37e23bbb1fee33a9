"""What the pool needs of an engine, and what crosses between them: text as bytes, limits, results and faults.

Each run is in a fresh instance: nothing of one call is visible to the next.
Import rule: the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Reason(Enum):
    """Why a script has no result; the value is what a client reads as the reply's `reason`."""

    EXCEPTION = "exception"
    SYNTAX_ERROR = "syntax error"
    TIME_LIMIT = "time limit exceeded"
    MEMORY_LIMIT = "memory limit exceeded"
    OUTPUT_TOO_LARGE = "output too large"
    NOT_SERIALISABLE = "not serialisable"
    NESTED_TOO_DEEPLY = "nested too deeply"
    HOST_CALL_REFUSED = "host call refused"
    MALFORMED = "malformed request"
    """The input is not JSON. The pool has parsed it, so that this is rare."""
    CRASHED = "crashed"


class Fault(Exception):
    """A script that has no result, with the evidence: what was thrown, and where by the script's own line numbers."""

    def __init__(self, reason: Reason, name: str = "", message: str = "", stack: tuple[str, ...] = ()) -> None:
        super().__init__(f"{reason.value}: {name}: {message}" if name else f"{reason.value}: {message}")
        self.reason = reason
        self.name = name
        self.message = message
        self.stack = stack
        self.console: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Fault({self.reason.value}, {self.name!r}, {self.message!r})"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. The engine holds all of them; the pool stands behind the time and the process's memory."""

    wall_seconds: float = 1.0
    """0.01 to 60."""
    memory_bytes: int = 64 * 1024 * 1024
    """The guest's linear memory."""
    input_bytes: int = 5 * 1024 * 1024
    """As Jefe: one request."""
    output_bytes: int = 5 * 1024 * 1024
    console_bytes: int = 64 * 1024
    depth: int = 512
    """How deep the JSON of an input or an output may nest."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script that was prepared: `image` is the engine's own, a memory delta or the source, and crosses processes."""

    name: str
    language: str
    image: bytes
    digest: str
    """SHA-256 of the source, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left behind."""

    output_text: bytes
    """JSON in UTF-8, checked: no control byte is in it."""
    console: tuple[str, ...] = ()
    seconds: float = 0.0
    session: bytes | None = None
    """What the next run of the same session begins with, where one was asked for."""


HostCall = Callable[[str, bytes], bytes]
"""A function of the application's: its name and the arguments as JSON; returns JSON, or raises Fault."""


class Engine(Protocol):
    """One engine; it belongs to one process at a time and is called from one thread."""

    def warm(self) -> None:
        """Loads what every child needs, in the template process, before any fork; starts no thread."""

    def begin(self) -> None:
        """In the child, after it has locked itself: threads, stores. A lock binds the thread that takes it and what
        that starts, so that a thread of before would be free of it. No file can be opened any more, no library loaded,
        no memory made executable: all of that is for `warm`."""

    def prepare(self, name: str, source: str, language: str, limits: Limits) -> Script:
        """Compiles `source`. Raises Fault, as with Reason.SYNTAX_ERROR."""

    def run(self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None) -> Result:
        """Runs `script` with the input sandbox `input_text` (JSON) in a fresh instance. Raises Fault."""
