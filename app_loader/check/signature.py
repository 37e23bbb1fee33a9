"""Arguments of an exported function, from text to numbers by its signature: strict, and refused with a reason. Pure.

Imports no engine: a type is its name in WebAssembly's text format.
"""

from __future__ import annotations

import re
import struct

from app_loader.limits import MAX_EVIDENCE_LINE
from keep_protocol.errors import ErrorKind, KeepfleetError

INTEGER_BITS = {"i32": 32, "i64": 64}
FLOAT_FORMATS = {"f32": "<f", "f64": "<d"}
NUMBERS = (*INTEGER_BITS, *FLOAT_FORMATS)
"""The types a value can be written in as text; vectors and references cannot."""
_INTEGER = re.compile(r"[+-]?(?:[0-9]{1,20}|0x[0-9a-fA-F]{1,16})", re.ASCII)
_FLOAT = re.compile(
    r"[+-]?(?:(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,5})?|inf|nan)", re.ASCII
)


def in_words(name: str, params: list[str], results: list[str]) -> str:
    """The signature as a person reads it: `add(i32, i32) -> i32`. Names are the guest's own and shown in ASCII."""
    shown = name.encode("ascii", "backslashreplace").decode()[:MAX_EVIDENCE_LINE] or '""'
    returned = f" -> {', '.join(results)}" if results else ""
    return f"{shown}({', '.join(params)}){returned}"


def _integer(text: str, bits: int) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("it is no whole number, decimal or 0x…")
    value = int(text, 16 if "x" in text else 10)
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise ValueError(f"it does not fit {bits} bits")
    return value - (1 << bits) if value >= 1 << bits - 1 else value


def _float(text: str, packed: str) -> float:
    if not _FLOAT.fullmatch(text):
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
