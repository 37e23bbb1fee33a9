"""Modules made for these tests: from text, and byte by byte where text cannot say what is wrong."""

from __future__ import annotations

import wasmtime

HEAD = b"\0asm\1\0\0\0"
COMPONENT_HEAD = b"\0asm\x0d\0\1\0"


def wasm(text: str) -> bytes:
    """The binary form of WebAssembly text, which is not checked for validity."""
    return bytes(wasmtime.wat2wasm(text))


def number(value: int) -> bytes:
    """Unsigned LEB128."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def section(identifier: int, contents: bytes) -> bytes:
    """A section with its size."""
    return bytes([identifier]) + number(len(contents)) + contents


FULL = wasm("""(module $whole
  (type $pair (func (param i32 i64) (result f32 f64)))
  (type (func (param v128 funcref)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "env" "size" (global i64))
  (import "env" "count" (global (mut i32)))
  (import "env" "callbacks" (table 1 20 funcref))
  (table $own (export "own") 2 10 funcref)
  (memory (export "memory") 1 3)
  (global $g (export "g") (mut i32) (i32.add (i32.const 1) (i32.const -2)))
  (global (export "wide") f64 (f64.const 1.5))
  (start $begin)
  (elem (i32.const 0) $begin $exit)
  (elem declare func $begin)
  (elem $expressions funcref (ref.func $begin) (ref.null func))
  (data (i32.const 8) "hello")
  (data $passive "passive")
  (func $begin (local i32 i64 i64) (block (loop (br_if 1 (i32.const 1)) (br 0))) (drop (memory.grow (i32.const 1))))
  (func (export "pair") (type $pair) (local f32) (f32.const 0) (f64.const 1))
  (func (export "vectors") (result i32) (i32x4.extract_lane 2 (v128.const i32x4 1 2 3 4)))
  (func (export "bulk") (memory.init $passive (i32.const 0) (i32.const 0) (i32.const 3)) (data.drop $passive)
    (memory.copy (i32.const 0) (i32.const 8) (i32.const 2)) (drop (i32.trunc_sat_f32_s (f32.const 1))))
  (@custom "producers" "by hand"))""")
"""A core module with every section."""

COMPONENT = wasm("""(component
  (import "wasi:io/poll@0.2.6" (instance $poll
    (export "pollable" (type (sub resource)))
    (export "poll" (func (param "in" (list u32)) (result (list u32))))))
  (import "wasi:cli/exit@0.2.6" (instance (export "exit" (func (param "status" (result))))))
  (import "log" (func (param "line" string)))
  (type $shape (variant (case "round" u32) (case "none")))
  (type $all (record (field "a" (option $shape)) (field "b" (tuple u8 char)) (field "c" (flags "x" "y"))))
  (core module $one (memory (export "memory") 2 4) (func (export "f") (result i32) i32.const 42))
  (core module $two (import "a" "f" (func (result i32))) (memory 1))
  (core instance $first (instantiate $one))
  (core instance $second (instantiate $two (with "a" (instance $first))))
  (func $f (result u32) (canon lift (core func $first "f")))
  (component $inner (core type (func (param i32))) (type (enum "a" "b")))
  (instance $made (instantiate $inner))
  (export "answer" (func $f)))""")
"""A component with two modules, a component in it, and three kinds of imports."""

MALFORMED = {
    "empty": b"",
    "a head alone that is cut": HEAD[:7],
    "another version": b"\0asm\2\0\0\0",
    "text": b"(module)",
    "an ELF file": b"\x7fELF\2\1\1\0",
    "a section cut off": HEAD + b"\1",
    "a section longer than the file": HEAD + b"\1\x7f\0",
    "a section's size in six bytes": HEAD + b"\0\x84\x80\x80\x80\x80\0",
    "a section's size over 32 bits": HEAD + b"\0\xff\xff\xff\xff\x7f",
    "an unknown section": HEAD + section(14, b"\0"),
    "types twice": HEAD + section(1, b"\0") + section(1, b"\0"),
    "a section too late": HEAD + section(3, b"\0") + section(1, b"\0"),
    "a data count behind the code": HEAD + section(10, b"\0") + section(12, b"\0"),
    "more types than bytes": HEAD + section(1, number(100) + b"\x60\0\0"),
    "four billion types": HEAD + section(1, number((1 << 32) - 1)),
    "bytes behind a section's end": HEAD + section(1, b"\1\x60\0\0\0"),
    "a type that is none": HEAD + section(1, b"\1\x40\0\0"),
    "a parameter that is no type": HEAD + section(1, b"\1\x60\1\x20\0"),
    "an import's name over its section": HEAD + section(2, b"\1\x7fab\0\0"),
    "an import's name in Latin 1": HEAD + section(1, b"\1\x60\0\0") + section(2, b"\1\1\xe9\1a\0\0"),
    "an import's name with a surrogate": HEAD + section(1, b"\1\x60\0\0") + section(2, b"\1\3\xed\xa0\x80\1a\0\0"),
    "an import of an unknown kind": HEAD + section(2, b"\1\1a\1b\5\0"),
    "a mutability that is none": HEAD + section(2, b"\1\1a\1b\3\x7f\2"),
    "a tag with an attribute": HEAD + section(1, b"\1\x60\0\0") + section(13, b"\1\1\0"),
    "tags behind globals": HEAD + section(1, b"\1\x60\0\0") + section(6, b"\0") + section(13, b"\1\0\0"),
    "more tags than bytes": HEAD + section(13, number(100) + b"\0\0"),
    "limits with unknown flags": HEAD + section(5, b"\1\x18\1"),
    "two exports of one name": HEAD + section(5, b"\1\0\1") + section(7, b"\2\1m\2\0\1m\2\0"),
    "functions without bodies": HEAD + section(1, b"\1\x60\0\0") + section(3, b"\1\0"),
    "a body without a function": HEAD + section(10, b"\1\2\0\x0b"),
    "a body longer than its section": HEAD
    + section(1, b"\1\x60\0\0")
    + section(3, b"\1\0")
    + section(10, b"\1\x7f\0\x0b"),
    "a data count that is another": HEAD + section(5, b"\1\0\1") + section(12, b"\1"),
    "a constant expression without an end": HEAD + section(6, b"\1\x7f\0\x41\0"),
    "a constant expression that calls": HEAD + section(6, b"\1\x7f\0\x10\0\x0b"),
    "a number of 32 bits with a sixth byte": HEAD + section(6, b"\1\x7f\0\x41\x80\x80\x80\x80\x80\0\x0b"),
    "a number whose unused bits are no sign": HEAD + section(6, b"\1\x7f\0\x41\x80\x80\x80\x80\x10\x0b"),
    "an element segment with unknown flags": HEAD + section(9, b"\1\x08\x41\0\x0b\0"),
    "more elements than bytes": HEAD + section(9, b"\1\0\x41\0\x0b" + number(1 << 31)),
    "a data segment over its section": HEAD + section(5, b"\1\0\1") + section(11, b"\1\0\x41\0\x0b\x7fabc"),
    "a custom section without a name": HEAD + section(0, b""),
    "a custom section's name over its end": HEAD + section(0, b"\5abc"),
}
"""Core modules, each with one thing wrong."""

MALFORMED_COMPONENTS = {
    "a component's section unknown": COMPONENT_HEAD + section(13, b"\0"),
    "a module in it that is cut": COMPONENT_HEAD + section(1, HEAD[:6]),
    "a component in it that is a module": COMPONENT_HEAD + section(4, HEAD),
    "a type of no form": COMPONENT_HEAD + section(7, b"\1\x10"),
    "more types than bytes in it": COMPONENT_HEAD + section(7, number(1 << 30)),
    "an import without a description": COMPONENT_HEAD + section(10, b"\1\0\1a"),
    "an import's name of no form": COMPONENT_HEAD + section(10, b"\1\7\1a\1\0"),
    "an alias of no kind": COMPONENT_HEAD + section(6, b"\1\x09\0\0\1a"),
    "bytes behind its types": COMPONENT_HEAD + section(7, b"\1\x7f\0"),
    "a core instance of no form": COMPONENT_HEAD + section(2, b"\1\7\0\0"),
}
"""Components, each with one thing wrong."""
