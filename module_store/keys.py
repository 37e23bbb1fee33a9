"""A store's keys, what it requires of them, and the newest versions it has seen: files in its folder `keys`.

    keys/NAME.pub        a public key, as minisign writes it
    keys/NAME.revoked    it counts no more: when and why
    keys/trust.json      which keys must have signed what starts
    keys/newest.json     the newest version of each module that was accepted, and older ones that were forced
    keys/policy.yaml     what a module must be, by its contents, to start

The folder and each file belong to who uses them, or to root, and no one else may write them; a file that is not so, or
cannot be read, is an error and never "there is none": a damaged revocation would otherwise trust the key again. All
but the public keys, whose damage no signature survives, end with a line that has the digest of what is above it: one
changed bit in a version or a limit would mean another one.
Import rule: that of module_store.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, Seconds, Text, check, field, parse, table_of
from keep_protocol.store import MAX_KEYS, MAX_REASON
from keep_protocol.strict_json import dumps, loads_object
from module_store.disk import Disk
from module_store.signatures import BadSignature, PublicKey, Signed, parse_public_key
from module_store.trust import Key, Newest, Trust, after, forced

FOLDER = "keys"
PUBLIC, REVOKED, TRUST, NEWEST, POLICY = ".pub", ".revoked", "trust.json", "newest.json", "policy.yaml"
MAX_FILE_BYTES = 4 << 20
"""The newest versions of 20,000 modules."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SEALED = re.compile(rb"(?s)(.*)\n# sha256:([0-9a-f]{64})\n")
"""A file with its last line, which YAML takes for a comment."""
_NAME = re.compile("[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class Revocation(Record):
    """What the file says by which a key is revoked."""

    revoked: float = field(Seconds(), about="when, in seconds of the epoch")
    reason: str = field(Text(MAX_REASON), default="", about="why")


def check_key_name(name: str) -> str:
    """`name` when a key may have it. Raises KeepfleetError(BAD_REQUEST)."""
    return str(check(table_of(Key)["name"], name, "key"))


def _unusable(path: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: {why}")


def _members(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "a version must be an object")
    return value


class Keys:
    """The keys of the store in `directory`. What it raises is KeepfleetError."""

    def __init__(self, directory: str, disk: Disk | None = None) -> None:
        self.path, self._disk = os.path.join(directory, FOLDER), disk or Disk()

    def __repr__(self) -> str:
        return f"Keys({self.path})"

    # --- what is there ------------------------------------------------------------------------------------------------

    def keys(self) -> tuple[Key, ...]:
        """Every key, by name; none where there is no folder."""
        with self._folder() as folder:
            return self._keys(folder) if folder is not None else ()

    def trust(self) -> Trust:
        """What must be signed; nothing where nothing was said."""
        with self._folder() as folder:
            data = self._read(folder, TRUST)
        if data is None:
            return Trust()
        with self._damaged(TRUST):
            return parse(Trust, self._object(TRUST, data), "trust", strict=True)

    def newest(self) -> dict[str, Newest]:
        """The newest version of each module that was accepted, by its name."""
        with self._folder() as folder:
            return self._newest(folder)

    def policy(self) -> bytes | None:
        """The policy's file; None where there is none."""
        with self._folder() as folder:
            return self._read(folder, POLICY)

    # --- what changes it ----------------------------------------------------------------------------------------------

    def add(self, name: str, public: PublicKey) -> Key:
        """Keeps a key. Raises KeepfleetError(CONFLICT) where its name, or the key under another name, is there."""
        key = Key(check_key_name(name), public.id, public)

        def change(folder: int) -> None:
            for known in self._keys(folder):
                if known.name == name or known.id == key.id:
                    why = (
                        f"{known.name} is there, with the identifier {known.id}; give another name, or revoke that one"
                    )
                    raise KeepfleetError(ErrorKind.CONFLICT, f"cannot add the key {name}: {why}")
            if len(self._keys(folder)) >= MAX_KEYS:
                raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot add the key {name}: there are {MAX_KEYS}")
            self._write(folder, f"{name}{PUBLIC}", public.to_text().encode())

        self._change(change)
        return key

    def revoke(self, name: str, when: float, reason: str = "") -> Key:
        """Has a key count no more, from now on; once more changes nothing. Raises KeepfleetError(NOT_FOUND)."""

        def change(folder: int) -> None:
            if self._named(folder, name).revoked is None:
                self._write(folder, f"{name}{REVOKED}", dumps(Revocation(when, reason[:MAX_REASON]).to_wire()))

        self._change(change)
        return next(key for key in self.keys() if key.name == name)

    def require(self, trust: Trust) -> None:
        """Requires other signatures from now on. Raises KeepfleetError where a key is not there, or was revoked."""

        def change(folder: int) -> None:
            for name in (*trust.require, *trust.any_of):
                if self._named(folder, name).revoked is not None:
                    raise KeepfleetError(ErrorKind.CONFLICT, f"cannot require the key {name}: it was revoked")
            self._write(folder, TRUST, dumps(trust.to_wire()))

        self._change(change)

    def saw(self, signed: Signed, digest: str) -> None:
        """Keeps a version that was accepted, unless a newer one was, meanwhile too. On disk when this returns."""

        def change(folder: int) -> None:
            known = self._newest(folder)
            new = after(signed, digest, known.get(signed.name))
            if known.get(signed.name) != new:
                self._write_newest(folder, {**known, signed.name: new})

        self._change(change)

    def force(self, name: str, digest: str) -> None:
        """Lets an older file of the module `name` start, until a newer version than those seen does."""

        def change(folder: int) -> None:
            known = self._newest(folder)
            if name in known and (new := forced(digest, known[name])) != known[name]:
                self._write_newest(folder, {**known, name: new})

        self._change(change)

    def set_policy(self, data: bytes | None) -> None:
        """What a module must be from now on, a policy that can be read; None for no policy."""

        def change(folder: int) -> None:
            if data is not None:
                self._write(folder, POLICY, data)
            elif POLICY in os.listdir(folder):
                self._disk.remove(folder, POLICY)
                self._disk.sync(folder)

        self._change(change)

    # --- files --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _folder(self) -> Iterator[int | None]:
        try:
            folder = os.open(self.path, _DIRECTORY)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise _unusable(self.path, error.strerror or str(error)) from error
        try:
            self._check_own(folder, self.path)
            yield folder
        finally:
            os.close(folder)

    def _check_own(self, descriptor: int, path: str) -> None:
        status = os.fstat(descriptor)
        if status.st_uid not in (0, os.geteuid()):
            raise _unusable(path, f"it belongs to user {status.st_uid}, and neither to you nor to root")
        if stat.S_IMODE(status.st_mode) & 0o022:
            raise _unusable(path, f"its mode is {stat.S_IMODE(status.st_mode):04o}, and others may write to it")

    def _read(self, folder: int | None, name: str) -> bytes | None:
        if folder is None:
            return None
        path = os.path.join(self.path, name)
        try:
            file = os.open(name, _FILE, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from error
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise _unusable(path, "it is no regular file")
            self._check_own(file, path)
            with os.fdopen(file, "rb", closefd=False) as opened:
                data = opened.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(file)
        if len(data) > MAX_FILE_BYTES:
            raise _unusable(path, f"it is over {MAX_FILE_BYTES} bytes")
        if name.endswith(PUBLIC):
            return data
        sealed = _SEALED.fullmatch(data)
        if sealed is None:
            return data  # of before; what breaks the line itself is no JSON, or a comment
        if sha256(sealed[1]).hexdigest().encode() != sealed[2]:
            hint = "set it again: keepctl store policy set" if name == POLICY else "put back what was there"
            raise _unusable(path, f"its contents are not those that were written; {hint}")
        return sealed[1]

    def _object(self, name: str, data: bytes) -> dict[str, object]:
        with self._damaged(name):
            return loads_object(data, MAX_FILE_BYTES, "it")

    @contextmanager
    def _damaged(self, name: str) -> Iterator[None]:
        """Names the file of what cannot be read in it."""
        try:
            yield
        except KeepfleetError as error:
            raise _unusable(os.path.join(self.path, name), f"{error.message}; put back what was there") from error

    def _keys(self, folder: int) -> tuple[Key, ...]:
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
        found = []
        for file in sorted(name for name in names if name.endswith(PUBLIC)):
            path, name = os.path.join(self.path, file), file.removesuffix(PUBLIC)
            if not _NAME.fullmatch(name):
                raise _unusable(path, "its name is none that a key may have")
            try:
                public = parse_public_key(self._read(folder, file) or b"")
            except BadSignature as error:
                raise _unusable(path, error.message) from error
            found.append(self._with_revocation(folder, Key(name, public.id, public)))
        return tuple(found)

    def _with_revocation(self, folder: int, key: Key) -> Key:
        file = f"{key.name}{REVOKED}"
        data = self._read(folder, file)
        if data is None:
            return key
        said = self._object(file, data)
        with self._damaged(file):
            revocation = parse(Revocation, said, "revocation", strict=True)
        return key.replace(revoked=revocation.revoked, reason=revocation.reason)

    def _named(self, folder: int, name: str) -> Key:
        for key in self._keys(folder):
            if key.name == name:
                return key
        raise KeepfleetError(
            ErrorKind.NOT_FOUND, f"cannot find the key {name[:63]!a}: {self.path} has none of that name"
        )

    def _newest(self, folder: int | None) -> dict[str, Newest]:
        data = self._read(folder, NEWEST)
        if data is None:
            return {}
        known = self._object(NEWEST, data)
        with self._damaged(NEWEST):
            return {
                name: parse(Newest, _members(value), "newest version", strict=True) for name, value in known.items()
            }

    def _write_newest(self, folder: int, newest: dict[str, Newest]) -> None:
        self._write(folder, NEWEST, dumps({name: each.to_wire() for name, each in newest.items()}))

    def _change(self, change: Callable[[int], None]) -> None:
        """Makes the folder where there is none, and changes it alone."""
        try:
            with self._parent() as parent, suppress(FileExistsError):
                self._disk.make_directory(parent, FOLDER)
        except OSError as error:
            kind = ErrorKind.NO_SPACE if error.errno in (28, 122) else ErrorKind.CONFIGURATION
            raise KeepfleetError(kind, f"cannot use {self.path}: {error.strerror or error}") from error
        with self._folder() as folder:
            if folder is None:
                raise _unusable(self.path, "it was removed meanwhile")
            fcntl.flock(folder, fcntl.LOCK_EX)
            try:
                with self._parent() as parent:  # the folder may have been made a moment ago
                    self._disk.sync(parent)
                for name in os.listdir(folder):
                    if name.startswith("."):  # what a process that was killed was writing
                        self._disk.remove(folder, name)
                change(folder)
            except OSError as error:
                kind = ErrorKind.NO_SPACE if error.errno in (28, 122) else ErrorKind.UNAVAILABLE
                raise KeepfleetError(kind, f"cannot change {self.path}: {error.strerror or error}") from error

    @contextmanager
    def _parent(self) -> Iterator[int]:
        """The directory that the folder is in. Raises OSError."""
        parent = os.open(os.path.dirname(self.path), _DIRECTORY)
        try:
            yield parent
        finally:
            os.close(parent)

    def _write(self, folder: int, name: str, data: bytes) -> None:
        """Replaces a file as a whole, on disk when this returns. Raises OSError, and then nothing has changed."""
        if not name.endswith(PUBLIC):
            data += b"\n# sha256:" + sha256(data).hexdigest().encode() + b"\n"
        new = f".{name}.{secrets.token_hex(8)}"
        file = self._disk.create(folder, new)
        try:
            try:
                self._disk.write(file, data)
                self._disk.sync(file)
            finally:
                os.close(file)
            self._disk.rename(folder, new, folder, name)
        except BaseException:
            self._disk.remove(folder, new)
            raise
        self._disk.sync(folder)
