"""The first manager.yaml, with defaults in comments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from keep_protocol.constants import DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT
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
