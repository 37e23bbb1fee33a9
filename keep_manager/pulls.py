"""Pulls of modules from registries: each asked for by a unit of its own, whose bytes come through a pipe.

The manager opens no connection. What it reads from the pipe is a stranger's until the last byte was hashed: lengths are
bounded, the manifests are compared with the digest in the address, and the module with the digest that they name, by
the store, too. A pull lives as long as its manager: one that is killed leaves a unit whose pipe is not read, which
ends with its next byte, or when the next manager starts, and nothing of it is in the store.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import select
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from keep_manager.failpoints import Failpoint, reach
from keep_manager.model import exhaustion_explained
from keep_manager.registries import Registries, RegistryEntry, allowed, request_for
from keep_manager.tasks import Group
from keep_protocol.compiling import End
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.pulling import WAIT_SECONDS, Failure, Pull, Pulling, PullState
from keep_protocol.store import Object
from module_pull.artifact import Address, Artifact, reference_of
from module_pull.exchange import MAX_REPORT_BYTES, Incoming, encode_request, read_error

LOG = logging.getLogger("keepfleet.pulls")
SECURITY = logging.getLogger("keepfleet.security")
MAX_PULLS = 4
"""That run concurrently; each has a unit, a thread and a file."""
KEPT = 100
"""Pulls that have ended and can be looked at."""
SILENT_SECONDS = 60.0
"""Without a byte of the unit, which itself gives up a registry after half of that."""
END_SECONDS = 5.0
"""For a unit to end by itself, and systemd to say how, when its pipe has ended."""
_FAILED = 1
"""The exit status of a pull that reports why (module_pull/__main__.py)."""
_OF_THE_PIPE = (ErrorKind.BAD_REQUEST, ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE)
"""What can be wrong with what a unit passes on that ended too soon; then its own end says more."""
_END_WORDS = {
    End.EXITED: "with the exit status {}",
    End.KILLED: "it was killed by signal {}",
    End.MEMORY: "it took more memory than it may have",
    End.TIMEOUT: "it took more time than it may have",
}


class Units(Protocol):
    """Where pulls run: `keep_manager.systemd.pull_units.PullUnits`."""

    async def run(
        self, name: str, root: str, files: tuple[int, int, int], queued: Callable[[], object]
    ) -> tuple[End, int] | None:
        """Runs one to its end; None where it ended with 0."""

    async def clear(self) -> list[str]:
        """Ends all there are."""


class Readable(Protocol):
    """What a module is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""


class Store(Protocol):
    """What a pull needs of the store, as its caller has it. Blocks; raises KeepfleetError."""

    def add(
        self, source: Readable, reference: str = "", digest: str = "", signatures: tuple[bytes, ...] = (),
        origin: str = "",
    ) -> Object:  # fmt: skip
        """Keeps what `source` reads, and names it."""


