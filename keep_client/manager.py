"""The manager's calls: /v1 for our own tools, and the original's `POST /keeps_post` for the testers."""

from __future__ import annotations

import ssl

from keep_client.channel import Channel
from keep_client.endpoint import Endpoint
from keep_client.http import NO_BODY, Body, Reply, exchange, json_body
from keep_protocol.api import LEGACY_PATH, V1_KEEPS_PATH
from keep_protocol.constants import APPLOADER_START_SECONDS, CONTROL_REPLY_SECONDS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.states import State

CALL_SECONDS = 60.0
"""Creation waits for systemd up to the manager's start_timeout_seconds (15) and in its queue of creations."""
START_SECONDS = APPLOADER_START_SECONDS + CONTROL_REPLY_SECONDS + 18.0
"""start-keep: the loader's own deadline, and slack for the manager's queue."""
WAIT_SLACK_SECONDS = 10.0
"""How much later than it was asked for an answer to a wait may come."""


def keeps_of(value: dict[str, object], member: str, peer: str) -> tuple[KeepInfo, ...]:
    """The keeps in a list's `member`. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    listed = value.get(member)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the answer of {peer}: {member!r} must list keeps")
    return tuple(keep_from_wire(entry) for entry in listed)


class ManagerClient:
    """Calls to one manager, each on its own connection.

    Every call raises ConnectionFailed when no answer came, and the error the manager reported otherwise.
    """

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext) -> None:
        self.endpoint, self._context = endpoint, context

    def __repr__(self) -> str:
        return f"ManagerClient({self.endpoint})"

    def request(self, method: str, target: str, body: Body = NO_BODY, seconds: float = CALL_SECONDS) -> Reply:
        """One exchange, whatever its status."""
        with Channel.open(self.endpoint, self._context, seconds) as channel:
            return exchange(channel, self.endpoint, method, target, body)

    def _call(self, method: str, target: str, body: Body = NO_BODY, seconds: float = CALL_SECONDS) -> Reply:
        reply = self.request(method, target, body, seconds)
        if not 200 <= reply.status < 300:
            raise reply.error()
        return reply

    def banner(self) -> str:
        """The protocol's name and version, as text."""
        return self._call("GET", "/").text

    def legacy(self, command: dict[str, str]) -> Reply:
        """One of the original's commands, whatever the status of its answer."""
        return self.request("POST", LEGACY_PATH, json_body(command))

    def create(self, arch: str = "wasi") -> KeepInfo:
        """A new keep."""
        return keep_from_wire(self._call("POST", V1_KEEPS_PATH, json_body({"arch": arch})).object())

    def keeps(self) -> tuple[KeepInfo, ...]:
        """Every keep the manager knows."""
        reply = self._call("GET", V1_KEEPS_PATH)
        return keeps_of(reply.object(), "keeps", reply.peer)

    def keep(self, kuuid: int) -> KeepInfo:
        """One keep."""
        return keep_from_wire(self._call("GET", f"{V1_KEEPS_PATH}/{kuuid}").object())

    def start(self, kuuid: int, address: str, port: int | None, names: tuple[str, ...] = ()) -> KeepInfo:
        """Lets a keep listen; without a port the manager's first is tried first."""
        body: dict[str, object] = {"address": address, "names": list(names)}
        if port is not None:
            body["port"] = port
        reply = self._call("POST", f"{V1_KEEPS_PATH}/{kuuid}/start", json_body(body), START_SECONDS)
        return keep_from_wire(reply.object())

    def stop(self, kuuid: int) -> KeepInfo:
        """Ends a keep's app-loader or workload; its outcome stays."""
        return keep_from_wire(self._call("POST", f"{V1_KEEPS_PATH}/{kuuid}/stop").object())

    def remove(self, kuuid: int) -> None:
        """Stops a keep's unit and forgets the keep."""
        self._call("DELETE", f"{V1_KEEPS_PATH}/{kuuid}")

    def changed(self, kuuid: int, state: State, seconds: int) -> KeepInfo:
        """The keep as soon as its state is no longer `state`, or as it is after `seconds`."""
        target = f"{V1_KEEPS_PATH}/{kuuid}?changed-from={int(state)}&timeout={seconds}"
        return keep_from_wire(self._call("GET", target, NO_BODY, seconds + WAIT_SLACK_SECONDS).object())
