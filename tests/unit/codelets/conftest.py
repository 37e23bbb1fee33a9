"""What tests of codelets share: applications whose hooks are called through ctypes, and in C."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from codelets import fast
from keep_protocol.errors import KeepfleetError
from tests.unit.codelets.application import Application


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """Closes what a test has opened."""
    yield
    while Application.made:
        Application.made[-1].close()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory that the calls in C are built into, once."""
    directory = str(tmp_path_factory.mktemp("fast"))
    try:
        fast.build(directory)
    except KeepfleetError as error:
        if "apt-get install" not in error.message:
            raise
        pytest.skip(error.message)  # which callers of codelets through ctypes do not need
    return directory


@pytest.fixture(scope="session", autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled codelets are kept for these tests alone, and not among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["ctypes", "c"])
def in_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether hooks are called in C, where that was built."""
    if request.param == "c":
        monkeypatch.setattr(fast, "DIRECTORY", request.getfixturevalue("built"))
    return bool(request.param == "c")


@pytest.fixture
def application(tmp_path: Path, in_c: bool) -> Iterator[Application]:
    made = Application(tmp_path, in_c=in_c)
    yield made
    made.close()
