"""The floor of an upload: a TLS server that reads a body and throws it away. Run as `python -m benchmarks.sink`.

The same language, the same TLS, the same buffer as the upload endpoint's; no HTTP parser, no digest, no file, no
limits.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys

from keep_protocol.tls import server_context

BUFFER = 256 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def serve(connection: ssl.SSLSocket) -> None:
    """Reads one request whole and answers it."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(BUFFER)
        if not received:
            return
        head += received
    head, _, rest = head.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    left = int(length[1]) - len(rest) if length else 0
    buffer = memoryview(bytearray(BUFFER))
    while left > 0:
        count = connection.recv_into(buffer)
        if not count:
            return
        left -= count
    connection.sendall(ANSWER)


def main(ca: str, certificate: str, key: str) -> None:
    """Serves until it is killed; the first line of its output is its port."""
    with open(ca, encoding="ascii") as file:
        context = server_context(certificate, key, file.read())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                serve(connection)


if __name__ == "__main__":
    main(*sys.argv[1:])
