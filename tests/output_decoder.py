"""An answer with a keep's output, taken apart without any of the client's own code."""

from __future__ import annotations

from keep_protocol.output import decode_head
from keep_protocol.ring import HEADER, STREAMS, Frame


class OutputDecoder:
    """Bytes of an answer in, frames out. Fails where a position is smaller than one before it."""

    def __init__(self) -> None:
        self._rest = b""
        self._position = 0

    @property
    def whole(self) -> bool:
        """Whether nothing of a frame is waiting for its end."""
        return not self._rest

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises KeepfleetError(KEEP_FAILED) for what cannot be read."""
        data, start, frames = self._rest + data, 0, []
        while len(data) - start >= HEADER:
            stream, length, time_ns, own, offset = decode_head(data[start : start + HEADER])
            if start + HEADER + length > len(data):
                break
            if stream in STREAMS:
                assert own >= self._position, f"the frame at {own} comes after position {self._position}"
                self._position = own + HEADER + length
            frames.append(Frame(stream, time_ns, own, offset, data[start + HEADER : start + HEADER + length]))
            start += HEADER + length
        self._rest = data[start:]
        return frames
