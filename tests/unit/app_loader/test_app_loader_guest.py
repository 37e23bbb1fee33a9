"""Guests loaded in the test's own process: where the file's mount allows no code, and files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app_loader.check.compiler import examine
from app_loader.engine.binding import library
from app_loader.engine.foreign import EngineError
from app_loader.engine.store import Wasi
from app_loader.run.guest import ComponentGuest, CoreGuest, Unfit, load_guest
from keep_protocol.limits import DEFAULT_LIMITS
from keep_protocol.workload import Workload
from tests.unit.app_loader.app_loader_process import wasm
from tests.unit.app_loader.guests import component

MODULE = wasm('(module (func (export "seven") (result i32) i32.const 7))')


def compiled(directory: Path, guest: bytes, workload: Workload) -> int:
    """The guest's compiled file, open."""
    (directory / "guest.wasm").write_bytes(guest)
    module = os.open(directory / "guest.wasm", os.O_RDWR)
    result = os.open(directory / "guest.cwasm", os.O_RDWR | os.O_CREAT)
    assert examine(module, result, DEFAULT_LIMITS, workload) == ""
    os.close(module)
    return result


@pytest.mark.parametrize("executable", [True, False])
@pytest.mark.parametrize("kind", ["module", "component"])
def test_a_guest_runs_from_its_file_and_where_that_cannot_be_mapped_as_code_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, executable: bool
) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("mmap failed to map it executable")

    if not executable:
        monkeypatch.setattr(library, f"wasmtime_{kind}_deserialize_file", refuse)
    workload = Workload(export="seven") if kind == "module" else Workload()
    file = compiled(tmp_path, MODULE if kind == "module" else component("(i32.const 1)"), workload)
    guest = load_guest(file, DEFAULT_LIMITS, workload)
    guest.link(Wasi())
    os.close(file)
    assert type(guest) is (CoreGuest if kind == "module" else ComponentGuest)
    assert guest.run() == ((0, [7]) if kind == "module" else (1, []))


@pytest.mark.parametrize("change", ["cut", "other"])
def test_a_file_that_is_no_compiled_guest_is_not_run(tmp_path: Path, change: str) -> None:
    file = compiled(tmp_path, MODULE, Workload(export="seven"))
    if change == "cut":
        os.ftruncate(file, 1000)
    else:
        os.pwrite(file, b"\x7fELF" + bytes(60), 0)
    with pytest.raises(Unfit):
        load_guest(file, DEFAULT_LIMITS, Workload(export="seven"))
    os.close(file)
