"""What clients may ask about volumes. Who may is asked by the caller of this, by each one's owner."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from keep_manager.declared.reconciler import Reconciler
from keep_manager.declared.specification import Specification
from keep_manager.declared.volumes import Volumes
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.volumes import Volume


class DeclaredVolumes:
    """The volumes, and the declared keeps whose manifests name them. Every method raises KeepfleetError alone."""

    def __init__(self, volumes: Volumes, reconciler: Reconciler) -> None:
        self._volumes, self._reconciler = volumes, reconciler

    def __repr__(self) -> str:
        return f"DeclaredVolumes({self._volumes!r})"

    async def list(self) -> list[Volume]:
        """All, by name."""
        users, found = self._users(), await asyncio.to_thread(self._volumes.listed)
        return [each.replace(declared=users.get(each.name, ())) for each in found]

    async def find(self, name: str) -> Volume:
        """One, NOT_FOUND for a name that none has."""
        found = await asyncio.to_thread(self._volumes.find, name)
        return found.replace(declared=self._users().get(name, ()))

    async def remove(self, name: str) -> None:
        """Removes one and all that is in it; CONFLICT while a declared keep names it, or a keep has it still."""
        async with self._reconciler.changing, self._volumes.lock:
            users = self._users().get(name)
            if users:
                why = f"declared keep {users[0]} has it; run: keepctl delete {users[0]}"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot remove volume {name}: {why}")
            await asyncio.to_thread(self._volumes.remove, name)

    def _users(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name, each in sorted(self._reconciler.specifications.items()):
            if isinstance(each, Specification) and each.job.volume is not None:
                volume = each.job.volume.name
                found[volume] = (*found.get(volume, ()), name)
        return found
