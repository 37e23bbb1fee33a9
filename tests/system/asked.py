"""What systemd says of units, on one connection to the host's bus, and what one process inside says or does: no command
runs for it. A command costs twenty milliseconds of processor time, and a test looks a dozen times."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from keep_manager.systemd.connection import BUS, BUS_PATH, greeting
from keep_manager.systemd.message import ERROR, REPLY, Message, Variant, decode, encode_call, size_of
from tools.sandbox.command import Command
from tools.sandbox.sandbox import Sandbox

NAME, PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
SECONDS = 60.0
"""Answers take milliseconds; this covers a systemd that is frozen, or reads a thousand units again."""
_AWAY = {f"org.freedesktop.DBus.Error.{name}" for name in ("NameHasNoOwner", "NoReply")}
"""systemd leaves the bus while it executes itself again, with what was asked then, and afterwards asks for its name."""
LOOK_SECONDS = 0.02
"""Until systemd is asked again that has left the bus: who waits for it there has no connection to be woken by."""
_OF_UNITS = ("ActiveState", "SubState", "LoadState", "Description", "InvocationID")
_OF_SERVICES = (
    *("MainPID", "StatusText", "NRestarts", "ExecMainStatus", "NFileDescriptorStore", "Result", "RootDirectory"),
    *("ControlGroup", "Slice", "MemoryMax", "MemoryHigh", "TasksMax", "Nice"),
)
_INTERFACES = dict.fromkeys(_OF_UNITS, "Unit") | dict.fromkeys(_OF_SERVICES, "Service")
"""Properties whose text in `systemctl show` is known here, and of which interface they are."""
_LIMITS = ("MemoryMax", "MemoryHigh", "TasksMax")
_NO_LIMIT = (1 << 64) - 1


class Unanswered(Exception):
    """The bus went away before it answered, or systemd refused."""


class Systemd:
    """PID 1 of a host whose root directory is seen at `root`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._connection: socket.socket | None = None
        self._serial = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Systemd({self._root!r})"

    def show(self, unit: str, names: tuple[str, ...]) -> dict[str, str] | None:
        """These properties of a service as `systemctl show` prints them; None where it must be asked."""
        if not unit.endswith(".service") or "@." in unit or not names or not _INTERFACES.keys() >= set(names):
            return None
        path = f"{PATH}/unit/{re.sub('[^A-Za-z0-9]', _escaped, unit)}"
        found = {}
        for name in names:
            arguments = (f"{NAME}.{_INTERFACES[name]}", name)
            (value,) = self._call(path, "org.freedesktop.DBus.Properties", "Get", "ss", arguments).body()
            assert isinstance(value, Variant)
            found[name] = _text(name, value.value)
        return found

    def units(self, patterns: tuple[str, ...], states: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """Name and description of the loaded units whose names match, in these states or any."""
        body = ([*states], [*patterns])
        (listed,) = self._call(PATH, f"{NAME}.Manager", "ListUnitsByPatterns", "asas", body).body()
        assert isinstance(listed, list)
        return sorted((str(each[0]), str(each[1])) for each in listed)

    def reload(self) -> None:
        """As `systemctl daemon-reload`."""
        self._call(PATH, f"{NAME}.Manager", "Reload", "", ())

    def _call(self, path: str, interface: str, member: str, signature: str, body: tuple[object, ...]) -> Message:
        ask = partial(self._ask, NAME, path, interface, member, signature, body)
        deadline = time.monotonic() + SECONDS
        while True:
            with self._lock:
                try:
                    reply: Message | None = ask()
                except (OSError, Unanswered):  # the bus is another one since the last call, or is just going
                    self.close()
                    if time.monotonic() > deadline:
                        raise
                    reply = None
                except BaseException:  # the answer of a call that was interrupted is not the next one's
                    self.close()
                    raise
            if reply is not None and reply.type != ERROR:
                return reply
            if reply is not None and (reply.error_name not in _AWAY or time.monotonic() > deadline):
                raise Unanswered(f"{reply.error_name}: {reply.body()}")
            time.sleep(LOOK_SECONDS)

    def _ask(self, destination: str, *call: Any) -> Message:
        if self._connection is None:
            self._connection = _connected(f"{self._root}/run/dbus/system_bus_socket")
            self._ask(BUS, BUS_PATH, BUS, "Hello")
        self._serial += 1
        self._connection.sendall(encode_call(self._serial, destination, *call))
        while True:
            reply = _received(partial(_whole, self._connection))
            if reply.type in (REPLY, ERROR) and reply.reply_serial == self._serial:
                return reply

    def close(self) -> None:
        """Closes the connection; the next call makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _escaped(character: re.Match[str]) -> str:
    return f"_{ord(character[0]):02x}"


def _text(name: str, value: object) -> str:
    if name in _LIMITS and value == _NO_LIMIT:
        return "infinity"
    if name == "InvocationID":
        assert isinstance(value, list | bytes)
        return bytes(value).hex()
    return str(value)


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(greeting())
        line = b""
        while not line.endswith(b"\r\n"):
            line += _whole(connection, 1)
        assert line.startswith(b"OK "), line
        connection.sendall(b"BEGIN\r\n")
    except BaseException:
        connection.close()
        raise
    return connection


def _whole(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise Unanswered("the connection was closed")
        data += piece
    return data


def _received(read: Callable[[int], bytes]) -> Message:
    data = b""
    while (size := size_of(data)) > len(data):
        data += read(size - len(data))
    return decode(data)


_PROGRAM = """
import os, socket, sys

def sync():
    with socket.socket(socket.AF_UNIX) as journald:
        journald.connect("/run/systemd/journal/io.systemd.journal")
        journald.sendall(b'{"method":"io.systemd.Journal.Synchronize","parameters":{}}\\0')
        reply = b""
        while not reply.endswith(b"\\0"):
            reply += journald.recv(4096) or b"the end\\0"
        assert reply == b'{"parameters":{}}\\0', reply

def kill(number, *pids):
    for pid in pids:
        os.kill(int(pid), int(number))

def children(parent, *names):
    for pid in text(f"/proc/{parent}/task/{parent}/children").split():
        if not names or text(f"/proc/{pid}/comm").strip() in names:
            yield pid

def text(path):
    try:
        with open(path) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""

for line in sys.stdin:
    call, *words = line.split()
    try:
        print(*(globals()[call](*words) or ()), flush=True)
    except Exception as error:
        print("!", repr(error), flush=True)
"""


class Assistant:
    """A process in a sandbox that does what only one in there may, as often as it is asked to."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._process: Command | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Assistant({self._process})"

    def synchronize(self) -> None:
        """Returns when journald has written all that it was given before; as `journalctl --sync`."""
        self._ask("sync")

    def kill(self, number: int, *pids: int) -> None:
        """Sends a signal to processes inside."""
        self._ask("kill", number, *pids)

    def children(self, parent: int, *names: str) -> list[int]:
        """The PIDs inside of a process's children, all or those of these names."""
        return [int(word) for word in self._ask("children", parent, *names).split()]

    def _ask(self, *words: object) -> str:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._process = self._sandbox.popen(
                    ["python3", "-I", "-S", "-c", _PROGRAM], stdin=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            assert self._process.stdin and self._process.stdout
            try:
                print(*words, file=self._process.stdin, flush=True)
                answer = self._process.stdout.readline()
            except BaseException:  # the answer of a call that was interrupted is not the next one's
                self.close()
                raise
        if not answer or answer.startswith("!"):
            raise Unanswered(f"{' '.join(map(str, words))}: {answer or 'the end'}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.__exit__(None, None, None)
            self._process = None
