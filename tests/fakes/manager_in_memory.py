"""A manager over real HTTPS whose keeps are entries of a dictionary: both protocols, no systemd."""

from __future__ import annotations

import re
import ssl

from keep_protocol import api, strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.states import State
from tests.fakes.tls_peer import TlsPeer, answer, read_request

STATUS = {ErrorKind.NOT_FOUND: 404, ErrorKind.CONFLICT: 409, ErrorKind.BAD_REQUEST: 400, ErrorKind.UNKNOWN_COMMAND: 400}
FIRST_ID = 4503599627370495


class ManagerInMemory(TlsPeer):
    """`keeps` may be looked at and changed by the test; so may `door_port`, where started keeps say they listen.

    `twist` is applied to every keep before it is shown: the way to make this manager lie.
    """

    def __init__(self, context: ssl.SSLContext, keep_pem: str, fingerprint: str) -> None:
        super().__init__(context, self._serve_request)
        self.keeps: dict[int, KeepInfo] = {}
        self.door_port: int | None = None
        self.banner = api.BANNER
        self.requests: list[str] = []
        self.twist: dict[str, object] = {}
        self._keep_pem, self._fingerprint = keep_pem, fingerprint

    def _serve_request(self, connection: ssl.SSLSocket) -> None:
        line, body = read_request(connection)
        method, target, _ = line.split(" ")
        self.requests.append(f"{method} {target}")
        try:
            status, reply = self._answer(method, target, body)
        except KeepfleetError as error:
            status, reply = STATUS.get(error.kind, 500), {"error": error.to_wire()}
            if target.startswith(api.LEGACY_PATH):
                reply["text"] = error.message
        data = self.banner.encode() if target == "/" else strict_json.dumps(reply)
        connection.sendall(answer(status, b"" if status == 204 else data))

    def _answer(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, object]]:
        if target == "/":
            return 200, {}
        if target == api.LEGACY_PATH:
            return 200, self._obey(api.parse_legacy(body), "klvec")
        if target == api.V1_KEEPS_PATH:
            request: api.Request = api.parse_v1_create(body) if method == "POST" else api.ListKeeps()
            return 201 if method == "POST" else 200, self._obey(request, "keeps")
        match = re.fullmatch(api.V1_KEEPS_PATH + r"/([0-9]+)(/start|/stop)?(\?.*)?", target)
        assert match, target
        kuuid = int(match[1])
        if method == "GET":
            return 200, self._show(self._known(kuuid))
        if method == "DELETE":
            return 204, self._obey(api.RemoveKeep(kuuid), "")
        request = api.parse_v1_start(kuuid, body) if match[2] == "/start" else api.StopKeep(kuuid)
        return 200, self._obey(request, "")

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
        self.keeps[kuuid] = KeepInfo(**{**self._known(kuuid).fields(), **fields})  # type: ignore[arg-type]  # by name
        return self.keeps[kuuid]

    def _obey(self, request: api.Request, member: str) -> dict[str, object]:
        if isinstance(request, api.ListKeeps):
            return {member: [self._show(keep) for keep in self.keeps.values()]}
        if isinstance(request, api.NewKeep):
            kuuid = FIRST_ID + len(self.keeps)
            self.keeps[kuuid] = KeepInfo(kuuid, State.LISTENING, "listening", unit=f"keep@{kuuid}.service")
            return self._show(self.keeps[kuuid])
        keep = self._known(request.kuuid)
        if isinstance(request, api.RemoveKeep):
            return self._show(self.keeps.pop(keep.kuuid))
        if isinstance(request, api.StopKeep):
            outcome = Outcome(OutcomeKind.STOPPED, "stopped by its owner")
            return self._show(self.change(keep.kuuid, state=State.COMPLETE, outcome=outcome))
        if keep.state is not State.LISTENING:
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot start keep {keep.kuuid}: it is started already")
        port = self.door_port or request.port
        started = self.change(
            keep.kuuid, state=State.STARTED, detail="awaiting-workload", address=request.address, port=port,
            fingerprint=self._fingerprint, certificate=self._keep_pem,
        )  # fmt: skip
        return self._show(started)
