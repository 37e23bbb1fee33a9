"""A workload that runs again: from what was compiled, compiled again where that does not fit, and its failures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime
from wasmtime import component as components

from app_loader.run.runner import _not_again
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import Limits
from keep_protocol.outcome import OutcomeKind
from keep_protocol.reports import ReportType
from keep_protocol.spec import RestartPolicy
from keep_protocol.workload import Workload
from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import PATIENCE, AppLoaderProcess, ask, granted, listening, put, run, wasm
from tests.unit.app_loader.guests import component

MODULE = wasm("""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (func (export "_start") (call $exit (i32.const 7))))""")
COMPONENT = component("(i32.const 1)")


@pytest.fixture
def ended(tmp_path: Path, authority: Authority, client: Path) -> Iterator[AppLoaderProcess]:
    """A workload that has ended and may run again."""
    with granted(tmp_path, authority, Workload(restart=RestartPolicy.ALWAYS)) as process:
        assert run(process, client, MODULE).exit_code == 7
        process.end()
        yield process


def replace(process: AppLoaderProcess, name: str, data: bytes) -> None:
    """Puts other bytes into a parked file."""
    path = process.directory / name
    path.write_bytes(data)
    os.close(process.parked[name])
    process.parked[name] = os.open(path, os.O_RDONLY)


def of_another_engine(guest: bytes) -> bytes:
    """What an engine with other settings compiles of `guest`."""
    config = wasmtime.Config()
    config.wasm_threads = True
    engine = wasmtime.Engine(config)
    if guest[4:8] == b"\1\0\0\0":
        return bytes(wasmtime.Module(engine, guest).serialize())
    return bytes(components.Component(engine, guest).serialize())


@pytest.mark.parametrize(("guest", "code"), [(MODULE, 7), (COMPONENT, 1)], ids=["module", "component"])
def test_what_was_compiled_by_another_engine_is_compiled_again(
    tmp_path: Path, authority: Authority, client: Path, guest: bytes, code: int
) -> None:
    with granted(tmp_path, authority, Workload(restart=RestartPolicy.ALWAYS)) as process:
        assert run(process, client, guest).exit_code == code
        process.end()
        replace(process, "compiled", of_another_engine(guest))
        process.run_again()
        report = process.expect(ReportType.RUNNING)
        assert "compiled again: what was compiled before does not fit this engine: " in report.text
        outcome = process.expect(ReportType.ENDED).outcome
        assert outcome is not None and outcome.exit_code == code
        process.end()
        assert b"app-loader: running the workload, compiled again" in process.output


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(60), b"\0asm\1\0\0\0"])
def test_a_damaged_compiled_file_is_compiled_again(ended: AppLoaderProcess, data: bytes) -> None:
    replace(ended, "compiled", data)
    ended.run_again()
    assert "compiled again" in ended.expect(ReportType.RUNNING).text
    outcome = ended.expect(ReportType.ENDED).outcome
    assert outcome is not None and outcome.exit_code == 7


def lost(process: AppLoaderProcess) -> str:
    """The reason of a run that could not begin."""
    process.run_again()
    report = process.report()
    assert report.type is ReportType.FAILED or (
        report.outcome is not None and report.outcome.kind is OutcomeKind.LOST
    ), report
    assert process.end() == 1
    return report.text


def test_a_module_that_cannot_be_compiled_again_ends_with_the_reason(ended: AppLoaderProcess) -> None:
    replace(ended, "compiled", b"")
    replace(ended, "module", b"(module)")
    assert "cannot take the module: it is WebAssembly text" in lost(ended)


def test_what_does_not_fit_and_came_without_its_module_ends_with_the_reason(ended: AppLoaderProcess) -> None:
    replace(ended, "compiled", of_another_engine(MODULE))
    os.close(ended.parked.pop("module"))
    assert "cannot load the compiled module: " in lost(ended)


def test_a_runner_that_is_passed_no_module_ends_with_the_reason(ended: AppLoaderProcess) -> None:
    for name in ("compiled", "module"):
        os.close(ended.parked.pop(name))
    assert "its descriptor 'module' was not passed" in lost(ended)


def test_a_runner_that_is_passed_an_unknown_name_ends_with_the_reason(ended: AppLoaderProcess) -> None:
    ended.parked["cabbage"] = ended.parked["compiled"]
    try:
        assert "KEEPFLEET_DESCRIPTORS has the unknown name 'cabbage'" in lost(ended)
    finally:
        del ended.parked["cabbage"]


def test_a_runner_with_limits_that_are_none_ends_with_the_reason(ended: AppLoaderProcess) -> None:
    ended.environment["KEEPFLEET_LIMITS"] = "memory_bytes=much"
    assert "invalid limits" in lost(ended)


def test_a_runner_without_its_engine_ends_with_the_reason(ended: AppLoaderProcess) -> None:
    (ended.site / "wasmtime").unlink()
    assert "cannot load the engine: there is no wasmtime/linux-" in lost(ended)


class Incomplete(AppLoaderProcess):
    """Without a file that is imported once the endpoint listens."""

    def spawn(self) -> None:
        receive = self.site / "app_loader" / "receive"
        files = receive.resolve()
        receive.unlink()
        receive.mkdir()
        for file in files.glob("*.py"):
            if file.name != "access.py":
                (receive / file.name).symlink_to(file)
        super().spawn()


def test_an_endpoint_that_is_not_whole_reports_the_reason(tmp_path: Path, authority: Authority) -> None:
    with Incomplete(tmp_path, authority, limits={"STALL_SECONDS": PATIENCE}) as process:
        report = process.expect(ReportType.LISTENING, ReportType.FAILED)
        assert report.error is not None
        assert "No module named 'app_loader.receive.access'" in report.error.message
        assert process.end() == 1


def test_a_runner_without_its_engine_is_no_fault_of_the_modules(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    with listening(tmp_path, authority) as process:
        (process.site / "wasmtime").unlink()
        answer = ask(process, client, put(MODULE))
        assert (answer.status, answer.error["kind"]) == (500, "internal")
        assert "cannot use the engine: cannot load the engine: there is no wasmtime/linux-" in str(
            answer.error["message"]
        )


@pytest.mark.parametrize("kind", [ErrorKind.TOO_COMPLEX, ErrorKind.UNAVAILABLE])
def test_what_cannot_be_compiled_again_for_want_of_memory_is_to_be_run_in_a_new_keep(kind: ErrorKind) -> None:
    error = _not_again(KeepfleetError(kind, "killed"), Limits(memory_bytes=64 << 20))
    assert error.kind is kind
    assert error.message == (
        "cannot compile the module again: a keep that has run has 320 MiB for that; "
        "run the module in a new keep (killed)"
    )


def test_what_is_wrong_with_a_module_itself_is_said_as_it_is() -> None:
    refusal = KeepfleetError(ErrorKind.INVALID_MODULE, "no module")
    assert _not_again(refusal, Limits()) is refusal
