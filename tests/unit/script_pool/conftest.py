"""What the tests of scripts share."""

from __future__ import annotations

import pytest

from tests.python_component import python_directory


@pytest.fixture(scope="session")
def python_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory where CPython is made."""
    return python_directory(str(tmp_path_factory.getbasetemp()))
