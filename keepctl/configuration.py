"""manager.yaml as keepctl sees it: the first one, with defaults in comments, and where it says a manager listens."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from keep_client.peer import authority
from keep_protocol.constants import DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT
from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import files

_TEXT = """\
# keep-manager's configuration. Check it with: keep-manager --check-config
# What is left out has its default; an unknown key is an error.

# Where the manager listens for its clients. To be reached from other hosts: 0.0.0.0, or one of this host's addresses
# (its certificate must name it: keepctl pki renew-server --address …).
address: {address}
port: {port}

# The ports of keeps, for which a firewall has to be open too where clients are on other hosts.
# keep_ports: {{first: 3031, last: 3130}}

# The certificates: made by keepctl init, looked after by keepctl pki.
pki: {pki}

# required, or optional: let clients without a certificate in (those of 2020 have none).
client_certificates: required
"""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what is written there, not what we bind
"""What listens on every address is met here at this one."""
_LINE = re.compile(r"^(address|port):[ \t]+[\"']?([0-9A-Fa-f.:]+)[\"']?[ \t]*(?:#.*)?$", re.ASCII | re.MULTILINE)
_MENTION = re.compile(r"^[^#\n]*\b(?:address|port)[\"']?\s*:", re.ASCII | re.MULTILINE)


def configuration_path(directory: str) -> str:
    """Where manager.yaml lies for a PKI directory: next to it."""
    return os.path.join(os.path.dirname(directory), "manager.yaml")


def listening_address(addresses: tuple[str, ...]) -> str:
    """Where a manager is to listen that is reached at `addresses`: at the one, or at every address of its family (of
    IPv4, where there are both: a socket is of one family)."""
    if len(addresses) <= 1:
        return addresses[0] if addresses else DEFAULT_MANAGER_ADDRESS
    return "::" if all(":" in address for address in addresses) else "0.0.0.0"  # it was asked for


@contextmanager
def written_if_missing(path: str, directory: str, address: str = DEFAULT_MANAGER_ADDRESS) -> Iterator[bool]:
    """The file, naming `directory` and `address`, unless there is one; yields whether it is new. Gone again if the
    block fails."""
    quoted = "'" + directory.replace("'", "''") + "'"
    text = _TEXT.format(pki=quoted, address=f"'{address}'" if ":" in address else address, port=DEFAULT_MANAGER_PORT)
    with files.explained(f"write {path}"):
        files.make_directories(os.path.dirname(path), files.PUBLIC_DIRECTORY)
        try:
            files.write_new(path, text.encode("utf-8"), files.PRIVATE_FILE)
            new = True
        except FileExistsError:
            new = False
    try:
        yield new
    except BaseException:
        if new:
            os.unlink(path)
        raise


def local_manager(directory: str) -> str:
    """HOST:PORT of this host's manager, as the manager.yaml next to a PKI directory says it; the defaults where
    there is none, or none that we may read. Raises KeepfleetError(CONFIGURATION) for one that cannot be understood."""
    path = configuration_path(directory)
    try:
        with open(path, "rb") as file:  # a link is followed: the manager follows it, too
            data = file.read(files.MAX_FILE_BYTES)
    except OSError:
        data = b""
    found = _settings(data, path)
    address, port = found.get("address", DEFAULT_MANAGER_ADDRESS), found.get("port", str(DEFAULT_MANAGER_PORT))
    if not _is_address(address) or not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot read where the manager listens in {path}; name it with --manager HOST:PORT, and see: "
            "keep-manager --check-config",
        )
    return authority(_EVERYWHERE.get(address, address), int(port))


def _is_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return False
    return True


def _settings(data: bytes, path: str) -> dict[str, str]:
    """`address` and `port` where they are given; read without YAML's 15 ms where they are plain lines, as ours are."""
    text = data.decode("utf-8", "replace")
    lines = _LINE.findall(text)
    if len(lines) == len(_MENTION.findall(text)):
        return dict(lines)
    from strict_yaml.tree import parse

    tree, faults = parse(data)
    if faults:
        why = "it is not understood; name the manager with --manager HOST:PORT, and see: keep-manager --check-config"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {path}: {why}", tuple(map(str, faults)))
    value = tree.value if tree is not None else None
    entries = value if isinstance(value, dict) else {}
    return {name: entries[name].text for name in ("address", "port") if name in entries}
