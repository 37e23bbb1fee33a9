"""Modules near the longest that a store takes, almost all of each a hole in a file: verified in a bounded process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.modules import leb128
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import MAX_OBJECT_BYTES
from module_store.verified import _verify
from module_store.verify.process import DATA_BYTES
from tests.system.life import example

DIGEST = "sha256:" + "0" * 64
POLICY = b"name: large\nsize: 1G\n"


def sparse(path: Path, module: bytes, size: int) -> Path:
    """A valid module of that length: the module, and one custom section of zeros."""
    length = size - len(module) - 1 - 5
    with path.open("wb") as file:
        file.write(module + b"\0" + _five_bytes(length) + leb128(1) + b"x")
        file.truncate(size)
    return path


def _five_bytes(value: int) -> bytes:
    return bytes((value >> 7 * place & 0x7F) | (0x80 if place < 4 else 0) for place in range(5))


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(300 << 20, id="300 MiB"),
        pytest.param(MAX_OBJECT_BYTES, id="the longest", marks=pytest.mark.rare),  # seconds of hashing
    ],
)
def test_a_module_longer_than_its_verifier_may_have_memory_is_verified(tmp_path: Path, size: int) -> None:
    assert size > 0.9 * DATA_BYTES
    path = sparse(tmp_path / "large.wasm", example("hello-c/hello"), size)
    with path.open("rb") as file:
        assert _verify(file.fileno(), DIGEST, POLICY) is None
        refused = _verify(file.fileno(), DIGEST, b"name: small\n")
    assert isinstance(refused, KeepfleetError)
    assert (refused.kind, "size" in refused.message) == (ErrorKind.INVALID_MODULE, True)


def test_a_long_module_that_is_invalid_is_refused_by_the_engine_s_words(tmp_path: Path) -> None:
    invalid = b"\0asm\1\0\0\0" + b"\1\4\1\x60\0\0" + b"\3\2\1\0" + b"\x0a\5\1\3\0\x6a\x0b"
    path = sparse(tmp_path / "large.wasm", invalid, 280 << 20)
    with path.open("rb") as file:
        refused = _verify(file.fileno(), DIGEST, POLICY)
    assert refused is not None
    assert any("type mismatch" in line for line in refused.evidence), refused.evidence
