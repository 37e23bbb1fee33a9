"""A look at every byte of a store: what is damaged, missing, or not its own.

Import rule: that of module_store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from keep_protocol.errors import KeepfleetError
from module_store import names
from module_store.collect import declared
from module_store.place import Damaged, Folder
from module_store.store import Store

_IS_OURS: dict[Folder, Callable[[str], object]] = {
    Folder.OBJECTS: names.digest_of_file,
    Folder.ATTACHMENTS: names.attachment_of_file,
    Folder.REFERENCES: names.REFERENCE.fullmatch,
    Folder.USES: names.WORD.fullmatch,
}
"""What a folder's files are called."""


def findings(store: Store) -> Iterator[str]:
    """What is wrong, one sentence each; nothing where all is well. Damaged objects are moved to the quarantine."""
    for folder, is_ours in _IS_OURS.items():
        for name in store.place.names(folder):
            if not is_ours(name):
                yield f"{os.path.join(store.place.path, folder.value, name)} is none of the store's files"
    there = {each.digest for each in store.objects()}
    for digest in sorted(there):
        try:
            os.close(store.open_object(digest))
        except KeepfleetError as error:
            there.discard(digest)
            yield error.message
    yield from _attachments(store, there)
    yield from _references(store, there)
    for name in store.place.names(Folder.QUARANTINE):
        path = os.path.join(store.place.path, Folder.QUARANTINE.value, name)
        yield f"{path} is in quarantine; once you have looked at it, remove it"


def _attachments(store: Store, there: set[str]) -> Iterator[str]:
    for name in store.place.names(Folder.ATTACHMENTS):
        known = names.attachment_of_file(name)
        if known is None:
            continue
        try:
            store.attached(*known)
        except Damaged as error:
            yield error.message
        if known[0] not in there:
            yield f"{known[1]} is attached to {known[0]}, which is not there"


def _references(store: Store, there: set[str]) -> Iterator[str]:
    for name in store.reference_names():
        try:
            digest = store.reference(name).digest
        except KeepfleetError as error:
            yield error.message
            continue
        if digest not in there:
            yield f"{name} names {digest}, which is not there; add it again, or remove {name}"
    try:
        uses = declared(store)
    except KeepfleetError as error:
        yield error.message
        return
    for user, digests in uses.items():
        yield from (
            f"{user} declared that it uses {digest}, which is not there" for digest in digests if digest not in there
        )
