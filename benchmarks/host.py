"""The host that is measured: keepfleet installed as an operator does, its manager running, and the ways to it."""

from __future__ import annotations

import glob
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType

from benchmarks import dropin
from benchmarks.bus import Systemd
from benchmarks.measuring import MeasurementFailed
from keep_client.credentials import Credentials, pki_directory
from keep_client.manager import ManagerClient
from keep_client.peer import Endpoint
from keep_protocol.constants import DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT, LEGACY_PATH, UNIT_PATTERN
from keep_protocol.keep import KeepInfo, keep_from_wire
from keep_protocol.tls import client_context, pinned_client_context

MANAGER_UNIT = "keep-manager.service"
DROP_IN = "/etc/systemd/system/keep@.service.d/10-keepfleet.conf"
FLOOR_UNITS = "/run/systemd/system"
BEFORE_ROOTS, SLEEPING, NOTIFYING = "floor-before-roots", "floor-sleep", "floor-ready"
TREES = "/var/lib/keepfleet/root-*/tree"
COMMAND_SECONDS = 120
JOURNAL_SECONDS = 20
"""journald shows a line within milliseconds; this covers a host a thousand times busier."""
EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples")


def run(*argv: str) -> str:
    """The standard output of a command. Raises MeasurementFailed when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasurementFailed(f"{' '.join(argv)}: {error}") from error
    if done.returncode:
        raise MeasurementFailed(f"{' '.join(argv)} exited {done.returncode}: {done.stdout}{done.stderr}".strip())
    return done.stdout


class KeptConnection:
    """One connection to the manager that stays, as a client with many requests has it; at most ten seconds idle."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext) -> None:
        self._http = http.client.HTTPSConnection(endpoint.host, endpoint.port, context=context, timeout=60)
        self._http.connect()

    def __enter__(self) -> KeptConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def command(self, **members: str) -> dict[str, object]:
        """The answer to one of the original's commands. Raises MeasurementFailed for any but 200."""
        body = json.dumps(members).encode()
        self._http.request("POST", LEGACY_PATH, body, {"Content-Type": "application/json"})
        with self._http.getresponse() as response:
            data = response.read()
        if response.status != 200:
            raise MeasurementFailed(f"{members}: answered {response.status}: {data[:500]!r}")
        answer: dict[str, object] = json.loads(data)
        return answer

    def new_keep(self) -> KeepInfo:
        """A new keep."""
        return keep_from_wire(self.command(**{"command": "new-keep", "keep-arch": "wasi"}))

    def start_keep(self, kuuid: int) -> KeepInfo:
        """The keep, listening."""
        return keep_from_wire(
            self.command(
                **{"command": "start-keep", "kuuid": str(kuuid), "keep-addr": "127.0.0.1", "keep-port": "3031"}
            )
        )


QUOTAS = '\ncallers: {"*": {quotas: {keeps: 2000, memory_bytes: 1125899906842624, starts_per_minute: 100000}}}\n'


