"""The manager's calls: /v1 for our own tools, and the original's `POST /keeps_post` for the testers."""

from __future__ import annotations

from _collections_abc import Callable, Generator, Iterable, Mapping

from keep_client.connection import CALL_SECONDS, Connection, Patience, resumed
from keep_client.http import (
    NO_BODY,
    NO_HEADERS,
    Body,
    Headers,
    Reply,
    json_body,
    nothing,
    nothing_of,
    objects_in,
    target_of,
)
from keep_client.peer import ConnectionFailed
from keep_protocol.constants import (
    APPLOADER_START_SECONDS,
    CONTROL_REPLY_SECONDS,
    LEGACY_PATH,
    V1_EVENTS_PATH,
    V1_KEEPS_PATH,
    V1_POOLS_PATH,
    WORKLOAD_FOLLOWS_HEADER,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.sse import END, KEEP, LINE, KeepEvent, LogLine, event_from_wire, line_from_wire
from keep_protocol.states import State

START_SECONDS = APPLOADER_START_SECONDS + CONTROL_REPLY_SECONDS + 18.0
"""start-keep: the loader's own deadline, and slack for the manager's queue."""
WAIT_STEP_SECONDS = 60
"""The longest the manager lets one request wait for a change; a longer wait asks again."""
WAIT_SLACK_SECONDS = 10.0
"""How much later than it was asked for an answer to a wait may come."""
PAGE = 500
"""Keeps asked for in one request: one megabyte."""
INPUT_TYPE = "application/octet-stream"
INPUT_SECONDS = 10 * 365 * 86400.0
"""An input takes as long as its sender, a person perhaps, and its guest take; a connection that is lost is noticed."""
IDEMPOTENCY_HEADER = "Idempotency-Key"
NO_LIMITS: Mapping[str, int] = {}


class ManagerClient(Connection):
    """Calls to one manager.

    Every call raises ConnectionFailed when no answer came, and the error the manager reported otherwise.
    """

    def _call(
        self,
        method: str,
        target: str,
        body: Body = NO_BODY,
        seconds: float = CALL_SECONDS,
        headers: Headers = NO_HEADERS,
        meanwhile: Callable[[], None] = nothing,
    ) -> Reply:
        reply = self.request(method, target, body, seconds, headers, meanwhile)
        if not 200 <= reply.status < 300:
            raise reply.error()
        return reply

    def _compiled(
        self, ask: Callable[[], Reply], waiting: Callable[[str], None], *, again: bool, done: Callable[[], Reply | None]
    ) -> Reply:
        """The answer to a request that waits for a module's compilation: it is made again until that is over, and
        `waiting` hears how far it is. again: whether it may also be made again when its connection is lost meanwhile,
        as by a manager that is restarted; done: what there is instead where it then turns out to have worked."""
        patience: Patience | None = None
        lost = False
        while True:
            try:
                return ask()
            except ConnectionFailed as error:
                if patience is None:
                    raise
                patience.wait(error)
                lost = True
            except KeepfleetError as error:
                if error.kind is ErrorKind.CONFLICT and lost and (reply := done()) is not None:
                    return reply
                if error.kind is not ErrorKind.COMPILING:
                    raise
                waiting(error.evidence[0] if error.evidence else error.message)
                patience = self.patience if again else None

    def banner(self) -> str:
        """The protocol's name and version, as text."""
        return self._call("GET", "/").text

    def legacy(self, command: dict[str, str]) -> Reply:
        """One of the original's commands, whatever the status of its answer."""
        return self.request("POST", LEGACY_PATH, json_body(command))

    def create(
        self,
        arch: str = "wasi",
        name: str = "",
        labels: Mapping[str, str] = NO_HEADERS,
        limits: Mapping[str, int] = NO_LIMITS,
        idempotency_key: str = "",
        replace: bool = False,
        lease: Mapping[str, int] = NO_LIMITS,
        start: dict[str, object] | None = None,
        meanwhile: Callable[[], None] = nothing,
        profile: str = "",
        compiler: str = "",
        output: str = "",
        module: str = "",
        waiting: Callable[[str], None] = nothing_of,
        follows: bool = False,
    ) -> KeepInfo:
        """A new keep; with `start`, which `starting` makes, one that listens, or none. A second call with the same key
        and the same members names the same keep, and makes none.

        replace: a living keep of that name, and of ours, is ended first; without it that is KeepfleetError(CONFLICT).
        lease: `idle_seconds` and `await_seconds`, how long it may stay unused; without one, the manager's.
        meanwhile: as for `exchange`. profile, compiler and output: words of keep_protocol.spec; without one, the usual
        one. module: what it runs, of the manager's store; without one, what it is sent. waiting: hears, as long as
        that module is compiled, how far it is. follows: whether the workload is sent as soon as it listens, so that
        what runs it is made ready then, and not when the first client comes.
        """
        wanted: dict[str, object] = {
            "name": name,
            "labels": dict(labels),
            "limits": dict(limits),
            "replace": replace,
            "lease": dict(lease),
            "profile": profile,
            "compiler": compiler,
            "output": output,
            "start": start,
            "module": module,
        }
        body = {"arch": arch, **{member: value for member, value in wanted.items() if value}}
        seconds = CALL_SECONDS + (START_SECONDS if start else 0.0)
        headers = {IDEMPOTENCY_HEADER: idempotency_key} if idempotency_key else {}
        if follows:
            headers[WORKLOAD_FOLLOWS_HEADER] = "yes"

        def ask() -> Reply:
            return self._call("POST", V1_KEEPS_PATH, json_body(body), seconds, headers, meanwhile)

        again = bool(idempotency_key) and not replace
        return keep_from_wire(self._compiled(ask, waiting, again=again, done=lambda: None).object())

    def create_pool(self, asked: Mapping[str, object]) -> KeepInfo:
        """`POST /v1/pools`: a script pool that listens. Raises KeepfleetError."""
        body = json_body(dict(asked))
        seconds = CALL_SECONDS + START_SECONDS
        return keep_from_wire(self._call("POST", V1_POOLS_PATH, body, seconds).object())

    def keeps(self, labels: Mapping[str, str] = NO_HEADERS) -> tuple[KeepInfo, ...]:
        """Every keep the manager knows that has all of `labels`, page by page."""
        query = [("limit", str(PAGE)), *(("label", f"{key}={value}") for key, value in labels.items())]
        found: list[KeepInfo] = []
        after: int | None = 0
        while after is not None:
            page = [*query, ("after", str(after))] if after else query
            reply = self._call("GET", target_of(V1_KEEPS_PATH, page))
            answer = reply.object()
            found += map(keep_from_wire, objects_in(answer, "keeps", reply.peer))
            after = _next_page(answer, after, reply.peer)
        return tuple(found)

    def keep(self, kuuid: int) -> KeepInfo:
        """One keep."""
        return keep_from_wire(self._call("GET", f"{V1_KEEPS_PATH}/{kuuid}").object())

    def start(
        self,
        kuuid: int,
        address: str = "",
        port: int | None = None,
        names: tuple[str, ...] = (),
        workload: dict[str, object] | None = None,
    ) -> KeepInfo:
        """Lets a keep listen; the rest as for `starting`."""
        body = json_body(self.starting(address, port, names, workload))
        return keep_from_wire(self._call("POST", f"{V1_KEEPS_PATH}/{kuuid}/start", body, START_SECONDS).object())

    def run_stored(
        self, kuuid: int, workload: dict[str, object] | None = None, waiting: Callable[[str], None] = nothing_of
    ) -> KeepInfo:
        """Has a keep run its module of the store. workload: what its guest is given; waiting: as for `create`."""

        def ask() -> Reply:
            return self._call(
                "POST", f"{V1_KEEPS_PATH}/{kuuid}/start", json_body({"workload": workload}), START_SECONDS
            )

        def started() -> Reply | None:
            reply = self._call("GET", f"{V1_KEEPS_PATH}/{kuuid}")
            return None if keep_from_wire(reply.object()).state is State.LISTENING else reply

        return keep_from_wire(self._compiled(ask, waiting, again=True, done=started).object())

    def starting(
        self,
        address: str = "",
        port: int | None = None,
        names: tuple[str, ...] = (),
        workload: dict[str, object] | None = None,
    ) -> dict[str, object]:
        """How a keep is to be started. workload: what its guest is given.

        Without an address it is the one the manager is reached by, without a port the manager's first that is free.
        """
        body: dict[str, object] = {"address": address or self.reach(), "names": list(names)}
        if port is not None:
            body["port"] = port
        if workload is not None:
            body["workload"] = workload
        return body

    def stop(self, kuuid: int) -> KeepInfo:
        """Ends a keep's app-loader or workload; its outcome stays."""
        return keep_from_wire(self._call("POST", f"{V1_KEEPS_PATH}/{kuuid}/stop").object())

    def remove(self, kuuid: int, patient: bool = False) -> None:
        """Stops a keep's unit and forgets the keep.

        patient: a manager that is away for a moment is asked again, and a keep that is gone already is as good.
        """
        patience = self.patience
        while True:
            try:
                self._call("DELETE", f"{V1_KEEPS_PATH}/{kuuid}")
                return
            except ConnectionFailed as error:
                if not patient:
                    raise
                patience.wait(error)
            except KeepfleetError as error:
                if patient and error.kind is ErrorKind.NOT_FOUND:
                    return
                raise

    def changed(self, kuuid: int, state: State, seconds: int) -> KeepInfo:
        """The keep as soon as its state is no longer `state`, or as it is after `seconds`."""
        target = f"{V1_KEEPS_PATH}/{kuuid}?changed-from={int(state)}&timeout={seconds}"
        return keep_from_wire(self._call("GET", target, NO_BODY, seconds + WAIT_SLACK_SECONDS).object())

    def ended(self, kuuid: int) -> KeepInfo:
        """The keep once it has ended, however long that takes; a manager that is away for a moment is asked again."""
        patience = self.patience
        keep: KeepInfo | None = None
        while keep is None or keep.state not in (State.COMPLETE, State.ERROR):
            try:
                keep = self.keep(kuuid) if keep is None else self.changed(kuuid, keep.state, WAIT_STEP_SECONDS)
                patience.renew()
            except ConnectionFailed as error:
                patience.wait(error)
        return keep

    def send_input(self, kuuid: int, parts: Iterable[bytes]) -> tuple[int, bool]:
        """Sends a keep's guest its standard input, as fast as it takes it; how many bytes it took, and whether those
        are all. Where `parts` raises, or the connection is lost, the keep ends: half of an input is none.
        """
        target = f"{V1_KEEPS_PATH}/{kuuid}/input"
        answer = self._call("PUT", target, Body(INPUT_TYPE, None, parts), INPUT_SECONDS).object()
        size = answer.get("bytes")
        return size if isinstance(size, int) else 0, answer.get("complete") is True

    def lines(
        self,
        kuuid: int,
        follow: bool = False,
        last: int | None = None,
        after: str = "",
        patient: bool = False,
        reader: int | None = None,
        stream: str = "",
        since: float | None = None,
        until: float | None = None,
        everything: bool = False,
    ) -> Generator[LogLine, None, KeepInfo | None]:
        """The lines of a keep's guest, the `last` ones or those after a cursor; with `follow` until it ends.

        stream: `stdout` or `stderr`, for those of one alone; since and until: seconds of the epoch; everything: also
        what its loader says.
        A lost connection is made again where it broke off; `patient`: also the first one. reader: the pipe or socket
        they will be written to; BrokenPipeError as soon as its other end is closed, and not only at the next line.
        Its end returns the keep as it ended, where it was followed to its end.
        """
        asked = {"lines": last, "stream": stream or None, "since": since, "until": until}
        query = [("follow", "true")] * follow + [
            (name, str(value)) for name, value in asked.items() if value is not None
        ]
        query += [("all", "true")] * everything
        target = target_of(f"{V1_KEEPS_PATH}/{kuuid}/logs", query)
        events = resumed(lambda last: self.stream(target, follow, reader, last), self.patience, after, patient)
        keep: KeepInfo | None = None
        try:
            for event in events:
                if event.name == LINE:
                    yield line_from_wire(event.data, event.id)
                elif event.name == END:
                    keep = keep_from_wire(event.data)
        finally:
            events.close()
        return keep

    def events(
        self,
        kuuid: int | None = None,
        last: int | None = None,
        after: str = "",
        follow: bool = True,
        reader: int | None = None,
    ) -> Generator[KeepEvent, None, None]:
        """What happens to keeps, or to one, for ever: the `last` events first, or those after a cursor; or, not to
        `follow`, those so far.

        A lost connection is made again where it broke off. reader: as for `lines`.
        """
        query = [("keep", str(kuuid))] * (kuuid is not None) + ([("lines", str(last))] if last is not None else [])
        query += [("follow", "true")] * follow
        target = target_of(V1_EVENTS_PATH, query)
        events = resumed(lambda last: self.stream(target, follow, reader, last), self.patience, after)
        try:
            for event in events:
                if event.name == KEEP:
                    yield event_from_wire(event.data, event.id)
        finally:
            events.close()


def _next_page(answer: dict[str, object], after: int, peer: str) -> int | None:
    following = answer.get("next")
    if following is not None and (not isinstance(following, int) or following <= after):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the answer of {peer}: 'next' must be a later ID")
    return following
