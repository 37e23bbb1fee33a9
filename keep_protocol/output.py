"""The answer to a client that reads a keep's output: frames as they lie in the ring, and two kinds more.

`GET /v1/keeps/ID/output[?from=POSITION][&follow=true][&hold=true]`. The answer begins when nothing more can be missed
from `from` on; with `hold` the workload waits for this reader. Positions only grow; each frame's `offset` says what is
missing before it.
Import rule: that of keep_protocol.ring.
"""

from __future__ import annotations

from keep_protocol.ring import FRAME, MAX_FRAME, STREAMS, TAG, damaged

END, ALIVE = 4, 5
"""What an answer has besides frames of the ring: the last of it, whose data is the keep as JSON, and what says in a
silence that the connection is there."""
CONTENT_TYPE = "application/vnd.keepfleet.output"
ALIVE_SECONDS = 15.0
MAX_END = 128 * 1024
"""Bytes of a keep as JSON, at most."""


def encode_frame(stream: int, data: bytes, position: int = 0) -> bytes:
    """A frame that stands in no ring: END or ALIVE."""
    return FRAME.pack(TAG | stream, len(data), 0, position, 0) + data


def decode_head(header: bytes | memoryview) -> tuple[int, int, int, int, int]:
    """Stream, length of the data, monotonic nanoseconds, own position, and its stream's bytes before, of a frame whose
    HEADER bytes `header` begins with: of one that a client may be sent. Raises KeepfleetError(KEEP_FAILED)."""
    tag, length, time_ns, own, offset = FRAME.unpack_from(header)
    stream = tag & 0xFF
    if tag & ~0xFF != TAG or length > (MAX_END if stream == END else MAX_FRAME):
        raise damaged("what was received is no frame")
    if stream not in (*STREAMS, END, ALIVE):
        raise damaged("what was received is a frame of no stream")
    return stream, length, time_ns, own, offset
