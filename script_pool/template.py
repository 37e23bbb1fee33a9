"""The template process: loads the engine once, and forks each child from there, in milliseconds and sharing its memory.

It never sees a script, an input or a client, so that no child begins with another's; it has one thread, and a program
of its own, so that nothing of the pool's process is in it. It takes one descriptor for each child over its control
socket, answers with a descriptor of the process, and reports how each has ended. When the pool's end closes, it kills
what is left and ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys

from keep_isolation.kernel import prctl
from keep_protocol import forking
from script_pool import child
from script_pool.engine.interface import Engine, Limits

_PR_SET_PDEATHSIG = 1
CHILD_NAME = "script-child"
MAX_MESSAGE = 4096


class Template:
    """The process's whole state: its engine, its control socket, and its children by their process descriptors."""

    def __init__(self, engine: Engine, limits: Limits, control: socket.socket) -> None:
        self._engine, self._limits, self._control = engine, limits, control
        self._children: dict[int, int] = {}
        self._poll = select.poll()
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def __repr__(self) -> str:
        return f"Template({len(self._children)} children)"

    def serve(self) -> None:
        """Forks and reaps until the pool's end is closed."""
        self._poll.register(self._control, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._control.fileno():
                    self._reap(descriptor)
                elif not self._asked():
                    self._end()
                    return

    def _asked(self) -> bool:
        """Forks for the message that has come; False at the stream's end."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
        except ConnectionResetError:  # it has ended with something of ours unread
            return False
        if not message:
            return False
        asked = json.loads(message)
        if "kill" in asked:
            self._kill(asked["kill"])
            return True
        number = asked["fork"]
        try:
            pid = self._fork(descriptors[0])
        except OSError as error:
            self._say({"unable": number, "why": os.strerror(error.errno or 0)})
            return True
        finally:
            os.close(descriptors[0])
        process = os.pidfd_open(pid)  # it is not reaped before it is reported, so that this is the process
        self._children[process] = pid
        self._poll.register(process, select.POLLIN)
        self._say({"forked": number, "pid": pid}, process)
        return True

    def _fork(self, descriptor: int) -> int:
        engine, limits, template = self._engine, self._limits, os.getpid()
        return forking.fork(
            lambda: child.serve(engine, limits, forking.REPORT_DESCRIPTOR, template),
            CHILD_NAME,
            {},
            {},
            reports=descriptor,
            output=(self._null, self._null),
        )

    def _kill(self, pid: int) -> None:
        """Ends a child for a pool that may send no signal; one that has been reported as ended is not looked for."""
        for process, known in self._children.items():
            if known == pid:
                signal.pidfd_send_signal(process, signal.SIGKILL)

    def _reap(self, process: int) -> None:
        pid = self._children.pop(process)
        _, status = os.waitpid(pid, 0)
        self._poll.unregister(process)
        os.close(process)
        self._say({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, object], descriptor: int | None = None) -> None:
        descriptors = [] if descriptor is None else [descriptor]
        try:
            socket.send_fds(self._control, [json.dumps(message).encode("ascii")], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return  # the pool has ended: the next message is that

    def _end(self) -> None:
        for process in self._children:
            signal.pidfd_send_signal(process, signal.SIGKILL)


def main() -> None:
    """`sys.argv`: the control socket's number, the engine as MODULE:CLASS, the limits as JSON, the pool's process, the
    directory for compiled code or nothing."""
    control = socket.socket(fileno=int(sys.argv[1]))
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[4]):
        return
    module, _, name = sys.argv[2].partition(":")
    make = getattr(importlib.import_module(module), name)
    try:
        engine: Engine = make(sys.argv[5] or None)
    except OSError as error:
        print(f"script-pool: {error}; the engine is compiled at each start", file=sys.stderr, flush=True)
        engine = make(None)
    engine.warm()
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("cannot fork children: loading the engine has started a thread")
    gc.collect()
    gc.disable()  # a collection in this process would only unshare the memory of its children
    socket.send_fds(control, [b'{"warm":true}'], [])
    Template(engine, Limits(**json.loads(sys.argv[3])), control).serve()


if __name__ == "__main__":
    main()
