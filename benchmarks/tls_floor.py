"""The floor of output that a client gets: as many bytes over TLS on the loopback, by two processes in the same language
with nothing else to do. The receiver is `python -m benchmarks.tls_floor PORT SIZE`.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time

from benchmarks.measuring import MB, MeasurementFailed
from keep_protocol.ring import MAX_FRAME

SECONDS = 60


def measure(certificate: str, key: str, size: int) -> tuple[float, float, float]:
    """MB/s, and ms of processor time a MB of the sender and of the receiver. Raises MeasurementFailed, OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        argv = [sys.executable, "-m", __name__, str(listener.getsockname()[1]), str(size)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as receiver:
            plain, _ = listener.accept()
            plain.settimeout(SECONDS)
            with context.wrap_socket(plain, server_side=True) as connection:
                block = memoryview(bytearray(MAX_FRAME))
                began, used = time.perf_counter(), time.process_time()
                for start in range(0, size, len(block)):
                    connection.sendall(block[: size - start])
                used = time.process_time() - used
                said = receiver.communicate(timeout=SECONDS)[0]
                seconds = time.perf_counter() - began
    if receiver.returncode:
        raise MeasurementFailed(f"{' '.join(argv)} exited {receiver.returncode}")
    return size / MB / seconds, used * 1000 / (size / MB), float(said) * 1000 / (size / MB)


def main(port: str, size: str) -> None:
    """Prints the seconds of processor time that receiving takes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # what is sent are zeros
    with context.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), SECONDS)) as connection:
        buffer, left = memoryview(bytearray(MAX_FRAME)), int(size)
        used = time.process_time()
        while left > 0:
            count = connection.recv_into(buffer)
            if not count:
                sys.exit(1)
            left -= count
        sys.stdout.write(str(time.process_time() - used))


if __name__ == "__main__":
    main(*sys.argv[1:])
