"""The handlers of /v1/volumes: who may is decided here by each volume's owner, as that of a keep is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web

from keep_manager.authorize.table import Action, authorize, may
from keep_manager.http.middleware import caller_of, json_response, refusals_logged
from keep_manager.model import Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.volumes import Volume

LOG = logging.getLogger("keepfleet.volumes")


class Volumes(Protocol):
    """What the handlers need of the volumes. Every method raises KeepfleetError alone."""

    async def list(self) -> Sequence[Volume]:
        """All, by name."""

    async def find(self, name: str) -> Volume:
        """One."""

    async def remove(self, name: str) -> None:
        """Removes one and all that is in it."""


VOLUMES = web.AppKey("volumes", Volumes)


class _Owned(Record):
    """A volume as far as `authorize` asks; a damaged one, of which the owner is not known, is the operators'."""

    owner: str
    kuuid: int = 0


def _sees(caller: Caller, volume: Volume) -> bool:
    return may(caller, Action.READ_DECLARED, _Owned(volume.owner))


async def list_volumes(request: web.Request) -> web.StreamResponse:
    """GET /v1/volumes."""
    caller = caller_of(request)
    found = await request.app[VOLUMES].list()
    return json_response({"volumes": [each.to_wire() for each in found if _sees(caller, each)]})


async def remove_volume(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/volumes/NAME."""
    name, caller, volumes = request.match_info["name"], caller_of(request), request.app[VOLUMES]
    volume = await volumes.find(name)
    if not _sees(caller, volume):
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find volume {name[:63]!r}: there is none of this name")
    with refusals_logged(request):
        authorize(caller, Action.DECLARE, _Owned(volume.owner))
    await volumes.remove(name)
    LOG.info("volume %s of %s: removed by %s", name, volume.owner or "an unknown owner", caller)
    return web.Response(status=204)
