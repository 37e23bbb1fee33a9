"""The manager's calls about volumes."""

from __future__ import annotations

from keep_client.http import objects_in
from keep_client.manager import ManagerClient
from keep_protocol.volumes import V1_VOLUMES_PATH, Volume, volume_from_wire


class VolumeClient(ManagerClient):
    """Calls to one manager about the volumes of its host. They raise what those of ManagerClient raise."""

    def volumes(self) -> tuple[Volume, ...]:
        """All that the caller may see, by name."""
        reply = self._call("GET", V1_VOLUMES_PATH)
        return tuple(map(volume_from_wire, objects_in(reply.object(), "volumes", reply.peer)))

    def remove_volume(self, name: str) -> None:
        """Removes one and all that is in it."""
        self._call("DELETE", f"{V1_VOLUMES_PATH}/{name}")
