"""Finds out which certificate to expect, sends the file there alone, and explains the answer."""

from __future__ import annotations

import os

from keep_client import keep as uploads
from keep_client.credentials import Credentials
from keep_client.http import objects_in
from keep_client.manager import ManagerClient
from keep_client.peer import Endpoint
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.states import State
from testers.client import Console

EVERY_ADDRESS = ("0.0.0.0", "::")
MEANINGS = {
    400: "the keep could not read the request",
    403: "the keep does not allow our certificate to send",
    408: "the keep gave up waiting for the rest",
    409: "the keep has a workload already, or is receiving one; it takes only one",
    413: "the file is larger than the keep takes",
    415: "the keep does not take this kind of body",
    422: "the keep received the file whole and will not run it; it goes on waiting for another",
    500: "something failed inside the keep",
    503: "the keep's check of the file was ended from outside, and says nothing of the file; send it again",
    507: "the keep has no room for the file",
}


class Sending:
    """One file on its way to one keep."""

    def __init__(self, console: Console, credentials: Credentials, manager: Endpoint) -> None:
        self._console, self._credentials, self._manager = console, credentials, manager

    def _ask_manager(self, address: str, port: int) -> str:
        """The fingerprint of the keep that listens there. Raises KeepfleetError(NOT_FOUND) when none does."""
        client = ManagerClient(self._manager, self._credentials.manager_context())
        reply = client.legacy({"command": "list-keeps"})
        if reply.status != 200:
            raise reply.error()
        for keep in map(keep_from_wire, objects_in(reply.object(), "klvec", reply.peer)):
            if _listens_at(keep, address, port):
                self._console.say(f"The manager says keep {keep.kuuid} listens there: {keep.fingerprint}")
                return keep.fingerprint
        raise KeepfleetError(
            ErrorKind.NOT_FOUND,
            f"cannot send to {address}, port {port}: {self._manager} knows no started keep there, so its certificate "
            "cannot be checked; name it with --fingerprint",
        )

    def send(self, address: str, port: int, fingerprint: str | None, path: str, encoding: str) -> None:
        """Sends the file at `path`. Raises KeepfleetError unless the keep accepts it."""
        with uploads.open_workload(path) as file:
            endpoint = uploads.endpoint_at(address, port, fingerprint or self._ask_manager(address, port))
            size = os.fstat(file.fileno()).st_size
            how = "PUT /workload" if encoding == "raw" else "POST /payload"
            self._console.say(f"Sending {path}, {size} bytes, to {endpoint.endpoint} ({how}), {endpoint.fingerprint}")
            context = self._credentials.keep_context()
            reply = (uploads.upload_raw if encoding == "raw" else uploads.upload_numbers)(endpoint, context, file)
            self._console.reply(reply)
            if reply.status != 200:
                raise _explained(reply.status, reply.error())
            self._console.say(uploads.received(reply, file))
        self._console.say("The keep has accepted it and runs it now; its output is in the journal.")


def _listens_at(keep: KeepInfo, address: str, port: int) -> bool:
    here = keep.address == address or keep.address in EVERY_ADDRESS
    return keep.state is State.STARTED and keep.port == port and here and bool(keep.fingerprint)


def _explained(status: int, error: KeepfleetError) -> KeepfleetError:
    meaning = MEANINGS.get(status, "the keep answered something unexpected")
    return KeepfleetError(
        error.kind, f"cannot send the workload: {meaning} ({status})", (error.message, *error.evidence)
    )
