"""What the pool needs of an engine, and what crosses between them: text as bytes, limits, results and faults.

Each run is in a fresh instance: nothing of one call is visible to the next.
Import rule: the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    NOT_INSTALLED = "not installed"
    """The language's engine is not there; the message says how to have it."""
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
    imports: tuple[str, ...] = ()
    """The scripts that this one imports, by name: a run is given them, and theirs."""
    functions: tuple[str, ...] = ()
    """The host functions that it may call, by name."""


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
"""A function of the application's that a guest waits for, as Python does: its name and the arguments, a JSON array;
returns the value as JSON. Raises HostCallFailed, or Fault to end the run."""


class HostCallFailed(Exception):
    """A host function that has no value: what the script sees thrown. `refused`: by the pool, or by its limits."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.message, self.refused = message, refused


@dataclass(frozen=True, slots=True)
class World:
    """What a run is given besides its input."""

    modules: Mapping[str, Script] = field(default_factory=dict)
    """By name: what the script imports, and what those do."""
    session: bytes | None = None
    """The memory that the session's last run left; None for its first."""
    keep: bool = False
    """Whether the run is one of a session: its memory is a part of its result."""
    clock: float | None = None
    """Milliseconds since 1970 that the guest's clock begins at; the host's own where None."""
    zone: bytes = b""
    """JSON: `[[from, minutes], …]`, in seconds since 1970 and minutes east of UTC, ascending; UTC where empty."""


class Suspended(Protocol):
    """A run that waits for host functions: what it asks for, and the instance it is in until it is parked."""

    @property
    def calls(self) -> bytes:
        """JSON of the calls that it has made since it last ran: `[[number, name, [argument, …]], …]`, perhaps none."""

    @property
    def seconds(self) -> float:
        """What it has run so far, waiting excluded."""

    def answer(self, answers: bytes) -> Result | Suspended:
        """Goes on with JSON of `[[number, true, value], [number, false, {"message": …, "refused": …}], …]`.
        Raises Fault."""

    def park(self) -> bytes:
        """The run as bytes, for `Engine.resume` in any process; the instance is let go. Raises Fault."""

    def close(self) -> None:
        """Lets the instance go."""


class Engine(Protocol):
    """One engine; it belongs to one process at a time and is called from one thread."""

    def warm(self) -> None:
        """Loads what every child needs, in the template process, before any fork; starts no thread."""

    def begin(self) -> None:
        """In the child, after it has locked itself: threads, stores. A lock binds the thread that takes it and what
        that starts, so that a thread of before would be free of it. No file can be opened any more, no library loaded,
        no memory made executable: all of that is for `warm`."""

    def prepare(self, name: str, source: str, language: str, limits: Limits, functions: tuple[str, ...] = ()) -> Script:
        """Compiles `source`, which may call these host functions. Raises Fault, as with Reason.SYNTAX_ERROR."""

    def run(
        self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None, world: World | None = None
    ) -> Result | Suspended:
        """Runs `script` with the input sandbox `input_text` (JSON) in a fresh instance, or that of a session.
        Raises Fault. `host`: for a language whose calls are plain ones; the other is suspended."""

    def resume(self, script: Script, parked: bytes, answers: bytes, limits: Limits, world: World) -> Result | Suspended:
        """Goes on with what was parked, as `answer` does, in `limits.wall_seconds`. Raises Fault."""

    def settle(self) -> None:
        """After an answer was sent: closes the instance it came from, and opens the next one."""
