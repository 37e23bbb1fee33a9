"""A real systemd whose keeps' loaders are one shell line, for tests of the adapter to systemd alone."""

from __future__ import annotations

from tools.sandbox.sandbox import Sandbox

DROP_IN = "/etc/systemd/system/keep@.service.d/10-test.conf"
BEHAVIOUR = "/run/behaviour"
WORDS = "/run/words"
RUNTIME_ROOT = "/run"
UNIT = f"""
[Unit]
CollectMode=inactive
[Service]
Type=notify
NotifyAccess=all
TimeoutStartSec=30
TimeoutStopSec=2
RuntimeDirectory=keepfleet/%i
Restart=on-failure
RestartSec=60
ExecStart=/bin/sh -c 'case $(cat {BEHAVIOUR}) in \\
  ready) systemd-notify --ready;; slow) sleep 1; systemd-notify --ready;; never) ;; fail) exit 7;; \\
  prints) echo one; printf "t\\\\vwo\\\\377\\\\n"; systemd-notify --ready; \\
    read -r line <{WORDS}; echo "$line";; esac; \\
  exec sleep infinity'
"""


class RealSystemd:
    """A booted sandbox with that drop-in. Everything is reached from outside, through PID 1's root directory."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.root = f"/proc/{sandbox.pid}/root"
        self.runtime_root = self.root + RUNTIME_ROOT
        self.address = f"unix:path={self.root}/run/dbus/system_bus_socket"
        self._lift_limits()
        self.install()
        self.behave("ready")

    def __repr__(self) -> str:
        return f"RealSystemd({self.sandbox})"

    def run(self, *command: str, check: bool = True, text: str | None = None) -> str:
        """What a command inside prints."""
        done = self.sandbox.exec(command, timeout=60, input=text)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def _lift_limits(self) -> None:
        """Tests kill the bus more often than systemd would start it again in ten seconds."""
        for unit, text in (
            ("dbus.service", "[Unit]\nStartLimitIntervalSec=0\n"),
            ("dbus.socket", "[Unit]\nStartLimitIntervalSec=0\n[Socket]\nTriggerLimitIntervalSec=0\n"),
        ):
            self.run("mkdir", "-p", f"/etc/systemd/system/{unit}.d")
            self.run("tee", f"/etc/systemd/system/{unit}.d/limits.conf", text=text)

    def install(self) -> None:
        """Puts the drop-in there."""
        self.run("mkdir", "-p", DROP_IN.rpartition("/")[0])
        self.run("tee", DROP_IN, text=UNIT)
        self.run("systemctl", "daemon-reload")

    def uninstall(self) -> None:
        """Takes the drop-in away."""
        self.run("rm", "-f", DROP_IN)
        self.run("systemctl", "daemon-reload")

    def mask(self, on: bool) -> None:
        """Masks the template of keeps, or unmasks it."""
        self.run("systemctl", "mask" if on else "unmask", "keep@.service")

    def behave(self, how: str) -> None:
        """What loaders do from now on: "ready", "slow" (ready after a second), "never", "fail" or
        "prints" (two lines, and a third one that a test writes to WORDS)."""
        self.run("tee", BEHAVIOUR, text=how)

    def units(self) -> list[str]:
        """The keeps' units as systemctl lists them."""
        lines = self.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "keep@*.service").splitlines()
        return [line.split()[0] for line in lines]

    def clear(self) -> None:
        """Ends every keep."""
        self.behave("ready")
        if units := self.units():
            self.run("systemctl", "stop", *units, check=False)
            self.run("systemctl", "reset-failed", *units, check=False)
