"""A loader to talk to, and what a start brings."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.loader_process import Endpoint, LoaderProcess, endpoint


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory: a Unix socket's address holds 107 characters."""
    with tempfile.TemporaryDirectory(prefix="kl") as name:
        directory = Path(name) / "r"
        directory.mkdir(mode=0o700)
        yield directory


@pytest.fixture
def unstarted(place: Path) -> Iterator[LoaderProcess]:
    with ExitStack() as stack:
        yield LoaderProcess(place, stack)


@pytest.fixture
def loader(unstarted: LoaderProcess) -> LoaderProcess:
    """A loader that is READY and idle."""
    unstarted.start()
    return unstarted


@pytest.fixture
def unread(place: Path) -> Iterator[Endpoint]:
    """What a start brings; its journald reads nothing, unless the test does."""
    with endpoint(place.parent) as made:
        yield made


@pytest.fixture
def passed(unread: Endpoint) -> Iterator[Endpoint]:
    """The same with a journald that reads: a loader gives one that stands still two seconds at the end."""
    end = b"the end of the test"

    def read() -> None:
        while unread.journald.recv(1 << 20) != end:
            continue

    thread = threading.Thread(target=read)
    thread.start()
    yield unread
    unread.journal.send(end)
    thread.join()
