"""An upload endpoint and a runner that do what a test orders, over the socket `stub.sock` in the keep's runtime
directory.

Each says at first which it is, and what it was given: its process ID, environment and descriptors. Then each line is
an order in JSON, answered "done": {"do": "report", "report": {...}, "files": {name: text, ...}} sends a report with
files attached by name, "raw" a packet of "text" with "files", a list, that it does not name, "flood" the same many
times until the socket refuses, "identity" answers the text of the descriptor of that name, "run" waits for what a
runner is to run, answers its names and what they are open on, takes its input and output as its own, and reports that
it runs, "run-text" the same with what is in them, "write" writes "text" to descriptor "to", as often as "times" says,
"read" answers what its standard input has, at most "size" bytes, "close" closes descriptor "to", "hear" answers a
packet of the loader's, "burn" uses processor "seconds", "spin" does it for ever, "ignore-term", "orphan" (a child that
outlives it, its ID answered), "hang-up" closes the report socket, "exit" and "signal" end it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

STATUS = 3


def prepare() -> None:
    """There is nothing to make ready."""


def attach(text: str) -> int:
    """A file without a name that holds `text`."""
    with tempfile.TemporaryFile(dir=os.environ["KEEPFLEET_RUNTIME_DIRECTORY"]) as file:
        file.write(text.encode())
        file.flush()
        return os.dup(file.fileno())


def send(packet: bytes, files: list[str]) -> None:
    """Sends one packet to the loader."""
    with socket.socket(fileno=os.dup(STATUS)) as status:
        descriptors = [attach(text) for text in files]
        if descriptors:
            socket.send_fds(status, [packet], descriptors)
        else:
            status.send(packet)
        for descriptor in descriptors:
            os.close(descriptor)


def flood(packet: bytes, count: int) -> str:
    """Sends `packet` up to `count` times; answers how often until the loader closed its end."""
    for number in range(count):
        try:
            send(packet, [])
        except OSError:
            return str(number)
    return str(count)


def orphan() -> str:
    """A child in our process group that waits for ever; answers its process ID."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return str(pid)


def run(show: Callable[[int], str]) -> str:
    """Takes what is to be run, as a runner does, and says that it runs; what `show` shows of each, by name."""
    with socket.socket(fileno=os.dup(STATUS)) as reports:
        packet, descriptors, _, _ = socket.recv_fds(reports, 4096, 48)
        names = json.loads(packet)["run"]
        numbers = dict(zip(names, descriptors, strict=True))
        for name, place in (("input", 0), ("stdout", 1), ("stderr", 2)):
            if name in numbers:
                os.dup2(numbers.pop(name), place)
        passed = {name: show(number) for name, number in numbers.items()}
        with open("/proc/self/status", "rb") as status:
            report = {"report": "running", "descriptors": ["status"]}
            socket.send_fds(reports, [json.dumps(report).encode()], [status.fileno()])
    for number in descriptors:
        os.close(number)
    return json.dumps(passed)


def write(to: int, data: bytes) -> None:
    """Writes all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(to, view) :]


def obey(order: dict[str, Any]) -> str:
    """Does one thing and answers."""
    do, files = order["do"], order.get("files", [])
    if do == "report":
        named = files if isinstance(files, dict) else {}
        send(json.dumps({"descriptors": list(named), **order["report"]}).encode(), list(named.values()))
    elif do == "raw":
        send(str(order["text"]).encode(), files if isinstance(files, list) else [])
    elif do == "flood":
        return flood(str(order["text"]).encode(), int(str(order["count"])))
    elif do == "identity":
        names = os.environ["KEEPFLEET_DESCRIPTORS"].split(",")
        return os.pread(4 + names.index("identity"), 4096, 0).decode()
    elif do == "run":
        return run(lambda number: os.readlink(f"/proc/self/fd/{number}"))
    elif do == "run-text":
        return run(lambda number: os.pread(number, 4096, 0).decode())
    elif do == "write":
        write(int(str(order["to"])), str(order["text"]).encode("latin-1") * int(str(order.get("times", 1))))
    elif do == "read":
        return os.read(0, int(str(order["size"]))).decode("latin-1")
    elif do == "close":
        os.close(int(str(order["to"])))
    elif do == "hear":
        return os.read(STATUS, 4096).decode()
    elif do == "burn":
        until = time.process_time() + float(str(order["seconds"]))
        while time.process_time() < until:
            pass
    elif do == "spin":
        while True:
            pass
    elif do == "ignore-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif do == "orphan":
        return orphan()
    elif do == "hang-up":
        os.close(STATUS)
    elif do == "exit":
        os._exit(int(str(order["code"])))
    elif do == "signal":
        os.kill(os.getpid(), int(str(order["number"])))
    return "done"


def endpoint() -> int:
    """What the loader forks as the upload endpoint."""
    return obey_all("endpoint")


def runner() -> int:
    """What the loader forks as the runner."""
    return obey_all("runner")


def obey_all(role: str) -> int:
    """Obeys until the test goes away."""
    # Listed before a descriptor of our own is open; the list's own is the one that is gone again.
    numbers = [number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{number}")]
    here = {number: os.readlink(f"/proc/self/fd/{number}") for number in numbers}
    hello = {
        "pid": os.getpid(),
        "environment": {name: value for name, value in os.environ.items() if name != "LC_CTYPE"},
        "descriptors": here,
        "role": role,
    }
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.environ["KEEPFLEET_RUNTIME_DIRECTORY"] + "/stub.sock")
        with sock.makefile("rw", encoding="utf-8") as lines:
            lines.write(json.dumps(hello) + "\n")
            lines.flush()
            for line in lines:
                answer = obey(json.loads(line))
                lines.write(json.dumps(answer) + "\n")
                lines.flush()
    return 0
