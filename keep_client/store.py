"""The calls of a manager's module store; see `/v1/store` in the reference."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from keep_client.connection import CALL_SECONDS, Connection
from keep_client.http import NO_BODY, NO_HEADERS, Body, Headers, Reply, json_body, target_of
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse
from keep_protocol.pulling import V1_PULLS_PATH, Pull, Pulling, PullState
from keep_protocol.store import (
    MAX_SIGNATURES_HEADER,
    SIGNATURES_HEADER,
    V1_STORE_PATH,
    Attached,
    Collected,
    Collection,
    Details,
    Findings,
    Listing,
    Moved,
    Object,
    Reference,
    Requirements,
    Revoked,
    Revoking,
    Signature,
    Tagging,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """What is sent."""

        def read(self, size: int, /) -> bytes:
            """At most `size` bytes, none at the end."""

    class Writable(Protocol):
        """Where an export goes."""

        def write(self, data: bytes, /) -> object:
            """Writes all of `data`."""


_PULLS = V1_PULLS_PATH.removeprefix(V1_STORE_PATH)
MODULE_TYPE = "application/octet-stream"
PIECE_BYTES = 1 << 18
TRANSFER_SECONDS = 24 * 3600.0
"""The manager ends one that stalls or is slower than 16 KiB a second."""
WHOLE_STORE_SECONDS = 3600.0
"""Reading every byte of a store: 100 GB at 30 MB/s."""


class StoreClient(Connection):
    """Calls to one manager's store. Each raises ConnectionFailed when no answer came, and the error the manager
    reported otherwise."""

    def _call(
        self,
        method: str,
        path: str,
        body: Body = NO_BODY,
        seconds: float = CALL_SECONDS,
        headers: Headers = NO_HEADERS,
        query: Sequence[tuple[str, str]] = (),
    ) -> Reply:
        reply = self.request(method, target_of(f"{V1_STORE_PATH}{path}", query), body, seconds, headers)
        if not 200 <= reply.status < 300:
            raise reply.error()
        return reply

    def listing(self) -> Listing:
        """Every object and every reference."""
        return parse(Listing, self._call("GET", "").object(), "listing")

    def inspect(self, digest: str) -> Details:
        """One object, after the manager has read all of it."""
        return parse(Details, self._call("GET", f"/objects/{digest}").object(), "object")

    def add(self, source: Readable, reference: str = "", digest: str = "", signatures: Sequence[bytes] = ()) -> Object:
        """Sends an object with its signatures, and has it named; all of that happens or nothing."""
        given = ",".join(base64.b64encode(each).decode() for each in signatures)
        if len(given) > MAX_SIGNATURES_HEADER:
            why = "its signatures are too long to go with it; add it, and attach them one by one"
            raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot add the module: {why}")
        query = [(name, value) for name, value in (("reference", reference), ("digest", digest)) if value]
        body = Body(MODULE_TYPE, None, _pieces(source))
        headers = {SIGNATURES_HEADER: given} if given else NO_HEADERS
        return parse(Object, self._call("POST", "/objects", body, TRANSFER_SECONDS, headers, query).object(), "object")

    def attach(self, digest: str, signatures: Sequence[bytes]) -> Attached:
        """Has signatures kept with an object."""
        keys: list[str] = []
        for each in signatures:
            body = json_body(Signature(each.decode("utf-8", "replace")).to_wire())
            reply = self._call("POST", f"/objects/{digest}/signatures", body)
            keys += parse(Attached, reply.object(), "answer").keys
        return Attached(digest, tuple(keys))

    def pull(self, asked: Pulling, shown: Callable[[Pull], object] = lambda _: None) -> Pull:
        """Has the manager pull a module from a registry, and waits for it; `shown` is called meanwhile.

        Whatever ends this call ends the pull. Raises KeepfleetError: also what the pull failed with.
        """
        pull = parse(Pull, self._call("POST", _PULLS, json_body(asked.to_wire())).object(), "pull")
        try:
            while pull.state is PullState.PULLING:
                shown(pull)
                pull = parse(Pull, self._call("GET", f"{_PULLS}/{pull.id}?wait=true").object(), "pull")
        except BaseException:
            with suppress(KeepfleetError):
                self.cancel_pull(pull.id)
            raise
        if pull.error is not None:
            raise KeepfleetError(pull.error.kind, pull.error.message)
        return pull

    def pulls(self) -> tuple[Pull, ...]:
        """Those that are under way, and the last that have ended."""
        found = self._call("GET", _PULLS).object().get("pulls")
        items = found if isinstance(found, list) else []
        return tuple(parse(Pull, each if isinstance(each, dict) else {}, "pull") for each in items)

    def cancel_pull(self, name: str) -> Pull:
        """Ends one that is under way."""
        return parse(Pull, self._call("DELETE", f"{_PULLS}/{name}").object(), "pull")

    def remove(self, digest: str) -> None:
        """Removes an object that nothing needs."""
        self._call("DELETE", f"/objects/{digest}")

    def reference(self, name: str) -> Reference:
        """One reference, with its history."""
        return parse(Reference, self._call("GET", f"/references/{name}").object(), "reference")

    def tag(self, name: str, tagging: Tagging) -> Reference:
        """Has a reference name an object that is there."""
        reply = self._call("PUT", f"/references/{name}", json_body(tagging.to_wire()))
        return parse(Reference, reply.object(), "reference")

    def untag(self, name: str) -> None:
        """Removes a reference and its history."""
        self._call("DELETE", f"/references/{name}")

    def collect(self, how: Collection) -> Collected:
        """Removes what nothing needs."""
        reply = self._call("POST", "/gc", json_body(how.to_wire()), WHOLE_STORE_SECONDS)
        return parse(Collected, reply.object(), "answer")

    def verify(self) -> Findings:
        """Has every byte read."""
        return parse(Findings, self._call("POST", "/verify", NO_BODY, WHOLE_STORE_SECONDS).object(), "answer")

    def export(self, output: Writable, wanted: Iterable[str] = ()) -> None:
        """Writes what `wanted` means, or everything, to `output`; an export that breaks off is an error."""
        for data in self.received(target_of(f"{V1_STORE_PATH}/export", [("what", each) for each in wanted])):
            if data:
                output.write(bytes(data))

    def import_from(self, source: Readable, replace: bool = False) -> Moved:
        """Sends an export."""
        body, query = Body(MODULE_TYPE, None, _pieces(source)), [("replace", "true")] if replace else []
        return parse(Moved, self._call("POST", "/import", body, TRANSFER_SECONDS, query=query).object(), "answer")

    def requirements(self) -> Requirements:
        """What modules must be to start, and what runs that could not."""
        return parse(Requirements, self._call("GET", "/keys").object(), "answer")

    def revoke(self, name: str, reason: str = "") -> Revoked:
        """Has a key count no more."""
        reply = self._call("POST", f"/keys/{name}/revoke", json_body(Revoking(reason).to_wire()))
        return parse(Revoked, reply.object(), "answer")


def _pieces(source: Readable) -> Iterator[bytes]:
    while data := source.read(PIECE_BYTES):
        yield data
