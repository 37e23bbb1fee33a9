"""A keep's output as the guest wrote it: frames taken apart as they arrive, and followed over lost connections.

A piece is passed on as soon as it is there, not when its frame is whole: 100 MB are then neither copied nor waited for.
"""

from __future__ import annotations

from _collections_abc import Generator, Iterator

from keep_client.connection import Connection, cut_short, persistent
from keep_client.http import target_of
from keep_client.peer import ConnectionFailed
from keep_protocol import strict_json
from keep_protocol.constants import V1_KEEPS_PATH
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.output import END, MAX_END, decode_head
from keep_protocol.ring import HEADER, MARK, STREAMS

GAP = 0
"""The stream of a piece that says what is missing."""
Piece = tuple[int, int, memoryview | bytes]
"""A stream (of STREAMS), the monotonic nanoseconds of its frame, and bytes of it, valid until the next ones are asked
for; a MARK's are whole. Where bytes are missing GAP, which stream they are of, and how many, in digits.

A tuple, and no record: a guest that writes line by line makes tens of thousands of them in a second."""
_NO_BYTES = memoryview(b"")


class Decoder:
    """Bytes of an answer in, pieces out; bounded in memory. It goes on over several answers: what one broke off with is
    asked for from `position` on, and what comes twice is left out.

    end: the data of END, once that has come whole.
    """

    def __init__(self) -> None:
        self.position = 0
        self.end: bytes | None = None
        self._seen = [0] * (MARK + 1)  # bytes of each stream that were passed on, or are known to be missing
        self.again()

    def __repr__(self) -> str:
        return f"Decoder(at {self.position}, {self._left} bytes of a frame left)"

    def again(self) -> None:
        """The next bytes are the beginning of an answer from `position` on."""
        self._header = b""
        self._stream = self._time_ns = self._offset = self._left = self._length = 0
        self._held = bytearray()  # of a frame that is wanted whole

    def feed(self, data: memoryview) -> list[Piece]:
        """The pieces in `data`. Raises KeepfleetError(KEEP_FAILED) for what cannot be read."""
        pieces: list[Piece] = []
        while data:
            if not self._left:
                data = self._begin(data, pieces)
            if self._left and data:
                part, data = data[: self._left], data[self._left :]
                self._left -= len(part)
                self._pass_on(part, pieces)
        return pieces

    def _begin(self, data: memoryview, pieces: list[Piece]) -> memoryview:
        """Takes a frame's header, or what there is of it, and returns what comes after."""
        missing = HEADER - len(self._header)
        self._header += bytes(data[:missing])
        if len(self._header) == HEADER:
            frame, self._header = decode_head(self._header), b""
            self._stream, self._length, self._time_ns, position, self._offset = frame
            self._left = self._length
            if self._stream in STREAMS:
                if position < self.position:
                    raise _damaged(f"the frame at {position} comes after position {self.position}")
                self.position = position
                gap = self._offset - self._seen[self._stream]
                if gap > 0:
                    self._seen[self._stream] = self._offset
                    if self._stream != MARK:
                        pieces.append((GAP, self._stream, str(gap).encode()))
            if not self._left:
                self._pass_on(_NO_BYTES, pieces)
        return data[missing:]

    def _pass_on(self, part: memoryview, pieces: list[Piece]) -> None:
        """Passes a part of the frame on, but for what was before."""
        stream, is_whole = self._stream, not self._left
        if stream in (END, MARK):
            self._held += part
            if not is_whole:
                return
            part, whole = _NO_BYTES, bytes(self._held)
            self._held.clear()
            if stream == END:
                self.end = whole
            elif self._offset >= self._seen[MARK]:
                self._seen[MARK] = self._offset + self._length
                pieces.append((MARK, self._time_ns, whole))
        elif stream in STREAMS:
            after = self._offset + self._length - self._left
            fresh = after - self._seen[stream]
            if fresh > 0:
                self._seen[stream] = after
                pieces.append((stream, self._time_ns, part[-fresh:]))
        if is_whole and stream in STREAMS:
            self.position += HEADER + self._length


def _damaged(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot read the keep's output: {why}")


class Output:
    """One keep's output, from its beginning on, and with `follow` until the keep has ended.

    keep: the keep as it ended, after END. reader: as for `Connection.received`.
    """

    def __init__(
        self, connection: Connection, kuuid: int, follow: bool = False, hold: bool = False, reader: int | None = None
    ) -> None:
        """hold: the guest waits for us, from `attach` on."""
        self.keep: KeepInfo | None = None
        self._connection, self._kuuid, self._reader = connection, kuuid, reader
        self._query = [("follow", "true")] * follow + [("hold", "true")] * hold
        self._decoder = Decoder()
        self._is_attached = False
        self._arriving: Generator[list[Piece], None, None] | None = None

    def __repr__(self) -> str:
        return f"Output(of keep {self._kuuid}, {self._decoder!r})"

    def request(self) -> None:
        """Asks for it, and does not wait for the answer. Raises ConnectionFailed."""
        self._arriving = persistent(self._connect, self._connection.patience, patient=True)
        next(self._arriving)

    def attach(self) -> None:
        """Waits for the answer to have begun: nothing can be missed from now on. Raises KeepfleetError."""
        if self._arriving is None:
            self.request()
        while not self._is_attached and self._arriving is not None:
            try:
                next(self._arriving)
            except BrokenPipeError:  # `pieces` raises it: where we are called, it would be another connection's
                self._arriving = None

    def pieces(self, patient: bool = True) -> Generator[list[Piece], None, None]:
        """What comes, also of connections that are made again where one is lost; and where it broke off, if it was left
        before its end.

        patient: also the first one. Raises KeepfleetError, and BrokenPipeError when its reader has gone.
        """
        arriving, self._arriving = self._arriving, None
        arriving = arriving or persistent(self._connect, self._connection.patience, patient)
        try:
            yield from arriving
        finally:
            arriving.close()

    def close(self) -> None:
        """Reads no more; `pieces` goes on there."""
        if self._arriving is not None:
            self._arriving.close()
            self._arriving = None

    def _connect(self) -> Iterator[list[Piece]]:
        decoder, query = self._decoder, self._query
        decoder.again()
        if decoder.position:
            query = [("from", str(decoder.position)), *query]
        target = target_of(f"{V1_KEEPS_PATH}/{self._kuuid}/output", query)
        received = self._connection.received(target, self._reader)
        try:
            next(received)
            yield []  # the request is out
            next(received)
            self._is_attached = True
            yield _ALIVE
            for data in received:
                pieces = decoder.feed(data)
                if decoder.end is not None:
                    self.keep = _keep_in(decoder.end)
                yield pieces or _ALIVE
        except ConnectionFailed:
            if decoder.end is None:
                raise
        finally:
            received.close()
        if decoder.end is None:
            raise cut_short(self._connection.endpoint)


_ALIVE: list[Piece] = [(MARK, 0, b"")]
"""For an answer that has begun, or bytes without a piece in them: the connection is there."""


def _keep_in(data: bytes) -> KeepInfo | None:
    """The keep in END. Raises KeepfleetError(BAD_REQUEST)."""
    return keep_from_wire(strict_json.loads_object(data, MAX_END, "the keep")) if data else None
