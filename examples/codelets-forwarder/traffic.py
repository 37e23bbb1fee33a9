"""Sends packets through the forwarder, ten at a time, and takes them at its other end: `traffic.py PACKETS`."""

from __future__ import annotations

import socket
import sys

BATCH = 10

with socket.socket(type=socket.SOCK_DGRAM) as end:
    end.bind(("127.0.0.1", 15601))
    end.settimeout(60)
    for number in range(int(sys.argv[1])):
        end.sendto(bytes(100 if number % 3 else 1000), ("127.0.0.1", 15600))
        if number % BATCH == BATCH - 1:
            for _ in range(BATCH):
                end.recv(2000)
