"""A manager over real HTTPS whose keeps are entries of a dictionary: both protocols, no systemd."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from urllib.parse import parse_qsl

from keep_protocol import api, sse, strict_json
from keep_protocol.constants import FIRST_KEEP_PORT, LEGACY_PATH, V1_EVENTS_PATH, V1_KEEPS_PATH
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.limits import Limits
from keep_protocol.spec import Lease
from keep_protocol.sse import KeepEvent, LogLine
from keep_protocol.states import State
from tests.fakes.output_in_memory import OVER, Followers, OutputInMemory, Serving
from tests.fakes.tls_peer import TlsPeer, answer, read_chunks, read_head_of_request, read_rest_of_body

STATUS = {ErrorKind.NOT_FOUND: 404, ErrorKind.CONFLICT: 409, ErrorKind.BAD_REQUEST: 400, ErrorKind.UNKNOWN_COMMAND: 400}
FIRST_ID = 4503599627370495


class Outputs(dict[int, OutputInMemory]):
    """What each keep has written: one, whichever thread asks for it first."""

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.Lock()

    def __missing__(self, kuuid: int) -> OutputInMemory:
        with self._making:
            if kuuid not in self:
                self[kuuid] = OutputInMemory()
        return self[kuuid]


class ManagerInMemory(TlsPeer):
    """`keeps` may be looked at and changed by the test; so may `upload_port`, where started keeps say they listen.

    `twist` is applied to every keep before it is shown: the way to make this manager lie.
    `lines` are the keeps' journals, and `happened` what happened to keeps; each connection to a stream sends as many
    events as `break_off_after` says (one number a connection, taken off) and breaks off, politely or not, and all of
    them when there is none; to output, as many bytes. `on_follow` is called when all of a followed stream is out, of
    output once the keep has its workload (`accept`). `workloads` is what start was asked to give.
    `output` is what the keeps wrote, `input` what was sent to them, of which they take as much as `takes` says, or none
    where `refuses_input`.
    By request line, and taken off one by one: what is done with the connection `instead` of obeying, and what is done
    when it was obeyed and the answer is `lost`. `is_older`: it does not know a creation with a start in it.
    """

    def __init__(self, context: ssl.SSLContext, keep_pem: str, fingerprint: str, address: str = "127.0.0.1") -> None:
        super().__init__(context, self._serve_connection, concurrent=True, address=address)
        self.followers = Followers()
        self.output = Outputs()
        self.input: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.takes: int | None = None
        self.refuses_input = False
        self.accepted_by: set[int] = set()
        self.keeps: dict[int, KeepInfo] = {}
        self.upload_port: int | None = None
        self.newest_first = self.is_older = False
        self.banner = api.BANNER
        self.workloads: dict[int, object] = {}
        self.lines: dict[int, list[LogLine]] = {}
        self.happened: list[KeepEvent] = []
        self.break_off_after: list[int] = []
        self.break_off_politely = False
        self.on_follow: Callable[[ssl.SSLSocket], None] = lambda connection: None
        self.on_input: Callable[[int], object] = lambda kuuid: None
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.twist: dict[str, object] = {}
        self.instead: dict[str, list[Callable[[ssl.SSLSocket], object]]] = {}
        self.lost: dict[str, list[Callable[[ssl.SSLSocket], object]]] = {}
        self._created: dict[str, int] = {}
        self._keep_pem, self._fingerprint = keep_pem, fingerprint

    def _serve_connection(self, connection: ssl.SSLSocket) -> None:
        """Answers one request after the other for a client that keeps its connection."""
        while self._serve_request(connection):
            pass

    def _serve_request(self, connection: ssl.SSLSocket) -> bool:
        """Whether the connection stays for another request."""
        line, headers, body = read_head_of_request(connection)
        keep = headers.get("connection") != "close"
        method, target, _ = line.split(" ")
        chunked = headers.get("transfer-encoding") == "chunked"
        body = body if chunked else read_rest_of_body(connection, headers, body)
        request = f"{method} {target}"  # the last of `requests` may be one of another connection
        self.requests.append(request)
        self.headers.append(headers)
        if instead := self.instead.get(request):
            instead.pop(0)(connection)
            return False
        stream = re.fullmatch(V1_KEEPS_PATH + r"/([0-9]+)/logs(\?.*)?", target)
        if stream and int(stream[1]) in self.keeps:
            return self._stream(connection, int(stream[1]), stream[2] or "", headers.get("last-event-id", "")) and keep
        output = re.fullmatch(V1_KEEPS_PATH + r"/([0-9]+)/output(\?.*)?", target)
        if output and int(output[1]) in self.keeps:
            return self._send_output(connection, int(output[1]), output[2] or "") and keep
        if chunked:
            return self._take_input(connection, int(target.split("/")[3]), body) and keep
        if target.partition("?")[0] == V1_EVENTS_PATH:
            return self._stream(connection, None, target.partition("?")[2], headers.get("last-event-id", "")) and keep
        try:
            status, reply = self._answer(method, target, body, headers.get("idempotency-key", ""))
        except KeepfleetError as error:
            status, reply = STATUS.get(error.kind, 500), {"error": error.to_wire()}
            if target.startswith(LEGACY_PATH):
                reply["text"] = error.message
        if lost := self.lost.get(request):
            lost.pop(0)(connection)
            return False
        data = self.banner.encode() if target == "/" else strict_json.dumps(reply)
        connection.sendall(answer(status, b"" if status == 204 else data, keep))
        return keep

    def _answer(self, method: str, target: str, body: bytes, key: str) -> tuple[int, dict[str, object]]:
        if target == "/":
            return 200, {}
        if target == LEGACY_PATH:
            return 200, self._obey(api.parse_legacy(body), "klvec")
        path, _, query = target.partition("?")
        if path == V1_KEEPS_PATH and method == "GET":
            return 200, self._page(parse_qsl(query))
        if path == V1_KEEPS_PATH:
            asked = strict_json.loads_object(body or b"{}", 1 << 20, "the request")
            if self.is_older and "start" in asked:
                raise KeepfleetError(ErrorKind.BAD_REQUEST, "invalid request: unknown field 'start'; it takes arch")
            if self._created.get(key) in self.keeps:
                return 201, self._show(self.keeps[self._created[key]])
            self._give_up_name(str(asked.get("name", "")), replace=bool(asked.get("replace", False)))
            made = self._create(api.parse_v1_create(body), asked)
            self._created |= {key: FIRST_ID + len(self.keeps) - 1} if key else {}
            return 201, made
        match = re.fullmatch(V1_KEEPS_PATH + r"/([0-9]+)(/start|/stop|/logs|/output)?(\?.*)?", target)
        assert match, target
        kuuid = int(match[1])
        if method == "GET":
            return 200, self._show(self._known(kuuid))
        if method == "DELETE":
            return 204, self._obey(api.RemoveKeep(kuuid), "")
        if match[2] != "/start":
            return 200, self._obey(api.StopKeep(kuuid), "")
        asked = strict_json.loads_object(body, 1 << 20, "the request")
        self.workloads[kuuid] = asked.pop("workload", None)
        return 200, self._obey(api.parse_v1_start(kuuid, strict_json.dumps(asked)), "")

    def _create(self, request: api.NewKeep, asked: dict[str, object]) -> dict[str, object]:
        """Makes a keep, and starts it where the request has that in it: both, or nothing."""
        made, kuuid = self._obey(request, "keeps"), FIRST_ID + len(self.keeps) - 1
        if request.start is None:
            return made
        start = asked["start"]
        assert isinstance(start, dict)
        self.workloads[kuuid] = start.get("workload")
        try:
            return self._obey(request.start.replace(kuuid=kuuid), "")
        except KeepfleetError:
            del self.keeps[kuuid]
            raise

    def _give_up_name(self, name: str, replace: bool) -> None:
        living = (State.LISTENING, State.STARTED)
        for keep in [keep for keep in self.keeps.values() if name and keep.name == name and keep.state in living]:
            if not replace:
                raise KeepfleetError(
                    ErrorKind.CONFLICT, f"cannot create keep {name}: keep {keep.kuuid} has that name already"
                )
            self._obey(api.StopKeep(keep.kuuid), "")

    def _page(self, query: list[tuple[str, str]]) -> dict[str, object]:
        labels = {tuple(text.split("=", 1)) for name, text in query if name == "label"}
        after, limit = (int(dict(query).get(name, "0")) for name in ("after", "limit"))
        found = [keep for kuuid, keep in sorted(self.keeps.items()) if kuuid > after and labels <= set(keep.labels)]
        return {
            "keeps": [self._show(keep) for keep in found[:limit]],
            "next": found[limit - 1].kuuid if limit and len(found) > limit else None,
        }

    def _stream(self, connection: ssl.SSLSocket, kuuid: int | None, query: str, after: str) -> bool:
        """Whether all of it is out."""
        asked = dict(parse_qsl(query.removeprefix("?")))
        said = [event.to_wire() for event in self.happened]
        if kuuid is not None:
            said = [line.to_wire() for line in self.lines.get(kuuid, []) if _is_asked(line, asked)]
        name = sse.KEEP if kuuid is None else sse.LINE
        events = [sse.encode(name, data, f"c={number}") for number, data in enumerate(said, 1)]
        chosen = (
            events[int(after.removeprefix("c=") or "0") :] if after else events[-int(asked.get("lines", "99999")) :]
        )
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        last = self.break_off_after.pop(0) if self.break_off_after else None
        for event in [b": alive\n\n", *chosen][: None if last is None else last + 1]:
            connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
        if last is not None:
            connection.sendall(b"0\r\n\r\n" if self.break_off_politely else b"")
            return False
        if asked.get("follow"):
            self.on_follow(connection)
        if kuuid is not None and asked.get("follow"):
            end = sse.encode("end", self._show(self._known(kuuid)))
            connection.sendall(b"%x\r\n%s\r\n" % (len(end), end))
        connection.sendall(b"0\r\n\r\n")
        return True

    def _send_output(self, connection: ssl.SSLSocket, kuuid: int, query: str) -> bool:
        """Whether all of it is out."""
        last = self.break_off_after.pop(0) if self.break_off_after else None
        serving = Serving(connection, self.output[kuuid], self.followers, last)
        follows = "follow=true" in query
        if not serving.begin(query):
            return False
        if follows:
            self.followers.until(connection, lambda: kuuid in self.accepted_by or self._is_over(kuuid))
            if not serving.send():
                return False
            self.on_follow(connection)
            if not serving.follow(lambda: self.keeps.get(kuuid)):
                return False
        return kuuid in self.keeps and serving.end(self.keeps[kuuid])

    def _is_over(self, kuuid: int) -> bool:
        return kuuid not in self.keeps or self.keeps[kuuid].state in OVER

    def accept(self, kuuid: int) -> None:
        """The keep has its workload."""
        self.accepted_by.add(kuuid)
        self.followers.notify()

    def write(self, kuuid: int, stream: int, data: bytes, at: float = 0.0) -> None:
        """The keep's guest writes this."""
        self.output[kuuid].write(stream, data, at)
        self.followers.notify()

    def _take_input(self, connection: ssl.SSLSocket, kuuid: int, body: bytes) -> bool:
        asked = self.workloads.get(kuuid)
        if self.refuses_input or not isinstance(asked, dict) or asked.get("stdin") != {"stream": True}:
            error = KeepfleetError(ErrorKind.CONFLICT, f"cannot send input to keep {kuuid}: it takes none")
            connection.sendall(answer(409, strict_json.dumps({"error": error.to_wire()})))
            return False
        taken, complete = self.input[kuuid], True
        try:
            for chunk in read_chunks(connection, body):
                taken += chunk
                self.followers.notify()
                if self.takes is not None and len(taken) > self.takes:
                    del taken[self.takes :]
                    complete = False
                    break
        except OSError:
            outcome = Outcome(OutcomeKind.LOST, "lost: its input was cut")
            self.change(kuuid, state=State.ERROR, detail="lost: its input was cut", outcome=outcome)
            raise
        self.on_input(kuuid)
        connection.sendall(answer(200, strict_json.dumps({"bytes": len(taken), "complete": complete}), keep=complete))
        return complete

    def _known(self, kuuid: int) -> KeepInfo:
        if kuuid not in self.keeps:
            raise KeepfleetError(
                ErrorKind.NOT_FOUND, f"cannot find keep {kuuid}: there is none", ("a line of evidence",)
            )
        return self.keeps[kuuid]

    def _show(self, keep: KeepInfo) -> dict[str, object]:
        return {**keep.to_wire(), **self.twist}

    def change(self, kuuid: int, **fields: object) -> KeepInfo:
        """Replaces some fields of a keep."""
        self.keeps[kuuid] = KeepInfo(**{**self._known(kuuid).fields(), **fields})
        self.followers.notify()
        return self.keeps[kuuid]

    def _obey(self, request: api.Request, member: str) -> dict[str, object]:
        if isinstance(request, api.ListKeeps):
            order = -1 if self.newest_first else 1
            return {member: [self._show(keep) for keep in list(self.keeps.values())[::order]]}
        if isinstance(request, api.NewKeep):
            kuuid = FIRST_ID + len(self.keeps)
            self.keeps[kuuid] = KeepInfo(
                kuuid, State.LISTENING, "listening", created_at=time.time(), unit=f"keep@{kuuid}.service",
                name=request.name, labels=request.labels, limits=Limits(**dict(request.limits)),
                lease=request.lease or Lease(),
                profile=request.profile,
                compiler=request.compiler, output=request.output,
            )  # fmt: skip
            return self._show(self.keeps[kuuid])
        keep = self._known(request.kuuid)
        if isinstance(request, api.RemoveKeep):
            shown = self._show(self.keeps.pop(keep.kuuid))
            self.followers.notify()
            return shown
        if isinstance(request, api.StopKeep):
            outcome = Outcome(OutcomeKind.STOPPED, "stopped by its owner")
            return self._show(self.change(keep.kuuid, state=State.COMPLETE, outcome=outcome))
        if keep.state is not State.LISTENING:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot start keep {keep.kuuid}: it is started already")
        port = self.upload_port or request.port or FIRST_KEEP_PORT
        started = self.change(
            keep.kuuid, state=State.STARTED, detail="awaiting-workload", address=request.address, port=port,
            fingerprint=self._fingerprint, certificate=self._keep_pem,
        )  # fmt: skip
        return self._show(started)


def _is_asked(line: LogLine, asked: dict[str, str]) -> bool:
    """Whether a client that asks so is sent the line."""
    stream, source = asked.get("stream"), line.source
    chosen = asked.get("all") == "true" or source != sse.KEEP_SOURCE
    chosen = chosen and (stream is None or source in (stream, sse.GAP_SOURCE))
    return chosen and float(asked.get("since", "0")) <= line.at <= float(asked.get("until", "inf"))
