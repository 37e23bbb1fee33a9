"""The handlers of /v1/secrets: values come in, and never go out. Who may is decided by each secret's owner.

What changes one leaves a line in the security log, which has its name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web

from keep_manager.authorize.table import Action, authorize, may
from keep_manager.http.declared import DECLARED, Owned
from keep_manager.http.middleware import BODY_SECONDS, QUOTAS, caller_of, json_response, refusals_logged
from keep_manager.model import Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.secrets import MAX_VALUE_BYTES, Secret, SecretList, check_secret_name

SECURITY = logging.getLogger("keepfleet.security")


class Secrets(Protocol):
    """What the handlers need of the secrets. Every method raises KeepfleetError alone."""

    def names(self) -> Sequence[str]:
        """Every secret's name."""

    def owner(self, name: str) -> str | None:
        """Whose it is; None where there is none."""

    async def get(self, name: str) -> Secret:
        """One, without its value."""

    async def set(self, name: str, value: bytes, caller: Caller, most: int) -> Secret:
        """Has it be `value`."""

    async def remove(self, name: str) -> None:
        """Removes it."""


SECRETS = web.AppKey("secrets", Secrets)


async def list_secrets(request: web.Request) -> web.StreamResponse:
    """GET /v1/secrets: their names, and what is known of each."""
    secrets, caller = request.app[SECRETS], caller_of(request)
    mine = [name for name in secrets.names() if may(caller, Action.READ_SECRETS, Owned(secrets.owner(name) or ""))]
    return json_response(SecretList(tuple([await secrets.get(name) for name in mine])).to_wire())


async def put_secret(request: web.Request) -> web.StreamResponse:
    """PUT /v1/secrets/NAME: the body is the value; a name that another has is taken, which the caller has to
    learn. With `?restart=true` what is declared and uses it is restarted."""
    secrets, caller = request.app[SECRETS], caller_of(request)
    name, restart = check_secret_name(request.match_info["name"]), _restart(request)
    owner = secrets.owner(name)
    if owner is not None and not may(caller, Action.CHANGE_SECRETS, Owned(owner)):
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot set the secret {name}: another's secret has that name")
    made = await secrets.set(name, await _value(request), caller, request.app[QUOTAS].secrets(caller))
    SECURITY.info("set the secret %s by %s", name, caller)
    for each in made.used_by if restart else ():
        await request.app[DECLARED].restart(each)
    return json_response(made.to_wire())


async def delete_secret(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/secrets/NAME."""
    secrets, caller, name = request.app[SECRETS], caller_of(request), request.match_info["name"]
    owner = secrets.owner(name)
    if owner is None or not may(caller, Action.READ_SECRETS, Owned(owner)):
        why = "there is none of that name"
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the secret {name[:63]!r}: {why}")
    with refusals_logged(request):
        if not may(caller, Action.CHANGE_SECRETS, Owned(owner)):
            authorize(caller, Action.CHANGE_SECRETS)
            why = f"it is {owner}'s"
            raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot remove the secret {name}: {why}")
    await secrets.remove(name)
    SECURITY.info("removed the secret %s by %s", name, caller)
    return web.Response(status=204)


def _restart(request: web.Request) -> bool:
    query = request.query
    if unknown := sorted(set(query) - {"restart"}):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"invalid query: unknown parameter {unknown[0][:40]!r}")
    text = query.get("restart", "false")
    if text not in ("true", "false"):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "invalid query: restart must be true or false")
    return text == "true"


async def _value(request: web.Request) -> bytes:
    """The request's body. Raises KeepfleetError: TOO_LARGE, TOO_SLOW, BAD_REQUEST, UNSUPPORTED_MEDIA."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, "cannot read the secret: it must not be encoded")
    too_large = KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the secret: it is over {MAX_VALUE_BYTES} bytes")
    if (request.content_length or 0) > MAX_VALUE_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > MAX_VALUE_BYTES:
                    raise too_large
    except TimeoutError:
        raise KeepfleetError(ErrorKind.TOO_SLOW, f"cannot read the secret: no body in {BODY_SECONDS:g} s") from None
    except web.RequestPayloadError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the secret: it broke off") from error
    return bytes(body)
