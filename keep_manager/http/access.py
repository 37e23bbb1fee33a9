"""Who is at the other end of a connection, whether it may be served, and the line a refusal leaves in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from keep_manager.callers import EVERYONE, Callers, entry_of
from keep_manager.model import Caller, ClientIdentity
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role, owner_of
from keep_protocol.spec import ANONYMOUS

SECURITY = logging.getLogger("keepfleet.security")


class Certificates(Protocol):
    """What decides about the certificates clients show."""

    def identify(self, der: bytes) -> ClientIdentity:
        """Who a certificate belongs to, and what is wrong with it permanently."""

    def check(self, identity: ClientIdentity) -> None:
        """Raises KeepfleetError when the certificate may not be used now."""


@dataclass(frozen=True)
class Peer:
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


@dataclass(frozen=True)
class Admission:
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
