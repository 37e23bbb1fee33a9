"""Who may use a route: small named policies, and the line a refusal leaves in the log."""

from __future__ import annotations

import logging
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


class Policy(Protocol):
    """Decides about one request."""

    def check(self, peer: Peer, certificates: Certificates) -> None:
        """Raises KeepfleetError(FORBIDDEN) when `peer` may not."""


class WithClientCertificate:
    """A certificate of our CA, made for a client, in its time and not revoked: judged anew for every request."""

    def check(self, peer: Peer, certificates: Certificates) -> None:
        """Raises KeepfleetError(FORBIDDEN) for no certificate, too."""
        if peer.identity is None:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot serve a client without a certificate")
        certificates.check(peer.identity)


class ClientCertificateIfShown:
    """Anyone who reaches the port; but a certificate that is shown must be a good one.

    Stands for WithClientCertificate on every route when `client_certificates: optional` is configured, as the
    clients of 2020 show none. They are one caller, `anonymous`: keep such a manager on 127.0.0.1.
    """

    def check(self, peer: Peer, certificates: Certificates) -> None:
        """Raises KeepfleetError(FORBIDDEN) for a certificate that is not good."""
        if peer.identity is not None:
            certificates.check(peer.identity)


def admit(policy: Policy, peer: Peer, certificates: Certificates, what: str) -> None:
    """Raises what the policy raises, after one line in the security log; `what` names the request."""
    try:
        policy.check(peer, certificates)
    except KeepfleetError as error:
        SECURITY.warning("refused %s from %s: %s", what, peer, error.message)
        raise
