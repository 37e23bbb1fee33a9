"""The registry of kinds of keep: the one place that asks which kind a keep is."""

from __future__ import annotations

from dataclasses import dataclass

from keep_protocol.api import StartKeep
from keep_protocol.control import MODULE
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.kinds import Kind
from keep_protocol.states import Phase


@dataclass(frozen=True)
class KindOfKeep:
    """One kind. variant: what the loader starts, as an argument of the app-loader's ("" for its own default); listens:
    whether its start binds a socket; brings: the descriptors that its start must bring, in the order in which a loader
    of the version before takes them; phases: those it passes; members: those of `/v1` that it alone has."""

    kind: Kind
    variant: str
    listens: bool
    brings: tuple[str, ...]
    phases: frozenset[Phase]
    members: tuple[str, ...]

    def check_start(self, request: StartKeep) -> None:
        """Raises KeepfleetError(BAD_REQUEST) where the start says how a keep is reached that nobody reaches."""
        if not self.listens:
            request.check_unreached()

    def check_descriptors(self, names: tuple[str, ...]) -> None:
        """Raises KeepfleetError(INTERNAL) unless `names` begin with all that a start must bring."""
        if names[: len(self.brings)] != self.brings:
            raise KeepfleetError(
                ErrorKind.INTERNAL,
                f"cannot start a keep of kind {self.kind.value}: it takes {', '.join(self.brings)}, "
                f"not {', '.join(names)}",
            )


REGISTRY: dict[Kind, KindOfKeep] = {
    Kind.UPLOAD: KindOfKeep(
        kind=Kind.UPLOAD,
        variant="",
        listens=True,
        brings=("listener", "client-ca", "revoked"),
        phases=frozenset(Phase),
        members=("bindaddress", "app_loader_bind_port", "fingerprint", "certificate", "uploaders", "uploaded_by"),
    ),
    Kind.SCRIPTS: KindOfKeep(
        kind=Kind.SCRIPTS,
        variant="",
        listens=True,
        brings=("listener", "client-ca", "revoked"),
        phases=frozenset(Phase) - {Phase.RUNNING, Phase.RESTARTING},
        members=("bindaddress", "app_loader_bind_port", "fingerprint", "certificate", "uploaders"),
    ),
    Kind.STORED: KindOfKeep(
        kind=Kind.STORED,
        variant="",
        listens=False,
        brings=(MODULE,),
        phases=frozenset(Phase) - {Phase.OPENING, Phase.AWAITING, Phase.REOPENING},
        members=(),
    ),
}
"""Every kind there is."""


def kind_of(kind: Kind) -> KindOfKeep:
    """The kind's row. Raises KeepfleetError(UNSUPPORTED) for one that this manager does not know."""
    try:
        return REGISTRY[kind]
    except KeyError:
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED, f"cannot start a keep of kind {kind.value}: this manager does not know it"
        ) from None
