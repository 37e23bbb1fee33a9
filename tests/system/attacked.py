"""A host of its own, whose keepfleet has native code in the place of each process of a keep; and what that reported.

The attacks (`attack.py`) stand behind the locks themselves: wherever a process is locked, they are what runs next.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keep_protocol.constants import unit_name
from tests.system.attack import READ_ONLY
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import Host, message_of, until
from tests.system.inside import drop_in
from tests.system.life import SOON, spare_units
from tests.system.life import drop_in as drop_in_for

ATTACK = Path(__file__).with_name("attack.py")
_BEHIND = """

from keep_isolation import attack as _attack

lock_loader_files = _attack.after(lock_loader_files, "loader")
lock_waiting_runner = _attack.after(lock_waiting_runner, "waiting runner")
lock_endpoint = _attack.after(lock_endpoint, "endpoint")
lock_checker = _attack.after(lock_checker, "checker")
lock_runner = _attack.after(lock_runner, "runner")
"""
_SETTINGS = ("/etc/keepfleet/manager.yaml", "~/.config/keepfleet/manager.yaml")
PLACES = ("loader", "endpoint", "checker", "runner", "waiting runner")
"""The last one is a spare's alone, where its workload is granted nothing."""
_ANSWERED = "[Service]\nSystemCallErrorNumber=EPERM\n"
"""The unit's own filter with the same calls, but an error where it kills: one process tries them all."""
_GRANTS = f"""
mkdir -p $D/read $D/write && touch $D/read/{READ_ONLY} $D/write/own && echo hidden >$D/token
ln -sf /etc/passwd $D/read/link && ln -sf /etc/passwd $D/write/link
python3 -c 'import socket, sys; [socket.socket(socket.AF_UNIX).bind(path + "/socket") for path in sys.argv[1:]]' \
    $D/read $D/write
chmod 0755 $D $D/read && chmod 0777 $D/write && chmod 0644 $D/token
"""
Reports = dict[str, dict[str, dict[str, str]]]
"""Place → attack → attempt → how it went."""


def install_attacks(prefix: Path, directory: Path) -> None:
    """Makes `directory` a copy of the installation `prefix`, with the attacks behind each lock."""
    shutil.copytree(prefix, directory, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
    (package,) = directory.glob("lib/python3*/site-packages/keep_isolation")
    locks = (package / "locks.py").read_text()
    shutil.rmtree(package / "__pycache__")
    (package / "locks.py").unlink()
    (package / "locks.py").write_text(locks + _BEHIND)
    shutil.copyfile(ATTACK, package / "attack.py")


@dataclass(frozen=True)
class Attacked:
    """A host with that installation; `user` has a manager of his own there."""

    fleet: Fleet
    user: str

    @property
    def host(self) -> Host:
        return self.fleet.host

    def prepare_grants(self, directory: str, user: str | None) -> None:
        """Two directories, one of them to be read, each with a link and a socket that lead out; and a secret."""
        self.host.run(["sh", "-ec", _GRANTS], env={"D": directory}, user=user)
        if user is None:  # what a keep writes is a user's, and never root's
            self.host.run(["chown", "5000:5000", f"{directory}/write"])

    def run(
        self, module: Path, port: int, user: str | None, options: tuple[str, ...], *, of_a_spare: bool = False
    ) -> Reports:
        """What was reported by the processes of a keep that ran `module`; the keep is removed."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(drop_in(self.host, _ANSWERED, user))
            cursor = self.host.cursor()
            spares = stack.enter_context(self._a_spare(user)) if of_a_spare else []
            where = ("--manager", f"127.0.0.1:{port}")
            command = ["keepctl", "run", "--detach", *options, *where, str(module)]
            done = self.host.run(command, user=user, check=False)
            kuuid = done.stdout.strip()
            assert kuuid, done.stderr
            assert not of_a_spare or unit_name(int(kuuid)) in spares
            self.host.wait_journal("attack end of runner", since_cursor=cursor)
            entries = self.host.journal(SYSLOG_IDENTIFIER=f"keep-{kuuid}")
            self.host.run(["keepctl", "rm", *where, kuuid], user=user, check=False)
        lines = [line for entry in entries for line in message_of(entry).splitlines()]  # one has several in a flood
        return _reports([line.removeprefix("app-loader: ") for line in lines])

    @contextlib.contextmanager
    def _a_spare(self, user: str | None) -> Iterator[list[str]]:
        """The unit of a spare that is ready, its forks among it; the manager keeps one in the block."""
        file = self.host.run(["sh", "-c", f"echo {_SETTINGS[user is not None]}"], user=user).stdout.strip()
        self.host.run(["sed", "--in-place", "$a spare_keeps: 1", file], user=user)
        self._reload(user)
        deadline = time.monotonic() + SOON
        while not (spares := spare_units(self.host, user)) or not self._has_its_forks(spares[0], user):
            assert time.monotonic() < deadline, spares
        try:
            yield spares
        finally:
            self.host.run(["sed", "--in-place", "/^spare_keeps/d", file], user=user)
            self._reload(user)
            # Or the next one's is this one, which has not the settings of a new unit any more.
            until(lambda: not spare_units(self.host, user, "all"), lambda: spare_units(self.host, user, "all"))

    def _reload(self, user: str | None) -> None:
        cursor = self.host.cursor()
        self.host.systemctl("reload", MANAGER, user=user)
        self.host.wait_journal("reloaded the configuration", since_cursor=cursor)

    def _has_its_forks(self, unit: str, user: str | None) -> bool:
        loader = self.host.show(unit, "MainPID", user=user)["MainPID"]
        found = self.host.run(["pgrep", "--parent", loader, "--exact", "keep-prepared"], check=False)
        return len(found.stdout.split()) == len(("endpoint", "runner"))

    def managers_drop_in(self, directory: str) -> Any:
        """The system's manager may write where it is to grant that."""
        return drop_in_for(self.host, MANAGER, f"[Service]\nReadWritePaths=-{directory}/write\n")


def _reports(lines: list[str]) -> Reports:
    found: Reports = {place: {} for place in PLACES}
    for line in lines:
        if line.startswith("attack {"):
            report = json.loads(line.removeprefix("attack "))
            found[report["place"]].setdefault(report["name"], {}).update(report["results"])
    return found
