"""The files that systemd leaves behind for each keep's journal fields."""

from __future__ import annotations

import os
import struct
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


def test_the_fields_of_a_unit_that_runs_are_written_as_systemd_writes_them(tmp_path: Path) -> None:
    units = tmp_path / "systemd" / "units"
    units.mkdir(parents=True)
    file = units / "log-extra-fields:keep@7.service"
    file.write_bytes(struct.pack("<Q", 9) + b"KEEP_ID=7")
    FieldFiles(str(tmp_path)).write(7, [b"KEEP_ID=7", b"KEEP_OWNER=alice"])
    assert file.read_bytes() == struct.pack("<Q", 9) + b"KEEP_ID=7" + struct.pack("<Q", 16) + b"KEEP_OWNER=alice"
    assert file.stat().st_mode & 0o777 == 0o644
    assert os.listdir(units) == [file.name]


def test_a_unit_without_such_a_file_gets_none(tmp_path: Path) -> None:
    (tmp_path / "systemd" / "units").mkdir(parents=True)
    FieldFiles(str(tmp_path)).write(7, [b"KEEP_ID=7"])
    assert os.listdir(tmp_path / "systemd" / "units") == []
