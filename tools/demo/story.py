"""The steps of the demo, in order. Each says what it does, does it, shows what came of it, and checks it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

from keep_client.credentials import DEFAULT_MANAGER, Credentials, parse_manager, pki_directory
from keep_client.keep import endpoint_of, open_workload, upload_raw
from keep_client.manager import ManagerClient
from keep_client.peer import printable
from keep_protocol.constants import DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from tools.demo.host import Host, StepFailed

MANAGER_UNIT = "keep-manager.service"
RUN_SECONDS = 60
"""How long the demo waits for a workload to end; one that runs on is stopped, and that is said."""
KILL_TRIES = 50
"""Each takes two calls of systemctl, about 20 ms; one is enough on a machine that is not busy."""
SHOWN_LINES = 20


def expect(condition: bool, otherwise: str) -> None:
    """Raises StepFailed with `otherwise` unless `condition` holds."""
    if not condition:
        raise StepFailed(otherwise)


class Story:
    """One run of the demo: the host, the workload, the keeps made so far."""

    def __init__(self, host: Host, file: str, expected: str | None) -> None:
        self._host, self._file, self._expected = host, file, expected
        self.step = "the beginning"
        self._number = 0
        self._keeps: list[int] = []
        self._unit = MANAGER_UNIT
        self._manager = DEFAULT_MANAGER
        self._client: ManagerClient | None = None

    def _begin(self, step: str) -> None:
        self._number += 1
        self.step = f"step {self._number}: {step}"
        print(f"\n{self._number}. {step}", flush=True)

    def _say(self, text: str) -> None:
        for line in printable(text).splitlines():
            print(f"   {line}", flush=True)

    @property
    def client(self) -> ManagerClient:
        """The manager, as the first client certificate may use it."""
        if self._client is None:
            context = Credentials.find().manager_context()
            self._client = ManagerClient(parse_manager(self._manager), context)
        return self._client

    def run(self) -> None:
        """All steps. Raises StepFailed or KeepfleetError at the first that goes wrong."""
        self._prepare()
        first, second = self._create("Create a keep"), self._create("Create another, for later")
        self._look_at(first)
        self._run_workload(first)
        self._kill_manager()
        self._rediscover(first, second)
        self._run_workload(second)
        self._remove_all()
        print("\nEvery step was checked.", flush=True)

    def _prepare(self) -> None:
        self._begin("Install the units, make the certificates, start the manager")
        self._say(self._host.run("systemctl", "--version").splitlines()[0])
        self._say(self._host.keepctl("install", "--user" if self._host.user else "--system").strip())
        if os.path.exists(os.path.join(pki_directory(), "ca.crt")):
            self._say(f"certificates: those in {pki_directory()}")
        else:
            self._say(self._host.keepctl("init").strip())
            self._choose_port()
        self._host.systemctl("start", MANAGER_UNIT)
        state, pid = (self._host.show(MANAGER_UNIT, name) for name in ("ActiveState", "MainPID"))
        self._say(f"{MANAGER_UNIT} is {state}, PID {pid}")
        banner = self.client.banner()
        self._say(banner)
        expect("Enarx-Keep-Manager" in banner, "the manager does not name its protocol")

    def _choose_port(self) -> None:
        """Another port in a configuration that is only just made, where something listens on the usual one."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT))
                return
            except OSError:
                probe.bind((DEFAULT_MANAGER_ADDRESS, 0))
            port = probe.getsockname()[1]
        path = os.path.join(os.path.dirname(pki_directory()), "manager.yaml")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        with open(path, "w", encoding="utf-8") as file:
            file.write(re.sub(r"(?m)^#? ?port:.*$", f"port: {port}", text))
        self._manager = f"{DEFAULT_MANAGER_ADDRESS}:{port}"
        self._say(f"something listens on port {DEFAULT_MANAGER_PORT} already; the manager takes {port}")

    def _create(self, step: str) -> KeepInfo:
        self._begin(step)
        keep = self.client.create()
        self._keeps.append(keep.kuuid)
        self._unit = keep.unit
        self._say(f"keep {keep.kuuid}, state {int(keep.state)} ({keep.detail}), unit {keep.unit}")
        expect(keep.state is State.LISTENING, f"a new keep must be in state 1, this one is in {int(keep.state)}")
        expect(not keep.isolation_failures, f"its isolation check failed: {', '.join(keep.isolation_failures)}")
        active = self._host.show(keep.unit, "ActiveState")
        expect(active == "active", f"systemd says its unit is {active}")
        return keep

    def _look_at(self, keep: KeepInfo) -> None:
        self._begin("Look at it as systemd does")
        self._say(self._host.systemctl("status", "--lines=0", keep.unit).rstrip())
        exposure = self._host.run(
            "systemd-analyze", *(["--user"] if self._host.user else []), "--no-pager", "security", keep.unit
        )
        self._say(exposure.strip().splitlines()[-1])

    def _run_workload(self, keep: KeepInfo) -> None:
        self._unit = keep.unit
        self._begin(f"Let keep {keep.kuuid} listen, with a key and certificate it makes itself")
        started = self.client.start(keep.kuuid, "127.0.0.1", None)
        self._say(f"it listens on {started.address}:{started.port}, {started.fingerprint}")
        expect(started.state is State.STARTED and started.port > 0, f"it is in state {int(started.state)}")
        self._begin(f"Send it {os.path.basename(self._file)}, over TLS both ways, to that fingerprint alone")
        endpoint = endpoint_of(started, self.client.endpoint.host)
        with open_workload(self._file) as file:
            reply = upload_raw(endpoint, Credentials.find().keep_context(), file)
        if reply.status != 200:
            raise reply.error()
        self._say(f"answered {reply.status}: {reply.text.strip()}")
        ended = self.client.changed(keep.kuuid, State.STARTED, RUN_SECONDS)
        if ended.state is State.STARTED:
            self._say(f"it still runs after {RUN_SECONDS} s; stopping it")
            ended = self.client.stop(keep.kuuid)
        outcome = ended.outcome
        if outcome is None:
            raise StepFailed(f"it is in state {int(ended.state)} and has no outcome")
        self._say(f"state {int(ended.state)}: {outcome.text}")
        for line in outcome.backtrace:
            self._say(f"  {line}")
        self._show_output(keep, outcome.text)

    def _show_output(self, keep: KeepInfo, outcome: str) -> None:
        self._begin("Its output, as journald returns it")
        lines = self._host.journal_with(keep.unit, self._expected or outcome)
        for line in lines[-SHOWN_LINES:]:
            self._say(line)

    def _kill_manager(self) -> None:
        self._unit = MANAGER_UNIT
        self._begin("Kill the manager with SIGKILL, and start it again")
        before = self._host.show(MANAGER_UNIT, "MainPID")
        self._host.systemctl("kill", "--signal=SIGKILL", MANAGER_UNIT)
        after = before
        for _ in range(KILL_TRIES):  # systemd notices a death a moment later, and until then a start does nothing
            self._host.systemctl("start", MANAGER_UNIT)
            after = self._host.show(MANAGER_UNIT, "MainPID")
            if after not in ("0", before):
                break
        status = self._host.show(MANAGER_UNIT, "StatusText")
        self._say(f"PID {before} was killed; now PID {after}, {status}")
        expect(after not in ("0", before), "the manager did not come back")

    def _rediscover(self, first: KeepInfo, second: KeepInfo) -> None:
        self._begin("The keeps it found again")
        found = {keep.kuuid: keep for keep in self.client.keeps()}
        for keep in found.values():
            self._say(f"keep {keep.kuuid}, state {int(keep.state)} ({keep.detail})")
        expect({first.kuuid, second.kuuid} <= set(found), "a keep is missing")
        expect(found[first.kuuid].outcome is not None, "the first keep lost its outcome")
        expect(found[second.kuuid].state is State.LISTENING, "the second keep is no longer in state 1")

    def _remove_all(self) -> None:
        self._begin("Remove both keeps")
        while self._keeps:
            self.client.remove(self._keeps.pop())
        left = self._host.systemctl("list-units", "--all", "--plain", "--no-legend", "keep@*.service").split()
        self._say("nothing is left" if not left else f"left: {' '.join(left)}")

    def show_journal(self) -> None:
        """The last lines of the unit the story was busy with, on standard error."""
        try:
            lines = self._host.journal(self._unit)
        except StepFailed as error:
            lines = [str(error)]
        print(f"\nThe journal of {self._unit}:", file=sys.stderr)
        for line in lines[-SHOWN_LINES:]:
            print(f"  {printable(line)}", file=sys.stderr)

    def tidy(self) -> None:
        """Removes the keeps an interrupted story left."""
        for kuuid in self._keeps:
            try:
                self.client.remove(kuuid)
            except (KeepfleetError, OSError, subprocess.SubprocessError) as error:
                print(f"keep {kuuid} is left: {error}", file=sys.stderr)
