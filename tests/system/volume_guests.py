"""Guests that use a volume, or show a secret, as the first directory they find open."""

from __future__ import annotations

import wasmtime

NOSPC = 51
"""WASI's number for a disk that is full."""
_RIGHTS = "(i64.const 0x600066) (i64.const 0)"
"""fd_read, fd_seek, fd_tell, fd_write, fd_filestat_get and _set_size."""
_MODULE = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $fd_seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 4)
  (data (i32.const 512) "count") {data}
  (func $write (param $fd i32) (param $at i32) (param $length i32) (result i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  ;; Opens `count` in the first directory, makes it where it is not there; its descriptor lies at 16 then.
  (func $open (result i32)
    (call $path_open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 5) (i32.const 1) {rights} (i32.const 0)
      (i32.const 16)))
  (func (export "_start") (local $n i32) {body}))
"""


def _module(body: str, data: str = "") -> bytes:
    return bytes(wasmtime.wat2wasm(_MODULE.format(body=body, data=data, rights=_RIGHTS)))


def counts(word: str, ends: int | None = None) -> bytes:
    """Adds a byte to a file, writes `N WORD`, N being its length then, and sleeps an hour, or exits with `ends`."""
    # One subscription to the monotonic clock at 64, its event at 128.
    pause = """(i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)))"""
    return _module(
        f"""(local.set $n (call $open)) (if (local.get $n) (then (call $proc_exit (local.get $n))))
    (drop (call $fd_seek (i32.load (i32.const 16)) (i64.const 0) (i32.const 2) (i32.const 24)))
    (local.set $n (call $write (i32.load (i32.const 16)) (i32.const 512) (i32.const 1)))
    (if (local.get $n) (then (call $proc_exit (local.get $n))))
    (drop (call $fd_seek (i32.load (i32.const 16)) (i64.const 0) (i32.const 2) (i32.const 24)))
    (i32.store8 (i32.const 1024) (i32.add (i32.const 48) (i32.load (i32.const 24))))
    (drop (call $write (i32.const 1) (i32.const 1024) (i32.const {len(word) + 3})))
    {pause if ends is None else f"(call $proc_exit (i32.const {ends}))"}""",
        f'(data (i32.const 1024) "0 {word}\\n")',
    )


def fills_bytes() -> bytes:
    """Writes to a file until it cannot; exits with the number of the error."""
    return _module(
        """(local.set $n (call $open)) (if (local.get $n) (then (call $proc_exit (local.get $n))))
    (loop $again (br_if $again (i32.eqz (local.tee $n
      (call $write (i32.load (i32.const 16)) (i32.const 1024) (i32.const 65536))))))
    (call $proc_exit (local.get $n))"""
    )


def fills_inodes() -> bytes:
    """Makes directories until it cannot; exits with the number of the error."""
    return _module(
        """(i32.store (i32.const 600) (i32.const 0x61616161))
    (loop $again
      (local.set $n (call $mkdir (i32.const 3) (i32.const 600) (i32.const 4)))
      ;; The name counts up, in letters: `aaaa`, `baaa`, …
      (i32.store8 (i32.const 600) (i32.add (i32.load8_u (i32.const 600)) (i32.const 1)))
      (if (i32.gt_u (i32.load8_u (i32.const 600)) (i32.const 122)) (then
        (i32.store8 (i32.const 600) (i32.const 97))
        (i32.store8 (i32.const 601) (i32.add (i32.load8_u (i32.const 601)) (i32.const 1)))))
      (br_if $again (i32.eqz (local.get $n))))
    (call $proc_exit (local.get $n))"""
    )


def shows_secret(name: str) -> bytes:
    """Prints a file of its one directory: a test's guest, which keeps no secret."""
    return bytes(wasmtime.wat2wasm(_SHOWS.replace("NAME", name).replace("LENGTH", str(len(name)))))


_SHOWS = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "NAME")
  (func (export "_start")
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const LENGTH) (i32.const 0)
          (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 32)) (then (call $exit (i32.const 9))))
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 4096))
    (if (call $read (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 8))
      (then (call $exit (i32.const 8))))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))))
"""
