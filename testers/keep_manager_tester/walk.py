"""The steps: banner, new-keep, list-keeps, start-keep, list-keeps; each shown, explained and checked."""

from __future__ import annotations

import shlex
import ssl

from keep_client.http import Reply, objects_in
from keep_client.keep import reachable_host
from keep_client.manager import ManagerClient
from keep_protocol import strict_json
from keep_protocol.api import BANNER
from keep_protocol.constants import LEGACY_PATH
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.states import State
from keep_protocol.tls import fingerprint_of, parse_fingerprint
from testers.client import Console, Surprise, expect

STATES = """\
 0 undefined  the keep's loader is not ready
 1 listening  the keep exists, and its loader waits for commands
 2 started    its app-loader waits for a workload, or runs it
 3 complete   the workload has ended
15 error      something failed; `detail` says what"""
LOCAL = "127.0.0.1"
"""The one address on which a taken port moves to the next free one."""


class Walk:
    """One walk with one manager. `options` are repeated in the command it suggests at the end."""

    def __init__(self, client: ManagerClient, console: Console, options: list[str]) -> None:
        self._client, self._console, self._options = client, console, options

    def all(self, address: str, port: int) -> None:
        """Every step in order. Raises KeepfleetError at the first surprise."""
        self._banner()
        kuuid = self._new_keep()
        self._find_listed(kuuid, State.LISTENING)
        started = self._start_keep(kuuid, address, port)
        self._compare_listed(started)
        self._next(started)

    def _command(self, command: dict[str, str]) -> Reply:
        self._console.request(f"POST {LEGACY_PATH} {strict_json.dumps(command).decode('ascii')}")
        reply = self._client.legacy(command)
        self._console.reply(reply)
        if reply.status != 200:
            raise reply.error()
        return reply

    def _banner(self) -> None:
        self._console.step("Ask the manager who it is", f"At {self._client.endpoint.authority}.")
        self._console.request("GET /")
        reply = self._client.request("GET", "/")
        self._console.reply(reply)
        expect(reply.status == 200, f"cannot go on: the banner came with status {reply.status}, not 200")
        expect(
            reply.text.strip() == BANNER,
            f"cannot go on: this is no keep-manager of our protocol: its banner must be {BANNER!r}",
        )

    def _new_keep(self) -> int:
        self._console.step("Create a keep", f"The manager answers when its loader is ready. A keep's states:\n{STATES}")
        command = {"command": "new-keep", "keep-arch": "wasi", "auth-token": "a3f9cb07"}
        keep = keep_from_wire(self._command(command).object())
        _expect_state(keep, State.LISTENING, "a new keep")
        expect(keep.kuuid > 0, f"cannot go on: the new keep's ID is {keep.kuuid}")
        expect(
            keep.port == 0 and keep.address == "",
            f"cannot go on: the new keep claims to listen on {keep.address}:{keep.port} before it was started",
        )
        self._console.say(f"Keep {keep.kuuid} exists{f', as the unit {keep.unit}' if keep.unit else ''}.")
        return keep.kuuid

    def _listed(self, kuuid: int) -> tuple[KeepInfo, tuple[KeepInfo, ...]]:
        """The keep as the list has it, and those that are listed after it. Raises Surprise."""
        reply = self._command({"command": "list-keeps"})
        keeps = tuple(map(keep_from_wire, objects_in(reply.object(), "klvec", reply.peer)))
        places = [place for place, keep in enumerate(keeps, 1) if keep.kuuid == kuuid]
        expect(len(places) == 1, f"cannot go on: keep {kuuid} is {len(places)} times in the list, not once")
        ours = keeps[places[0] - 1]
        self._console.say(f"{len(keeps)} listed; keep {kuuid} is number {places[0]}, in state {int(ours.state)}.")
        return ours, keeps[places[0] :]

    def _find_listed(self, kuuid: int, state: State) -> None:
        self._console.step("List the keeps", "The new one must be the last: the client of 2020 starts that one.")
        listed, later = self._listed(kuuid)
        _expect_state(listed, state, f"keep {kuuid}")
        ours = listed.created_at or 0.0
        older = [keep for keep in later if (keep.created_at or 0.0) <= ours]  # another client may make keeps meanwhile
        expect(not older, f"cannot go on: keep {kuuid} was created last and is not listed last")

    def _start_keep(self, kuuid: int, address: str, port: int) -> KeepInfo:
        moves = " (a taken one moves to the next free one)" if address == LOCAL else ""
        self._console.step(
            "Start the keep",
            f"It is to listen on {address}, port {port}{moves}. It makes a key and a certificate\n"
            "of its own; the manager gives us that certificate's fingerprint.",
        )
        command = {"command": "start-keep", "kuuid": str(kuuid), "keep-addr": address, "keep-port": str(port)}
        keep = keep_from_wire(self._command(command).object())
        expect(keep.kuuid == kuuid, f"cannot go on: the answer is about keep {keep.kuuid}, not {kuuid}")
        _expect_state(keep, State.STARTED, f"keep {kuuid}")
        expect(keep.address == address, f"cannot go on: it listens on {keep.address!r}, not on {address}")
        right = keep.port >= port if address == LOCAL else keep.port == port
        expect(right, f"cannot go on: it listens on port {keep.port}, and {port} was asked for")
        _check_certificate(keep)
        self._console.say(f"It listens on {address}, port {keep.port}; its certificate is {keep.fingerprint}.")
        return keep

    def _compare_listed(self, started: KeepInfo) -> None:
        self._console.step("List the keeps again", "Ours must be started, with the same port and fingerprint.")
        listed, _ = self._listed(started.kuuid)
        _expect_state(listed, State.STARTED, f"keep {started.kuuid}")
        for name in ("address", "port", "fingerprint"):
            one, other = getattr(started, name), getattr(listed, name)
            expect(one == other, f"cannot go on: its {name} is {other!r} in the list, and was {one!r} before")

    def _next(self, keep: KeepInfo) -> None:
        host = reachable_host(keep, self._client.endpoint.host)
        words = ["app-loader-tester", str(keep.port), "--address", host, "--fingerprint", keep.fingerprint]
        print("\nAll answers were as they should be. The keep waits for a workload; send it one:\n")
        print(f"{shlex.join(words + self._options)} FILE.wasm")


def _expect_state(keep: KeepInfo, state: State, what: str) -> None:
    if keep.state is not state:
        found = f"{int(keep.state)} ({keep.state.name.lower()})"
        why = (keep.detail,) if keep.detail else ()
        raise Surprise(f"cannot go on: {what} must be in state {int(state)}, and is in {found}", why)


def _check_certificate(keep: KeepInfo) -> None:
    expect(bool(keep.fingerprint), "cannot go on: the manager named no fingerprint, and no keep is trusted without one")
    parse_fingerprint(keep.fingerprint)
    if keep.certificate:
        try:
            shown = fingerprint_of(ssl.PEM_cert_to_DER_cert(keep.certificate))
        except ValueError as error:
            raise Surprise("cannot go on: the keep's certificate is not PEM") from error
        expect(shown == keep.fingerprint, f"cannot go on: the keep's certificate is {shown}, not {keep.fingerprint}")
