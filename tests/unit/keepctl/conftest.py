"""keepctl as a person runs it: in process, with a directory of its own for everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keepctl.__main__ import build

Run = Callable[..., Result]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the PKI is to be."""
    path = tmp_path / "keepfleet" / "pki"
    monkeypatch.setenv("KEEPFLEET_PKI", str(path))
    monkeypatch.delenv("KEEPFLEET_MANAGER", raising=False)
    return path


@pytest.fixture
def run(directory: Path) -> Run:
    """Runs `keepctl` with these arguments; anything but a clean exit fails the test."""
    del directory

    def invoke(*arguments: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(build(), list(arguments), prog_name="keepctl", input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return invoke
