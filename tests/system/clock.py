"""A host whose clock is set while everything runs: manager, journalctl, loaders, endpoints and runners see it.

libfaketime stands between these processes and the kernel's clock. CLOCK_MONOTONIC stays the kernel's, as it does when
a real clock is set; so do PID 1's timers, which are monotonic. journald cannot take part: libfaketime's timerfd_settime
fails in it with EINVAL, and it ends (0.9.10, systemd 252). The machine's clock is never touched.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterator

from tests.system import certificates
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import Host
from tests.system.life import drop_in

HOUR, DAY = 3600, 86400
NORMAL = 2 * HOUR
"""What the clock shows at first is so far ahead of the machine's: an hour back is then still after the certificates,
which were made by the machine's clock."""
LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"
SHOWN = "/run/clock"
"""A directory of the sandbox's, which every keep under the clock sees at the same place."""
FILE, LOADER, PRELOADED = f"{SHOWN}/now", f"{SHOWN}/loader.py", f"{SHOWN}/libfaketime.so"
_LOADER = """import os, runpy, sys
main = sys.argv.pop(1)
sys.path.append(os.path.dirname(os.path.dirname(main)))
from keep_loader.settings import Settings
ours = {name: text for name, text in os.environ.items() if "FAKE" in name or name == "LD_PRELOAD"}
theirs = Settings.runner_environment
Settings.runner_environment = lambda settings: {**theirs(settings), **ours}
runpy.run_path(main, run_name="__main__")
"""
"""The loader, which passes nothing of its environment on, passes this on to what it starts."""


def environment() -> dict[str, str]:
    """What makes a process see the clock."""
    found = glob.glob(LIBRARY)
    assert found, f"there is no {LIBRARY}; ./run test installs it (Debian's package libfaketime)"
    names = ("FAKETIME_DONT_FAKE_MONOTONIC", "DONT_FAKE_MONOTONIC", "FAKETIME_NO_CACHE", "NO_FAKE_STAT")
    waits = {"FAKETIME_FORCE_MONOTONIC_FIX": "0"}  # or waits for Python's lock spin: a hundred times the processor time
    return {"LD_PRELOAD": PRELOADED, "FAKETIME_TIMESTAMP_FILE": FILE, **waits, **dict.fromkeys(names, "1")}


class Clock:
    """The clock of a host; `normal` is what it shows at first."""

    def __init__(self, host: Host) -> None:
        self._host = host
        (library,) = glob.glob(LIBRARY)
        host.run(["install", "-D", "--mode=644", library, PRELOADED])
        self.set_by(0)

    def __repr__(self) -> str:
        return f"Clock(of {self._host})"

    def set_by(self, seconds: int) -> None:
        """From now on it shows so much more than it normally would, for every process together."""
        self._host.run(["tee", f"{FILE}.new"], input=f"{NORMAL + seconds:+d}\n")
        self._host.run(["mv", f"{FILE}.new", FILE])


class ClockedFleet(Fleet):
    """A fleet on a host with a clock, and an administrator whose certificate is good at any time it may show."""

    def install(self) -> None:
        """As an operator does; only that the CA was made 500 days ago."""
        self.clock = Clock(self.host)
        self.host.run(["keepctl", "install", "--system"])
        self.clock.set_by(-500 * DAY)
        self.host.run(["keepctl", "init"], env=environment())
        self.clock.set_by(0)
        self.host.run(["keepctl", "pki", "renew-server"])
        ever, files = certificates.HOUR * 24 * 450, self.pki / "clients"
        both = certificates.issue(
            certificates.installed_ca(self), files / "admin.key", "admin", begins=-ever, ends=ever
        ).read_bytes()
        (files / "admin.crt").write_bytes(both)
        self.configure()
        self.host.run(["tee", LOADER], input=_LOADER)

    @contextlib.contextmanager
    def under_the_clock(self) -> Iterator[None]:
        """The manager and every keep made meanwhile see the clock."""
        lines = "".join(f"Environment={name}={text}\n" for name, text in environment().items())
        installed = self.host.run(["cat", "/etc/systemd/system/keep@.service.d/10-keepfleet.conf"]).stdout
        command = re.search(r"^ExecStart=(.+) (\S+ %i)$", installed, re.MULTILINE)
        assert command is not None, installed
        start = f"BindReadOnlyPaths={SHOWN}\nExecStart=\nExecStart={command[1]} {LOADER} {command[2]}\n"
        with contextlib.ExitStack() as stack:
            for unit, more in ((MANAGER, ""), ("keep@.service", start)):
                stack.enter_context(drop_in(self.host, unit, f"[Service]\n{lines}{more}"))
            self.restart()
            yield
