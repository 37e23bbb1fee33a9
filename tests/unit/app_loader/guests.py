"""Guests written in WebAssembly text that try what their test asks and print what became of it."""

from __future__ import annotations

from tests.unit.app_loader.app_loader_process import wasm

SUCCESS, ACCES, EXIST, INVAL, LOOP, NOENT, PERM, NOTCAPABLE = 0, 2, 20, 28, 32, 44, 63, 76
"""WASI preview 1's error numbers."""
REFUSED = {ACCES, LOOP, PERM, NOTCAPABLE}
READ, WRITE = 0x2 | 0x4 | 0x200000, 0x40 | 0x2 | 0x4 | 0x400000
"""Rights a file is opened with: fd_read and fd_seek and fd_filestat_get, or fd_write as well."""
CREATE, TRUNCATE = 1, 8
FOLLOW = 1
ROOT = 3
"""The first directory a guest finds open."""


class Attempts:
    """Calls of WASI, in order; `module` makes each and prints one byte for it: its error number."""

    def __init__(self) -> None:
        self._texts = bytearray()
        self._calls: list[str] = []

    def _text(self, text: str) -> str:
        at, data = 1024 + len(self._texts), text.encode()
        self._texts += data
        return f"(i32.const {at}) (i32.const {len(data)})"

    def open(self, path: str, *, flags: int = 0, rights: int = READ, root: int = ROOT, follow: int = FOLLOW) -> None:
        """path_open below a directory."""
        self._calls.append(
            f"(call $open (i32.const {root}) (i32.const {follow}) {self._text(path)} (i32.const {flags})"
            f" (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 8))"
        )

    def make_directory(self, path: str) -> None:
        """path_create_directory"""
        self._calls.append(f"(call $mkdir (i32.const {ROOT}) {self._text(path)})")

    def link(self, old: str, new: str) -> None:
        """path_link"""
        self._calls.append(
            f"(call $link (i32.const {ROOT}) (i32.const 0) {self._text(old)} (i32.const {ROOT}) {self._text(new)})"
        )

    def symlink(self, target: str, path: str) -> None:
        """path_symlink"""
        self._calls.append(f"(call $symlink {self._text(target)} (i32.const {ROOT}) {self._text(path)})")

    def rename(self, old: str, new: str) -> None:
        """path_rename"""
        self._calls.append(f"(call $rename (i32.const {ROOT}) {self._text(old)} (i32.const {ROOT}) {self._text(new)})")

    def unlink(self, path: str) -> None:
        """path_unlink_file"""
        self._calls.append(f"(call $unlink (i32.const {ROOT}) {self._text(path)})")

    def wait(self) -> None:
        """Reads standard input until something comes, or its end."""
        self._calls.append("(call $input)")

    def show(self, path: str, root: int = ROOT) -> None:
        """Prints a file's first bytes after its error number, which must be zero."""
        self.open(path, root=root)
        self._calls.append("(call $show)")

    def module(self) -> bytes:
        """The command."""
        body = "\n".join(f"(call $report {call})" for call in self._calls)
        data = "".join(f"\\{byte:02x}" for byte in self._texts)
        return wasm(f"""(module
          (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "path_link"
            (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1) (data (i32.const 1024) "{data}")
          (func $print (param $at i32) (param $len i32)
            (i32.store (i32.const 16) (local.get $at)) (i32.store (i32.const 20) (local.get $len))
            (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))))
          (func $report (param $number i32)
            (i32.store8 (i32.const 32) (local.get $number)) (call $print (i32.const 32) (i32.const 1)))
          (func $input (result i32)
            (i32.store (i32.const 16) (i32.const 60000)) (i32.store (i32.const 20) (i32.const 16))
            (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
          (func $show (result i32)
            (i32.store (i32.const 16) (i32.const 60000)) (i32.store (i32.const 20) (i32.const 512))
            (drop (call $read (i32.load (i32.const 8)) (i32.const 16) (i32.const 1) (i32.const 28)))
            (call $print (i32.const 60000) (i32.load (i32.const 28))) (i32.const 10))
          (func (export "_start") {body}))""")


def component(body: str, imports: str = "", memory: str = "") -> bytes:
    """A WASI 0.2 command whose `run` is `body`, which leaves 0 for ok or 1; `$exit` takes the same."""
    return wasm(f"""(component {imports}
      (import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))
      (core func $exit (canon lower (func $exit "exit")))
      (core module $m (import "e" "exit" (func $exit (param i32))) {memory}
        (func $go (export "run") (result i32) {body}))
      (core instance $i (instantiate $m (with "e" (instance (export "exit" (func $exit))))))
      (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $r (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $r)))""")


ECHO = wasm("""(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $more
      (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 4096))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
      (br_if $more (i32.load (i32.const 8))))))""")
"""Copies standard input to standard output."""

WORDS = wasm("""(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 200)
  (func $print (param $len i32)
    (i32.store (i32.const 0) (i32.const 1048576)) (i32.store (i32.const 4) (local.get $len))
    (loop $more
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 8))))
      (i32.store (i32.const 4) (i32.sub (i32.load (i32.const 4)) (i32.load (i32.const 8))))
      (br_if $more (i32.load (i32.const 4)))))
  (func (export "_start")
    (drop (call $args_sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 64) (i32.const 1048576)))
    (call $print (i32.load (i32.const 20)))
    (drop (call $env_sizes (i32.const 16) (i32.const 20)))
    (drop (call $env (i32.const 64) (i32.const 1048576)))
    (if (i32.load (i32.const 20)) (then (call $print (i32.load (i32.const 20)))))))""")
"""Prints its arguments and its environment, each ended by a NUL."""

PRINTS = wasm("""(component
  (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
  (alias export $errors "error" (type $error))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (alias outer 1 $error (type $outer))
    (export "error" (type $error (eq $outer)))
    (type $failure (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $failure)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $stream)) (param "contents" (list u8)) (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $stream))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $stream (type $outer)) (export "output-stream" (type $stream (eq $outer)))
    (export "get-stdout" (func (result (own $stream))))))
  (core module $libc (memory (export "memory") 1) (data (i32.const 16) "hello from a component\\n"))
  (core instance $libc (instantiate $libc))
  (core func $get (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
    (memory (core memory $libc "memory"))))
  (core module $m
    (import "e" "get" (func $get (result i32)))
    (import "e" "write" (func $write (param i32 i32 i32 i32)))
    (func (export "run") (result i32)
      (call $write (call $get) (i32.const 16) (i32.const 23) (i32.const 64)) (i32.const 0)))
  (core instance $i (instantiate $m (with "e" (instance
    (export "get" (func $get)) (export "write" (func $write))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $r)))""")
"""A component that prints a line by WASI 0.2's own streams."""
