"""A keep's output as a client of any language gets it: requests of our own making."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator

from keep_protocol.output import CONTENT_TYPE, END
from keep_protocol.ring import STDERR, STDOUT, Frame
from tests.output_decoder import OutputDecoder
from tests.system.fleet import Fleet
from tests.system.life import SOON


@contextlib.contextmanager
def asked(fleet: Fleet, path: str, name: str = "admin") -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET."""
    connection = http.client.HTTPSConnection("127.0.0.1", fleet.port, context=fleet.tls(name), timeout=SOON)
    try:
        connection.request("GET", path)
        yield connection.getresponse()
    finally:
        connection.close()


def frames(fleet: Fleet, kuuid: int, query: str = "") -> list[Frame]:
    """All frames of the keep's output, the last of them its end."""
    with asked(fleet, f"/v1/keeps/{kuuid}/output{query}") as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE), answer.read()
        decoder = OutputDecoder()
        found = decoder.feed(answer.read())
    assert decoder.whole
    assert found[-1].stream == END
    return found


def written(fleet: Fleet, kuuid: int, query: str = "") -> tuple[bytes, bytes]:
    """What its guest wrote to stdout and to stderr."""
    found = frames(fleet, kuuid, query)
    stdout, stderr = (b"".join(one.data for one in found if one.stream == stream) for stream in (STDOUT, STDERR))
    return stdout, stderr


def lines(fleet: Fleet, kuuid: int, query: str = "") -> list[tuple[str, str]]:
    """Source and text of its lines."""
    with asked(fleet, f"/v1/keeps/{kuuid}/logs{query}") as answer:
        assert answer.status == 200, answer.read()
        events = answer.read().decode().split("\n\n")
    data = (event.partition("\ndata: ")[2] for event in events if "event: line" in event)
    return [(line["source"], line["text"]) for line in map(json.loads, data)]
