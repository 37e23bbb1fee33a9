"""The manager's calls about volumes."""

from __future__ import annotations

from keep_client.manager import ManagerClient
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.volumes import V1_VOLUMES_PATH, Volume, volume_from_wire


class VolumeClient(ManagerClient):
    """Calls to one manager about the volumes of its host. They raise what those of ManagerClient raise."""

    def volumes(self) -> tuple[Volume, ...]:
        """All that the caller may see, by name."""
        reply = self._call("GET", V1_VOLUMES_PATH)
        listed = reply.object().get("volumes")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            why = "'volumes' must list volumes"
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the answer of {reply.peer}: {why}")
        return tuple(volume_from_wire(entry) for entry in listed)

    def remove_volume(self, name: str) -> None:
        """Removes one and all that is in it."""
        self._call("DELETE", f"{V1_VOLUMES_PATH}/{name}")
