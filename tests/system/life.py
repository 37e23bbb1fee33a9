"""One keep in a system test: the calls of its clients, and what systemd, the kernel and journald say of it."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from keep_client import keep as endpoint
from keep_client.http import Body, Reply
from keep_client.keep import UploadEndpoint, endpoint_of
from keep_protocol.constants import unit_name
from keep_protocol.keep import KeepInfo, Outcome
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State
from keep_protocol.tls import check_pin
from tests.system import modules
from tests.system.fleet import Fleet, free_port
from tests.system.host import Host, message_of, until
from tests.system.journal import Entry

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOON = 60
"""Seconds a change may take that takes milliseconds; what a test waits for is the change, not this."""


def example(path: str) -> bytes:
    """A checked-in module, as in `hello-wat/hello`."""
    return (EXAMPLES / f"{path}.wasm").read_bytes()


@contextlib.contextmanager
def drop_in(host: Host, unit: str, text: str) -> Iterator[None]:
    """Directives added to a unit, or to every instance of a template, until the block ends."""
    path = f"/run/systemd/system/{unit}.d/90-test.conf"
    host.write(path, text)
    host.daemon_reload()
    try:
        yield
    finally:
        host.remove(path)
        host.daemon_reload()


def spare_units(host: Host, user: str | None = None, state: str = "active") -> list[str]:
    """The spares whose loader is ready: systemd lists them, and nothing else says so. state: "all", in any state."""
    if user is None and state == "active":
        return [name for name, description in host.active_units("keep@*.service") if "Spare keep" in description]
    wanted = "--all" if state == "all" else f"--state={state}"
    listed = host.systemctl("list-units", "--plain", "--no-legend", wanted, "keep@*.service", user=user)
    return [line.split()[0] for line in listed.splitlines() if "Spare keep" in line]


class Life:
    """One keep, from its creation or from any moment on. `info` is what its manager said last."""

    def __init__(self, fleet: Fleet, kuuid: int) -> None:
        self.fleet, self.host, self.kuuid = fleet, fleet.host, kuuid
        self.unit = unit_name(kuuid)
        self.info = fleet.client().keep(kuuid)

    @classmethod
    def create(cls, fleet: Fleet, **limits: int) -> Life:
        """A new keep, with these limits of its own."""
        return cls(fleet, fleet.client().create(limits=limits).kuuid)

    @classmethod
    def awaiting(cls, fleet: Fleet, **limits: int) -> Life:
        """A new keep that awaits its workload."""
        life = cls.create(fleet, **limits)
        life.start()
        return life

    @classmethod
    def running(cls, fleet: Fleet) -> Life:
        """A new keep whose workload runs, and sleeps."""
        life = cls.awaiting(fleet)
        assert life.upload(modules.sleeps()).status == 200
        life.line("asleep")
        life.shown("running the workload")
        # It gives its last answers as the workload runs already.
        until(lambda: not life.forks("keep-endpoint"), lambda: "the endpoint has accepted, and stays")
        life.look()
        return life

    @classmethod
    def ended(cls, fleet: Fleet, code: int = 3) -> Life:
        """A new keep whose workload has exited with `code`."""
        life = cls.awaiting(fleet)
        assert life.upload(modules.says(code=code)).status == 200
        life.until(State.STARTED, State.COMPLETE)
        life.told(EventType.ENDED)
        life.without_process()
        life.look()
        return life

    def __repr__(self) -> str:
        return f"Life({self.unit}, {self.info.detail})"

    def told(self, *types: EventType) -> KeepEvent:
        """The first such event of the keep, once it is told."""
        with contextlib.closing(self.fleet.client().events(self.kuuid, last=1000)) as events:
            return next(event for event in events if event.type in types)

    def end(self, seconds: float) -> tuple[KeepInfo, Outcome]:
        """The keep once it has ended, and how; it is given up, by removing it, after `seconds`."""
        alarm = threading.Timer(seconds, self.fleet.client().remove, (self.kuuid,))
        alarm.start()
        try:
            info = self.fleet.client().ended(self.kuuid)
        finally:
            alarm.cancel()
        assert info.outcome is not None, info.detail
        return info, info.outcome

    def look(self) -> KeepInfo:
        """The keep as the manager shows it now."""
        self.info = self.fleet.client().keep(self.kuuid)
        return self.info

    def start(self, address: str = "127.0.0.1", port: int | None = None) -> KeepInfo:
        """start-keep, on a free port where none is named."""
        self.info = self.fleet.client().start(self.kuuid, address, port or free_port())
        return self.info

    def until(self, before: State, after: State) -> KeepInfo:
        """The keep once it is no longer in `before`; it must then be in `after`."""
        self.info = self.fleet.client().changed(self.kuuid, before, SOON)
        assert self.info.state is after, self.info
        return self.info

    def becomes(self, state: State) -> KeepInfo:
        """The keep once it is in that state, whatever it passes through, as after its loader's death."""
        until(lambda: self.look().state is state, lambda: self.info)
        return self.info

    @property
    def endpoint(self) -> UploadEndpoint:
        """Where it receives, and its pin."""
        return endpoint_of(self.info, "127.0.0.1")

    @property
    def context(self) -> ssl.SSLContext:
        """What the administrator shows to a keep."""
        return self.fleet.pinned()

    def upload(self, module: bytes) -> Reply:
        """The module as it is."""
        body = Body("application/wasm", len(module), (module,))
        return endpoint.upload(self.endpoint, self.context, "PUT", endpoint.WORKLOAD_PATH, body)

    def upload_numbers(self, module: bytes) -> Reply:
        """The module as the original's clients send it."""
        text = b'{"encoding":"wasm","contents":[' + ",".join(map(str, module)).encode() + b"]}"
        body = Body("application/json", len(text), (text,))
        return endpoint.upload(self.endpoint, self.context, "POST", endpoint.PAYLOAD_PATH, body)

    def connect(self) -> socket.socket:
        """A bare TCP connection to its endpoint."""
        return socket.create_connection((self.info.address, self.info.port), SOON)

    def banner(self, connection: socket.socket) -> str:
        """What the endpoint shows over this connection, after its certificate was compared with the pin."""
        with self.context.wrap_socket(connection) as tls, io.BytesIO() as heard:
            check_pin(tls.getpeercert(binary_form=True), self.info.fingerprint)
            tls.sendall(b"GET / HTTP/1.1\r\nHost: keep\r\nConnection: close\r\n\r\n")
            while data := tls.recv(4096):
                heard.write(data)
            return heard.getvalue().decode()

    def show(self, name: str) -> str:
        """A property of its unit."""
        return self.host.show(self.unit, name)[name]

    def shown(self, detail: str) -> KeepInfo:
        """The keep once the manager shows this detail; meanwhile its next loader is being started."""
        until(lambda: self.look().detail == detail, lambda: self.info)
        return self.info

    def status(self, text: str) -> str:
        """Its line in `systemctl status`, once it holds `text`: the loader changes it at most five times a second."""
        until(lambda: text in self.show("StatusText"), lambda: self.show("StatusText"))
        return self.show("StatusText")

    @property
    def loader_pid(self) -> int:
        """The loader's PID inside."""
        return int(self.show("MainPID"))

    def without_process(self) -> None:
        """Waits until nothing runs in its unit: a loader whose keep has ended answers first, and then exits."""
        until(lambda: not self.loader_pid, lambda: "its loader does not exit")

    @property
    def endpoint_pid(self) -> int:
        """The PID of the upload endpoint."""
        (pid,) = self.forks("keep-endpoint")
        return pid

    @property
    def runner_pid(self) -> int:
        """The PID of the runner, which waits, or is the workload."""
        (pid,) = self.forks("keep-runner")
        return pid

    def forks(self, name: str) -> list[int]:
        """The PIDs of the loader's forks of that name."""
        return self.host.assistant.children(self.loader_pid, name)

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Sends a signal to a process inside."""
        self.host.assistant.kill(number, pid)

    def kill_loader(self) -> None:
        """SIGKILL to the loader; returns when systemd has started another."""
        cursor = self.host.cursor()
        self.signal(self.loader_pid, signal.SIGKILL)
        self.line("booting -> ", cursor)

    def line(self, text: str, cursor: str | None = None) -> Entry:
        """The journal entry of its unit that holds `text`, waited for."""
        return self.host.wait_journal(text, unit=self.unit, since_cursor=cursor, seconds=SOON)

    def output(self) -> list[str]:
        """What journald has of the keep's own processes, line by line."""
        return [message_of(entry) for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """What journald has of the keep's own processes; PID 1's lines bear KEEP_ID too, from systemd 255 on."""
        return self.host.journal(_SYSTEMD_UNIT=self.unit)

    def remove(self) -> None:
        """DELETE, and then nothing of it is there."""
        self.fleet.client().remove(self.kuuid)
        assert self.fleet.left_of(self.kuuid) == []


class Bystanders:
    """Two keeps that a scenario must not disturb: one awaits its workload, the other's runs."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lives = (Life.awaiting(fleet), Life.running(fleet))
        self.units = [life.unit for life in self._lives]
        self._greet()
        awaiting, running = self._lives
        until(lambda: awaiting.forks("keep-runner"), lambda: "the first client brings no runner")
        awaiting.status("awaiting workload")  # systemd has it later than the manager
        running.status("running the workload")
        self._before = self._pulse()

    def __repr__(self) -> str:
        return f"Bystanders({', '.join(self.units)})"

    def owns(self, trace: str) -> bool:
        """Whether a unit, path or control group is one of theirs."""
        return any(str(life.kuuid) in trace for life in self._lives)

    def _pulse(self) -> list[object]:
        """What changes when one of their processes, endpoints or states does."""
        host, names = self._fleet.host, ("InvocationID", "NRestarts", "MainPID", "StatusText")
        shown = [host.show(unit, *names) for unit in self.units]
        children = [host.assistant.children(int(each["MainPID"])) for each in shown]
        return [shown, children, [life.look() for life in self._lives]]

    def check(self) -> None:
        """They are exactly as they were: the same processes in the same states behind the same endpoints."""
        now = self._pulse()
        assert now == self._before, f"a bystander was disturbed: it was {self._before}, and is {now}"
        self._greet()

    def _greet(self) -> None:
        awaiting = self._lives[0]
        with awaiting.connect() as connection:
            assert "awaiting a workload" in awaiting.banner(connection)
