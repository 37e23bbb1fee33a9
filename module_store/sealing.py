"""What an artifact's file looks like, and the secret that shows that this host has written it.

Contents, a header that says what they were made for, a code over both, and a tail that says how long the header is. The
code is keyed with a secret that only this user can read; another secret voids every artifact. Import rule: that of
module_store.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat

from keep_protocol import strict_json
from keep_protocol.errors import KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.spec import Compiler, Profile
from module_store import names
from module_store.disk import OPEN_FILE, Disk

LOG = logging.getLogger("keepfleet.artifacts")
CHUNK_BYTES = 1024 * 1024
ARTIFACT_MODE, SECRET_MODE = 0o444, 0o400
SECRET, _SECRET_BYTES = "key", 32
_MAGIC = b"keepart1"
_CODE_BYTES = 32
"""HMAC-SHA-256, not BLAKE2b: each start reads the whole file, and processors have instructions for SHA-256, with which
it is twice as fast (1,240 MB/s where BLAKE2b had 655)."""
_TAIL_BYTES = _CODE_BYTES + 4 + len(_MAGIC)
"""At the end: the code, the header's length, the magic."""
_MAX_HEADER = 1024
"""Two digests and three words are 250 bytes."""


class Key(Record):
    """What an artifact is made for. digest: of the module; engine: of all that compiles and loads, the machine too;
    images: whether the first contents of memories are mapped from it."""

    digest: str
    engine: str
    profile: Profile = Profile.STANDARD
    compiler: Compiler = Compiler.OPTIMIZING
    images: bool = True

    @property
    def name(self) -> str:
        """The file that an artifact for this lies in."""
        return hashlib.sha256(self.to_header()).hexdigest()

    def to_header(self) -> bytes:
        """The same as bytes, each key in one form only."""
        values = {
            "digest": names.check_digest(self.digest),
            "engine": self.engine,
            "profile": self.profile.value,
            "compiler": self.compiler.value,
            "images": self.images,
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_header(cls, header: bytes) -> Key:
        """The key that `to_header` wrote. Raises KeepfleetError, ValueError for what is none."""
        values = strict_json.loads_object(header, _MAX_HEADER, "an artifact's header")
        digest, engine = names.check_digest(str(values.get("digest"))), str(values.get("engine"))
        profile, compiler = Profile(values.get("profile")), Compiler(values.get("compiler"))
        return cls(digest, engine, profile, compiler, values.get("images") is True)


class Seal:
    """Writes files that this host knows again, and says why one is not such."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "Seal()"

    def write(self, disk: Disk, file: int, code: int, size: int, key: Key) -> None:
        """Copies the file `code` into `file`, and seals it for `key`. Raises OSError."""
        hashed, position = self._hash(), 0
        while position < size:
            data = os.pread(code, min(CHUNK_BYTES, size - position), position)
            if not data:
                raise OSError(errno.EIO, "it became shorter while it was read")
            hashed.update(data)
            disk.write(file, data)
            position += len(data)
        header = key.to_header()
        hashed.update(header)
        tail = hashed.digest() + len(header).to_bytes(4, "little") + _MAGIC
        disk.write(file, header + tail)

    def fault_in(self, file: int, size: int, key: Key) -> str:
        """Why the file is not the artifact for `key`; "" when it is. Raises OSError."""
        tail = os.pread(file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        header = key.to_header()
        code = size_of_code(size, key)
        if code <= 0 or tail[_CODE_BYTES:] != len(header).to_bytes(4, "little") + _MAGIC:
            return "it is cut off, or no artifact"
        hashed, buffer, position = self._hash(), memoryview(bytearray(CHUNK_BYTES)), 0
        end = code + len(header)
        while position < end:
            count = os.preadv(file, [buffer[: min(CHUNK_BYTES, end - position)]], position)
            if not count:
                return "it became shorter while it was read"
            hashed.update(buffer[:count])
            position += count
        if not hmac.compare_digest(hashed.digest(), tail[:_CODE_BYTES]):
            return "it is not what was written there for this module, engine and key"
        if os.pread(file, len(header), code) != header:
            return "it is for another module or engine"
        return ""

    def _hash(self) -> hmac.HMAC:
        return hmac.new(self._secret, digestmod="sha256")


def key_in(file: int, size: int) -> Key | None:
    """What the header of an artifact says it is for, which is not checked; None where none can be read. Raises
    OSError."""
    tail = os.pread(file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    length = int.from_bytes(tail[_CODE_BYTES : _CODE_BYTES + 4], "little")
    if len(tail) != _TAIL_BYTES or not tail.endswith(_MAGIC) or not 0 < length <= min(_MAX_HEADER, size - _TAIL_BYTES):
        return None
    try:
        return Key.from_header(os.pread(file, length, size - _TAIL_BYTES - length))
    except (KeepfleetError, ValueError):
        return None


def size_of_code(size: int, key: Key) -> int:
    """Of the contents of an artifact's file of that size."""
    return size - _TAIL_BYTES - len(key.to_header())


def fault_of(status: os.stat_result, mode: int = ARTIFACT_MODE) -> str:
    """Why a file of this status is none that this cache made; "" when it may be."""
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    if stat.S_IMODE(status.st_mode) != mode:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o} and not {mode:04o}"
    if status.st_nlink != 1:
        return f"it has {status.st_nlink} names"
    return ""


def read_secret(directory: int, path: str) -> bytes:
    """The secret in `directory`, which is at `path`; b"" where there is none that can be trusted. Raises OSError."""
    try:
        file = os.open(SECRET, OPEN_FILE, dir_fd=directory)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EACCES, errno.ENXIO):
            raise
        LOG.warning("the key of compiled code in %s was a link: all of it is compiled again", path)
        return b""
    try:
        status, secret = os.fstat(file), os.read(file, _SECRET_BYTES + 1)
    finally:
        os.close(file)
    fault = fault_of(status, SECRET_MODE)
    if not fault and len(secret) != _SECRET_BYTES:
        fault = f"it has {status.st_size} bytes, not {_SECRET_BYTES}"
    if fault:
        LOG.warning("the key of compiled code in %s is replaced, as %s: all is compiled again", path, fault)
        return b""
    return secret


def new_secret(disk: Disk, file: int) -> bytes:
    """A new secret, written into `file`, and on disk when this returns. Raises OSError."""
    secret = secrets.token_bytes(_SECRET_BYTES)
    disk.write(file, secret)
    os.fchmod(file, SECRET_MODE)
    disk.sync(file)
    return secret
