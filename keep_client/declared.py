"""The manager's calls about what is declared on its host: keeps, volumes and secrets; see the reference of /v1."""

from __future__ import annotations

from keep_client.connection import CALL_SECONDS
from keep_client.http import Body, json_body, objects_in
from keep_client.manager import INPUT_TYPE, WAIT_SLACK_SECONDS, ManagerClient
from keep_protocol.declared import MAX_SETTLING_SECONDS, V1_DECLARED_PATH, DeclaredKeep, RunHistory, declared_from_wire
from keep_protocol.fields import parse
from keep_protocol.runs import Run
from keep_protocol.secrets import V1_SECRETS_PATH, Secret, SecretList, check_secret_name
from keep_protocol.volumes import V1_VOLUMES_PATH, Volume, volume_from_wire

RESTART_SECONDS = 120.0
"""With a restart of what uses it: each writes its specification to a disk."""


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


class VolumeClient(ManagerClient):
    """Calls to one manager about the volumes of its host. They raise what those of ManagerClient raise."""

    def volumes(self) -> tuple[Volume, ...]:
        """All that the caller may see, by name."""
        reply = self._call("GET", V1_VOLUMES_PATH)
        return tuple(map(volume_from_wire, objects_in(reply.object(), "volumes", reply.peer)))

    def remove_volume(self, name: str) -> None:
        """Removes one and all that is in it."""
        self._call("DELETE", f"{V1_VOLUMES_PATH}/{name}")


class SecretsClient(ManagerClient):
    """Calls to one manager about the secrets that it keeps. They raise what those of ManagerClient raise."""

    def secrets(self) -> tuple[Secret, ...]:
        """All that the caller may see, by name, without their values."""
        return parse(SecretList, self._call("GET", V1_SECRETS_PATH).object(), "secrets").secrets

    def set_secret(self, name: str, value: bytes, *, restart: bool = False) -> Secret:
        """Has the secret be `value`; with `restart`, what uses it is restarted."""
        target = f"{V1_SECRETS_PATH}/{check_secret_name(name)}{'?restart=true' if restart else ''}"
        body = Body(INPUT_TYPE, len(value), (value,))
        return parse(Secret, self._call("PUT", target, body, RESTART_SECONDS).object(), "secret")

    def remove_secret(self, name: str) -> None:
        """Removes it."""
        self._call("DELETE", f"{V1_SECRETS_PATH}/{check_secret_name(name)}")
