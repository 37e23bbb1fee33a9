"""The Python clients against a pool that answers what no pool answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from script_pool import blocking, client
from script_pool.asking import PoolError

ANSWERS = [b"{", b"7", b"[" * 100_000, b'{"id": []}', b'{"id": {}, "hostCall": null}', b'{"id": 1.5}']


@pytest.fixture
def path(tmp_path: Path, answer: bytes) -> Iterator[str]:
    """The socket of one that answers the first request so."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "pool"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer + b"\r\n")
                connection.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(tmp_path / "pool")
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("answer", ANSWERS)
async def test_what_is_no_answer_ends_every_request_and_the_pool(path: str) -> None:
    async with client.Pool(path) as pool:
        for result in await asyncio.gather(pool.run("a", {}), pool.run("b", {}), return_exceptions=True):
            assert isinstance(result, PoolError)
        with pytest.raises(PoolError, match=r"^cannot ask the pool: cannot read the pool's answer: "):
            await pool.run("c", {})


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_no_answer_is_an_error_of_the_blocking_client(path: str) -> None:
    with blocking.BlockingPool(path) as pool, pytest.raises(PoolError, match=r"^cannot read the pool's answer: "):
        pool.run("a", {})
