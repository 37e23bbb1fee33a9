"""The manager in a user's own service manager: no root anywhere."""

from __future__ import annotations

import json

from tests.system.fleet import MANAGER, free_port
from tests.system.host import Host


def test_a_user_s_manager_makes_starts_and_removes_a_keep(host: Host) -> None:
    user = host.with_user_manager("tess")
    home = host.run(["sh", "-c", "echo $HOME"], user=user).stdout.strip()
    host.run(["keepctl", "install", "--user"], user=user)
    host.run(["keepctl", "init"], user=user)
    port = free_port()
    host.run(["sed", "-i", f"s/^port:.*/port: {port}/", f"{home}/.config/keepfleet/manager.yaml"], user=user)
    host.systemctl("start", MANAGER, user=user)
    manager = ["--manager", f"127.0.0.1:{port}"]
    kuuid = host.run(["keepctl", "new", *manager], user=user).stdout.split()[0]
    assert host.units("keep@*", user=user) == [f"keep@{kuuid}.service"]
    host.run(["keepctl", "start", *manager, kuuid], user=user)
    shown = json.loads(host.run(["keepctl", "inspect", *manager, kuuid], user=user).stdout)
    assert (shown["state"], shown["bindaddress"]) == (2, "127.0.0.1")
    cursor = host.cursor()
    host.systemctl("kill", "--signal=KILL", MANAGER, user=user)
    host.wait_journal(f"ready on https://127.0.0.1:{port}", since_cursor=cursor)
    assert json.loads(host.run(["keepctl", "inspect", *manager, kuuid], user=user).stdout) == shown
    host.run(["keepctl", "rm", *manager, kuuid], user=user)
    assert host.units("keep@*", user=user) == []
    host.systemctl("stop", MANAGER, user=user)
