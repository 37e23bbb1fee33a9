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
from collections.abc import Mapping, Sequence
from typing import Any

from tools.sandbox import cgroups, needs, state
from tools.sandbox.errors import SandboxError
from tools.sandbox.layout import Layout
from tools.sandbox.units import write_units

BOOT_SECONDS = 30.0
"""A boot takes half a second; this covers a host sixty times busier."""
OFF_SECONDS = 10.0
"""An orderly power-off takes a second; a keep may use its five seconds to stop (TimeoutStopSec=)."""
COMMAND_SECONDS = 2.0
"""What a command that runs inside at power-off has from SIGTERM to SIGKILL; a shell ends at once."""
ENVIRONMENT = {
    "PATH": "/opt/keepfleet/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
"""What every command inside starts with."""
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
        self.state = state.directory(name)

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

    def boot(self) -> None:
        """Boots, and returns when systemd has started everything. What an interrupted boot left is removed first.

        Raises SandboxError where it is running already, where rights or programs are missing, and where systemd
        does not come up, with what it said. Whatever ends this call early, Ctrl-C included, leaves nothing.
        """
        needs.check()
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

    def command(self, command: Sequence[str], user: str = "root", cwd: str = "/") -> list[str]:
        """What to execute outside so that `command` runs inside; see `popen`. Raises SandboxError where it is off."""
        pid = self.pid
        if pid is None:
            raise SandboxError(f"cannot run {command[0]} in the sandbox {self.name}: it is not running; boot it first")
        return [*_LEAN_PYTHON, f"{_HERE}/enter.py", self.name, str(pid), user, cwd, *command]

    def popen(
        self,
        command: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Starts `command` inside, as `user` and in `cwd` (/ where that is not there), in a cgroup of its own.

        Its environment is PATH, LANG and `env`, nothing of ours; HOME and USER are the user's. `options` are
        subprocess.Popen's. Signals sent to the returned process reach the command, and its exit status is the
        command's; 125 means that the sandbox could not be entered. Raises SandboxError where it is not running.
        """
        return subprocess.Popen(self.command(command, user, cwd), env={**ENVIRONMENT, **(env or {})}, **options)

    def exec(
        self, command: Sequence[str], *, timeout: float | None = None, input: str | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs `command` inside to its end and returns its status, output and errors as text; see `popen`.

        Raises subprocess.TimeoutExpired, after killing the command, when it takes longer than `timeout` seconds.
        """
        options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        with self.popen(command, text=True, **options) as process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

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
                cgroups.end_commands(self.name, COMMAND_SECONDS)
                signal.pidfd_send_signal(descriptor, _POWER_OFF)
                select.select([descriptor], [], [], OFF_SECONDS)
            finally:
                os.close(descriptor)

    def _boot(self) -> None:
        write_units(f"{self.state}/units")
        with open(f"{self.state}/layout.json", "w", encoding="utf-8") as file:
            file.write(self.layout.to_json())
        self._make_cgroups()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(f"{self.state}/console", "wb") as console:
            ready.bind(f"{self.state}/notify")
            arguments = [*_LEAN_PYTHON, f"{_HERE}/first.py", self.name, self.state]
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