class _Pipe:
    """The reading end of a pipe, for a thread that must not wait for ever. Raises KeepfleetError."""

    def __init__(self, address: Address, pipe: int, stop: int) -> None:
        self._address, self._pipe, self._stop = address, pipe, stop

    def read(self, size: int, /) -> bytes:
        """The next bytes; none at the end."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        ready = {file for file, _ in poll.poll(SILENT_SECONDS * 1000)}
        if self._stop in ready:
            raise _broken(self._address, "it was cancelled")
        if not ready:
            raise _broken(self._address, f"nothing came for {SILENT_SECONDS:g} s", ErrorKind.TOO_SLOW)
        return os.read(self._pipe, size)


class _Pulling:
    """One pull, and what is known of it."""

    def __init__(self, address: Address, entry: RegistryEntry, pull: Pull, who: str, store: Store) -> None:
        self.address, self.entry, self.pull, self.who, self.store = address, entry, pull, who, store
        self.incoming: Incoming | None = None  # what its unit passes on
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def begun(self, artifact: Artifact) -> None:
        """Its manifests have come."""
        self.pull = self.pull.replace(address=str(artifact.address), size=artifact.size)

    def shown(self) -> Pull:
        """How far it is now."""
        count = self.incoming.count if self.incoming else 0
        return self.pull if self.ended.is_set() else self.pull.replace(received=count)


class Pulls:
    """The pulls of one manager. registries: as the configuration has them now; root: gives the root of new units."""

    def __init__(
        self, tasks: Group, units: Units, root: Callable[[], Awaitable[str]], registries: Registries = ()
    ) -> None:
        self._tasks, self._units, self._root, self._registries = tasks, units, root, registries
        self._pulls: dict[str, _Pulling] = {}
        self._threads = ThreadPoolExecutor(MAX_PULLS, "pull")

    def __repr__(self) -> str:
        return f"Pulls({len(self._under_way())} under way)"

    def apply(self, registries: Registries) -> None:
        """From which registries may be pulled from now on."""
        self._registries = registries

    async def open(self) -> None:
        """Ends what a manager that has gone left running. Raises KeepfleetError."""
        for unit in await self._units.clear():
            LOG.info("ended %s, which is not read any more", unit)

    async def close(self) -> None:
        """Ends all, and their threads."""
        for each in self._under_way():
            await self._end(each)
        self._threads.shutdown(wait=False)

    def begin(self, asked: Pulling, who: str, store: Store) -> Pull:
        """Begins to pull as `who` asks, into `store`. Raises KeepfleetError: BAD_REQUEST, FORBIDDEN, TOO_MANY."""
        address, entry = allowed(self._registries, asked.address)
        reference = reference_of(address, asked.reference)
        if len(self._under_way()) >= MAX_PULLS:
            why = f"{MAX_PULLS} pulls are under way; try again when one has ended"
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot pull {address}: {why}")
        name = secrets.token_hex(8)
        pulling = _Pulling(address, entry, Pull(name, str(address), reference, PullState.PULLING), who, store)
        self._pulls[name] = pulling
        ended = [key for key, each in self._pulls.items() if each.ended.is_set()]
        for key in ended[: max(0, len(self._pulls) - KEPT)]:
            del self._pulls[key]
        SECURITY.info("pulling %s as %r into the module store by %s", address, reference, who)
        pulling.task = self._tasks.start(self._run(pulling), name=f"pull {name}")
        return pulling.shown()

    def listing(self) -> tuple[Pull, ...]:
        """Every pull that is known, the newest last."""
        return tuple(each.shown() for each in self._pulls.values())

    async def get(self, name: str, *, wait: bool = False) -> Pull:
        """One pull, after its end or WAIT_SECONDS where it is to be waited for. Raises KeepfleetError(NOT_FOUND)."""
        pulling = self._find(name)
        if wait:
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await pulling.ended.wait()
        return pulling.shown()

    async def cancel(self, name: str) -> Pull:
        """Ends a pull that is under way; nothing of it is kept. Raises KeepfleetError(NOT_FOUND)."""
        pulling = self._find(name)
        await self._end(pulling)
        return pulling.shown()

    def _find(self, name: str) -> _Pulling:
        try:
            return self._pulls[name]
        except KeyError:
            why = "it may have ended long ago, or with the manager that it began with; pull again"
            raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the pull {name[:16]}: {why}") from None

    def _under_way(self) -> list[_Pulling]:
        return [each for each in self._pulls.values() if not each.ended.is_set()]

    async def _end(self, pulling: _Pulling) -> None:
        if pulling.task is not None and not pulling.ended.is_set():
            pulling.task.cancel()
            await pulling.ended.wait()

    async def _run(self, pulling: _Pulling) -> None:
        """The pull's task. What it fails with is its own, and no fault of the manager's."""
        error: KeepfleetError | None = _broken(pulling.address, "it was cancelled, or the manager is stopping")
        try:
            with exhaustion_explained("pull the module"):
                added = await self._pull(pulling)
            pulling.pull = pulling.pull.replace(
                state=PullState.DONE, object=added, received=added.size, size=added.size
            )
            error = None
        except KeepfleetError as failed:
            error = failed
        finally:
            if error is not None:
                failure = Failure(error.kind, error.message[:4000])
                pulling.pull = pulling.shown().replace(state=PullState.FAILED, error=failure)
            pulling.ended.set()
            _audit(pulling)

    async def _pull(self, pulling: _Pulling) -> Object:
        loop, root = asyncio.get_running_loop(), await self._root()
        request = await asyncio.to_thread(request_for, pulling.address, pulling.entry)
        with ExitStack() as held:
            asked, report = _file(encode_request(request), held), _file(bytes(MAX_REPORT_BYTES), held)
            reading, writing = _pipe(held)
            stopped, stop = _pipe(held)
            pulling.incoming = Incoming(pulling.address, _Pipe(pulling.address, reading.number, stopped.number))
            reach(Failpoint.PULL_BEFORE_CALL)

            def queued() -> None:
                writing.close()  # the unit has it, and with the unit it ends
                reach(Failpoint.PULL_AFTER_CALL)

            files = (asked, writing.number, report)
            running = asyncio.ensure_future(self._units.run(pulling.pull.id, root, files, queued))
            keeping = loop.run_in_executor(self._threads, _keep, pulling, loop)
            both: set[asyncio.Future[Any]] = {running, keeping}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    writing.close()
                    await asyncio.wait({keeping})
                else:  # it has closed the pipe, or passed on what is refused
                    await asyncio.wait({running}, timeout=END_SECONDS)
            finally:
                os.write(stop.number, b"!")  # for the thread
                running.cancel()
                await asyncio.wait(both)
            return _outcome(pulling.address, running, keeping, os.pread(report, MAX_REPORT_BYTES, 0))


class _End:
    """One end of a pipe, closed once."""

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
        self.number = -1


def _pipe(held: ExitStack) -> tuple[_End, _End]:
    """The ends for reading and for writing, until `held` ends."""
    ends = [_End(number) for number in os.pipe2(os.O_CLOEXEC)]
    for each in ends:
        held.callback(each.close)
    return ends[0], ends[1]


def _file(contents: bytes, held: ExitStack) -> int:
    """A file in memory with these contents, which cannot grow, by whichever process; until `held` ends."""
    file = os.memfd_create("pull", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    held.callback(os.close, file)
    view = memoryview(contents)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return file


def _keep(pulling: _Pulling, loop: asyncio.AbstractEventLoop) -> Object:
    """Reads the pipe to its end into the store; in a thread. Raises KeepfleetError."""
    incoming = pulling.incoming
    if incoming is None:
        raise _broken(pulling.address, "it has not begun")
    artifact = incoming.begin()
    loop.call_soon_threadsafe(pulling.begun, artifact)
    reach(Failpoint.PULL_BEFORE_ADD)
    added = pulling.store.add(incoming.body(), pulling.pull.reference, artifact.digest, (), str(artifact.address))
    reach(Failpoint.PULL_AFTER_ADD)
    return added


def _outcome(
    address: Address,
    running: asyncio.Future[tuple[End, int] | None],
    keeping: asyncio.Future[Object],
    said: bytes,
) -> Object:
    """What is in the store, when both have ended. Raises KeepfleetError: what the unit reported, else how it ended,
    else what was wrong with what it passed on."""
    unkept = keeping.exception()
    if unkept is None:
        return keeping.result()
    if not isinstance(unkept, KeepfleetError):
        raise unkept
    if unkept.kind not in _OF_THE_PIPE:
        raise unkept
    reported = read_error(said)
    if reported is not None:
        raise reported
    if running.cancelled():
        raise unkept
    failed = running.exception()
    if failed is not None:
        raise failed
    end = running.result()
    if end is not None and end != (End.EXITED, _FAILED):
        raise _broken(address, f"its unit has ended: {_END_WORDS[end[0]].format(end[1])}")
    raise unkept


def _broken(address: Address, why: str, kind: ErrorKind = ErrorKind.UNAVAILABLE) -> KeepfleetError:
    return KeepfleetError(kind, f"cannot pull {address}: {why}")


def _audit(pulling: _Pulling) -> None:
    """One line in the security log about the end of a pull."""
    shown = pulling.shown()
    if shown.object is not None:
        what = f"pulled {shown.object.digest}, {shown.object.size} bytes, from {shown.address} as {shown.reference!r}"
        SECURITY.info("%s into the module store by %s", what, pulling.who)
    elif shown.error is not None:
        SECURITY.warning("not pulled by %s: %s", pulling.who, shown.error.message)
