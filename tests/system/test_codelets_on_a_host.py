"""Codelets of an application that is a unit of its own: through the manager, and through the proxy's unit."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.fixtures import INSTALLED
from tests.system.fleet import Fleet, free_port
from tests.system.host import Host
from tests.system.test_typed_docs import ROOT, blocks, typed_inside
from tests.system.test_units_on_systemd import score

PROXY_SCORE = 0.3
"""`systemd-analyze security`, 0 to 10."""
COUNTER = (ROOT / "examples/codelet-counter-c/counter.wasm").read_bytes()
APPLICATION = f"""
import base64, io, pwd, signal
from codelets import Runtime
from keep_protocol.sdnotify import Notifier
from module_store.store import Store

module = io.BytesIO(base64.b64decode({base64.b64encode(COUNTER).decode()!r}))
Store.create("/run/counted/store").add(module, reference="counter:1.0")
users = (pwd.getpwnam("codelets-proxy").pw_uid,)
runtime = Runtime("/run/counted/store", lcm_socket="/run/counted/lcm.sock", lcm_users=users)
ingress = runtime.hook("ingress", "<II")
signal.signal(signal.SIGUSR1, lambda *_: ingress(bytearray(8)))
Notifier().send("READY=1")
while True:
    signal.pause()
"""
DESCRIPTOR = """
codeletset_id: counting
codelet_descriptor:
  - codelet_name: counter
    codelet_path: counter:1.0
    hook_name: ingress
    out_io_channel: [{name: output, stream_id: "00112233445566778899aabbccddeeff"}]
    in_io_channel: [{name: input, stream_id: "ff112233445566778899aabbccddeeff"}]
"""
UNIT = """[Service]
Type=notify
User=daemon
RuntimeDirectory=counted
ExecStart=%s %s
"""


@pytest.fixture(scope="module")
def descriptor(fleet: Fleet) -> str:
    path = fleet.host.path / "counting.yaml"
    path.write_text(DESCRIPTOR)
    return str(path)


@pytest.fixture(scope="module")
def fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """With the application `counted`, of the user `daemon`, which admits the proxy's user."""
    host = installed_fleet.host
    host.run(["sh", "-c", "id codelets-proxy || useradd --system codelets-proxy"])
    program, unit = host.path / "counted.py", "/etc/systemd/system/counted.service"
    program.write_text(APPLICATION)
    program.chmod(0o644)
    host.run(["tee", unit], input=UNIT % (f"{INSTALLED}/bin/python", program))
    host.daemon_reload()
    host.systemctl("start", "counted.service")
    yield installed_fleet
    host.systemctl("stop", "counted.service")
    host.run(["rm", unit])
    host.daemon_reload()


def keepctl(host: Host, *words: str, check: bool = True) -> str:
    """What it prints, typed on the host: what is attached is a file of the host's."""
    done = host.run(["keepctl", *words], check=check)
    return done.stdout + ("" if check else done.stderr)


def sets(fleet: Fleet) -> list[dict[str, Any]]:
    found = json.loads(keepctl(fleet.host, "codelets", "ls", "counted", "-o", "json"))
    assert isinstance(found, list)
    return found


def test_a_set_is_loaded_into_a_service_of_another_user_and_unloaded(fleet: Fleet, descriptor: str) -> None:
    host = fleet.host
    said = keepctl(host, "codelets", "attach", "counted", "/run/counted/lcm.sock")
    assert said == "attached counted: operators load; /etc/keepfleet/codelets.d/counted.yaml\n"
    assert keepctl(host, "codelets", "load", "counted", descriptor) == "loaded counting\n"
    host.systemctl("kill", "--signal=USR1", "counted.service")
    while sets(fleet)[0]["codelets"][0]["calls"] < 1:
        pass  # the next answer is what is waited for
    assert "it is loaded" in keepctl(host, "codelets", "load", "counted", descriptor, check=False)
    assert keepctl(host, "codelets", "unload", "counted", "counting") == "unloaded counting\n"
    assert sets(fleet) == []


