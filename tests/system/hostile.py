"""Modules that mean no good, made for one test each."""

from __future__ import annotations

import wasmtime

HEADER = b"\0asm\1\0\0\0"
PAGE = 64 * 1024
MUCH = 1025 * PAGE
_CALLS = {
    "fd_write": ("i32 i32 i32 i32", "i32"),
    "fd_read": ("i32 i32 i32 i32", "i32"),
    "fd_prestat_get": ("i32 i32", "i32"),
    "fd_readdir": ("i32 i32 i32 i64 i32", "i32"),
    "fd_renumber": ("i32 i32", "i32"),
    "path_open": ("i32 i32 i32 i32 i32 i64 i64 i32 i32", "i32"),
    "path_create_directory": ("i32 i32 i32", "i32"),
    "path_symlink": ("i32 i32 i32 i32 i32", "i32"),
    "sock_accept": ("i32 i32 i32", "i32"),
    "sock_send": ("i32 i32 i32 i32 i32", "i32"),
    "random_get": ("i32 i32", "i32"),
    "poll_oneoff": ("i32 i32 i32 i32", "i32"),
    "args_sizes_get": ("i32 i32", "i32"),
    "environ_sizes_get": ("i32 i32", "i32"),
    "proc_exit": ("i32", ""),
}
"""WASI preview 1, as far as these modules use it."""
PATH = "/etc/passwd"


def module(body: str, *, pages: int = 1, more: str = "") -> bytes:
    """A command: `body` is its _start, with every call of _CALLS, a memory, locals $i and $n, and PATH at 512."""
    imports = "\n".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func ${name}'
        + (f" (param {parameters})" if parameters else "")
        + (f" (result {result}))" if result else ")")
        + ")"
        for name, (parameters, result) in _CALLS.items()
    )
    text = f"""(module {imports} (memory (export "memory") {pages}) (data (i32.const 512) "{PATH}") {more}
      (func (export "_start") (local $i i32) (local $n i32) {body}))"""
    return bytes(wasmtime.wat2wasm(text))


def repeated(times: int, body: str) -> str:
    """A loop that does `body` this often, with $i counting from 0."""
    return f"""(local.set $i (i32.const 0))
      (loop $again {body} (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const {times}))))"""


def opens_everything() -> bytes:
    """Tries every descriptor up to 255 in every way a guest has to reach a file; exits with how often it succeeded."""
    length, rights = len(PATH), "(i64.const 0x1fffffff) (i64.const 0x1fffffff)"
    tries = (
        f"$path_open (local.get $i) (i32.const 1) (i32.const 512) (i32.const {length}) (i32.const 0) {rights}"
        " (i32.const 0) (i32.const 8)",
        "$fd_prestat_get (local.get $i) (i32.const 8)",
        "$fd_readdir (local.get $i) (i32.const 1024) (i32.const 1024) (i64.const 0) (i32.const 8)",
        f"$path_create_directory (local.get $i) (i32.const 513) (i32.const {length - 1})",
        f"$path_symlink (i32.const 512) (i32.const {length}) (local.get $i) (i32.const 513) (i32.const 3)",
        "$sock_accept (local.get $i) (i32.const 0) (i32.const 8)",
        "$sock_send (local.get $i) (i32.const 512) (i32.const 1) (i32.const 0) (i32.const 8)",
    )
    counted = "(local.set $n (i32.add (local.get $n) (i32.eqz (call {}))))"
    everything = repeated(256, "".join(counted.format(attempt) for attempt in tries))
    # Beyond the three standard streams nothing can be written to either: not even the socket to the loader.
    written = counted.format(
        "$fd_write (i32.add (local.get $i) (i32.const 3)) (i32.const 16) (i32.const 1) (i32.const 8)"
    )
    return module(f"{everything} {repeated(256, written)} (call $proc_exit (local.get $n))")


def exits(code: int) -> bytes:
    """Exits with `code`."""
    return module(f"(call $proc_exit (i32.const {code}))")


def counts_its_words() -> bytes:
    """Exits with the number of bytes of its arguments and its environment, each string's NUL included."""
    return module(
        """(drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
        (drop (call $environ_sizes_get (i32.const 8) (i32.const 12)))
        (call $proc_exit (i32.add (i32.load (i32.const 4)) (i32.load (i32.const 12))))"""
    )


