"""Who added which objects over a manager's API, and how much that is: an attachment of each, gone with it. Pure but for
reading it. What a host's own root added in place is counted for no owner.

Import rule: that of module_store.
"""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, Text, field, parse
from keep_protocol.store import MAX_WHO
from module_store import names
from module_store.archive import LOCAL
from module_store.place import MAX_RECORD_BYTES, Folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from module_store.store import Store

ADDED = f"{LOCAL}added"
"""The kind of the attachment."""
ORIGIN = f"{LOCAL}origin"
"""The kind of the attachment that says where an object came from."""


class Adder(Record):
    """Who adds, and how much of the store that caller's objects may be: their number, and their bytes together."""

    name: str
    objects: int
    bytes: int


class _Added(Record):
    who: str = field(Text(MAX_WHO))


def attachment(adder: Adder) -> dict[str, bytes]:
    """What is attached to an object that `adder` adds."""
    return {ADDED: strict_json.dumps(_Added(adder.name[:MAX_WHO]).to_wire())}


def admit(store: Store, adder: Adder, more: int, size: int) -> None:
    """Returns where `more` objects of `size` bytes together still fit. Raises KeepfleetError(TOO_MANY), Damaged."""
    objects, total = 0, 0
    for name in store.place.names(Folder.ATTACHMENTS):
        known = names.attachment_of_file(name)
        if known is None or known[1] != ADDED:
            continue
        body = store.attached(*known)
        if body is None or parse(_Added, _object(body), "addition").who != adder.name[:MAX_WHO]:
            continue
        try:
            total += store.object(known[0]).size
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            continue  # a removal that was cut short, or is under way
        objects += 1
    for what, found, quota in (
        ("store_objects", objects + more, adder.objects),
        ("store_bytes", total + size, adder.bytes),
    ):
        if found > quota:
            raise KeepfleetError(
                ErrorKind.TOO_MANY,
                f"cannot add to the module store: it would be {found}, and the quota {what} of {adder.name} is "
                f"{quota}; remove what is not needed, or have the manager's configuration raise it, under callers",
            )


def _object(body: bytes) -> dict[str, object]:
    return strict_json.loads_object(body, MAX_RECORD_BYTES, "an addition")
