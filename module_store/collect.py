"""What a store keeps and what it lets go: the objects that something needs, garbage collection, removal.

An object is needed by each reference that names it, or has it in its history; by each user of the store, who declared
it (`declare`: the manager, for keeps and specifications; an application, for its codelets) or says so in the call; and
for a while after it was added, since the one who added it may be about to name it. Import rule: that of module_store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Record, Text, field, parse
from keep_protocol.store import GRACE_SECONDS, Collected
from module_store import names
from module_store.disk import explained
from module_store.place import MAX_RECORD_BYTES, Damaged, Folder
from module_store.references import encode
from module_store.store import Store

MAX_USED = 10_000


class _Use(Record):
    digests: tuple[str, ...] = field(Items(Text(71, names.DIGEST, "a digest"), MAX_USED))


def declare(store: Store, user: str, digests: Collection[str]) -> None:
    """`user` of the store needs these objects and no others any more; with none, it is forgotten. On disk then."""
    place = store.place
    names.check_word(user, "a user of the store")
    body = strict_json.dumps(_Use(tuple(sorted({names.check_digest(digest) for digest in digests}))).to_wire())
    with explained(f"declare what {user} uses of the module store {place.path}"), place.locked():
        if digests:
            place.write_record(Folder.USES, user, body)
        elif user in place.names(Folder.USES):
            place.disk.remove(place.of(Folder.USES), user)
            place.disk.sync(place.of(Folder.USES))


def declared(store: Store) -> dict[str, tuple[str, ...]]:
    """What each user has declared. Raises Damaged where a record is."""
    found = {}
    for user in store.place.names(Folder.USES):
        body = store.place.read_record(Folder.USES, user)
        if body is not None:
            found[user] = parse(_Use, strict_json.loads_object(body, MAX_RECORD_BYTES, "a use"), "use").digests
    return found


def needed(store: Store, in_use: Iterable[str] = ()) -> dict[str, list[str]]:
    """Of each object that something needs, what that is, in words. Raises Damaged: what a damaged record needs is not
    known."""
    found: dict[str, list[str]] = {}
    for reference in store.references():
        for digest in reference.needed:
            what = reference.name if digest == reference.digest else f"the history of {reference.name}"
            found.setdefault(digest, []).append(what)
    for user, digests in declared(store).items():
        for digest in digests:
            found.setdefault(digest, []).append(f"{user}, which declared it")
    for digest in in_use:
        found.setdefault(digest, []).append("a user of the store")
    return found


def _known_needs(store: Store, in_use: Callable[[], Iterable[str]], what: str) -> dict[str, list[str]]:
    try:
        return needed(store, in_use())
    except Damaged as damage:
        why = f"{damage.message}; what it needs is not known: tag it again, or remove it"
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot {what} {store.place.path}: {why}") from damage


def collect(
    store: Store,
    in_use: Callable[[], Iterable[str]] = tuple,
    *,
    grace: float = GRACE_SECONDS,
    history: int | None = None,
    dry: bool = False,
) -> Collected:
    """Removes what nothing needs and is older than `grace`; with `history`, references forget older moves first.

    in_use: asked under the lock, so that nothing comes into use in between. dry: only says what it would do.
    """
    place = store.place
    with explained(f"collect garbage in the module store {place.path}"), place.locked():
        place.clear_abandoned()
        if history is not None and not dry:
            for reference in store.references():
                if len(reference.history) > history:
                    place.write_record(Folder.REFERENCES, reference.name, encode(reference.trimmed(history)))
        used = _known_needs(store, in_use, "collect garbage in")
        free = [each for each in store.objects() if each.digest not in used]
        oldest = time.time() - grace
        removed = tuple(each for each in free if each.added <= oldest)
        young = tuple(each for each in free if each.added > oldest)
        if not dry:
            _remove(store, {each.digest for each in removed})
        return Collected(removed, young)


def remove(store: Store, digest: str, in_use: Callable[[], Iterable[str]] = tuple) -> None:
    """Removes one object with what is attached to it. Raises KeepfleetError(CONFLICT) naming what needs it."""
    place = store.place
    with explained(f"remove {digest} from the module store {place.path}"), place.locked():
        store.object(digest)
        users = _known_needs(store, in_use, f"remove {digest} from").get(digest)
        if users:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot remove {digest}: it is needed by {', '.join(users)}")
        _remove(store, {digest})


def _remove(store: Store, digests: set[str]) -> None:
    """Removes objects, then their attachments and those that a removal which was cut short left. Raises OSError."""
    place = store.place
    for digest in sorted(digests):
        place.disk.remove(place.of(Folder.OBJECTS), names.file_of(digest))
    if digests:
        place.disk.sync(place.of(Folder.OBJECTS))
    there, orphans = {each.digest for each in store.objects()}, False
    for name in place.names(Folder.ATTACHMENTS):
        known = names.attachment_of_file(name)
        if known is not None and known[0] not in there:
            place.disk.remove(place.of(Folder.ATTACHMENTS), name)
            orphans = True
    if orphans:
        place.disk.sync(place.of(Folder.ATTACHMENTS))