def test_a_socket_of_another_user_in_its_place_is_not_spoken_to(fleet: Fleet) -> None:
    keepctl(fleet.host, "codelets", "attach", "counted", "/run/counted/lcm.sock", "--user", "nobody")
    said = keepctl(fleet.host, "codelets", "ls", "counted", check=False)
    assert re.search("user [0-9]+ listens on /run/counted/lcm.sock, not nobody", said), said
    keepctl(fleet.host, "codelets", "detach", "counted")
    assert "none of that name is attached" in keepctl(fleet.host, "codelets", "ls", "counted", check=False)


def test_the_how_to_s_commands_can_be_typed(fleet: Fleet) -> None:
    output = typed_inside(fleet, blocks("docs/how-to/codelets.md", "bash"))
    for said in ("attached forwarder", "loaded queue-stats", "unloaded queue-stats", "detached forwarder"):
        assert said in output, output
    assert re.search(r"^queue-stats +loaded +queue +egress +0 ", output, re.MULTILINE), output


# --- the proxy's unit ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[int]:
    """The port that the proxy's socket unit listens on, with a certificate of the manager's names."""
    host, port = fleet.host, free_port()
    pair, place = "/etc/keepfleet/pki/manager", "/etc/keepfleet/codelets-proxy/counted"
    host.run(["install", "-D", "-m", "0644", f"{pair}.crt", f"{place}.crt"])
    host.run(["install", "-m", "0400", "-o", "codelets-proxy", f"{pair}.key", f"{place}.key"])
    drop_in = "/etc/systemd/system/codelets-proxy@counted.socket.d"
    host.run(["mkdir", "-p", drop_in])
    host.run(["tee", f"{drop_in}/port.conf"], input=f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
    host.daemon_reload()
    host.systemctl("start", "codelets-proxy@counted.socket")
    yield port
    host.systemctl("stop", "codelets-proxy@counted.socket", "codelets-proxy@counted.service")
    host.run(["rm", "-r", drop_in])
    host.daemon_reload()


def asked(fleet: Fleet, port: int, method: str, path: str, body: str = "", name: str = "admin") -> tuple[int, Any]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=fleet.tls(name), timeout=60)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/yaml"} if body else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_proxy_s_unit_is_started_by_a_client_and_loads_for_it(fleet: Fleet, proxy: int) -> None:
    assert asked(fleet, proxy, "POST", "/codeletsets", DESCRIPTOR) == (201, {"codeletset_id": "counting"})
    assert asked(fleet, proxy, "DELETE", "/codeletsets/counting") == (200, {"codeletset_id": "counting"})
    assert asked(fleet, proxy, "GET", "/codeletsets") == (200, {"codeletsets": []})


def test_the_proxy_reaches_the_application_s_socket_and_nothing_else(fleet: Fleet, proxy: int) -> None:
    asked(fleet, proxy, "GET", "/codeletsets")
    process = fleet.host.show("codelets-proxy@counted.service", "MainPID")["MainPID"]
    inside = ["nsenter", "--target", process]
    assert fleet.host.run([*inside, "--mount", "ls", "/run"]).stdout.split() == ["codelets-proxy", "counted", "systemd"]
    own = fleet.host.run([*inside, "--mount", "find", "/run/systemd", "!", "-type", "d"]).stdout
    assert own.split() == ["/run/systemd/notify"]
    routes = fleet.host.run([*inside, "--net", "cat", "/proc/net/route"]).stdout
    assert len(routes.splitlines()) == 1, "its heading alone"


def test_the_proxy_sees_that_a_certificate_was_revoked(fleet: Fleet, proxy: int) -> None:
    fleet.issue("lena", "--role", "viewer")
    assert asked(fleet, proxy, "GET", "/codeletsets", name="lena")[0] == 200
    assert asked(fleet, proxy, "DELETE", "/codeletsets/counting", name="lena")[0] == 403
    fleet.keepctl("pki", "revoke", "lena")
    status, answer = asked(fleet, proxy, "GET", "/codeletsets", name="lena")
    assert (status, "revoked" in answer["error"]["message"]) == (403, True)


def test_systemd_has_nothing_to_say_against_the_proxy_s_units(fleet: Fleet, proxy: int) -> None:
    names = ["codelets-proxy@counted.socket", "codelets-proxy@counted.service"]
    done = fleet.host.run(["systemd-analyze", "verify", "--man=no", *names])
    assert done.stdout + done.stderr == ""
    assert score(fleet.host, names[1]) <= PROXY_SCORE