class Host:
    """A context manager: installs, starts the manager, and at the end removes every keep and the floor's units."""

    def __init__(self) -> None:
        self._parts = ExitStack()
        self.drop_in = ""

    def __repr__(self) -> str:
        return f"Host({self.endpoint})"

    def __enter__(self) -> Host:
        with ExitStack() as parts:
            self._install()
            self.systemd = parts.enter_context(Systemd())
            parts.callback(self.clear)
            self._write_floors()
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def _install(self) -> None:
        keepctl = os.path.join(os.path.dirname(sys.executable), "keepctl")
        run(keepctl, "install", "--system")
        if not os.path.exists(os.path.join(pki_directory(), "ca.crt")):
            run(keepctl, "init")
            self._configure()
        run("systemctl", "start", MANAGER_UNIT)

    @property
    def configuration(self) -> str:
        """The manager's file."""
        return os.path.join(os.path.dirname(pki_directory()), "manager.yaml")

    def _configure(self) -> None:
        """A free port, as a private systemd shares the machine's loopback, and room for one owner's thousand keeps."""
        with socket.socket() as probe:
            probe.bind((DEFAULT_MANAGER_ADDRESS, 0))
            port = probe.getsockname()[1]
        with open(self.configuration, encoding="utf-8") as file:
            text = file.read()
        with open(self.configuration, "w", encoding="utf-8") as file:
            file.write(re.sub(r"(?m)^#? ?port:.*$", f"port: {port}", text) + QUOTAS)

    def _write_floors(self) -> None:
        with open(DROP_IN, encoding="utf-8") as file:
            self.drop_in = file.read()
        with open(os.path.join(os.path.dirname(__file__), "unit-before-roots.conf"), encoding="utf-8") as file:
            before = file.read()
        (root,) = glob.glob(TREES)
        python, sleep = os.path.realpath(sys.executable), os.path.realpath("/bin/sleep")
        values = {"PYTHON_REAL": python, "OPENSSL": "/usr/bin/openssl", "VERSIONS": os.path.join(sys.prefix, "lib")}
        texts = {
            BEFORE_ROOTS: dropin.sleeping_without_a_root(before, values, sleep),
            SLEEPING: dropin.sleeping(self.drop_in, root, sleep),
            NOTIFYING: dropin.notifying(self.drop_in, root),
        }
        for name, text in texts.items():
            directory = f"{FLOOR_UNITS}/{name}@.service.d"
            os.makedirs(directory, exist_ok=True)
            with open(f"{directory}/10-keepfleet.conf", "w", encoding="utf-8") as file:
                file.write(text)
        run("systemctl", "daemon-reload")

    @cached_property
    def endpoint(self) -> Endpoint:
        """Where the manager listens."""
        with open(self.configuration, encoding="utf-8") as file:
            found = re.search(r"(?m)^port: *([0-9]+)", file.read())
        port = int(found[1]) if found else DEFAULT_MANAGER_PORT
        return Endpoint(DEFAULT_MANAGER_ADDRESS, port, "the manager", "")

    @cached_property
    def manager_context(self) -> ssl.SSLContext:
        """TLS to the manager, made once: a client makes it once too."""
        found = Credentials.find()
        return client_context(found.ca, found.certificate, found.key)

    @cached_property
    def keep_context(self) -> ssl.SSLContext:
        """TLS to keeps."""
        found = Credentials.find()
        return pinned_client_context(found.certificate, found.key)

    @property
    def client(self) -> ManagerClient:
        """The manager, a connection for each call."""
        return ManagerClient(self.endpoint, self.manager_context)

    def connection(self) -> KeptConnection:
        """The manager, on one connection."""
        return KeptConnection(self.endpoint, self.manager_context)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return run("systemctl", "show", "--value", "--property", name, unit).strip()

    def clear(self) -> None:
        """Ends and forgets every keep, and ends every unit of the floor."""
        floors = (f"{name}@*.service" for name in (BEFORE_ROOTS, SLEEPING, NOTIFYING))
        patterns = (UNIT_PATTERN, *floors, "floor-bare-*.service")
        units = [unit for pattern in patterns for unit in self.systemd.units(pattern)]
        self.systemd.stop(*units)
        for keep in self.client.keeps():  # one that has ended of itself has no unit, and stays in the manager's list
            self.client.remove(keep.kuuid, patient=True)

    def first_line(self, unit: str, text: str) -> int:
        """When journald received the unit's first line that holds `text`: its own clock, in microseconds.

        Waits for the line. Raises MeasurementFailed when it does not come.
        """
        argv = ("journalctl", "--follow", "--lines=all", "--output=json", "--all", f"_SYSTEMD_UNIT={unit}")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
            alarm = threading.Timer(JOURNAL_SECONDS, follower.kill)
            alarm.start()
            try:
                for line in follower.stdout or ():
                    entry = json.loads(line)
                    if text in str(entry.get("MESSAGE", "")):
                        return int(entry["__REALTIME_TIMESTAMP"])
            finally:
                alarm.cancel()
                follower.kill()
        raise MeasurementFailed(f"the journal of {unit} never showed {text!r}")


def example(name: str) -> str:
    """The path of a bundled module: the first .wasm of that example."""
    directory = os.path.join(EXAMPLES, name)
    for file in sorted(os.listdir(directory)):
        if file.endswith(".wasm"):
            return os.path.join(directory, file)
    raise MeasurementFailed(f"{directory} holds no module")
