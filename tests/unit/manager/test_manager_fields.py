"""The files that systemd leaves behind for each keep's journal fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from keep_manager.systemd.fields import FieldFiles


@pytest.fixture
def units(tmp_path: Path) -> Path:
    directory = tmp_path / "systemd" / "units"
    directory.mkdir(parents=True)
    for name in ("log-extra-fields:keep@5.service", "log-extra-fields:other.service", "invocation:keep@6.service"):
        (directory / name).touch()
    return directory


def test_only_the_keeps_files_count(tmp_path: Path, units: Path) -> None:
    assert FieldFiles(str(tmp_path)).kuuids() == {5}


def test_a_keep_s_file_is_removed_and_no_other(tmp_path: Path, units: Path) -> None:
    files = FieldFiles(str(tmp_path))
    files.remove(5)
    files.remove(6)
    assert sorted(path.name for path in units.iterdir()) == [
        "invocation:keep@6.service",
        "log-extra-fields:other.service",
    ]


def test_where_systemd_has_no_such_directory_there_is_nothing_to_do(tmp_path: Path) -> None:
    files = FieldFiles(str(tmp_path))
    assert files.kuuids() == set()
    files.remove(5)


def test_a_file_that_cannot_be_removed_is_a_line_in_the_log(
    tmp_path: Path, units: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (units / "log-extra-fields:keep@7.service").mkdir()
    FieldFiles(str(tmp_path)).remove(7)
    assert "cannot remove journald's settings of keep@7.service" in caplog.text
