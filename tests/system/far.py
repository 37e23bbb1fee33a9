"""A client's host of its own: a network namespace with its own address, one cable away from the manager's host."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.system.fleet import Fleet
from tests.system.host import Host

NEAR, FAR = "198.51.100.1", "198.51.100.2"
NEAR_6, FAR_6 = "2001:db8:6b66::1", "2001:db8:6b66::2"
"""Addresses for documentation (RFC 5737, RFC 3849): no network has them."""
NO_HOST = "02:00:00:00:00:01"
"""A link address no card has; the first two bits say that it was made up here."""
PYTHON = "/opt/keepfleet/bin/python"
_CABLE = """
ip netns add {name}
ip link add {name}a type veth peer name {name}b netns {name}
ip address add {near}/30 dev {name}a
ip address add {near_6}/64 dev {name}a nodad
ip link set {name}a up
ip -n {name} address add {far}/30 dev {name}b
ip -n {name} address add {far_6}/64 dev {name}b nodad
ip -n {name} link set {name}b up
ip -n {name} link set lo up
"""
_ASK = """
import json, socket, ssl, sys
address, port, name, authority, certificate, key = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(certificate, key)
try:
    with socket.create_connection((address, int(port)), 60) as plain:
        with context.wrap_socket(plain, server_hostname=name) as tls:
            tls.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
            print(json.dumps({"status": int(tls.makefile("rb").readline().split()[1])}))
except ssl.SSLCertVerificationError as error:
    print(json.dumps({"distrust": error.verify_message}))
except OSError as error:
    print(json.dumps({"failed": error.strerror or str(error)}))
"""


@dataclass(frozen=True)
class FarHost:
    """The other host. What it runs is the sandbox's; what it reaches is its cable's end."""

    host: Host
    name: str

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command there."""
        return self.host.run(self.command(*command), check=check)

    def command(self, *command: str) -> list[str]:
        """What to run on the manager's host so that `command` runs there."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    def shell(self, line: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a line that a program asks a person to type."""
        return self.run(*shlex.split(line), check=check)

    def ask(self, address: str, port: int, name: str, authority: str, files: Sequence[str]) -> dict[str, Any]:
        """GET / from there, trusting `authority` alone and the name `name`, with OpenSSL's full verification.

        `files` are our certificate and key. Says what became of it: status, distrust, or failed.
        """
        said = self.run(PYTHON, "-I", "-c", _ASK, address, str(port), name, authority, *files).stdout
        result: dict[str, Any] = json.loads(said)
        return result

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Whatever either side sends is lost on the way, and neither learns it: each has a wrong address of the other.

        IPv4 alone. A cable that is pulled would notify both.
        """
        here, there = f"{self.name}a", f"{self.name}b"
        self.host.run(["ip", "neighbour", "replace", FAR, "lladdr", NO_HOST, "nud", "permanent", "dev", here])
        self.run("ip", "neighbour", "replace", NEAR, "lladdr", NO_HOST, "nud", "permanent", "dev", there)
        try:
            yield
        finally:
            self.host.run(["ip", "neighbour", "delete", FAR, "dev", here])
            self.run("ip", "neighbour", "delete", NEAR, "dev", there)


@contextlib.contextmanager
def far_host(fleet: Fleet) -> Iterator[FarHost]:
    """The other host, joined to the manager's; the namespace takes both ends of the cable with it when it goes."""
    name = f"kf{os.getpid()}"
    values = {"name": name, "near": NEAR, "far": FAR, "near_6": NEAR_6, "far_6": FAR_6}
    try:
        fleet.host.run(["sh", "-ec", _CABLE.format(**values)])
        yield FarHost(fleet.host, name)
    finally:
        fleet.host.run(["ip", "netns", "delete", name], check=False)
