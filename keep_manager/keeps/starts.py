"""Starts keeps: opens what each is given, binds the TCP socket that it will accept on, and hands all of it to its
loader."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import decide
from keep_manager.keeps.interfaces import Artifacts, Folders, Loaders, LoaderSession, Providers, Quotas
from keep_manager.keeps.policy import Policy, kind_of, uploaders_for
from keep_manager.keeps.readers import Readers
from keep_manager.keeps.streams import Inputs
from keep_manager.keeps.view import NO_SPEC, View, clear_away
from keep_manager.model import KEEPS_OUTPUT, Answer, Caller, Provision, UnixUser
from keep_protocol.api import StartKeep
from keep_protocol.constants import (
    APPLOADER_START_SECONDS,
    COMPILED,
    CONTROL_REPLY_SECONDS,
    FOLLOW,
    INPUT,
    LISTENER,
    unit_name,
)
from keep_protocol.control import StartMessage
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import KeepSpec

LOG = logging.getLogger("keepfleet.keeps")
START_REPLY_SECONDS = APPLOADER_START_SECONDS + CONTROL_REPLY_SECONDS
"""The loader gives its app-loader APPLOADER_START_SECONDS and then answers with the reason."""
BACKLOG = 16
"""A keep takes one workload; a few connections may queue behind it, not a flood."""
_TAKEN = {errno.EADDRINUSE, errno.EACCES}
"""What one port can have against it; anything else, such as an address of another host, is true of all ports."""


class Starts:
    """The starts of one manager's keeps, of each keep one at a time."""

    def __init__(
        self,
        loaders: Loaders,
        policy: Policy,
        providers: Providers,
        folders: Folders,
        view: View,
        quotas: Quotas,
        readers: Readers,
        inputs: Inputs,
        artifacts: Artifacts,
    ) -> None:
        self._loaders, self._policy, self._providers, self._folders = loaders, policy, providers, folders
        self._view, self._quotas, self._readers, self._inputs = view, quotas, readers, inputs
        self._artifacts = artifacts
        self._starting: set[int] = set()

    def __repr__(self) -> str:
        return f"Starts({len(self._starting)} under way)"

    def apply(self, policy: Policy) -> None:
        """Starts by this policy from now on."""
        self._policy = policy

    async def start(self, request: StartKeep, caller: Caller, patience: float | None = None) -> KeepInfo:
        """Binds the listener and passes it to the keep, which then awaits its workload there; or passes it its module,
        which it then runs, once that is compiled.

        Raises KeepfleetError: CONFLICT when it is started or being started, COMPILING where its module is not compiled
        after `patience` seconds: nothing has happened to the keep then; UNAVAILABLE without its loader,
        PORT_UNAVAILABLE, INTERNAL for a module that is damaged, FORBIDDEN and others for what cannot be granted, or
        what the loader reports.
        """
        with self._only(request.kuuid):
            spec = self._view.entry(request.kuuid).spec or NO_SPEC
            async with self.compiled(spec, patience) as compiled, self._loaders.session(request.kuuid) as session:
                return await self._start(session, request, caller, compiled)

    async def first(
        self,
        session: LoaderSession,
        request: StartKeep,
        caller: Caller,
        answer: Answer,
        *,
        warm: bool = False,
    ) -> KeepInfo:
        """The same, of a keep that is being made, whose loader `session` is with; its module is compiled already.
        answer: what the loader has said by then, that of a spare when it became the keep; warm: whether its runner is
        made ready as soon as it listens, which a loader of this version knows."""
        with self._only(request.kuuid):
            async with self.compiled(self._view.entry(request.kuuid).spec or NO_SPEC) as compiled:
                return await self._start(session, request, caller, compiled, answer, warm=warm)

    @asynccontextmanager
    async def compiled(self, spec: KeepSpec, patience: float | None = None) -> AsyncIterator[int | None]:
        """The module of such a keep, compiled, while the block runs; None where there is none, or the keep is to
        compile it itself. Before its unit is made, so that a start never waits in front of a loader's deadline."""
        if not spec.digest:
            yield None
            return
        async with self._artifacts.held(spec, patience) as found:
            yield found

    async def check(self, request: StartKeep, spec: KeepSpec, caller: Caller, *, opens: bool) -> None:
        """Raises what the start of a keep that is still to be made would be refused with, as far as that is known
        before: nothing is made or ended for it then. It is not counted as a start. opens: whether what is granted is
        tried, too, as it must be where a keep ends first; else its start opens it, and what that refuses leaves no keep
        either."""
        kind = kind_of(spec.kind)
        kind.check_start(request)
        uploaders_for(request.uploaders, spec, caller)
        self._quotas.check_start(caller, request.kuuid, request.address if kind.listens else "", request.port)
        async with self._providers.opened(self._provision(request, spec, caller, None, version=1).replace(opens=opens)):
            return

    @contextmanager
    def _only(self, kuuid: int) -> Iterator[None]:
        if kuuid in self._starting:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot start keep {kuuid}: it is being started")
        self._starting.add(kuuid)
        try:
            yield
        finally:
            self._starting.discard(kuuid)

    async def _start(
        self,
        session: LoaderSession,
        request: StartKeep,
        caller: Caller,
        compiled: int | None,
        answer: Answer | None = None,
        *,
        warm: bool = False,
    ) -> KeepInfo:
        answer = await self._send_start(session, request, caller, compiled, answer, warm=warm)
        info = self._view.answered(request.kuuid, answer)
        await self._readers.tend(request.kuuid)  # before anyone hears where the workload is awaited
        reach(Failpoint.START_BEFORE_REPLY)
        what = (
            f"on {info.address} port {info.port}" if info.port or info.module is None else f"with {info.module.digest}"
        )
        LOG.info("%s: started by %s %s", unit_name(info.kuuid), caller, what)
        return info

    async def _send_start(
        self,
        session: LoaderSession,
        request: StartKeep,
        caller: Caller,
        compiled: int | None,
        answer: Answer | None = None,
        *,
        warm: bool = False,
    ) -> Answer:
        kuuid, claimed = request.kuuid, answer is not None
        answer = answer or await session.hello()
        self._view.answered(kuuid, answer)
        decide.refuse_start(answer.report)
        spec = self._view.entry(kuuid).spec or NO_SPEC
        if (
            spec.spare and not claimed
        ):  # which its loader may not know, where a manager was killed after it had said so to systemd
            await session.claim(spec)
        if not self._providers.journal_stores:
            await session.unstored()
        version, streams = answer.report.control_version, _streams_input(request)
        if streams:
            decide.refuse_streaming(answer.report)
        given = request.workload is not None and request.workload.gives
        kind = kind_of(spec.kind)
        kind.check_start(request)
        uploaders = uploaders_for(request.uploaders, spec, caller, given=given) if kind.listens else ()
        if given:
            decide.refuse_giving(answer.report, uploaders)
        address = request.address if kind.listens else ""
        allowed = self._quotas.admit_start(caller, kuuid, address, request.port)
        provision = self._provision(request, spec, caller, session.user, version)
        async with self._tidied(kuuid) as passed_on, self._providers.opened(provision) as opened:
            reach(Failpoint.START_AFTER_FILES)
            with ExitStack() as held:
                descriptors, port = dict(opened), 0
                if kind.listens:
                    listener = held.enter_context(self._bound(request, allowed))
                    descriptors, port = {LISTENER: listener.fileno(), **opened}, listener.getsockname()[1]
                else:
                    descriptors |= self._of_the_module(kuuid, compiled, held)
                if streams:
                    descriptors[INPUT] = held.enter_context(self._inputs.made(kuuid))
                kind.check_descriptors(tuple(descriptors))
                message = StartMessage(address, request.names, uploaders, tuple(descriptors), warm and kind.listens)
                reach(Failpoint.START_AFTER_ADDRESS)
                passed_on.set()
                answer = await session.start(message, port, tuple(descriptors.values()), START_REPLY_SECONDS)
        reach(Failpoint.START_AFTER_COMMAND)
        if (answer.report.address, answer.report.port) != (address, port):
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot trust keep {kuuid}: it names another address")
        return answer

    def _bound(self, request: StartKeep, allowed: tuple[int, int]) -> socket.socket:
        """The listener, on the first port that is free and allowed. Raises KeepfleetError(PORT_UNAVAILABLE)."""
        reach(Failpoint.START_BEFORE_BIND)
        first, last = max(self._policy.first_port, allowed[0]), min(self._policy.last_port, allowed[1])
        listener = bind_listener(request.address, decide.candidate_ports(request.address, request.port, first, last))
        reach(Failpoint.START_AFTER_BIND)
        return listener

    def _of_the_module(self, kuuid: int, compiled: int | None, held: ExitStack) -> dict[str, int]:
        """What goes with a module, as far as it is there: itself compiled, and the channel to who reads its output."""
        found = {} if compiled is None else {COMPILED: compiled}
        channel = held.enter_context(self._readers.channel(kuuid))
        if channel is not None:
            found[FOLLOW] = channel
        return found

    @asynccontextmanager
    async def _tidied(self, kuuid: int) -> AsyncIterator[asyncio.Event]:
        """Removes the keep's files where the block fails before they were passed on: then it sets the event. What its
        loader has may be in use, and is replaced by the next start or removed with the keep. A removal that came
        meanwhile has looked for them before they were made."""
        passed_on = asyncio.Event()
        try:
            yield passed_on
        except BaseException:
            if not passed_on.is_set() or kuuid not in self._view or self._view.entry(kuuid).removing:
                await asyncio.shield(clear_away(self._folders, kuuid))
            raise

    def _provision(
        self, request: StartKeep, spec: KeepSpec, caller: Caller, user: UnixUser | None, version: int
    ) -> Provision:
        allowed = self._policy.allowance(caller)
        keeps_output, brings = version >= KEEPS_OUTPUT, kind_of(spec.kind).brings
        return Provision(request.kuuid, spec, caller, allowed, user, request.workload, keeps_output, brings)


def _streams_input(request: StartKeep) -> bool:
    return request.workload is not None and request.workload.workload.streams_input


def bind_listener(address: str, ports: Iterable[int]) -> socket.socket:
    """A socket that listens on `address` and the first of `ports` that is free: a taken port is an error here, and not
    a race later.

    Two sockets can be bound to one port with SO_REUSEADDR before either listens, so a port counts as free only once
    listen() has succeeded. Raises KeepfleetError(PORT_UNAVAILABLE) with the last port's reason.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tried, reason = 0, "no port was left to try"
    sock: socket.socket | None = None
    for port in ports:
        sock = sock or _new(family)
        tried += 1
        bound = False
        try:
            sock.bind((address, port))
            bound = True
            sock.listen(BACKLOG)
            return sock
        except OSError as error:
            reason = f"port {port}: {error.strerror}"
            if bound or error.errno not in _TAKEN:
                sock.close()
                sock = None
            if error.errno not in _TAKEN:
                break
    if sock is not None:
        sock.close()
    many = f" (the last of {tried} tried)" if tried > 1 else ""
    raise KeepfleetError(ErrorKind.PORT_UNAVAILABLE, f"cannot listen on {address}: {reason}{many}")


def _new(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock
