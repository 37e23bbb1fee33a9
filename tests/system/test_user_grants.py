"""What a user's own manager grants, without root: directories are mounts of the user's own, and no user is mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.fleet import MANAGER, free_port
from tests.system.host import Host, message_of
from tests.system.inside import detached
from tests.system.life import EXAMPLES

USER = "gina"
SOCKET, SERVICE = "keepfleet-grants.socket", "keepfleet-grants.service"
CLIENT = """
import json, os, sys
from keep_client.credentials import Credentials
from keep_client.keep import WORKLOAD_PATH, endpoint_of, upload
from keep_client.http import Body
from keep_client.manager import ManagerClient
from keep_client.peer import Endpoint
pki, home = os.path.expanduser("~/.config/keepfleet/pki"), os.path.expanduser("~/granted")
files = Credentials(f"{pki}/ca.crt", f"{pki}/clients/admin.crt", f"{pki}/clients/admin.key")
client = ManagerClient(Endpoint("127.0.0.1", int(sys.argv[1]), "the manager", ""), files.manager_context())
"""
"""The client library as USER has it, to be run inside."""
BEGIN = f"""{CLIENT}
kuuid = client.create().kuuid
directories = [{{"host": home, "guest": "/in"}}, {{"host": home + "/out", "guest": "/out", "writable": True}}]
given = {{"stdin": {{"file": sys.argv[4]}}, "arguments": [sys.argv[3]], "directories": directories}}
client.start(kuuid, "127.0.0.1", int(sys.argv[2]), (), given)
print(kuuid)
"""
END = f"""{CLIENT}
kuuid, module = int(sys.argv[2]), open(sys.argv[3], "rb").read()
body = Body("application/wasm", len(module), (module,))
upload(endpoint_of(client.keep(kuuid), "127.0.0.1"), files.keep_context(), "PUT", WORKLOAD_PATH, body)
code = client.ended(kuuid).outcome.exit_code
lines = [(line.source, line.text) for line in client.lines(kuuid, everything=True)]
client.remove(kuuid)
print(json.dumps({{"code": code, "lines": lines}}))
"""
"""One keep's life in two halves: the example filter, with two directories."""


@pytest.fixture(scope="module")
def user(host: Host) -> Iterator[tuple[Host, int]]:
    """USER's own manager, which may grant from ~/granted."""
    host.with_user_manager(USER)
    home = host.run(["sh", "-c", "echo $HOME"], user=USER).stdout.strip()
    host.run(["keepctl", "install", "--user"], user=USER)
    host.run(["keepctl", "init"], user=USER)
    port = free_port()
    configuration = f"{home}/.config/keepfleet/manager.yaml"
    host.run(["sed", "-i", f"s/^port:.*/port: {port}/", configuration], user=USER)
    roots = f"[{{path: {home}/granted}}, {{path: {home}/granted/out, writable: true}}]"
    script = f"mkdir -p ~/granted/out; echo x >~/granted/in; echo 'callers: {{\"*\": {{grant_roots: {roots}}}}}'"
    host.run(["sh", "-c", f"{script} >>{configuration}; chmod -R go= ~/granted"], user=USER)
    host.systemctl("start", MANAGER, user=USER)
    try:
        yield host, port
    finally:
        host.systemctl("stop", MANAGER, SOCKET, user=USER)


def lived(user: tuple[Host, int], report: str, stdin: str = "in") -> dict[str, Any]:
    """A keep's life, whose guest writes its report there, of what it reads from that file of the granted ones."""
    host, port = user
    module = host.path / "filter.wasm"
    module.write_bytes((EXAMPLES / "filter-c/filter.wasm").read_bytes())
    module.chmod(0o644)

    def ran(script: str, *arguments: str) -> str:
        command = ["/opt/keepfleet/bin/python", "-P", "-c", script, str(port), *arguments]
        return host.run(command, user=USER).stdout.strip()

    home = host.run(["sh", "-c", "echo ~"], user=USER).stdout.strip()
    kuuid = ran(BEGIN, str(free_port()), report, f"{home}/granted/{stdin}")
    loader = host.show(f"keep@{kuuid}.service", "MainPID", user=USER)["MainPID"]
    held = detached(host, int(loader))
    found: dict[str, Any] = json.loads(ran(END, kuuid, str(module)))
    return {**found, "held": len(held)}


