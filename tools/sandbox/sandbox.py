"""A sandbox by name: boot it, run commands in it, power it off and remove every trace."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from tools.sandbox import cgroups, linux, needs, state
from tools.sandbox.channel import ENVIRONMENT, Request, state_directory
from tools.sandbox.command import Command, Streams, agent_pid, ask
from tools.sandbox.errors import SandboxError
from tools.sandbox.layout import Layout, from_json
from tools.sandbox.units import write_units

BOOT_SECONDS = 30.0
"""A boot takes half a second; this covers a host sixty times busier."""
OFF_SECONDS = 10.0
"""An orderly power-off takes a second; a keep may use its five seconds to stop (TimeoutStopSec=)."""
COMMAND_SECONDS = 2.0
"""What a command that runs inside at power-off has from SIGTERM to SIGKILL; a shell ends immediately."""
_POWER_OFF = signal.SIGRTMIN + 4
"""To PID 1: start poweroff.target (man systemd, SIGRTMIN+4)."""
_HERE = os.path.dirname(os.path.abspath(__file__))
_LEAN_PYTHON = (sys.executable, "-I", "-S")


class Sandbox:
    """A private systemd called `name`. The object holds no state: any process, now or later, may act on the name.

    As a context manager it boots, and powers off at the end whatever happened. Raises SandboxError for a name that
    is not 1 to 32 of a-z, 0-9 and -.
    """

    def __init__(self, name: str, layout: Layout | None = None) -> None:
        if not state.NAME.fullmatch(name):
            raise SandboxError(f"cannot use {name!r} as a sandbox's name: it must be 1 to 32 of a-z, 0-9 and -")
        self.name = name
        self.layout = layout or Layout()
        self.state = state_directory(name)

    def __repr__(self) -> str:
        return f"Sandbox({self.name}, {'running' if self.pid else 'off'})"

    def __enter__(self) -> Sandbox:
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.off()

    @property
    def pid(self) -> int | None:
        """The machine's number of the sandbox's PID 1; None where it is not running, or was never booted to the end."""
        return self._read_pid("pid")

    def _read_pid(self, file_name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError), open(f"{self.state}/{file_name}", encoding="utf-8") as file:
            pid = int(file.read())
            return pid if cgroups.belongs(pid, self.name) else None
        return None

    def shown(self) -> Layout:
        """The layout that it was booted with. Raises SandboxError where it is not running."""
        if self.pid is None:
            raise SandboxError(f"the sandbox {self.name} is not running")
        with open(f"{self.state}/layout.json", encoding="utf-8") as file:
            return from_json(file.read())

    def boot(self) -> None:
        """Boots, and returns when systemd has started everything. What an interrupted boot left is removed first.

        Raises SandboxError where it is running already, where rights or programs are missing, and where systemd
        does not come up, with what it said. Whatever ends this call early, Ctrl-C included, leaves nothing.
        """
        needs.check(self.layout.root)
        with state.lock(self.state):
            if self.pid:
                raise SandboxError(f"cannot boot the sandbox {self.name}: it is running already")
            try:
                state.clear(self.name)
                self._boot()
            except subprocess.TimeoutExpired as error:
                state.remove(self.name)
                raise SandboxError(f"cannot boot the sandbox {self.name}: it took over {BOOT_SECONDS:g} s") from error
            except BaseException:
                state.remove(self.name)
                raise

    def command(self, words: Sequence[str], user: str = "root", cwd: str = "/") -> list[str]:
        """What to execute outside so that a command runs inside."""
        return [*_LEAN_PYTHON, f"{_HERE}/client.py", self.name, user, cwd, *words]

    def popen(
        self,
        words: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> Command:
        """Starts a command inside, as `user` and in `cwd` (/ where that is not there); nothing runs for it outside.

        Its environment is PATH, LANG and `env`, nothing of ours; HOME and USER are the user's. A stream is one of
        subprocess's PIPE, DEVNULL and STDOUT, or a descriptor. Exit status 125 means that the sandbox could not be
        entered. Raises SandboxError where it is not running.
        """
        request = Request(list(words), user, cwd, {**ENVIRONMENT, **(env or {})})
        with Streams(stdin, stdout, stderr) as streams:
            return Command(ask(self.name, request, streams.theirs), words, streams.ours)

    def exec(
        self,
        words: Sequence[str],
        *,
        timeout: float | None = None,
        input: str | None = None,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end and returns its status, output and errors as text; see `popen`.

        Raises subprocess.TimeoutExpired, after killing the command, when it takes longer than `timeout` seconds.
        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(words, user=user, env=env, cwd=cwd, stdin=stdin) as command:
            try:
                out, err = command.communicate(input, timeout)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(list(words), timeout or 0) from error
        return subprocess.CompletedProcess(list(words), command.wait(), out, err)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """The calling thread, and the threads and processes it starts meanwhile, are in the sandbox's network.

        Raises SandboxError where the sandbox is not running.
        """
        if (pid := self.pid) is None:
            raise SandboxError(f"cannot enter the network of the sandbox {self.name}: it is not running")
        ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        theirs = os.pidfd_open(pid)
        try:
            linux.setns(theirs, linux.CLONE_NEWNET)
            yield
        finally:
            linux.setns(ours, linux.CLONE_NEWNET)
            os.close(theirs)
            os.close(ours)

    def off(self) -> None:
        """Powers off in an orderly way, then removes every trace. Does nothing where there is none.

        Raises SandboxError where a process or a cgroup of the sandbox cannot be removed.
        """
        if not os.path.isdir(self.state) and not any(os.path.isdir(h.of(self.name)) for h in cgroups.hierarchies()):
            return
        with state.lock(self.state):
            if pid := self.pid:
                self._power_off(pid)
            state.remove(self.name)

    def _power_off(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if agent := agent_pid(self.name):
                    cgroups.end_commands(self.name, agent, COMMAND_SECONDS)
                signal.pidfd_send_signal(descriptor, _POWER_OFF)
                select.select([descriptor], [], [], OFF_SECONDS)
            finally:
                os.close(descriptor)

    def _boot(self) -> None:
        write_units(f"{self.state}/units", self.layout.root or "")
        with open(f"{self.state}/layout.json", "w", encoding="utf-8") as file:
            file.write(self.layout.to_json())
        self._make_cgroups()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(f"{self.state}/console", "wb") as console:
            ready.bind(f"{self.state}/notify")
            arguments = [*_LEAN_PYTHON, f"{_HERE}/first.py", self.name, self.state, str(os.getpid())]
            first = subprocess.run(
                arguments,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                timeout=BOOT_SECONDS,
            )
            if first.returncode != 0 or not self._wait_ready(ready):
                raise SandboxError(f"cannot boot the sandbox {self.name}: {self._console() or 'systemd says nothing'}")
        os.rename(f"{self.state}/booting", f"{self.state}/pid")
        # systemd says READY=1 when basic.target is reached; what the sandbox is for may still be starting.
        reached = self.exec(["systemctl", "is-system-running", "--wait"], timeout=BOOT_SECONDS).stdout.strip()
        if reached != "running":
            failed_units = self.exec(["systemctl", "--failed", "--plain", "--no-legend"], timeout=BOOT_SECONDS).stdout
            raise SandboxError(f"cannot boot the sandbox {self.name}: systemd is {reached}: {failed_units.strip()}")

    def _make_cgroups(self) -> None:
        found = cgroups.hierarchies()
        if not found:
            raise SandboxError(f"cannot boot the sandbox {self.name}: no cgroup hierarchy is below {cgroups.ROOT}")
        try:
            if switched_on := cgroups.delegate(found):
                state.remember_controllers(switched_on)
            for hierarchy in found:
                cgroups.make(hierarchy.of(self.name))
        except OSError as error:
            raise SandboxError(
                f"cannot boot the sandbox {self.name}: cannot make the cgroup {error.filename}: {error.strerror}; "
                "a container must be a privileged one"
            ) from error

    def _wait_ready(self, ready: socket.socket) -> bool:
        """Waits for systemd's READY=1 (man sd_notify): the bus can be used. False when PID 1 ends or time runs out."""
        deadline = time.monotonic() + BOOT_SECONDS
        pid = self._read_pid("booting")
        if pid is None:
            return False
        descriptor = os.pidfd_open(pid)
        try:
            while (left := deadline - time.monotonic()) > 0:
                readable, _, _ = select.select([ready.fileno(), descriptor], [], [], left)
                if ready.fileno() in readable and b"READY=1" in ready.recv(4096).splitlines():
                    return True
                if descriptor in readable:
                    return False
            return False
        finally:
            os.close(descriptor)

    def _console(self) -> str:
        with open(f"{self.state}/console", encoding="utf-8", errors="replace") as file:
            return " ".join(file.read().split())[-2000:]
