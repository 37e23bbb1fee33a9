"""A user with a systemd user manager of its own in a sandbox: what logind and PAM do on a host booted with systemd."""

from __future__ import annotations

from tools.sandbox.errors import SandboxError
from tools.sandbox.sandbox import Sandbox

_START_SECONDS = 30.0
"""A user manager starts in a tenth of a second; this covers a host three hundred times busier."""
# Name and slice are those of a host with logind: journald finds a user unit's name by them.
_UNIT = """[Unit]
Description=User manager of {user}
After=dbus.socket

[Service]
Type=notify
User={user}
RuntimeDirectory=user/{uid}
RuntimeDirectoryMode=0700
Environment=XDG_RUNTIME_DIR=/run/user/{uid} DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus HOME={home}
WorkingDirectory={home}
ExecStart=/lib/systemd/systemd --user --unit=basic.target --log-target=journal
Slice=user-{uid}.slice
KillMode=mixed
Delegate=pids memory cpu
TasksMax=infinity
TimeoutStopSec=20s
"""


def _must(
    sandbox: Sandbox, *command: str, user: str = "root", env: dict[str, str] | None = None, given: str = ""
) -> str:
    done = sandbox.exec(command, user=user, env=env, input=given, timeout=_START_SECONDS)
    if done.returncode != 0:
        raise SandboxError(f"cannot start a user manager in {sandbox.name}: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def add_user(sandbox: Sandbox, user: str) -> None:
    """Adds an ordinary user with a home directory, in the sandbox alone. Raises SandboxError where that fails."""
    _must(
        sandbox,
        "useradd",
        "--create-home",
        "--no-log-init",
        "--groups",
        "systemd-journal",
        "--shell",
        "/bin/bash",
        user,
    )


def start_user_manager(sandbox: Sandbox, user: str) -> dict[str, str]:
    """Starts `systemd --user` and a session bus for `user`, adding the user where there is none.

    Returns the environment in which `Sandbox.exec(…, user=user, env=…)` reaches them. Raises SandboxError where
    one of them does not come up.
    """
    if sandbox.exec(["id", user]).returncode != 0:
        add_user(sandbox, user)
    _, _, uid, _, _, home, _ = _must(sandbox, "getent", "passwd", user).split(":")
    unit = f"/run/systemd/system/user@{uid}.service"
    _must(sandbox, "tee", unit, given=_UNIT.format(user=user, uid=uid, home=home))
    _must(sandbox, "systemctl", "daemon-reload")
    _must(sandbox, "systemctl", "start", f"user@{uid}.service")
    runtime = f"/run/user/{uid}"
    env = {"XDG_RUNTIME_DIR": runtime, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus", "HOME": home}
    _must(sandbox, "systemctl", "--user", "start", "dbus.socket", user=user, env=env)
    return env
