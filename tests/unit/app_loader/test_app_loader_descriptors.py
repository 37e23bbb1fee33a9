"""Passed descriptors have names: what else is open is never taken for passed, and is closed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app_loader.settings import Passed
from keep_protocol.errors import KeepfleetError
from keep_protocol.reports import ReportType
from keep_protocol.spec import RestartPolicy
from keep_protocol.workload import Workload
from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import AppLoaderProcess, as_root, ask, granted, put, run, wasm
from tests.unit.app_loader.guests import ECHO

NOTHING = wasm('(module (func (export "_start")))')


def test_a_descriptor_is_found_by_its_name_alone() -> None:
    passed = Passed(("module", "result", "directory-12"))
    assert [passed.number(name) for name in passed.names] == [4, 5, 6]
    assert "workload" not in passed
    with pytest.raises(KeepfleetError, match="its descriptor 'workload' was not passed"):
        passed.number("workload")


@pytest.mark.parametrize("names", [("module", "module"), ("file",), ("directory-",), ("directory-123",), ("secret-٣",)])
def test_a_name_that_is_unknown_or_repeated_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(KeepfleetError, match="cannot start the app-loader: KEEPFLEET_DESCRIPTORS has"):
        Passed(names)


@pytest.mark.parametrize("module", ["app_loader.receive.service", "app_loader.run.runner", "app_loader.settings"])
def test_nothing_that_opens_files_of_its_own_is_imported_before_the_others_are_closed(module: str) -> None:
    """libffi keeps a file open on Python 3.14, which `claim` would close, or take for passed."""
    program = f"import sys, {module}; sys.exit('ctypes' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize("workload", [None, Workload(stdin=True, restart=RestartPolicy.ALWAYS)])
def test_stray_open_descriptors_are_neither_taken_for_passed_nor_kept(
    tmp_path: Path, authority: Authority, client: Path, workload: Workload | None
) -> None:
    (tmp_path / "stray").write_bytes(b"not for the keep")
    (tmp_path / "input").write_bytes(b"for the keep")
    stray, standard_input = (os.open(tmp_path / name, os.O_RDONLY) for name in ("stray", "input"))
    try:
        grants = [] if workload is None else [standard_input]
        with AppLoaderProcess(tmp_path, authority, workload=workload, grants=grants, stray=stray) as process:
            process.expect(ReportType.LISTENING)
            assert run(process, client, ECHO).text == "exited 0"
            process.end()
            if workload is not None:
                process.run_again()
                assert process.outcome().text == "exited 0"
                process.end()
            assert process.output == (b"" if workload is None else b"for the keep" * 2)
    finally:
        os.close(stray)
        os.close(standard_input)


@as_root
def test_a_stray_open_descriptor_is_closed_before_a_client_comes(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "stray").write_bytes(b"not for the keep")
    stray = os.open(tmp_path / "stray", os.O_RDONLY)
    with AppLoaderProcess(tmp_path, authority, stray=stray) as process:
        os.close(stray)
        process.expect(ReportType.LISTENING)
        assert not [name for name in process.descriptors().values() if name.endswith("stray")]


def test_a_descriptor_that_is_named_and_not_open_is_an_error_in_words(tmp_path: Path, authority: Authority) -> None:
    names = "listener,client-ca,revoked,checks,identity"
    with AppLoaderProcess(tmp_path, authority, {"KEEPFLEET_DESCRIPTORS": names}) as process:
        report = process.expect(ReportType.FAILED)
        assert report.error is not None
        # The latter where a library has a file of its own open at that number, as a newer libffi has.
        wrong = ("its descriptor 'identity' is not open", "no key and certificate are in it")
        assert any(text in report.error.message for text in wrong)


def test_a_description_and_its_grants_survive_into_the_runner(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    (tmp_path / "input").write_bytes(b"given")
    descriptor = os.open(tmp_path / "input", os.O_RDONLY)
    with granted(tmp_path, authority, Workload(stdin=True), [descriptor]) as process:
        os.close(descriptor)
        assert ask(process, client, put(ECHO)).status == 200
        process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
        assert process.outcome().exit_code == 0
        process.end()
        assert process.output == b"given"
