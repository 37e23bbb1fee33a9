"""An installed keepfleet on the tests' host: its manager, its certificates, and the calls tests make."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from keep_client.credentials import Credentials
from keep_client.manager import ManagerClient
from keep_client.peer import ConnectionFailed, Endpoint
from keep_client.store import StoreClient
from keep_manager.failpoints import VARIABLE, Failpoint
from keep_manager.reload import NEEDS_RESTART
from keep_protocol.constants import UNIT_PATTERN
from keep_protocol.errors import KeepfleetError
from keep_protocol.tls import pinned_client_context
from tests.system.host import Host, message_of, until
from tests.system.in_process import keepctl_here

MANAGER = "keep-manager.service"
KEEP_RUNTIME = "/run/keepfleet"
SETTLE_SECONDS = 60.0
"""The manager sees the end of keeps that others stopped within milliseconds; this covers a host that is much busier."""
FOLDERS = "/var/lib/keepfleet/keeps"
DEATH = "/run/keep-manager/failpoint"
"""Where `killed_at` writes where; in the manager's own runtime directory, so that it may remove it."""
MORTAL = f"/run/systemd/system/{MANAGER}.d/90-mortal.conf"
"""So a test need not restart the manager to have it die."""
TIDIED_LATER = "/systemd-private-"
"""In what systemd removes by itself, some milliseconds after a unit's job has ended: its private directories."""
NAMED_AFTER_UNITS = ("/run", "/tmp", "/var/tmp", "/sys/fs/cgroup", FOLDERS)
"""Runtime directories, users, unit files, journald's settings, private directories, and control groups."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that no process listens on now; the tests are in the host's network."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Kept(ManagerClient):
    """One whose connection outlives a test: a handshake costs both sides as much as thirty calls."""

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Closes the connection; another call makes another."""
        super().__exit__()

    def unkept(self) -> ManagerClient:
        """One that connects for each call."""
        return ManagerClient(self.endpoint, self._context)


def _stamp(*paths: str) -> tuple[object, ...]:
    """Another one when one of these files is another one."""
    found = [(path, os.stat(path)) for path in paths]
    return tuple((path, state.st_ino, state.st_mtime_ns, state.st_size) for path, state in found)


