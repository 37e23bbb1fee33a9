"""A workload that writes much, in equal parts that are numbered, and what it will have written; and one that writes
when it does so. The only import of wasmtime here, to translate the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import wasmtime

FIRST = b"ready\n"
"""Written before the flood, which begins PAUSE_SECONDS later: what a start costs is over by then."""
PAUSE_SECONDS = 0.5
_DIGITS = 8
_WAT = r"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
  (memory (export "memory") {pages})
  ;; One iovec at 0, what was written at 8, the first line at 16; one subscription of 48 bytes at 64 (a relative clock,
  ;; WASI preview 1), whose clock is 1, the monotonic one, at 80 and whose nanoseconds lie at 88.
  (data (i32.const 16) "ready\n")
  (data (i32.const 1024) "{part}")
  (func $write (param $at i32) (param $left i32)
    (loop $more
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $left))
      (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
      (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 8))))
      (br_if $more (local.get $left))))
  (func $wait (param $nanoseconds i64)
    (i32.store (i32.const 80) (i32.const 1))
    (i64.store (i32.const 88) (local.get $nanoseconds))
    (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 192))))
  (func $number (param $of i32) (local $at i32) (local $digit i32)
    (local.set $at (i32.const 1031))
    (loop $next
      (local.set $digit (i32.and (local.get $of) (i32.const 15)))
      (i32.store8 (local.get $at) (i32.add (i32.const 97) (local.get $digit)))
      (local.set $of (i32.shr_u (local.get $of) (i32.const 4)))
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (br_if $next (i32.ge_u (local.get $at) (i32.const 1024)))))
  (func (export "_start") (local $n i32)
    (call $write (i32.const 16) (i32.const 6))
    (call $wait (i64.const {pause}))
    (loop $again
      {each}
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const {count}))))
    (call $wait (i64.const {rest}))))
"""
_FLOOD = "(call $number (local.get $n)) (call $write (i32.const 1024) (i32.const {size}))"
_CLOCK = """(call $wait (i64.const {pause}))
      (drop (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 1024)))
      (call $write (i32.const 1024) (i32.const 8))"""
_LETTERS = bytes.maketrans(b"0123456789abcdef", b"abcdefghijklmnop")


def _module(part: bytes, count: int, each: str, rest_seconds: float) -> bytes:
    text = "".join(f"\\{byte:02x}" for byte in part)
    values = {"pages": 2 + len(part) // 65536, "part": text, "count": count, "each": each}
    return bytes(wasmtime.wat2wasm(_WAT.format(**values, pause=int(PAUSE_SECONDS * 1e9), rest=int(rest_seconds * 1e9))))


@dataclass(frozen=True)
class Flood:
    """`count` writes of `part`, the first bytes of which are their number."""

    name: str
    part: bytes
    count: int

    def module(self, rest_seconds: float = 3600.0) -> bytes:
        """The program, which stays for so long when it has written all."""
        return _module(self.part, self.count, _FLOOD.format(size=len(self.part)), rest_seconds)

    def written(self) -> bytes:
        """What it writes after FIRST."""
        rest = self.part[_DIGITS:]
        numbers = (b"%08x" % number for number in range(self.count))
        return b"".join(part for number in numbers for part in (number.translate(_LETTERS), rest))


def in_blocks(size: int) -> Flood:
    """About `size` bytes in blocks of 64 KiB."""
    part = bytes(range(256)) * 256
    return Flood("in blocks of 64 KiB", part, size // len(part))


LINE = b"aaaaaaaa: a line of thirty-eight here\n"


def in_lines(size: int) -> Flood:
    """The same in short lines, written 64 KiB at a time."""
    part = LINE * (65536 // len(LINE))
    return Flood("in short lines, 64 KiB a write", part, size // len(part))


def line_by_line(size: int) -> Flood:
    """The same in one write a line."""
    return Flood("in short lines, one a write", LINE, size // len(LINE))


def clock(count: int, pause_seconds: float) -> bytes:
    """A program that writes the nanoseconds of the epoch, eight bytes each time, with a pause before."""
    return _module(bytes(8), count, _CLOCK.format(pause=int(pause_seconds * 1e9)), 0)
