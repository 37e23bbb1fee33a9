"""What of a core module is called, and whether it can be: its imports, its entry, the entry's arguments.

Arguments come as text and become numbers by the export's signature: strict, and refused with a reason.
"""

from __future__ import annotations

import struct

from app_loader.check import advice
from app_loader.engine.compiled import Module
from app_loader.engine.foreign import EngineError
from app_loader.engine.store import Linker, Store
from app_loader.limits import MAX_EVIDENCE_LINE, MAX_EVIDENCE_LINES, MAX_EXPORTS, MAX_IMPORTS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.patterns import matches
from keep_protocol.workload import Workload

COMMAND, DEFAULT = "_start", ""
"""What is called where no export is asked for: a command's start function, else the export without a name, as the
original did."""
INITIALIZE = "_initialize"
"""A reactor's own preparation (WASI application ABI), called before any export but a command's."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from app_loader.check.outline import CoreOutline
else:
    Protocol = object

_NO_ARGUMENTS = "a command's arguments are its argv"
INTEGER_BITS = {"i32": 32, "i64": 64}
FLOAT_FORMATS = {"f32": "<f", "f64": "<d"}
NUMBERS = (*INTEGER_BITS, *FLOAT_FORMATS)
"""The types a value can be written in as text; vectors and references cannot."""
_INTEGER = "[0-9]{1,20}|0x[0-9a-fA-F]{1,16}"
_DIGITS, _EXPONENT = "[0-9]{0,400}", "[0-9]{1,5}"
"""Plain ones: a checker that is locked can import nothing, not even `re`."""


class HasFunctions(Protocol):
    """What a module exports, as it says itself or as the engine does. functions: the names of its functions."""

    functions: list[str]

    def signature(self, name: str) -> tuple[list[str], list[str]]:
        """The types that a function takes, and those that it returns."""


class Entry(Record):
    """name: the exported function to call; values: its arguments, each with its type's name; results: how many values
    it returns; initialize: whether INITIALIZE is to be called first."""

    name: str
    values: tuple[tuple[str, int | float], ...] = ()
    results: int = 0
    initialize: bool = False


def shown(name: str | None) -> str:
    """A name that a client chose, in ASCII and bounded."""
    return ascii(name or "")[:MAX_EVIDENCE_LINE]


def refused(message: str, lines: list[str] | None = None) -> KeepfleetError:
    """The refusal of a module, with at most as much evidence as a person reads."""
    return KeepfleetError(ErrorKind.INVALID_MODULE, message, tuple((lines or [])[:MAX_EVIDENCE_LINES]))


def check_counts(outline: CoreOutline) -> None:
    """Raises KeepfleetError(INVALID_MODULE) for more imports or exports than a keep takes."""
    for what, count, most in (
        ("imports", outline.imported, MAX_IMPORTS),
        ("exports", outline.exported, MAX_EXPORTS),
    ):
        if count > most:
            raise refused(f"cannot take the module: it has {count} {what}, and a keep takes {most}")


def check_imports(linker: Linker, store: Store, imports: list[tuple[str, str]]) -> None:
    """Returns when all of `imports` are there. Raises KeepfleetError(INVALID_MODULE) naming what is not."""
    missing = [f"{shown(of)} {shown(name)}" for of, name in dict.fromkeys(imports) if not linker.has(store, of, name)]
    if missing:
        hint = advice.on_imports(f"{of} {name}" for of, name in imports if f"{shown(of)} {shown(name)}" in missing)
        raise refused(missing_in_words("module", missing) + hint, missing)


def check_link(linker: Linker, module: Module) -> None:
    """Returns when all that the module imports is of the type that is there. Raises KeepfleetError(INVALID_MODULE)."""
    try:
        linker.check(module)
    except EngineError as error:
        reason = str(error).splitlines() or ["an import has another type"]
        raise refused(f"cannot take the module: {reason[0][:MAX_EVIDENCE_LINE]}", reason) from error


def missing_in_words(what: str, missing: list[str]) -> str:
    """The refusal of a `what` whose imports a keep does not have."""
    named = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
    return f"cannot take the {what}: it imports what a keep does not have: {named}"


def find_entry(exports: HasFunctions, workload: Workload) -> Entry:
    """What to call of a module that exports this: what the workload names, else the first of COMMAND and DEFAULT.

    Raises KeepfleetError(INVALID_MODULE) when there is none, or its arguments do not fit its signature.
    """
    functions = exports.functions
    if workload.export:
        if workload.export not in functions:
            raise _nothing(f"it exports no function {shown(workload.export)}", functions)
        name = workload.export
    else:
        name = COMMAND if COMMAND in functions else DEFAULT
        if name not in functions:
            raise _nothing("it exports nothing to run: neither _start nor a function with an empty name", functions)
    initialize = INITIALIZE in functions and name not in (COMMAND, INITIALIZE)
    if initialize:
        _check_bare(INITIALIZE, *exports.signature(INITIALIZE))
    params, results = exports.signature(name)
    signature = in_words(name, params, results)
    if name == COMMAND:
        _check_bare(name, params, results)
    if name == COMMAND and workload.export_arguments:
        raise refused(f"cannot call {signature}: it takes no arguments; {_NO_ARGUMENTS}")
    for result in results:
        if result not in NUMBERS:
            raise refused(f"cannot call {signature}: a value of type {result} cannot be shown")
    given = values(signature, params, workload.export_arguments)
    return Entry(name, tuple(zip(params, given, strict=True)), len(results), initialize)


def _check_bare(name: str, params: list[str], results: list[str]) -> None:
    if params or results:
        words = in_words(name, params, results)
        raise refused(f"cannot take the module: its export {name!r} takes parameters or returns values: {words}")


def _nothing(why: str, functions: list[str]) -> KeepfleetError:
    return refused(
        f"cannot take the module: {why}", [f"exports {shown(name)}" for name in functions[:MAX_EVIDENCE_LINES]]
    )


def in_words(name: str, params: list[str], results: list[str]) -> str:
    """The signature as a person reads it: `add(i32, i32) -> i32`. Names are the guest's own and shown in ASCII."""
    shown = name.encode("ascii", "backslashreplace").decode()[:MAX_EVIDENCE_LINE] or '""'
    returned = f" -> {', '.join(results)}" if results else ""
    return f"{shown}({', '.join(params)}){returned}"


