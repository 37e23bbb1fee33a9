"""What can be asked of a store, each from its beginning to its end: for `keepctl` in place, and for a manager that is
asked over its API. Every call opens the store and closes it, blocks, and raises KeepfleetError alone.

Import rule: that of module_store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import (
    MAX_KEYS,
    MAX_OBJECT_BYTES,
    Attached,
    Collected,
    Collection,
    Details,
    Findings,
    InUse,
    Listing,
    Moved,
    Named,
    Object,
    Reference,
    Requirements,
    Revoked,
    Tagging,
)
from module_store import additions, archive, checking, collect, trust
from module_store.keys import Keys
from module_store.objects import mapped
from module_store.place import Damaged, default_directory
from module_store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from module_store.additions import Adder
    from module_store.archive import Writable
    from module_store.objects import Readable
    from module_store.signatures import Contents


class Operations:
    """The store in `directory`, as `who` asks. adder: whose quotas hold, None for the store's own owner; in_use: what
    runs, each with its module, None where only those know that declared what they use."""

    def __init__(
        self, directory: str | None, who: str, adder: Adder | None = None, in_use: Sequence[InUse] | None = None
    ) -> None:
        self._directory, self._who = directory or default_directory(), who
        self._adder, self._in_use = adder, in_use

    def __repr__(self) -> str:
        return f"Operations({self._directory}, {self._who})"

    # --- objects -----------------------------------------------------------------------------------------------------

    def listing(self) -> Listing:
        """Every object and every reference."""
        with self._opened() as store:
            found, damaged = [], []
            for name in store.reference_names():
                try:
                    found.append(Named(name, store.reference(name).digest))
                except Damaged:
                    damaged.append(name)
            return Listing(store.objects(), tuple(found), tuple(damaged))

    def inspect(self, digest: str) -> Details:
        """One object, after reading all of it."""
        with self._opened() as store:
            os.close(store.open_object(digest))
            users = collect.needed(store, self._digests()).get(digest, ())
            known = store.object(digest)
            return Details(digest, known.size, known.added, store.attachments(digest), tuple(users))

    def add(
        self,
        source: Readable,
        reference: str = "",
        digest: str = "",
        signatures: Sequence[bytes] = (),
        origin: str = "",
    ) -> Object:
        """Keeps what `source` reads, with its signatures, each checked first, and names it; all of that or nothing.

        digest: what it must have; origin: where it came from, which is attached to it."""
        with Store.create(self._directory) as store:
            if self._adder is not None:
                additions.admit(store, self._adder, 1, 0)  # before the first byte, what can be known then

            def admit(found: str, file: int, is_new: bool) -> Mapping[str, bytes]:
                if self._adder is not None and is_new:
                    additions.admit(store, self._adder, 1, os.fstat(file).st_size)
                with mapped(file) if signatures else nullcontext(b"") as contents:
                    attached = _signed(store, signatures, contents)
                if origin:
                    attached[additions.ORIGIN] = origin.encode()
                return {**attached, **(additions.attachment(self._adder) if self._adder and is_new else {})}

            return store.add(
                source, reference=reference, who=self._who, digest=digest, limit=MAX_OBJECT_BYTES, admit=admit
            )

    def attach(self, digest: str, signatures: Sequence[bytes]) -> Attached:
        """Keeps signatures with an object that is there, each checked first with the key it is by."""
        with self._opened() as store:
            with contents_of(store, digest) as contents:
                attached = _signed(store, signatures, contents)
            for kind, data in attached.items():
                store.attach(digest, kind, data)
            return Attached(digest, tuple(kind.removeprefix(trust.SIGNATURE) for kind in attached))

    def remove(self, digest: str) -> None:
        """Removes an object that nothing needs."""
        with self._opened() as store:
            collect.remove(store, digest, self._digests)

    # --- references --------------------------------------------------------------------------------------------------

    def reference(self, name: str) -> Reference:
        """One reference, with its history."""
        with self._opened() as store:
            return store.reference(name)

    def tag(self, name: str, tagging: Tagging) -> Reference:
        """Has `name` name an object that is there; forced, that may start although a newer version of it was seen."""
        with self._opened() as store:
            if tagging.force:
                self._force(store, tagging.digest)
            return store.tag(name, tagging.digest, self._who)

    def _force(self, store: Store, digest: str) -> None:
        """Raises KeepfleetError(FORBIDDEN) for a module that could not start for another reason."""
        keys = Keys(store.place.path)
        with contents_of(store, digest) as contents:
            given = trust.attached_signatures(store, digest)
            accepted = trust.decide(keys.trust(), keys.keys(), given, contents, digest, keys.newest(), force=True)
        if accepted.signed is not None:
            keys.force(accepted.signed.name, digest)

    def untag(self, name: str) -> None:
        """Removes a reference and its history."""
        with self._opened() as store:
            store.untag(name)

    # --- the whole store ---------------------------------------------------------------------------------------------

    def collect(self, how: Collection) -> Collected:
        """Removes what nothing needs, or says what it would remove."""
        with self._opened() as store:
            return collect.collect(store, self._digests, grace=how.grace, history=how.history, dry=how.dry_run)

    def verify(self) -> Findings:
        """Reads every byte; damaged objects go into quarantine."""
        with self._opened() as store:
            return Findings(store.place.path, tuple(checking.findings(store)))

    def export(self, output: Writable, wanted: Iterable[str] = ()) -> Moved:
        """Writes what `wanted` means, or everything, to `output`."""
        with self._opened() as store:
            return archive.export(store, output, wanted)

    def import_from(self, source: Readable, replace: bool = False) -> Moved:
        """Takes in an export, all of it or nothing."""
        with Store.create(self._directory) as store:

            def admit(new: Mapping[str, int]) -> Mapping[str, bytes]:
                if self._adder is None:
                    return {}
                additions.admit(store, self._adder, len(new), sum(new.values()))
                return additions.attachment(self._adder)

            return archive.import_from(store, source, self._who, replace=replace, admit=admit)

    # --- keys --------------------------------------------------------------------------------------------------------

    def requirements(self) -> Requirements:
        """The keys, what is required of modules, and what runs that could not start any more."""
        with self._opened() as store:
            keys = Keys(store.place.path)
            known, required, policy = keys.keys(), keys.trust(), keys.policy()
            text = None if policy is None else policy.decode("utf-8", "replace")
            affected = self._affected(store, keys)
            shown = tuple(each.known for each in known)
            return Requirements(shown, required.require, required.any_of, text, affected)

    def revoke(self, name: str, reason: str = "") -> Revoked:
        """Has a key count no more, from now on; with what runs that could not start any more."""
        with self._opened() as store:
            keys = Keys(store.place.path)
            key = keys.revoke(name, time.time(), reason)
            return Revoked(key.known, self._affected(store, keys))

    def _affected(self, store: Store, keys: Keys) -> tuple[InUse, ...]:
        known, required = keys.keys(), keys.trust()
        if not required.asks:
            return ()
        signers: dict[str, tuple[str, ...]] = {}
        found = []
        for use in self._uses(store):
            if use.digest not in signers:
                signers[use.digest] = _signers(store, use.digest, known)
            found.append(use.replace(keys=signers[use.digest]))
        return trust.affected(required, known, found)

    def _uses(self, store: Store) -> Iterable[InUse]:
        if self._in_use is not None:
            return self._in_use
        declared = collect.declared(store)
        return [InUse(user, digest, ()) for user, digests in declared.items() for digest in digests]

    def _digests(self) -> tuple[str, ...]:
        return tuple(use.digest for use in self._in_use or ())

    def _opened(self) -> Store:
        return Store.open(self._directory)


def _signed(store: Store, signatures: Sequence[bytes], contents: Contents) -> dict[str, bytes]:
    """The attachments that the signatures become. Raises KeepfleetError for one that does not count."""
    keys = Keys(store.place.path).keys() if signatures else ()
    if len(signatures) > MAX_KEYS:
        raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot add the module: it has over {MAX_KEYS} signatures")
    return {f"{trust.SIGNATURE}{trust.signer(data, keys, contents).name}": data for data in signatures}


def _signers(store: Store, digest: str, keys: Sequence[trust.Key]) -> tuple[str, ...]:
    """The keys that have signed an object, also those that were revoked; none of one that is not there, or not whole:
    it could not start either."""
    try:
        with contents_of(store, digest) as contents:
            return trust.signed_by(trust.attached_signatures(store, digest), keys, contents)
    except KeepfleetError:
        return ()


@contextmanager
def contents_of(store: Store, digest: str) -> Iterator[memoryview]:
    """The bytes of an object, mapped from the descriptor whose bytes were compared with its digest."""
    file = store.open_object(digest)
    try:
        with mapped(file) as contents:
            yield contents
    finally:
        os.close(file)
