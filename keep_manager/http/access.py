"""Who is at the other end of a connection, whether it may be served, and the line a refusal leaves in the log; and the
refusal of what a browser sends because another site's page asked it to.

A browser that holds a client certificate shows it for any page: such a page could make keeps with a form. It cannot
read an answer, and cannot send `application/json` without asking first (the manager allows it to none, as it answers no
preflight). Browsers name the page's site in Origin, with every POST, and in Sec-Fetch-Site (Fetch standard, "CORS
protocol"; Fetch Metadata Request Headers); no program of ours sends either.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from aiohttp import web

from keep_manager.callers import EVERYONE, Callers, entry_of
from keep_manager.model import Caller, ClientIdentity
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import Role, owner_of
from keep_protocol.spec import ANONYMOUS

SECURITY = logging.getLogger("keepfleet.security")
JSON = "application/json"
_OWN_SITE = {"same-origin", "none"}
"""The manager's own page, and an address typed by the user."""
_NOTHING = "application/octet-stream"
"""What aiohttp's client says of a body that is not there, and no form of a page can say."""
_SHOWN = 60


class Certificates(Protocol):
    """What decides about the certificates clients show."""

    def identify(self, der: bytes) -> ClientIdentity:
        """Who a certificate belongs to, and what is wrong with it permanently."""

    def check(self, identity: ClientIdentity) -> None:
        """Raises KeepfleetError when the certificate may not be used now."""


class Peer(Record):
    """The other end of one connection: its address, and who its certificate says it is."""

    address: str
    identity: ClientIdentity | None

    def __str__(self) -> str:
        return f"{self.identity or 'a client without a certificate'} at {self.address}"


def caller_at(peer: Peer, callers: Callers) -> Caller:
    """Who asks: by the identity in its certificate's URI; without one by the certificate's common name, with the role
    that the configuration gives it, or else as an operator; without a certificate `anonymous`. Pure.
    """
    shown = peer.identity
    if shown is None:
        return Caller(ANONYMOUS, Role.ANONYMOUS, peer.address, str(peer))
    if shown.identity is not None:
        who = shown.identity
        return Caller(who.name, who.role, peer.address, str(peer), shown.fingerprint, who.keep)
    name = owner_of(shown.subject)
    given = entry_of(callers, shown.subject).role or entry_of(callers, name).role or entry_of(callers, EVERYONE).role
    role = Role.OPERATOR if given is None else Role(given.value)
    return Caller(name, role, peer.address, str(peer), shown.fingerprint)


class Admission(Record):
    """Who may connect at all: a client with a certificate of our CA, made for a client, in its time and not revoked,
    which is checked again for every request.

    certificate_required: false lets clients without one in, too, as those of 2020 show none: they are one caller,
    `anonymous`, so keep such a manager on 127.0.0.1. A certificate that is shown must be a good one all the same.
    """

    certificates: Certificates
    certificate_required: bool = True

    def check(self, peer: Peer) -> None:
        """Raises KeepfleetError: FORBIDDEN when `peer` may not, CERTIFICATE when that cannot be found out."""
        if peer.identity is not None:
            self.certificates.check(peer.identity)
        elif self.certificate_required:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot serve a client without a certificate")


@contextmanager
def refusals_logged(peer: Peer, what: str) -> Iterator[None]:
    """A refusal of what the block asks is one line in the security log; `what` names the request."""
    try:
        yield
    except KeepfleetError as error:
        SECURITY.warning("refused %s from %s: %s", what, peer, error.message)
        raise


def check_site(request: web.Request) -> None:
    """Raises KeepfleetError(FORBIDDEN) for a request on behalf of another site's page."""
    headers = request.headers
    own = f"https://{headers.get('Host', '')}"
    foreign = [origin for origin in headers.getall("Origin", []) if origin != own]
    foreign += [site for site in headers.getall("Sec-Fetch-Site", []) if site not in _OWN_SITE]
    if foreign:
        raise KeepfleetError(
            ErrorKind.FORBIDDEN, f"cannot obey another site's page: a browser sent this for {foreign[0][:_SHOWN]!r}"
        )


def check_media_type(request: web.Request) -> None:
    """Raises KeepfleetError(UNSUPPORTED_MEDIA) for a body that is said to be anything but JSON, and for an encoded one.

    A body whose type is not said is taken for JSON: the manager of 2020 (warp's json filter) drew the same line.
    """
    headers = request.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, "cannot read the request: its body must not be encoded")
    given = headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
    if given != JSON and (request.body_exists or given != _NOTHING):
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"cannot read the request: its Content-Type is {given[:_SHOWN]!r}, and must be {JSON}",
        )
