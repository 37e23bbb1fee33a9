"""A store of its own for each test, and what is in it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from module_store.store import Store

HELLO, WORLD = b"\0asm hello", b"\0asm world" * 1000


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read(store: Store, digest: str) -> bytes:
    """An object's bytes, by the descriptor that the store gives."""
    with os.fdopen(store.open_object(digest), "rb") as file:
        return file.read()


def add(store: Store, data: bytes, reference: str = "") -> str:
    return store.add(io.BytesIO(data), reference=reference, who="tester").digest


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    with Store.create(str(directory)) as store:
        yield store
