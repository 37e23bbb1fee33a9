"""What clients may ask about volumes. Who may is asked by the caller of this, by each one's owner."""

from __future__ import annotations

import asyncio

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
        return [self._shown(each) for each in await asyncio.to_thread(self._volumes.listed)]

    async def find(self, name: str) -> Volume:
        """One, NOT_FOUND for a name that none has."""
        return self._shown(await asyncio.to_thread(self._volumes.find, name))

    async def remove(self, name: str) -> None:
        """Removes one and all that is in it; CONFLICT while a declared keep names it, or a keep has it still."""
        async with self._reconciler.declared.changing, self._volumes.lock:
            users = (await self.find(name)).declared
            if users:
                why = f"declared keep {users[0]} has it; run: keepctl delete {users[0]}"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot remove volume {name}: {why}")
            await asyncio.to_thread(self._volumes.remove, name)

    def _shown(self, volume: Volume) -> Volume:
        """With its owner's declared keeps that name it: another's cannot have it, and can keep no one from removing
        it."""
        named = (
            name
            for name, each in sorted(self._reconciler.declared.specifications.items())
            if isinstance(each, Specification)
            and each.job.volume is not None
            and (each.job.volume.name, each.header.owner) == (volume.name, volume.owner)
        )
        return volume.replace(declared=tuple(named))
