"""A packet forwarder with hooks: UDP datagrams come in, wait in one of two queues, and go out again.

    forwarder.py --store STORE --socket LCM-SOCKET --listen 127.0.0.1:5000 --to 127.0.0.1:5001

On `ingress` a codelet may steer a packet to a queue; on `egress` one may measure how long it waited. Without codelets
all packets go through queue 1. What codelets send is printed, a line a message, and with --collector it reaches the
process that `codelets collect` is, too.
"""

from __future__ import annotations

import argparse
import ctypes
import selectors
import signal
import socket
import sys
import time
from collections import deque

from codelets import JsonOf, Runtime

QUEUES, LONGEST = 2, 1024
SAMPLES = "53414d504c4553000000000000000001"
BORDERS = "424f52444552530000000000000000ff"


class Ingress(ctypes.LittleEndianStructure):
    _fields_ = (("size", ctypes.c_uint32), ("port", ctypes.c_uint32))


class Egress(ctypes.LittleEndianStructure):
    _fields_ = (("queue", ctypes.c_uint32), ("length", ctypes.c_uint32), ("waited_ns", ctypes.c_uint64))


class Sample(ctypes.LittleEndianStructure):
    _fields_ = (
        ("queue", ctypes.c_uint32),
        ("packets", ctypes.c_uint32),
        ("mean_ns", ctypes.c_uint64),
        ("longest_ns", ctypes.c_uint64),
        ("mean_length", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class Forwarder:
    """Forwards datagrams from one socket to an address, the first queue before the second."""

    def __init__(self, runtime: Runtime, listener: socket.socket, to: tuple[str, int]) -> None:
        self._listener, self._to = listener, to
        self._queues: tuple[deque[tuple[int, bytes]], ...] = tuple(deque() for _ in range(QUEUES))
        self._chosen = QUEUES - 1
        self._ingress, self._egress = Ingress(), Egress()
        runtime.helper("set_queue", self._choose, ("i32",))
        self._on_ingress = runtime.hook("ingress", Ingress)
        self._on_egress = runtime.hook("egress", Egress)

    def _choose(self, queue: int) -> None:
        if not 0 <= queue < QUEUES:
            raise ValueError(f"there is no queue {queue}")
        self._chosen = queue

    def receive(self) -> bool:
        """Takes one packet in; False where none is there."""
        try:
            data, sender = self._listener.recvfrom(65536)
        except BlockingIOError:
            return False
        self._chosen = QUEUES - 1
        self._ingress.size, self._ingress.port = len(data), sender[1]
        self._on_ingress(self._ingress)
        queue = self._queues[self._chosen]
        if len(queue) < LONGEST:
            queue.append((time.monotonic_ns(), data))
        return True

    def send(self) -> bool:
        """Sends one packet; False where none waits."""
        for number, queue in enumerate(self._queues):
            if queue:
                since, data = queue.popleft()
                self._egress.queue, self._egress.length = number, len(queue)
                self._egress.waited_ns = time.monotonic_ns() - since
                self._on_egress(self._egress)
                self._listener.sendto(data, self._to)
                return True
        return False


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="the module store that codelets come from")
    parser.add_argument("--socket", required=True, help="where the life-cycle socket is made")
    parser.add_argument("--collector", help="where the socket of the data collector is made: codelets collect")
    parser.add_argument("--listen", type=address, required=True, help="HOST:PORT")
    parser.add_argument("--to", type=address, required=True, help="HOST:PORT")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listening = socket.socket(type=socket.SOCK_DGRAM)
    with (
        Runtime(options.store, lcm_socket=options.socket, collector_socket=options.collector) as runtime,
        listening as listener,
    ):
        listener.bind(options.listen)
        listener.setblocking(False)
        forwarder = Forwarder(runtime, listener, options.to)
        runtime.serializer("sample", JsonOf(Sample))
        runtime.on_output(SAMPLES, lambda stream, sample: print(sample, flush=True))
        runtime.start_delivering()
        print(f"forwarding {options.listen} to {options.to}", flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while True:
                selector.select()
                while forwarder.receive():
                    pass
                while forwarder.send():
                    pass


if __name__ == "__main__":
    main()
