"""Secrets for declared keeps, below the manager's state directory.

    secrets/NAME.cred    the value, encrypted by systemd-creds(1) with the host's key
    secrets/NAME.plain   the value as it is, where the host has no systemd-creds, or the manager is a user's own
    secrets/NAME.json    whose it is, written before the first value; and of values as they are the digests

The record has a digest of itself: a bit that was changed leaves a secret no owner, and never another one. An encrypted
value has one of systemd's; one that lies as it is must have one of those in the record, which is written before it with
that of the value before.

systemd opens a keep's when it starts the unit (LoadCredential=, LoadCredentialEncrypted=): only the name is in a
specification, and the path in a unit. This process has a value while it is set, and never again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from keep_manager.declared.kept import Kept
from keep_manager.declared.specification import Specification
from keep_manager.failpoints import Failpoint, reach
from keep_manager.model import Caller
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Record, Text, field, parse
from keep_protocol.secrets import MAX_VALUE_BYTES, Secret, check_secret_name
from keep_protocol.spec import OWNER
from module_store.disk import Disk

LOG = logging.getLogger("keepfleet.declared")
ENCRYPTED, PLAIN, METADATA = ".cred", ".plain", ".json"
SCHEMA = 1
MAX_METADATA = 1024


class Sealer(Protocol):
    """Encrypts values with a key that this host alone has. Raises KeepfleetError alone."""

    @property
    def available(self) -> bool:
        """Whether it can; else values are kept as they are."""

    async def seal(self, name: str, value: bytes) -> bytes:
        """The value encrypted, as systemd decrypts it for the credential `name` alone."""


_DIGEST = Text(64, "[0-9a-f]{64}", "64 hexadecimal digits")


class _Metadata(Record):
    owner: str = field(OWNER)
    values: tuple[str, ...] = field(Items(_DIGEST, 2), default=())


class Secrets:
    """The secrets in `directory`. used: the specifications that there are; changed: called with each declared keep that
    uses a secret that was set."""

    def __init__(
        self,
        directory: str,
        sealer: Sealer,
        used: Callable[[], Iterable[Specification]],
        changed: Callable[[str], None] = lambda _: None,
        disk: Disk | None = None,
    ) -> None:
        self._files, self._sealer = Kept(directory, "the secret", disk), sealer
        self._used, self._changed = used, changed
        self._owners: dict[str, str] = {}
        self._changing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Secrets({len(self._owners)})"

    async def open(self) -> None:
        """Reads whose each one is. One that cannot be read has no owner, and is given to no keep. Raises
        KeepfleetError."""
        await asyncio.to_thread(self._files.open)
        names = await asyncio.to_thread(self._files.names)
        for name in names:
            stem = name.removesuffix(METADATA)
            if stem != name and (stem + ENCRYPTED in names or stem + PLAIN in names):
                self._owners[stem] = await asyncio.to_thread(self._owner_in, stem)
        if not self._sealer.available and self._owners:
            LOG.warning("%d secrets lie on disk as they are: this host encrypts none", len(self._owners))

    def names(self) -> list[str]:
        """Every secret's name."""
        return sorted(self._owners)

    def owner(self, name: str) -> str | None:
        """Whose it is, "" where that cannot be read, and None where there is none."""
        return self._owners.get(name)

    async def get(self, name: str) -> Secret:
        """One secret, without its value; where its file cannot be used, why. Raises KeepfleetError(NOT_FOUND)."""
        if name not in self._owners:
            raise not_there(name)
        shown = Secret(name, self._owners[name], used_by=self.used_by(name))
        try:
            sealed, plain = [await asyncio.to_thread(self._files.written_at, name + end) for end in (ENCRYPTED, PLAIN)]
        except KeepfleetError as error:
            return shown.replace(detail=error.message)
        if sealed is None and plain is None:
            return shown.replace(detail="its file has gone; set it again")
        return shown.replace(set_at=sealed or plain, encrypted=sealed is not None)

    def used_by(self, name: str) -> tuple[str, ...]:
        """The declared keeps of its owner that name it."""
        owner = self._owners.get(name)
        return tuple(
            sorted(
                each.name
                for each in self._used()
                if each.header.owner == owner and name in each.job.stored_secrets.values()
            )
        )

    async def set(self, name: str, value: bytes, caller: Caller, most: int) -> Secret:
        """Has the secret be `value`, whole or not at all; on disk when this returns. most: how many the caller may
        have. Who owned it before still does.

        Raises KeepfleetError: TOO_LARGE, TOO_MANY, NO_SPACE, CONFIGURATION where the host cannot encrypt it.
        """
        check_secret_name(name)
        if len(value) > MAX_VALUE_BYTES:
            raise KeepfleetError(
                ErrorKind.TOO_LARGE, f"cannot set {name}: a secret has at most {MAX_VALUE_BYTES} bytes"
            )
        if not value:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot set {name}: its value is empty")
        async with self._changing:
            if name not in self._owners and self._count(caller.name) >= most:
                why = f"{caller.who} has {most} secrets, which is the quota `secrets` of the manager's configuration"
                raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot set {name}: {why}")
            sealed = self._sealer.available
            data = await self._sealer.seal(name, value) if sealed else value
            await asyncio.to_thread(self._write, name, data, sealed=sealed, owner=caller.name)
            self._owners.setdefault(name, caller.name)
        for each in self.used_by(name):
            self._changed(each)
        return await self.get(name)

    async def remove(self, name: str) -> None:
        """Removes a secret. Raises KeepfleetError: NOT_FOUND, CONFLICT while a declared keep names it."""
        async with self._changing:
            if name not in self._owners:
                raise not_there(name)
            if users := self.used_by(name):
                why = f"{', '.join(users[:5])} name{'s' * (len(users) == 1)} it; apply without it, or delete"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot remove the secret {name}: {why}")
            await asyncio.to_thread(self._files.remove, name + ENCRYPTED, name + PLAIN, name + METADATA)
            del self._owners[name]

    def credentials(self, names: Iterable[str]) -> Mapping[str, tuple[str, bool]]:
        """Where systemd finds each of these, and whether it is encrypted. For threads. Raises KeepfleetError."""
        found: dict[str, tuple[str, bool]] = {}
        for name in names:
            sealed = self._files.written_at(name + ENCRYPTED) is not None
            if not sealed:
                self._plain(name)
            found[name] = (f"{self._files.directory}/{name}{ENCRYPTED if sealed else PLAIN}", sealed)
        return found

    def check_use(self, wanted: Specification) -> None:
        """Raises KeepfleetError(NOT_FOUND) unless every secret that the specification names is there, and its
        owner's."""
        for name in wanted.job.stored_secrets.values():
            if self._owners.get(name) != wanted.header.owner:
                why = f"{wanted.header.owner} has none of that name; run: keepctl secret set {name}"
                raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot give {wanted.name} the secret {name}: {why}")

    def _plain(self, name: str) -> bytes:
        """The value that lies as it is. Raises KeepfleetError where there is none, or none that was set."""
        value = self._files.read(name + PLAIN, MAX_VALUE_BYTES)
        if value is None:
            raise not_there(name)
        known = self._metadata(name).values
        if known and hashlib.sha256(value).hexdigest() not in known:  # the first versions noted none
            why = "its file is damaged, or was changed since it was set; set it again"
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot use the secret {name}: {why}")
        return value

    def _count(self, owner: str) -> int:
        return sum(each == owner for each in self._owners.values())

    def _owner_in(self, name: str) -> str:
        try:
            return self._metadata(name).owner
        except KeepfleetError as error:
            LOG.error("%s; only operators may touch it, and no keep gets it", error.message)
            return ""

    def _metadata(self, name: str) -> _Metadata:
        what = f"whose the secret {name} is"
        value = strict_json.loads_object(self._files.read(name + METADATA, MAX_METADATA) or b"", MAX_METADATA, what)
        if value.pop("schema", None) != SCHEMA:
            raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot read {what}: another schema")
        digest = value.pop("digest", None)
        found = parse(_Metadata, value, what, strict=True)
        if digest not in (None, _digest(found)):  # the first versions wrote none
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: its record is damaged, or was changed")
        return found

    def _write(self, name: str, data: bytes, *, sealed: bool, owner: str) -> None:
        known = name in self._owners
        if self._files.written_at(name + METADATA) is None or not known:
            known = False  # what lies there is of a removal that was broken off, and not the owner's
            self._files.remove(name + ENCRYPTED, name + PLAIN)
        owner = self._owners.get(name, owner)
        if owner and not (known and sealed):
            self._write_metadata(name, _Metadata(owner, () if sealed else self._digests(name, data)))
        reach(Failpoint.CREDENTIAL_AFTER_OWNER)
        self._files.write(name + (ENCRYPTED if sealed else PLAIN), data)
        reach(Failpoint.CREDENTIAL_AFTER_VALUE)
        was_plain = sealed and self._files.there(name + PLAIN)
        self._files.remove(name + (PLAIN if sealed else ENCRYPTED))  # of before the host encrypted, or did no more
        if owner and was_plain:
            self._write_metadata(name, _Metadata(owner))  # by its digest a short value could be guessed

    def _digests(self, name: str, data: bytes) -> tuple[str, ...]:
        """Of the values that may be found from now on: that one, and the one before until it is replaced."""
        found = [hashlib.sha256(data).hexdigest()]
        with suppress(KeepfleetError):  # none, or one that is given to no keep
            found.append(hashlib.sha256(self._plain(name)).hexdigest())
        return tuple(found)

    def _write_metadata(self, name: str, metadata: _Metadata) -> None:
        value = {"schema": SCHEMA, **metadata.to_wire(), "digest": _digest(metadata)}
        self._files.write(name + METADATA, strict_json.dumps(value))


def _digest(metadata: _Metadata) -> str:
    return hashlib.sha256(strict_json.dumps(metadata.to_wire())).hexdigest()


def not_there(name: str) -> KeepfleetError:
    """The error for a secret that there is not, or not for the caller, who must not find out which."""
    return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the secret {name[:63]!r}: there is none of that name")
