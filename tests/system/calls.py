"""Calls that are refused, that are made concurrently, and one that stops half-way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from keep_client import keep as endpoint
from keep_client.http import Body, Reply
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.system.life import SOON, Life


def refused(call: Callable[[], object], kind: ErrorKind) -> str:
    """What the refusal says."""
    with pytest.raises(KeepfleetError) as caught:
        call()
    assert caught.value.kind is kind, caught.value
    return caught.value.message


def both(*calls: Callable[[], object]) -> list[object]:
    """The results of calls made at the same moment, errors among them."""
    barrier = threading.Barrier(len(calls))

    def at_once(call: Callable[[], object]) -> object:
        barrier.wait(SOON)
        try:
            return call()
        except KeepfleetError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(at_once, calls))


def split(results: list[object]) -> tuple[list[object], list[ErrorKind]]:
    """What succeeded, and how the others failed."""
    failed = [result for result in results if isinstance(result, KeepfleetError)]
    return [result for result in results if result not in failed], [error.kind for error in failed]


@contextlib.contextmanager
def half_an_upload(life: Life, module: bytes) -> Iterator[Future[Reply]]:
    """An upload of which the keep has the first half; at the end of the block comes the rest."""
    sent, go_on = threading.Event(), threading.Event()

    def parts() -> Iterator[bytes]:
        yield module[:100]
        sent.set()
        go_on.wait(SOON)
        yield module[100:]

    body = Body("application/wasm", len(module), parts())
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(endpoint.upload, life.endpoint, life.context, "PUT", endpoint.WORKLOAD_PATH, body)
        try:
            assert sent.wait(SOON)
            while "receiving a workload" not in life.look().detail:
                assert not future.done(), future.result()
            yield future
        finally:
            go_on.set()
