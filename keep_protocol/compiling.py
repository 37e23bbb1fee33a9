"""A compilation in a unit of its own: what the manager asks of it, what it reports, and what its end means. Pure.

The module is its standard input, the file for the compiled code its standard output, and its report, one line, goes to
its standard error, where the last words of what died are too. It opens nothing by name.
Import rule: light modules of keep_protocol alone.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from keep_protocol import strict_json
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Record, Whole, Word, check, field, invalid, refuse_unknown, table_of
from keep_protocol.limits import MIB
from keep_protocol.spec import Compiler, Profile, check_engine

VARIABLE = "KEEPFLEET_COMPILE"
"""What of the unit's environment says what is to be done."""
OVERHEAD_BYTES = 128 * MIB
"""What the unit has above the compiler's own memory: interpreter and library, the module and the result as they are
mapped. A little wider on purpose, so that the inner limit speaks first, with a reason."""
WALL_FACTOR, WALL_SPARE_SECONDS = 3, 60
"""Wall clock by processor time: a busy host gives the compiler a third, and a minute more for its start. Over it, the
unit is ended, which says nothing of the module."""
MAX_REPORT_BYTES = 64 * 1024
MAX_EVIDENCE_LINES, MAX_EVIDENCE_LINE = 20, 200
"""Of what a compiler that died wrote last."""
MAX_MESSAGE = 1000
_REPORTED = (ErrorKind.INVALID_MODULE, ErrorKind.TOO_COMPLEX, ErrorKind.NO_SPACE, ErrorKind.ISOLATION_FAILURE)
"""What a compiler may say that it ended for; anything else is a fault."""
_WORD = r"[a-z_]{1,16}=[a-z0-9]{1,16}"
_PANIC = "panicked at "
"""wasmtime's words for a fault of its own; what was wrong stands in the next line."""
_NO_MEMORY = re.compile("out.of.memory")
"""Among them where memory was what it lacked."""
_BY_THE_MODULE = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
"""How a compiler ends that gets no more memory, or meets its own fault; any other signal came from outside."""


class Job(Record):
    """One compilation. seconds: of processor time; memory_bytes: private memory.

    The defaults are three times what the largest of the programs needs that docs/benchmarks.md lists.
    """

    profile: Profile = field(Word(Profile), default=Profile.STANDARD, about="what runs it")
    compiler: Compiler = field(Word(Compiler), default=Compiler.OPTIMIZING, about="what compiles it")
    seconds: int = field(Whole(1, 3600), default=240, about="how much processor time that may use")
    memory_bytes: int = field(
        Whole(256 * MIB, 16 * 1024 * MIB), default=1536 * MIB, about="how much memory that may use, in bytes"
    )

    def _check(self) -> None:
        check_engine(self.profile, self.compiler)

    def to_text(self) -> str:
        """The job in letters, digits, `=`, `_` and commas alone."""
        return ",".join(f"{name}={value}" for name, value in self.to_wire().items())

    @property
    def unit_memory_bytes(self) -> int:
        """MemoryMax= of its unit."""
        return self.memory_bytes + OVERHEAD_BYTES

    @property
    def wall_seconds(self) -> int:
        """When it has taken too long."""
        return self.seconds * WALL_FACTOR + WALL_SPARE_SECONDS


def read_job(environment: Mapping[str, str]) -> Job:
    """The job in `environment`. Raises KeepfleetError(BAD_REQUEST)."""
    text = environment.get(VARIABLE, "")
    if not re.fullmatch(rf"{_WORD}(?:,{_WORD}){{0,7}}", text):
        raise invalid(VARIABLE, "it must be pairs like seconds=120, separated by commas")
    pairs: dict[str, object] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        pairs[name] = value
    rows = table_of(Job)
    refuse_unknown(pairs, list(rows), VARIABLE)
    for name, word in pairs.items():
        if isinstance(rows[name].type, Whole):
            pairs[name] = int(str(word)) if str(word).isdecimal() else word
    return Job(**{name: check(rows[name], word, VARIABLE) for name, word in pairs.items()})


