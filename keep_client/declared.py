"""The manager's calls about declared keeps."""

from __future__ import annotations

from keep_client.connection import CALL_SECONDS
from keep_client.http import json_body, objects_in
from keep_client.manager import WAIT_SLACK_SECONDS, ManagerClient
from keep_protocol.declared import MAX_SETTLING_SECONDS, V1_DECLARED_PATH, DeclaredKeep, RunHistory, declared_from_wire
from keep_protocol.fields import parse
from keep_protocol.runs import Run


class DeclaredClient(ManagerClient):
    """Calls to one manager about what is declared there. They raise what those of ManagerClient raise."""

    def declared(self) -> tuple[DeclaredKeep, ...]:
        """All that the caller may see, by name."""
        reply = self._call("GET", V1_DECLARED_PATH)
        return tuple(map(declared_from_wire, objects_in(reply.object(), "declared", reply.peer)))

    def declared_keep(self, name: str) -> DeclaredKeep:
        """One."""
        return declared_from_wire(self._call("GET", f"{V1_DECLARED_PATH}/{name}").object())

    def settled(self, name: str) -> DeclaredKeep:
        """One, once the manager does nothing for it any more but to wait, however long that takes."""
        target = f"{V1_DECLARED_PATH}/{name}?settled={MAX_SETTLING_SECONDS}"
        while True:
            seconds = CALL_SECONDS + MAX_SETTLING_SECONDS + WAIT_SLACK_SECONDS
            found = declared_from_wire(self._call("GET", target, seconds=seconds).object())
            if found.settled:
                return found

    def apply(self, name: str, manifest: str) -> DeclaredKeep:
        """Has there be a keep as `manifest` says."""
        body = json_body({"manifest": manifest})
        return declared_from_wire(self._call("PUT", f"{V1_DECLARED_PATH}/{name}", body).object())

    def restart(self, name: str) -> DeclaredKeep:
        """Has another keep take its place."""
        return declared_from_wire(self._call("POST", f"{V1_DECLARED_PATH}/{name}/restart").object())

    def roll_back(self, name: str) -> DeclaredKeep:
        """Wants again what was wanted before."""
        return declared_from_wire(self._call("POST", f"{V1_DECLARED_PATH}/{name}/rollback").object())

    def runs(self, name: str) -> tuple[Run, ...]:
        """The latest runs of a job, the oldest first."""
        reply = self._call("GET", f"{V1_DECLARED_PATH}/{name}/runs")
        return parse(RunHistory, reply.object(), "history").runs

    def undeclare(self, name: str) -> None:
        """Has it be declared no more; its keeps end then."""
        self._call("DELETE", f"{V1_DECLARED_PATH}/{name}")
