"""Workloads from upload to outcome, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from keep_protocol.control import ReportType
from keep_protocol.keep import OutcomeKind
from tests.unit.app_loader.app_loader_house import House, ask, post, put, wasm

WASI = "wasi_snapshot_preview1"
HELLO = wasm(f"""(module
  (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "hello from the keep\\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 20))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))""")


def test_a_raw_upload_runs_and_its_output_is_the_processs_own(house: House, client: Path) -> None:
    answer = ask(house, client, put(HELLO))
    assert answer.status == 200, answer
    house.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    outcome = house.outcome()
    assert (outcome.kind, outcome.exit_code, outcome.text) == (OutcomeKind.EXITED, 0, "exited 0")
    assert house.end() == 0
    assert house.output == b"hello from the keep\n"


def test_the_originals_upload_is_answered_in_its_words(house: House, client: Path) -> None:
    answer = ask(house, client, post(wasm('(module (func (export "") (result i32) i32.const 1))')))
    assert (answer.status, answer.body) == (200, b"Payload received")
    house.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    assert house.outcome().exit_code == 0
    house.end()
    assert house.output == b"returned: [1]\n"
