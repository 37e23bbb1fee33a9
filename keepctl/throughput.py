"""How many calls a second a pool answers, and how long each takes, as one client on one connection sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from keep_client.scripts import Stream
from keep_protocol import strict_json
from keep_protocol.fields import Record

WARM_CALLS = 50
"""Before a round: what has not run yet is slower."""


class Round(Record):
    """One round. in_flight: concurrent requests; rate: calls a second; the others are milliseconds; refused: of its
    calls, those that were not done."""

    in_flight: int
    rate: float
    median: float
    tail: float
    refused: int

    def to_wire(self) -> dict[str, object]:
        """As JSON has it."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in self.fields().items()}

    def row(self) -> tuple[str, ...]:
        """As a table has it."""
        return (str(self.in_flight), f"{self.rate:.0f}", f"{self.median:.2f}", f"{self.tail:.2f}", str(self.refused))


def measure(stream: Stream, name: str, given: Mapping[str, object], calls: int, in_flight: int) -> Round:
    """Calls a script so often with so many requests under way. Raises KeepfleetError."""
    rest = strict_json.dumps({"cmd": "ExecCode", "name": name, "inputSandbox": dict(given)})[1:] + b"\r\n"
    _calls(stream, rest, min(calls, WARM_CALLS), in_flight)
    began = time.perf_counter()
    taken, refused = _calls(stream, rest, calls, in_flight)
    seconds = time.perf_counter() - began
    taken.sort()
    return Round(
        in_flight, calls / seconds, taken[len(taken) // 2], taken[min(len(taken) - 1, len(taken) * 99 // 100)], refused
    )


def _calls(stream: Stream, rest: bytes, calls: int, in_flight: int) -> tuple[list[float], int]:
    sent: dict[bytes, float] = {}
    taken: list[float] = []
    refused = number = 0
    while len(taken) < calls:
        while number < calls and len(sent) < in_flight:
            number += 1
            key = b"%d" % number
            sent[key] = time.perf_counter()
            stream.send(b'{"id":%b,%b' % (key, rest))
        answer = stream.receive()
        key = answer[answer.index(b":") + 1 : answer.index(b",")]
        taken.append(1000 * (time.perf_counter() - sent.pop(key)))
        refused += b'"ok":true' not in answer[:60]
    return taken, refused
