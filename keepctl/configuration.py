"""The manager's first configuration file: what is worth knowing about, with its default, as a comment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from keepctl import files

_TEXT = """\
# keep-manager's configuration. Check it with: keep-manager --check-config
# What stands nowhere has its default; an unknown key is an error.

# Where the manager listens for its clients. To be reached from other hosts: 0.0.0.0, or one of this host's addresses
# (its certificate must name it: keepctl pki renew-server --address …).
address: 127.0.0.1
port: 3030

# The certificates: made by keepctl init, looked after by keepctl pki.
pki: {pki}

# required, or optional: let clients without a certificate in (those of 2020 have none).
client_certificates: required
"""


def path_beside(directory: str) -> str:
    """Where manager.yaml stands for a PKI directory: beside it."""
    return os.path.join(os.path.dirname(directory), "manager.yaml")


@contextmanager
def written_if_missing(path: str, directory: str) -> Iterator[bool]:
    """The file, naming `directory`, unless there is one; yields whether it is new. Gone again if the block fails."""
    quoted = "'" + directory.replace("'", "''") + "'"
    with files.explained(f"write {path}"):
        files.make_directories(os.path.dirname(path), files.PUBLIC_DIRECTORY)
        try:
            files.write_new(path, _TEXT.format(pki=quoted).encode("utf-8"), files.PRIVATE_FILE)
            new = True
        except FileExistsError:
            new = False
    try:
        yield new
    except BaseException:
        if new:
            os.unlink(path)
        raise
