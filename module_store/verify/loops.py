"""Loops whose number of turns is plain: a counter that each turn moves by a constant, up to a constant. Pure.

This is what compilers make of `for (i = 0; i < 10; i++)`: before the loop `i32.const K, local.set i`, or a local that
was never assigned; and either, at the only branch back, `local.get i, i32.const STEP, i32.add, local.tee i, i32.const
N, i32.ne (or lt_u, lt_s), br_if`, where a count down to zero needs no comparison; or, first in the loop, `local.get
i, i32.const N, i32.lt_s (or another comparison), if`, and last in that arm, at the only branch back, `local.get i,
i32.const STEP, i32.add (or sub), local.set i, br`. What is not just so has no bound: a proof that is sometimes wrong
is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_LOCAL = 127
"""Of the counter: its number is one byte, and what else could assign it is found by its bytes."""
_GET, _SET, _TEE, _CONST, _ADD, _SUB = b"\x20", b"\x21", b"\x22", b"\x41", b"\x6a", b"\x6b"
_NE, _LT_S, _LT_U, _GT_S, _LE_S, _LE_U, _GE_S = b"\x47", b"\x48", b"\x49", b"\x4a", b"\x4c", b"\x4d", b"\x4e"
_HEADS = (_NE, _LT_S, _LT_U, _GT_S, _LE_S, _LE_U, _GE_S)
_WRAP = 1 << 32


def turns(
    before: Sequence[bytes], tail: Sequence[bytes], loop: bytes, zeroed: bytes | None = None, parameters: int = 0
) -> int | None:
    """How often the body of a loop runs at most that ends with its test; None where that is not plain.

    before: the instructions that always run just before it; tail: those just before its only branch back, a br_if;
    loop: its bytes up to that branch, in which nothing else may assign the counter; zeroed: the function's bytes before
    the loop, where that is entered once; its locals but the first `parameters` are zero unless they are assigned there.
    """
    compared = tail[-1:] and tail[-1] in (_NE, _LT_S, _LT_U)
    words = list(tail[-6:] if compared else tail[-4:])
    if len(words) != (6 if compared else 4):
        return None
    got, step, add, tee, *rest = words
    local = got[1:]
    if got[:1] != _GET or tee != _TEE + local or add != _ADD or not _is_const(step):
        return None
    if not _is_counter(local, loop):
        return None
    first, by = _first(before, local, zeroed if local[0] >= parameters else None), _value(step)
    if not compared:
        return _until(first, by, 0)
    if not _is_const(rest[0]):
        return None
    limit = _value(rest[0])
    if rest[1] == _NE:
        return _until(first, by, limit)
    return _below(first, by, limit, signed=rest[1] == _LT_S)


def turns_by_head(
    before: Sequence[bytes],
    head: Sequence[bytes],
    tail: Sequence[bytes],
    loop: bytes,
    zeroed: bytes | None = None,
    parameters: int = 0,
) -> int | None:
    """The same of a loop that begins with its test.

    head: the instructions before its first `if`, which is its first control instruction; tail: those just before its
    only branch back, a br, which is directly in that arm.
    """
    if len(head) != 3 or len(tail) < 4:
        return None
    got, end, compared = head
    read, step, moved, put = tail[-4:]
    local = got[1:]
    if got[:1] != _GET or read != got or put != _SET + local or moved not in (_ADD, _SUB) or compared not in _HEADS:
        return None
    if not _is_const(end) or not _is_const(step) or not _is_counter(local, loop):
        return None
    first, limit = _first(before, local, zeroed if local[0] >= parameters else None), _value(end)
    by = _value(step) if moved == _ADD else -_value(step)
    if first is None or by == 0:
        return None
    if compared == _NE:
        way = (limit - first if by > 0 else first - limit) % _WRAP
        return 1 + way // abs(by) if way % abs(by) == 0 else None
    if compared in (_LT_U, _LE_U):
        first, limit = first % _WRAP, limit % _WRAP
    lowest, highest = (0, _WRAP - 1) if compared in (_LT_U, _LE_U) else (-(_WRAP >> 1), (_WRAP >> 1) - 1)
    if compared in (_GT_S, _GE_S):  # the same downwards
        first, limit, by, lowest, highest = -first, -limit, -by, -highest, -lowest
    last = limit if compared in (_LE_S, _LE_U, _GE_S) else limit - 1
    if by <= 0 or last + by > highest:
        return None
    return 1 + max(0, (last - first) // by + 1)


def _is_counter(local: bytes, loop: bytes) -> bool:
    """Whether the loop assigns it once, which is where it is moved."""
    return len(local) == 1 and local[0] <= MAX_LOCAL and _assignments(local, loop) == 1


def _is_const(instruction: bytes) -> bool:
    return instruction[:1] == _CONST


def _value(instruction: bytes) -> int:
    """The signed number of an i32.const."""
    number = shift = 0
    for byte in instruction[1:]:
        number |= (byte & 0x7F) << shift
        shift += 7
    number &= _WRAP - 1 if shift > 32 else (1 << shift) - 1
    sign = 1 << min(shift, 32) - 1
    return number - 2 * sign if number & sign else number


def _assignments(local: bytes, loop: bytes) -> int:
    """How many places look like an assignment of the counter, in whatever length its number is written."""
    longer = bytes([local[0] | 0x80])
    numbers = rb"(?:%b|%b\x80{0,3}\x00)" % (re.escape(local), re.escape(longer))
    return len(re.findall(rb"(?=[\x21\x22]%b)" % numbers, loop, re.DOTALL))


def _first(before: Sequence[bytes], local: bytes, zeroed: bytes | None) -> int | None:
    """What the counter has when the loop begins, where that is plain."""
    for place in range(len(before) - 1, -1, -1):
        instruction = before[place]
        if instruction[:1] in (_SET, _TEE) and _number(instruction[1:]) == local[0]:
            return _value(before[place - 1]) if place and _is_const(before[place - 1]) else None
    return 0 if zeroed is not None and not _assignments(local, zeroed) else None


def _number(leb: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(leb))


def _until(first: int | None, by: int, limit: int) -> int | None:
    """Turns until the counter, moved each time, is equal to the limit; it may pass it and come back after 2³² steps."""
    if first is None or by == 0:
        return None
    way = (limit - first if by > 0 else first - limit) % _WRAP
    return way // abs(by) if way and way % abs(by) == 0 else None


def _below(first: int | None, by: int, limit: int, *, signed: bool) -> int | None:
    """Turns while the counter, moved each time, is less than the limit, and never passes the largest number."""
    if not signed:
        limit %= _WRAP
        first = None if first is None else first % _WRAP
    if by <= 0 or limit - 1 + by >= (_WRAP >> 1 if signed else _WRAP):
        return None
    if first is None or first + by >= (_WRAP >> 1 if signed else _WRAP):
        return None if signed else limit // by + 2  # wherever it begins, it is past the largest number once at most
    return max(1, -(-(limit - first) // by))
