"""A workload that says so and then waits, for an hour: a keep that runs and leaves the processor to the others.

The only import of wasmtime here, to translate the text.
"""

from __future__ import annotations

import wasmtime

ITS_LINE = "waiting"
WAT = r"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; One iovec at 0, its text at 16; one subscription of 48 bytes at 64 (a relative clock, WASI preview 1), whose
  ;; clock is 1, the monotonic one, at 80 and whose nanoseconds lie at 88.
  (data (i32.const 0) "\10\00\00\00\08\00\00\00")
  (data (i32.const 16) "waiting\n")
  (data (i32.const 80) "\01\00\00\00")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i64.store (i32.const 88) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 192)))))
"""


def module() -> bytes:
    """The module's bytes."""
    return binary(WAT)


def binary(text: str) -> bytes:
    """A module's text as its bytes."""
    return bytes(wasmtime.wat2wasm(text))
