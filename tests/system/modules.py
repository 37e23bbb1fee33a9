"""WebAssembly files made for one test."""

from __future__ import annotations

import wasmtime

_TEXT = 1024
"""Where a module's texts begin; below lie what its calls need."""
_HOUR_MS = 3_600_000
_MODULE = """(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") {pages})
  {data}
  (func $say (param $fd i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  ;; One subscription to the monotonic clock at 64, its event at 128.
  (func $pause (param $ns i64)
    (i32.store (i32.const 80) (i32.const 1))
    (i64.store (i32.const 88) (local.get $ns))
    (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    {body}
    (call $proc_exit (i32.const {code}))))
"""


def _escaped(text: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in text)


def says(*texts: bytes, pause_ms: int = 0, code: int = 0, fd: int = 1) -> bytes:
    """A command that writes each of `texts` in a call of its own, pauses after each, and exits with `code`."""
    body, place = [], _TEXT
    for text in texts:
        body.append(f"(call $say (i32.const {fd}) (i32.const {place}) (i32.const {len(text)}))")
        if pause_ms:
            body.append(f"(call $pause (i64.const {pause_ms * 1_000_000}))")
        place += len(text)
    data = f'(data (i32.const {_TEXT}) "{_escaped(b"".join(texts))}")'
    pages = 1 + place // 65536
    return bytes(wasmtime.wat2wasm(_MODULE.format(pages=pages, data=data, body="\n".join(body), code=code)))


def repeats(text: bytes, times: int, fd: int = 1, pause_ms: int = 0) -> bytes:
    """A command that writes `text`, in one call, so many times, and pauses after each."""
    pause = f"(call $pause (i64.const {pause_ms * 1_000_000}))" if pause_ms else ""
    body = f"""(local $left i32) (local.set $left (i32.const {times}))
    (loop $again
      (call $say (i32.const {fd}) (i32.const {_TEXT}) (i32.const {len(text)})) {pause}
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))"""
    data = f'(data (i32.const {_TEXT}) "{_escaped(text)}")'
    pages = 1 + (_TEXT + len(text)) // 65536
    return bytes(wasmtime.wat2wasm(_MODULE.format(pages=pages, data=data, body=body, code=0)))


def sleeps(text: bytes = b"asleep\n") -> bytes:
    """A command that writes `text` and then does nothing for an hour: a workload that runs and costs nothing."""
    return says(text, pause_ms=_HOUR_MS)