def floods(times: int) -> bytes:
    """Writes a hundred short lines `times` times over, as fast as it can; two seconds later one more."""
    more = r'(data (i32.const 508) "end\n") (data (i32.const 1024) "flood!!!\n")'
    copy = (
        "(memory.copy (i32.add (i32.const 1024) (i32.mul (local.get $i) (i32.const 9))) (i32.const 1024) (i32.const 9))"
    )
    write = "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"
    # One subscription to the monotonic clock at 64; its event goes to 128.
    clock = "(i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const 2000000000))"
    pause = f"{clock} (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)))"
    lines = f"{repeated(100, copy)} {_piece(1024, 900)} {repeated(times, write)}"
    return module(f"{lines} {pause} {_piece(508, 4)} {write}", more=more)


def _piece(place: int, length: int) -> str:
    """What the next fd_write writes."""
    return f"(i32.store (i32.const 0) (i32.const {place})) (i32.store (i32.const 4) (i32.const {length}))"


def fills_memory() -> bytes:
    """Grows its memory page by page until it may not, writes to all of it, exits with the number of MiB it got."""
    grow = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))"
    touch = "(memory.fill (i32.const 0) (i32.const 1) (i32.mul (memory.size) (i32.const 65536)))"
    return module(f"{grow} {touch} (call $proc_exit (i32.shr_u (memory.size) (i32.const 4)))")


def asks_much() -> bytes:
    """64 MiB of random bytes eight times, and a write of eight million empty pieces."""
    random = repeated(8, "(drop (call $random_get (i32.const 0) (i32.const 67108864)))")
    clear = "(memory.fill (i32.const 0) (i32.const 0) (i32.const 67108864))"
    write = "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 8000000) (i32.const 67108864)))"
    return module(f"{random} {clear} {write}", pages=MUCH // PAGE)


def waits_for_a_million_clocks() -> bytes:
    """One call with a million subscriptions."""
    call = "(call $poll_oneoff (i32.const 0) (i32.const 50331648) (i32.const 1000000) (i32.const 100663296))"
    return module(f"(drop {call})", pages=1537)


def traps(kind: str) -> bytes:
    """Ends in one of the ways a guest can fail."""
    more = "(func $deeper (call $deeper)) (table 1 funcref) (type $t (func (param i64)))"
    bodies = {
        "unreachable": "unreachable",
        "recursion": "(call $deeper)",
        "out of bounds": "(drop (i32.load (i32.const -8)))",
        "division by zero": "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
        "a null call": "(call_indirect (type $t) (i64.const 0) (i32.const 0))",
    }
    return module(bodies[kind], more=more)


def spins(where: str) -> bytes:
    """Never ends: in its `_start`, or in its start section before that."""
    if where == "_start":
        return module("(loop $for_ever (br $for_ever))")
    text = '(module (func $first (loop $l (br $l))) (start $first) (func (export "_start")))'
    return bytes(wasmtime.wat2wasm(text))


def wat(text: str) -> bytes:
    """A module in its text form, converted."""
    return bytes(wasmtime.wat2wasm(text))


def leb(number: int) -> bytes:
    """An unsigned LEB128 number."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _section(number: int, contents: bytes) -> bytes:
    return bytes([number]) + leb(len(contents)) + contents


def of_functions(count: int, code: bytes, variables: int = 0) -> bytes:
    """A command of `count` equal functions with so many local variables; `code` without its last `end`."""
    locals_ = b"\1" + leb(variables) + b"\x7f" if variables else b"\0"
    body = leb(len(locals_) + len(code) + 1) + locals_ + code + b"\x0b"
    kinds = _section(3, leb(count) + b"\0" * count)
    exports = _section(7, b"\1\6_start\0\0")
    return HEADER + _section(1, b"\1\x60\0\0") + kinds + exports + _section(10, leb(count) + body * count)


def in_loops(variables: int, depth: int) -> bytes:
    """Adds each variable to the next one, inside so many loops that may each go on: a compiler's quadratic case."""
    pairs = [(leb(number), leb((number + 1) % variables)) for number in range(variables)]
    sums = b"".join(b"\x20" + one + b"\x20" + other + b"\x6a\x21" + one for one, other in pairs)
    return of_functions(1, b"\x03\x40" * depth + sums + b"\x20\x00\x0d\x00\x0b" * depth, variables)


BOMBS = {
    "a million functions": lambda: of_functions(1_000_000, b""),
    "a million nested blocks": lambda: of_functions(1, b"\x02\x40" * 1_000_000 + b"\x0b" * 1_000_000),
    "200 variables in 1,000 loops": lambda: in_loops(200, 1000),
}
"""Modules of 9 KB to 4 MB that would take a compiler half a minute, or gigabytes."""