class Fleet:
    """The manager as a unit, on a port of its own. `configuration` is the host's /etc/keepfleet, seen from outside."""

    def __init__(self, host: Host, configuration: Path) -> None:
        self.host = host
        self.configuration = configuration
        self.pki = configuration / "pki"
        self.port = free_port()
        self._clients: dict[tuple[object, ...], _Kept] = {}
        self._pinned: dict[tuple[object, ...], ssl.SSLContext] = {}

    def __repr__(self) -> str:
        return f"Fleet(port {self.port})"

    def install(self) -> None:
        """What an operator does: units, certificates, configuration, and the manager started."""
        self.host.run(["keepctl", "install", "--system"])
        self.host.run(["keepctl", "init"])
        self.host.run(
            ["install", "-D", "--mode=644", "/dev/stdin", MORTAL], input=f"[Service]\nEnvironment={VARIABLE}={DEATH}\n"
        )
        self.host.systemctl("daemon-reload")
        self.configure()
        self.host.systemctl("start", MANAGER)

    def configure(self, **keys: object) -> None:
        """Writes manager.yaml with the session's port and these keys; the manager reads it at its start and reload."""
        lines = {"port": self.port, "pki": "/etc/keepfleet/pki", **keys}
        text = "".join(f"{name}: {value}\n" for name, value in lines.items())
        (self.configuration / "manager.yaml").write_text(text)

    @contextlib.contextmanager
    def configured(self, *, restarted: bool = False, **keys: object) -> Iterator[None]:
        """The manager with these keys, and as it was before at the end: reloaded, or restarted where a key needs that.

        restarted: restarted in any case, as a changed unit needs it.
        """
        apply = self.restart if restarted or set(NEEDS_RESTART).intersection(keys) else self.reload
        file = self.configuration / "manager.yaml"
        before = file.read_text()
        self.configure(**keys)
        apply()
        try:
            yield
        finally:
            file.write_text(before)
            apply()

    def reload(self) -> str:
        """Has the manager read its configuration again; returns what the journal says of it."""
        cursor = self.host.cursor()
        self.host.systemctl("reload", MANAGER)
        said = ("reloaded the configuration", "cannot reload the configuration")
        return message_of(self.host.wait_journal(lambda entry: message_of(entry).startswith(said), MANAGER, cursor))

    def restart(self) -> None:
        """An orderly restart; returns when the manager is ready."""
        self.host.systemctl("restart", MANAGER)

    def kill(self) -> None:
        """SIGKILL to the manager; returns when systemd has started it again and it is ready."""
        before = self.manager_pid
        self.host.systemctl("kill", f"--signal={int(signal.SIGKILL)}", MANAGER)
        self.followed(before)

    @contextlib.contextmanager
    def killed_at(self, point: Failpoint) -> Iterator[None]:
        """The manager will kill itself at `point`; at the end of the block it has, or will, and another is ready."""
        before = self.manager_pid
        path = f"/proc/{self.host.sandbox.pid}/root{DEATH}"
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(point.value)
        os.rename(f"{path}.new", path)
        try:
            yield
            # Some points come after the answer.
            until(lambda: not os.path.exists(path) or self.manager_pid != before, lambda: f"it never came to {point}")
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.followed(before)

    def followed(self, before: int) -> None:
        """Returns when another manager than that PID, which ends or has ended, is ready."""
        while self.manager_pid in (0, before):  # a start asked before systemd has noticed the death does nothing
            self.host.systemctl("start", MANAGER)
        self.host.systemctl("start", MANAGER)  # waits for a start of systemd's own that is under way

    @contextlib.contextmanager
    def small_disk(self, place: str, options: str, *, empty: bool = False) -> Iterator[list[str]]:
        """A file system of little room at `place`, with what is there unless `empty`, for the manager that runs: among
        its own mounts, so that none has to start for it. What to put before a command so that it sees it, too."""
        sees = ["nsenter", f"--mount=/proc/{self.manager_pid}/ns/mnt"]
        kept = "mkdir /tmp/kept; cp -a $1/. /tmp/kept" if not empty else "mkdir /tmp/kept"
        script = f"{kept}; mount -t tmpfs -o $2 tmpfs $1; cp -a /tmp/kept/. $1; rm -r /tmp/kept"
        self.host.run([*sees, "sh", "-ec", script, "sh", place, options])
        try:
            yield sees
        finally:
            self.host.run([*sees, "umount", place])

    @property
    def manager_pid(self) -> int:
        """The manager's PID inside."""
        return int(self.host.show(MANAGER, "MainPID")["MainPID"])

    def readers(self) -> list[str]:
        """The manager's descriptors of keeps' output, which it has for those that someone reads."""
        directory = f"/proc/{self.host.sandbox.pid}/root/proc/{self.manager_pid}/fd"
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # there is no manager now
            for number in os.listdir(directory):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    found.append(os.readlink(f"{directory}/{number}"))
        return [path for path in found if re.search("/keeps/.*/output", path)]

    def credentials(self, name: str = "admin") -> Credentials:
        """The files of one client of the PKI."""
        return Credentials(
            str(self.pki / "ca.crt"), *(str(self.pki / "clients" / f"{name}.{x}") for x in ("crt", "key"))
        )

    def client(self, name: str = "admin") -> ManagerClient:
        """The manager, as that client may use it; the administrator in one thread has one connection for all calls."""
        endpoint, files = Endpoint("127.0.0.1", self.port, "the manager", ""), self.credentials(name)
        stamp = (self.port, *_stamp(files.ca, files.certificate, files.key))
        if stamp not in self._clients:
            self._clients[stamp] = kept = _Kept(endpoint, files.manager_context())
            weakref.finalize(self, kept.close)
            kept.__enter__()
        kept = self._clients[stamp]
        is_ours = name == "admin" and threading.current_thread() is threading.main_thread()
        return kept if is_ours else kept.unkept()

    def store(self) -> StoreClient:
        """The manager's module store, as the administrator may use it."""
        return StoreClient(self.client().endpoint, self.credentials().manager_context())

    def pinned(self, name: str = "admin") -> ssl.SSLContext:
        """What a client of that name shows to keeps; not to be changed."""
        files = self.credentials(name)
        stamp = _stamp(files.certificate, files.key)
        if stamp not in self._pinned:
            self._pinned[stamp] = pinned_client_context(files.certificate, files.key)
        return self._pinned[stamp]

    def tls(self, name: str | None = "admin") -> ssl.SSLContext:
        """A context of our own making for raw requests: it trusts our CA, and shows a certificate or none."""
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        if name:
            files = self.credentials(name)
            context.load_cert_chain(files.certificate, files.key)
        return context

    def keepctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`keepctl`, see `keepctl_here`; paths that the host sees, too, are below `host.path`."""
        return keepctl_here(self.port, self.pki, words, check=check)

    def issue(self, name: str, *options: str) -> Credentials:
        """A new client certificate, as `keepctl pki issue` makes it."""
        self.keepctl("pki", "issue", name, *options)
        return self.credentials(name)

    def keep_units(self) -> list[str]:
        """The keeps systemd knows, in any state."""
        return self.host.units(UNIT_PATTERN)

    def left_over(self, owned: Callable[[str], bool] = lambda _: False) -> list[str]:
        """What is there of any keep, but what is `owned`: units, and what bears its name where systemd and the kernel
        keep such things; without what systemd tidies up by itself some moments later."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while left := [trace for trace in self._traces() if not owned(trace)]:
            if not all(TIDIED_LATER in trace for trace in left) or time.monotonic() > deadline:
                break
        return left

    def _traces(self) -> list[str]:
        paths = ["-path", f"{KEEP_RUNTIME}/*", "-o", "-path", f"{FOLDERS}/*"]
        names = [*paths, "-o", "-name", "*keep@[1-9]*", "-o", "-name", "*keep-[1-9]*"]
        files = self.host.run(["find", *NAMED_AFTER_UNITS, "(", *names, ")", "-prune", "-print"], check=False)
        return [*self.keep_units(), *files.stdout.split()]

    def left_of(self, kuuid: int) -> list[str]:
        """What is there of a keep that was removed; on a busy host systemd tidies up a moment after it answered."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while left := [trace for trace in self._traces() if str(kuuid) in trace]:
            if time.monotonic() > deadline:
                break
        return left

    def clear(self) -> None:
        """Ends every keep of every caller, and brings the manager back where a test ended it.

        Where a test left nothing that costs one request.
        """
        with contextlib.suppress(ConnectionFailed):
            if not self.remove_all() and not self.keep_units():
                return
        self.end_units(self.keep_units())
        try:
            self.client().keeps()
        except ConnectionFailed:
            self.host.systemctl("start", MANAGER)
        self.settle()

    def end_units(self, units: Sequence[str]) -> None:
        """Ends these keeps without the manager, which may be ending some of them itself."""
        if units:
            self.host.systemctl("stop", *units, check=False)
            self.host.systemctl("reset-failed", *units, check=False)
            until(lambda: not {*units}.intersection(self.keep_units()), lambda: f"of {units}: {self.keep_units()}")

    def remove_all(self, spared: Callable[[str], bool] = lambda _: False) -> int:
        """Removes every keep through the manager, but those whose unit is `spared`; how many there were."""
        found = [keep for keep in self.client().keeps() if not spared(keep.unit)]
        for keep in found:
            with contextlib.suppress(KeepfleetError):  # it has gone meanwhile
                self.client().remove(keep.kuuid)
        return len(found)

    def settle(self) -> None:
        """Waits until the manager has no keep: of those that it did not stop itself it hears a moment later."""
        until(lambda: not self.client().keeps(), lambda: f"the manager still has {self.client().keeps()}")
