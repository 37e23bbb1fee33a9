"""What the tests of scripts share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python_component import python_directory

ROOT = Path(__file__).resolve().parents[3]
PATIENT = "from script_pool import decisions\n\ndecisions.GRACE_SECONDS = 60.0\n"


@pytest.fixture(scope="session")
def patience(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What each interpreter that finds it begins with (man python, `site`)."""
    place = tmp_path_factory.mktemp("patient")
    (place / "sitecustomize.py").write_text(PATIENT)
    return str(place)


@pytest.fixture(scope="module", autouse=True)
def patient_pools(patience: str) -> Iterator[None]:
    """No pool that a test starts kills a process behind its run's limit: a loop is ended by its engine, whose clock
    stands still while its process gets no processor. What a pool does with one that notices no limit is a test of
    test_script_pool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([patience, str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(":"))
        yield


@pytest.fixture(scope="session")
def python_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory where CPython is made."""
    return python_directory(str(tmp_path_factory.getbasetemp()))
