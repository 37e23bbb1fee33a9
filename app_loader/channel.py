"""One TLS connection, never blocking: handshake, read, write, and an end that does not destroy the last answer.

No HTTP here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from functools import partial

from app_loader.limits import TLS_RECORD_BYTES


class Gone(Exception):
    """The peer has ended the connection, or broken it; nothing more can be sent or received."""


class Channel:
    """The server's side of one connection. `interest` is what to poll for after a call has said "not yet"."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        connection.setblocking(False)
        try:
            self._tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            connection.close()
            raise Gone(str(error)) from error
        self._unsent = bytearray()
        self._said_goodbye = False
        self.interest = select.POLLIN

    def __repr__(self) -> str:
        return f"Channel({self.fileno()}, {len(self._unsent)} bytes unsent)"

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._tls.fileno()

    @property
    def connection(self) -> ssl.SSLSocket:
        """The TLS socket, to ask it for the peer's certificate."""
        return self._tls

    def _attempt(self, call: Callable[[], int]) -> int | None:
        """What `call` returns; None when it must be made again after a poll for `interest`. Raises Gone."""
        try:
            return call()
        except ssl.SSLWantReadError:
            self.interest = select.POLLIN
        except ssl.SSLWantWriteError:
            self.interest = select.POLLOUT
        except (OSError, ValueError) as error:
            raise Gone(str(error)) from error
        return None

    def handshake(self) -> bool:
        """Goes on with the handshake; True when it is complete. Raises Gone when it failed; the alert is sent."""
        if self._attempt(self._shake_hands) is None:
            return False
        self.interest = select.POLLIN
        return True

    def _shake_hands(self) -> int:
        self._tls.do_handshake()
        return 0

    def read_into(self, buffer: memoryview) -> int:
        """Fills `buffer` as far as bytes have come; 0 when none have. Raises Gone at the end of the stream."""
        filled = 0
        self.interest = select.POLLIN
        while len(rest := buffer[filled:]) >= TLS_RECORD_BYTES:
            count = self._attempt(partial(self._tls.recv_into, rest))
            if count is None:
                break
            if count == 0:
                if filled:
                    break
                raise Gone("the client has ended the connection")
            filled += count
        return filled

    def write(self, data: bytes) -> bool:
        """Queues `data` and sends what fits; True when all is sent. Raises Gone."""
        self._unsent += data
        return self.flush()

    def flush(self) -> bool:
        """Sends what is queued and fits; True when nothing is left. Raises Gone."""
        while self._unsent:
            count = self._attempt(partial(self._tls.send, bytes(self._unsent[:TLS_RECORD_BYTES])))
            if count is None:
                return False
            del self._unsent[:count]
        self.interest = select.POLLIN
        return True

    def say_goodbye(self) -> None:
        """Tells the peer that nothing more comes (TLS close_notify, then TCP FIN); its own bytes still arrive."""
        if self._said_goodbye:
            return
        self._said_goodbye = True
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()  # it would wait for the peer's own close_notify; `discard` sees how that ends
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_WR)
        self.interest = select.POLLIN

    def discard(self, buffer: memoryview) -> bool:
        """Throws away what has come since `say_goodbye`; True once the peer has ended the connection too."""
        try:
            return self._tls_raw_receive(buffer) == 0
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _tls_raw_receive(self, buffer: memoryview) -> int:
        """Encrypted bytes from the socket itself: nobody needs to know what a refused client still says."""
        return socket.socket.recv_into(self._tls, buffer)

    def close(self) -> None:
        """Closes the connection at once. May be called twice."""
        self._tls.close()