def test_a_guest_writes_where_it_may_and_the_files_are_the_user_s(user: tuple[Host, int]) -> None:
    found = lived(user, "/out/report")
    assert (found["code"], found["held"]) == (0, 2), "both are mounts that no path of the host's leads to"
    assert "keep" in [source for source, _ in found["lines"]]
    listed = user[0].run(["sh", "-c", "stat --format=%a-%U ~/granted/out/report"], user=USER).stdout
    assert listed.strip() == f"600-{USER}"


def test_what_is_granted_to_be_read_is_read_only_although_the_user_could_write(user: tuple[Host, int]) -> None:
    found = lived(user, "/in/report")
    assert found["code"] == 1
    assert any("cannot open /in/report" in text for _, text in found["lines"])


def test_a_file_system_mounted_while_the_helper_runs_is_granted_with_its_directory(user: tuple[Host, int]) -> None:
    host, _ = user
    lived(user, "/out/report")  # the helper is there
    place = host.run(["sh", "-c", "cd ~/granted/out; mkdir later; touch later/hidden; pwd"], user=USER).stdout.strip()
    host.run(["mount", "-t", "tmpfs", "-o", "mode=0777", "later", f"{place}/later"])
    try:
        assert lived(user, "/out/later/report")["code"] == 0
        assert host.run(["ls", f"{place}/later"]).stdout == "report\n"
        host.run(["sh", "-c", f"echo seen >{place}/later/in; chmod 0644 {place}/later/in"])
        assert ["stdout", "1 SEEN"] in lived(user, "/out/later/report", "out/later/in")["lines"]
    finally:
        host.run(["umount", f"{place}/later"])


def test_the_units_are_clean_and_the_helper_leaves_nothing(user: tuple[Host, int]) -> None:
    host, _ = user
    done = host.run(["systemd-analyze", "--user", "verify", "--man=no", SOCKET, SERVICE], user=USER)
    assert done.stdout + done.stderr == ""


def test_where_users_may_make_no_namespaces_a_directory_is_as_it_is_and_the_journal_says_so(
    user: tuple[Host, int],
) -> None:
    host, _ = user
    place = "/run/systemd/user/keepfleet-grants.service.d"
    host.run(["mkdir", "-p", place])
    host.run(["tee", f"{place}/90-test.conf"], input="[Service]\nSystemCallFilter=~unshare\n")
    host.systemctl("daemon-reload", user=USER)
    host.systemctl("stop", SERVICE, user=USER)
    cursor = host.cursor()
    try:
        found = lived(user, "/out/report")
    finally:
        host.run(["rm", "-r", place])
        host.systemctl("daemon-reload", user=USER)
        host.systemctl("stop", SERVICE, user=USER)
    assert (found["code"], found["held"]) == (0, 0)
    said = message_of(host.wait_journal("it is no mount of its own", since_cursor=cursor))
    assert "this host lets no user make mounts of its own" in said


def test_files_as_is_refused_in_a_user_s_configuration(user: tuple[Host, int]) -> None:
    host, _ = user
    text = 'callers: {"*": {grant_roots: [{path: /x, files_as: nobody}]}}\\n'
    done = host.run(
        ["sh", "-c", f"printf '{text}' >~/other.yaml; keep-manager --check-config --config ~/other.yaml"],
        user=USER,
        check=False,
    )
    assert done.returncode == 2
    assert "files_as has no use in a user's own instance" in done.stderr
