"""`keepctl verify`: a report, an exit code, and no manager."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.keepctl.conftest import MODULE, Run
from tests.unit.module_store.modules import wasm


def test_a_module_that_passes_is_reported_rule_by_rule(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "f.wasm"
    file.write_bytes(wasm('(module (memory 1 2) (func (export "f") nop))'))
    result = run("verify", str(file))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "ok   valid             the engine takes it; allowed: valid for the engine" in lines
    assert "bound: memory: at most 65,536 bytes" in lines
    assert "bound: f: at most 1 instructions" in lines
    assert lines[-1] == "passed"


def test_a_module_that_fails_a_policy_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    file, policy = tmp_path / "f.wasm", tmp_path / "policy.yaml"
    file.write_bytes(wasm('(module (import "env" "reboot" (func)))'))
    policy.write_text("name: strict\nimports: {}\nfunctions: 3\n")
    result = run("verify", str(file), "--policy", str(policy), "-o", "json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["policy"], report["passed"], report["file"]) == ("strict", False, str(file))
    (failed,) = [each for each in report["findings"] if not each["passed"]]
    assert (failed["rule"], failed["details"]) == ("imports", ["env reboot"])


def test_what_is_no_module_is_refused_with_the_reason(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "f.wasm"
    file.write_bytes(b"(module)")
    result = run("verify", str(file))
    assert result.exit_code == 1 and "compile the text first" in result.stdout


def test_a_file_that_cannot_be_read_is_an_error(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        result = run("verify", str(path))
        assert result.exit_code == 1 and result.stderr.startswith("keepctl: cannot read the file: ")


def test_a_policy_with_faults_is_an_error_with_every_place(run: Run, tmp_path: Path) -> None:
    file, policy = tmp_path / "f.wasm", tmp_path / "policy.yaml"
    file.write_bytes(MODULE)
    policy.write_text("name: x\nsize: a\nlocal: 2\n")
    result = run("verify", str(file), "--policy", str(policy))
    assert result.exit_code == 1
    assert "line 2, column 7" in result.stderr and "line 3, column 1: unknown key 'local'" in result.stderr
