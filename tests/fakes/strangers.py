"""Clients that connect and complete no handshake, from any address of this host's loopback."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fakes.running_manager import RunningManager


def client_hello(manager: RunningManager) -> bytes:
    """The first bytes of a good client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = manager.context(manager.operator).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake alone")


async def stranger(manager: RunningManager, said: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    """A connection from `address` on which this has been said, and no more will be."""
    sock = socket.socket()
    loop = asyncio.get_running_loop()
    try:
        sock.setblocking(False)
        sock.bind((address, 0))
        await loop.sock_connect(sock, ("127.0.0.1", manager.port))
        if said:
            await loop.sock_sendall(sock, said)
    except BaseException:
        sock.close()
        raise
    return sock


async def ended(sock: socket.socket) -> bool:
    """Whether the manager closes the connection, whatever it answers before."""
    try:
        async with asyncio.timeout(20):
            while await asyncio.get_running_loop().sock_recv(sock, 65536):
                pass
    except ConnectionError:
        pass
    return True


@asynccontextmanager
async def rolling(
    manager: RunningManager, count: int, addresses: Sequence[str], said: bytes = b""
) -> AsyncIterator[None]:
    """This many strangers while the block runs, each renewed as soon as the manager closes it."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    async def again_and_again(address: str) -> None:
        while True:
            try:
                sock = await stranger(manager, said, address)
            except ConnectionError:
                continue
            with sock:
                await ended(sock)

    tasks = [asyncio.create_task(again_and_again(addresses[number % len(addresses)])) for number in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def resident_bytes() -> int:
    """What of this process lies in memory (man 5 proc, statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