def _unsigned(text: str) -> str:
    return text[1:] if text[:1] in ("+", "-") else text


def _is_float(text: str) -> bool:
    """Whether it is a decimal number with or without a fraction and an exponent, `inf` or `nan`."""
    unsigned = _unsigned(text)
    if unsigned in ("inf", "nan"):
        return True
    mantissa, e, exponent = unsigned.replace("E", "e", 1).partition("e")
    whole, _, fraction = mantissa.partition(".")
    if e and not matches(_EXPONENT, _unsigned(exponent)):
        return False
    return bool(whole or fraction) and matches(_DIGITS, whole) and matches(_DIGITS, fraction)


def _integer(text: str, bits: int) -> int:
    if not matches(_INTEGER, _unsigned(text)):
        raise ValueError("it is no whole number, decimal or 0x…")
    value = int(text, 16 if "x" in text else 10)
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise ValueError(f"it does not fit {bits} bits")
    return value - (1 << bits) if value >= 1 << bits - 1 else value


def _float(text: str, packed: str) -> float:
    if not _is_float(text):
        raise ValueError("it is no number, inf or nan")
    value = float(text)
    if value in (float("inf"), float("-inf")) and "inf" not in text:
        raise ValueError("it is too large")
    try:
        struct.pack(packed, value)
    except OverflowError:
        raise ValueError("it is too large") from None
    return value


def values(signature: str, params: list[str], texts: tuple[str, ...]) -> list[int | float]:
    """`texts` as the parameters of a function whose `signature` stands in the refusals.

    Integers are decimal or hexadecimal, signed or not, as in WebAssembly's text format: 0xffffffff is -1.
    Raises KeepfleetError(INVALID_MODULE) for another count, a type text cannot give, or what is no such number.
    """

    def refused(why: str) -> KeepfleetError:
        return KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot call {signature}: {why}")

    for param in params:
        if param not in NUMBERS:
            raise refused(f"a value of type {param} cannot be given as text, only {', '.join(NUMBERS)}")
    if len(texts) != len(params):
        count = f"{len(params)} argument{'' if len(params) == 1 else 's'}"
        raise refused(f"it takes {count}, {len(texts)} given")
    found: list[int | float] = []
    for number, (param, text) in enumerate(zip(params, texts, strict=True), 1):
        try:
            bits = INTEGER_BITS.get(param)
            found.append(_float(text, FLOAT_FORMATS[param]) if bits is None else _integer(text, bits))
        except ValueError as error:
            raise refused(f"argument {number}, {text[:60]!a}, is no {param}: {error}") from None
    return found
