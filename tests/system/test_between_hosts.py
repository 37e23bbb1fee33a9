"""A client on another host: its own network namespace and address, and names and addresses that it verifies."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from keep_client.endpoint import Endpoint
from keep_client.manager import ManagerClient
from tests.system.fleet import Fleet
from tests.system.life import example

NAME = "edge.example"
CLIENT_SECONDS = 60
# What a client there runs: full verification of the manager by name or address, and of a keep by its own certificate.
VERIFY = """
import json, socket, ssl, sys
ca, host, port, name = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(sys.argv[5], sys.argv[6])
try:
    with socket.create_connection((host, port), 20) as plain, context.wrap_socket(plain, server_hostname=name) as sock:
        print(json.dumps({"verified": True, "from": sock.getsockname()[0]}))
except ssl.SSLCertVerificationError as error:
    print(json.dumps({"verified": False, "why": error.verify_message}))
"""


@dataclass(frozen=True)
class Elsewhere:
    """Another host: a network namespace joined to ours by one cable. here and there: the cable's two addresses."""

    namespace: str
    here: str
    there: str
    python: str

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command there."""
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *argv],
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            check=check,
        )

    def verifies(self, fleet: Fleet, port: int, name: str, ca: str | None = None) -> dict[str, object]:
        """Whether a client there trusts what listens here on `port` to be `name`."""
        own = fleet.credentials()
        files = (ca or str(fleet.pki / "ca.crt"), self.here, str(port), name, own.certificate, own.key)
        value: dict[str, object] = json.loads(self.run(self.python, "-c", VERIFY, *files).stdout)
        return value


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """The other host, gone again at the end; its addresses are of a block for documentation (RFC 5737)."""
    name = f"kf{os.getpid() % 100_000}"
    inner, outer = f"{name}i", f"{name}o"
    net = ipaddress.ip_network("198.51.100.128/30")
    here, there = (str(address) for address in net.hosts())
    steps = (
        ["netns", "add", name],
        ["link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name],
        ["address", "add", f"{here}/30", "dev", outer],
        ["link", "set", outer, "up"],
        ["-n", name, "address", "add", f"{there}/30", "dev", inner],
        ["-n", name, "link", "set", inner, "up"],
    )
    try:
        for step in steps:
            subprocess.run(["ip", *step], check=True, capture_output=True)
        yield Elsewhere(name, here, there, sys.executable)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", outer], check=False, capture_output=True)


@pytest.fixture(scope="module")
def reachable(installed_fleet: Fleet, elsewhere: Elsewhere) -> Iterator[Fleet]:
    """The manager, listening on the cable's address, with a certificate for that address and a name."""
    installed_fleet.host.run(["keepctl", "pki", "renew-server", "--name", NAME, "--address", elsewhere.here])
    with installed_fleet.configured(address=elsewhere.here):
        yield installed_fleet
        units = installed_fleet.keep_units()
        if units:
            installed_fleet.host.systemctl("stop", *units)


def manager(fleet: Fleet, elsewhere: Elsewhere) -> ManagerClient:
    return ManagerClient(Endpoint(elsewhere.here, fleet.port, "the manager", ""), fleet.credentials().manager_context())


@pytest.mark.parametrize("name", [NAME, None])
def test_a_client_elsewhere_verifies_the_manager_by_name_and_by_address(
    reachable: Fleet, elsewhere: Elsewhere, name: str | None
) -> None:
    found = elsewhere.verifies(reachable, reachable.port, name or elsewhere.here)
    assert found == {"verified": True, "from": elsewhere.there}


@pytest.mark.parametrize("name", ["other.example", "198.51.100.200"])
def test_a_client_elsewhere_trusts_the_manager_under_no_other_name(
    reachable: Fleet, elsewhere: Elsewhere, name: str
) -> None:
    found = elsewhere.verifies(reachable, reachable.port, name)
    assert not found["verified"]
    assert "mismatch" in str(found["why"]) or "not valid for" in str(found["why"])


def test_a_keep_proves_its_address_and_its_name_by_its_own_certificate(reachable: Fleet, elsewhere: Elsewhere) -> None:
    client = manager(reachable, elsewhere)
    keep = client.create()
    port = free_port_of(elsewhere.here)
    started = client.start(keep.kuuid, elsewhere.here, port, (NAME,))
    assert (started.address, started.port) == (elsewhere.here, port)
    trusted = reachable.host.path / f"{keep.kuuid}.pem"
    trusted.write_text(started.certificate)
    for name in (elsewhere.here, NAME):
        assert elsewhere.verifies(reachable, port, name, str(trusted))["verified"], name
    for name in ("other.example", "127.0.0.1"):
        assert not elsewhere.verifies(reachable, port, name, str(trusted))["verified"], name
    assert not elsewhere.verifies(reachable, port, elsewhere.here)["verified"], "no CA speaks for a keep"


def test_the_testers_do_their_whole_job_from_elsewhere(reachable: Fleet, elsewhere: Elsewhere) -> None:
    own = reachable.credentials()
    port = free_port_of(elsewhere.here)
    files = ["--ca", own.ca, "--cert", own.certificate, "--key", own.key]
    walked = elsewhere.run(
        *(elsewhere.python, "-m", "testers.keep_manager_tester", "--yes", "--manager"),
        *(f"{elsewhere.here}:{reachable.port}", "--address", elsewhere.here, "--port", str(port), *files),
        check=False,
    )
    assert walked.returncode == 0, walked.stdout + walked.stderr
    fingerprint = walked.stdout.rsplit("--fingerprint ", 1)[1].split()[0]
    file = reachable.host.path / "sent.wasm"
    file.write_bytes(example("return-1/return-1"))
    sender = [elsewhere.python, "-m", "testers.app_loader_tester", str(port), "--address", elsewhere.here, *files[2:]]
    wrong = elsewhere.run(*sender, "--fingerprint", "sha256:" + "0" * 64, str(file), check=False)
    assert wrong.returncode != 0
    assert "cannot trust" in wrong.stdout + wrong.stderr
    sent = elsewhere.run(*sender, "--fingerprint", fingerprint, str(file), check=False)
    assert sent.returncode == 0, sent.stdout + sent.stderr


def test_a_pin_refuses_every_other_keep(reachable: Fleet, elsewhere: Elsewhere) -> None:
    client = manager(reachable, elsewhere)
    doors = [client.start(client.create().kuuid, elsewhere.here, free_port_of(elsewhere.here)) for _ in range(2)]
    certificates = [ssl.get_server_certificate((door.address, door.port)) for door in doors]
    assert certificates == [door.certificate for door in doors]
    assert len({door.fingerprint for door in doors}) == 2


def free_port_of(address: str) -> int:
    """A port of `address` that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
