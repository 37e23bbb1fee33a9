"""Connections that say nothing, in a thread of their own, each renewed as soon as the other side closes it."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

LOOK_SECONDS = 0.05
"""How often the thread looks whether it is to end."""


def _connect(port: int, address: str) -> socket.socket:
    sock = socket.socket()
    sock.bind((address, 0))
    sock.setblocking(False)
    with suppress(BlockingIOError):
        sock.connect(("127.0.0.1", port))
    return sock


@contextmanager
def rolling(port: int, count: int, addresses: Sequence[str] = ("127.0.0.1",)) -> Iterator[None]:
    """This many of them while the block runs."""
    stop = threading.Event()

    def roll() -> None:
        with selectors.DefaultSelector() as all_of_them:
            for number in range(count):
                address = addresses[number % len(addresses)]
                all_of_them.register(_connect(port, address), selectors.EVENT_READ, address)
            while not stop.is_set():
                for key, _ in all_of_them.select(LOOK_SECONDS):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    gone = True
                    with suppress(OSError):
                        gone = not sock.recv(100)
                    if gone:
                        all_of_them.unregister(sock)
                        sock.close()
                        all_of_them.register(_connect(port, key.data), selectors.EVENT_READ, key.data)
            for key in tuple(all_of_them.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()

    thread = threading.Thread(target=roll)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
