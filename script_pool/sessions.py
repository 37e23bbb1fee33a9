"""Sessions: a guest's memory that outlives a run, held by the pool and by no child, so that any child can go on with
it and none that is killed takes it along.

A session belongs to its owner, who alone can use, save or end it. It has a size, and an end after it was not used for
a while. Saved, it is signed with the pool's key: what is laid over a guest's memory is what a pool with this key has
given out, for this owner.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from keep_protocol.errors import ErrorKind, KeepfleetError
from script_pool.hostcalls import Timer
from script_pool.protocol import DONE, NO_SUCH_SESSION, SESSION_REFUSED, Answer

MAX_SESSIONS = 10_000
MAX_BYTES = 16 * 1024 * 1024
"""Of one session's memory: what its runs have changed, 10 KB for a few variables."""
MAX_TOTAL_BYTES = 512 * 1024 * 1024
"""Of all."""
IDLE_SECONDS = 3600.0
"""After which an unused session ends."""
KEY_BYTES = 32
_MAGIC = b"keepfleet session 1\n"


class SessionRefused(ValueError):
    """What was saved cannot be loaded; the message says why."""


@dataclass(slots=True, eq=False)
class Session:
    """`turns`: the tickets of the requests that use it, in order; the first one runs, or waits for a child."""

    owner: str
    name: str
    memory: bytes | None = None
    turns: deque[int] = field(default_factory=deque)
    timer: Timer | None = None


class Sessions:
    """The sessions of a pool. `later`: calls something after seconds."""

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], Timer],
        key: bytes | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._later, self._key, self._idle = later, key or os.urandom(KEY_BYTES), idle_seconds
        self._known: dict[tuple[str, str], Session] = {}
        self._bytes = 0

    def __repr__(self) -> str:
        return f"Sessions({len(self._known)}, {self._bytes} bytes)"

    def get(self, owner: str, name: str) -> Session | None:
        """The owner's session of that name."""
        return self._known.get((owner, name))

    def open(self, owner: str, name: str) -> Session | None:
        """The same, begun where there is none; None where there are too many."""
        found = self._known.get((owner, name))
        if found is None and (len(self._known) >= MAX_SESSIONS or self._bytes >= MAX_TOTAL_BYTES):
            return None
        if found is None:
            found = self._known[owner, name] = Session(owner, name)
        self._use(found)
        return found

    def _use(self, session: Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
        session.timer = self._later(self._idle, lambda: self._expire(session))

    def _expire(self, session: Session) -> None:
        if session.turns:
            self._use(session)
        else:
            self.end(session)

    def keep(self, session: Session, memory: bytes) -> bool:
        """What the session's run left is its memory; False where that is too much, and it stays as it was."""
        if self._known.get((session.owner, session.name)) is not session:
            return True  # it was ended meanwhile
        before = len(session.memory or b"")
        if len(memory) > MAX_BYTES or self._bytes - before + len(memory) > MAX_TOTAL_BYTES:
            return False
        self._bytes += len(memory) - before
        session.memory = memory
        self._use(session)
        return True

    def end(self, session: Session) -> None:
        """Forgets it; a run of it that is under way leaves nothing."""
        if self._known.get((session.owner, session.name)) is session:
            del self._known[session.owner, session.name]
            self._bytes -= len(session.memory or b"")
        session.memory = None
        if session.timer is not None:
            session.timer.cancel()

    def drop_empty(self, session: Session) -> None:
        """A session none of whose runs has succeeded is none."""
        if session.memory is None and not session.turns:
            self.end(session)

    def close(self) -> None:
        """Forgets all."""
        for session in list(self._known.values()):
            self.end(session)

    def on_end(self, owner: str, name: str) -> Answer:
        """Forgets one; the answer to its owner."""
        session = self.get(owner, name)
        if session is None:
            return Answer(NO_SUCH_SESSION)
        self.end(session)
        return DONE

    def on_save(self, owner: str, name: str) -> Answer:
        """Gives one to its owner, signed: `Answer.saved`."""
        session = self.get(owner, name)
        if session is None or session.memory is None:
            return Answer(NO_SUCH_SESSION)
        return Answer(saved=self.save(session))

    def on_load(self, owner: str, name: str, saved: bytes) -> Answer:
        """Makes one what was saved, here or by another pool with the same key."""
        try:
            self.load(owner, name, saved)
        except SessionRefused as error:
            return Answer(SESSION_REFUSED, message=f"cannot load the session: {error}")
        return DONE

    def save(self, session: Session) -> bytes:
        """The session, for its owner, as a pool with this key can load it."""
        head = json.dumps({"owner": session.owner}).encode("ascii") + b"\n"
        plain = _MAGIC + head + zlib.compress(session.memory or b"", 1)
        return plain + hmac.digest(self._key, plain, "sha256")

    def load(self, owner: str, name: str, saved: bytes) -> None:
        """Makes `name` what was saved. Raises SessionRefused."""
        plain, signed = saved[:-32], saved[-32:]
        if not plain.startswith(_MAGIC) or not hmac.compare_digest(hmac.digest(self._key, plain, "sha256"), signed):
            raise SessionRefused("it was not saved by a pool with this key, or has been changed since")
        head, _, packed = plain[len(_MAGIC) :].partition(b"\n")
        if json.loads(head) != {"owner": owner}:
            raise SessionRefused("it belongs to another owner")
        unpack = zlib.decompressobj()
        memory = unpack.decompress(packed, MAX_BYTES)
        if unpack.unconsumed_tail:
            raise SessionRefused(f"it takes over {MAX_BYTES} bytes")
        session = self.open(owner, name)
        if session is None or session.turns or not self.keep(session, memory):
            raise SessionRefused("there are too many sessions, or this one is in use")


def read_key(path: str) -> bytes:
    """The key in a file of this user's alone, which is made where there is none. Raises KeepfleetError."""
    try:
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            pass
        else:
            with open(made, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            found, key = os.fstat(file.fileno()), file.read(1024)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise _unusable(path, "it must be yours, and no one else may read it")
    if len(key) < KEY_BYTES:
        raise _unusable(path, f"it has less than {KEY_BYTES} bytes")
    return hashlib.sha256(key).digest()


def _unusable(path: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use the key of sessions at {path}: {why}")
