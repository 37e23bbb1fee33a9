"""Which keep is meant: by its ID, the beginning of its ID, or its name."""

from __future__ import annotations

from _collections_abc import Iterable

from keep_protocol.constants import KUUID_BITS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.patterns import matches
from keep_protocol.states import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from keep_client.manager import ManagerClient

REFERENCE = "[a-z0-9-]{1,63}"
_ID = "[1-9][0-9]{0,15}"
_SHOWN = 5
"""How many of several keeps meant are named in the error."""


def check_reference(text: str) -> str:
    """`text` when it can mean a keep. Raises KeepfleetError(BAD_REQUEST)."""
    if not matches(REFERENCE, text):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"{text[:40]!r} means no keep: write its ID, the beginning of its ID, or its name (a-z, 0-9 and -)",
        )
    return text


def choose(keeps: Iterable[KeepInfo], text: str) -> KeepInfo | None:
    """The keep named `text`, else the one whose ID begins so; None for none.

    An ended keep has given its name up: a living one is meant before it. Raises KeepfleetError(CONFLICT) where several
    are meant, with their IDs.
    """
    known = list(keeps)
    named = [keep for keep in known if keep.name == text]
    living = [keep for keep in named if keep.state not in (State.COMPLETE, State.ERROR)]
    meant = living or named or [keep for keep in known if str(keep.kuuid).startswith(text)]
    if len(meant) > 1:
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot decide which keep {text} is: {len(meant)} are called so or begin so; write the whole ID",
            tuple(f"{keep.kuuid} {keep.name}".strip() for keep in meant[:_SHOWN]),
        )
    return meant[0] if meant else None


def resolve_past(manager: ManagerClient, text: str) -> int:
    """The same, but a whole ID may also be that of a keep that was removed. Raises KeepfleetError."""
    try:
        return resolve(manager, text)
    except KeepfleetError as error:
        if error.kind is not ErrorKind.NOT_FOUND or not matches(_ID, text) or int(text) >= 1 << KUUID_BITS:
            raise
        return int(text)


def resolve(manager: ManagerClient, text: str) -> int:
    """The ID of the keep `text` means. Raises KeepfleetError: NOT_FOUND, CONFLICT where several are meant."""
    evidence: tuple[str, ...] = ()
    if matches(_ID, text) and int(text) < 1 << KUUID_BITS:
        try:
            return manager.keep(int(text)).kuuid
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            evidence = error.evidence
    found = choose(manager.keeps(), text)
    if found is None:
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find keep {text}: there is none; see: keepctl ps", evidence)
    return found.kuuid
