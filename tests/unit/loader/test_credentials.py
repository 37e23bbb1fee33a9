"""Secrets that come as credentials of the unit: copied into the keep's own memory, for reading alone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from keep_loader.credentials import open_credential
from keep_protocol.errors import KeepfleetError
from keep_protocol.workload import MAX_SECRET_BYTES


def test_a_credential_is_a_file_for_reading_alone_that_no_name_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, own = tmp_path / "given", tmp_path / "own"
    given.mkdir()
    own.mkdir()
    (given / "token").write_bytes(b"value")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    descriptor = open_credential("token", str(own))
    (given / "token").unlink()
    try:
        assert os.pread(descriptor, 100, 0) == b"value"
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert list(own.iterdir()) == []
    finally:
        os.close(descriptor)


def test_one_that_is_not_there_or_too_long_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeepfleetError, match="its secret token: systemd has given this unit no credentials"):
        open_credential("token", str(tmp_path))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(KeepfleetError, match="its secret token: No such file"):
        open_credential("token", str(tmp_path))
    (tmp_path / "token").write_bytes(bytes(MAX_SECRET_BYTES + 1))
    with pytest.raises(KeepfleetError, match="it is over"):
        open_credential("token", str(tmp_path))
