"""Starts keeps: opens what each is given, binds its listener, and hands all of it to its loader."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import decide
from keep_manager.keeps.interfaces import Loaders, LoaderSession, Providers, Quotas
from keep_manager.keeps.kinds import kind_of
from keep_manager.keeps.policy import Policy, uploaders_for
from keep_manager.keeps.ports import bind_listener
from keep_manager.keeps.view import NO_SPEC, View
from keep_manager.model import Answer, Caller, Provision
from keep_protocol.api import StartKeep
from keep_protocol.constants import APPLOADER_START_SECONDS, CONTROL_REPLY_SECONDS, unit_name
from keep_protocol.control import StartMessage
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import KeepSpec

LOG = logging.getLogger("keepfleet.keeps")
START_REPLY_SECONDS = APPLOADER_START_SECONDS + CONTROL_REPLY_SECONDS
"""The loader gives its app-loader APPLOADER_START_SECONDS and then answers with the reason."""


class Starts:
    """The starts of one manager's keeps, of each keep one at a time."""

    def __init__(self, loaders: Loaders, policy: Policy, providers: Providers, view: View, quotas: Quotas) -> None:
        self._loaders, self._policy, self._providers = loaders, policy, providers
        self._view, self._quotas = view, quotas
        self._starting: set[int] = set()

    def __repr__(self) -> str:
        return f"Starts({len(self._starting)} under way)"

    def apply(self, policy: Policy) -> None:
        """Starts by this policy from now on."""
        self._policy = policy

    async def start(self, request: StartKeep, caller: Caller) -> KeepInfo:
        """Binds the listener and passes it to the keep, which then awaits its workload there.

        Raises KeepfleetError: CONFLICT when it is started or being started, UNAVAILABLE without its loader,
        PORT_UNAVAILABLE, FORBIDDEN and others for what cannot be granted, or what the loader reports.
        """
        with self._only(request.kuuid):
            async with self._loaders.session(request.kuuid) as session:
                return await self._start(session, request, caller)

    async def first(self, session: LoaderSession, request: StartKeep, caller: Caller) -> KeepInfo:
        """The same, of a keep that is being made, whose loader `session` is with."""
        with self._only(request.kuuid):
            return await self._start(session, request, caller)

    async def check(self, request: StartKeep, spec: KeepSpec, caller: Caller) -> None:
        """Raises what the start of a keep that is still to be made would be refused with, as far as that is known
        before: nothing is made or ended for it then. It is not counted as a start."""
        uploaders_for(request.uploaders, spec, caller)
        self._quotas.check_start(caller, request.kuuid, request.address, request.port)
        async with self._providers.opened(self._provision(request, spec, caller)):
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

    async def _start(self, session: LoaderSession, request: StartKeep, caller: Caller) -> KeepInfo:
        info = self._view.answered(request.kuuid, await self._hand_over(session, request, caller))
        reach(Failpoint.START_BEFORE_REPLY)
        LOG.info("%s: started by %s on %s port %d", unit_name(info.kuuid), caller, info.address, info.port)
        return info

    async def _hand_over(self, session: LoaderSession, request: StartKeep, caller: Caller) -> Answer:
        kuuid = request.kuuid
        answer = await session.hello()
        self._view.answered(kuuid, answer)
        decide.refuse_start(answer.report)
        spec = self._view.entry(kuuid).spec or NO_SPEC
        given = request.workload is not None and request.workload.gives
        uploaders = uploaders_for(request.uploaders, spec, caller, given=given)
        if given:
            decide.refuse_giving(answer.report, uploaders)
        allowed = self._quotas.admit_start(caller, kuuid, request.address, request.port)
        kind = kind_of(spec.kind)
        async with self._providers.opened(self._provision(request, spec, caller)) as opened:
            reach(Failpoint.START_BEFORE_BIND)
            first, last = max(self._policy.first_port, allowed[0]), min(self._policy.last_port, allowed[1])
            ports = decide.candidate_ports(request.address, request.port, first, last)
            with bind_listener(request.address, ports) as listener:
                reach(Failpoint.START_AFTER_BIND)
                descriptors = {"listener": listener.fileno(), **opened}
                kind.check_descriptors(tuple(descriptors))
                port = listener.getsockname()[1]
                message = StartMessage(request.address, request.names, uploaders, tuple(descriptors))
                reach(Failpoint.START_AFTER_ADDRESS)
                answer = await session.start(message, port, tuple(descriptors.values()), START_REPLY_SECONDS)
        reach(Failpoint.START_AFTER_COMMAND)
        if (answer.report.address, answer.report.port) != (request.address, port):
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot trust keep {kuuid}: it names another address")
        return answer

    def _provision(self, request: StartKeep, spec: KeepSpec, caller: Caller) -> Provision:
        return Provision(spec, caller, self._policy.allowance(caller), request.workload)
