"""Compiled guests in a directory: what is taken from there, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from script_pool.engine.artifacts import Artifacts


def test_what_was_kept_comes_back_and_another_source_finds_nothing(tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "made"))
    artifacts.save("guest", b"source", {"at": 1}, b"code")
    assert artifacts.load("guest", b"source") == ({"at": 1}, b"code")
    assert artifacts.load("guest", b"another") is None
    assert [entry.stat().st_mode & 0o777 for entry in (tmp_path / "made").iterdir()] == [0o600]


@pytest.mark.parametrize("at", [0, 5, -1])
def test_damaged_code_is_compiled_again(tmp_path: Path, at: int) -> None:
    artifacts = Artifacts(str(tmp_path))
    artifacts.save("guest", b"source", {"at": 1}, b"code")
    (kept,) = tmp_path.iterdir()
    data = bytearray(kept.read_bytes())
    data[at] ^= 1
    kept.write_bytes(data)
    assert artifacts.load("guest", b"source") is None


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)  # noqa: S103 - what is refused
    with pytest.raises(PermissionError, match="no one else may write it"):
        Artifacts(str(tmp_path))


def test_a_disk_that_is_full_keeps_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = Artifacts(str(tmp_path))

    def full(_from: str, _to: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    artifacts.save("guest", b"source", {"at": 1}, b"code")
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