def encode_report(result: str | KeepfleetError) -> bytes:
    """The line that reports a refusal, or what the owner of a module that can run should know."""
    value = {"error": result.to_wire()} if isinstance(result, KeepfleetError) else {"note": result}
    return strict_json.dumps(value) + b"\n"


def read_report(data: bytes) -> str | KeepfleetError | None:
    """What a compiler has reported, of all that it wrote; None where it did not come to that.

    What it wrote may be a stranger's: it is bounded, and becomes no more than words.
    """
    last = data[:MAX_REPORT_BYTES].rstrip(b"\n").rpartition(b"\n")[2]
    try:
        value = strict_json.loads_object(last, MAX_REPORT_BYTES, "the compiler's report")
    except KeepfleetError:
        return None
    if "error" in value:
        error = error_from_wire(value["error"])
        kind = error.kind if error.kind in _REPORTED else ErrorKind.INTERNAL
        lines = tuple(_line(line) for line in error.evidence[:MAX_EVIDENCE_LINES])
        return KeepfleetError(kind, _plain(error.message, MAX_MESSAGE), lines)
    note = value.get("note")
    return _plain(note, MAX_MESSAGE) if isinstance(note, str) else None


class End(Enum):
    """How a unit's main process ended, as systemd says it."""

    EXITED = "exited"
    KILLED = "killed"
    MEMORY = "memory"
    TIMEOUT = "timeout"


def refusal_of_end(end: End, status: int, job: Job, said: bytes) -> KeepfleetError:
    """Why a compiler that ended so, with this exit status or by this signal, and wrote `said`, has no result."""
    text = said[:MAX_REPORT_BYTES].decode("ascii", "backslashreplace")
    lines = tuple(_line(line) for line in text.splitlines() if line)[-MAX_EVIDENCE_LINES:]
    if end is End.TIMEOUT:
        return KeepfleetError(
            ErrorKind.UNAVAILABLE,
            f"cannot compile the module: that is not done after {job.wall_seconds} s, which says nothing of the "
            "module; the host is too busy: try again",
        )
    if end is End.KILLED and status == signal.SIGXCPU:
        return too_complex(f"takes more than {job.seconds} s of processor time")
    if end is End.MEMORY:
        return too_complex(f"takes more than {job.memory_bytes >> 20} MiB of memory")
    why = text.partition(_PANIC)[2].partition("\n")[2].partition("\n")[0]
    if end is End.KILLED and status == signal.SIGABRT and why and not _NO_MEMORY.search(why):
        return KeepfleetError(
            ErrorKind.INVALID_MODULE,
            f"cannot take the module: the compiler fails on it, which is a fault of wasmtime's: {_line(why)}",
            lines,
        )
    if end is End.KILLED and status in _BY_THE_MODULE:
        name = signal.Signals(status).name
        return too_complex(f"takes more than {job.memory_bytes >> 20} MiB of memory (it ended by {name})", lines)
    if end is End.KILLED:
        return KeepfleetError(
            ErrorKind.UNAVAILABLE,
            f"cannot compile the module: the compiler was killed from outside (signal {status}), which says nothing "
            "of the module; the host may be out of memory: try again",
        )
    return KeepfleetError(ErrorKind.INTERNAL, f"cannot compile the module: the compiler ended with {status}", lines)


def too_complex(how: str, evidence: tuple[str, ...] = ()) -> KeepfleetError:
    """The refusal of a module that cannot be compiled within the limits."""
    return KeepfleetError(ErrorKind.TOO_COMPLEX, f"cannot take the module: compiling it {how}", evidence)


def _line(text: str) -> str:
    return _plain(text, MAX_EVIDENCE_LINE)


def _plain(text: str, longest: int) -> str:
    """Printable ASCII alone."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:longest])
