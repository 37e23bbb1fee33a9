"""The files by which systemd gives journald the fields of a keep's lines (KEEP_ID, …): removed in its stead, and
written when a spare becomes a keep.

systemd writes one for each unit with LogExtraFields= and, when the unit goes, unlinks another name (252, and later
ones too): every keep that ever was would leave a file in memory.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Sequence
from contextlib import suppress

from keep_protocol.constants import kuuid_of_unit, unit_name

LOG = logging.getLogger("keepfleet.units")
_PREFIX = "log-extra-fields:"


class FieldFiles:
    """Those files of one systemd instance; a user's instance has none."""

    def __init__(self, runtime_root: str) -> None:
        self._directory = f"{runtime_root}/systemd/units"

    def __repr__(self) -> str:
        return f"FieldFiles({self._directory!r})"

    def kuuids(self) -> set[int]:
        """The keeps that have one."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return set()
        except OSError as error:  # they are for tidying up: the next look finds them
            LOG.warning("cannot list journald's settings of keeps: %s", error.strerror)
            return set()
        found = (kuuid_of_unit(name.removeprefix(_PREFIX)) for name in names if name.startswith(_PREFIX))
        return {kuuid for kuuid in found if kuuid is not None}

    def write(self, kuuid: int, fields: Sequence[bytes]) -> None:
        """Writes the fields of a unit that runs, as systemd does before it starts one: journald looks at the file again
        when it has changed. Of a unit that has none, as in a user's instance, nothing is written. Raises OSError."""
        path = f"{self._directory}/{_PREFIX}{unit_name(kuuid)}"
        if not os.path.exists(path):
            return
        beginning = f"{self._directory}/.{_PREFIX}{unit_name(kuuid)}"
        data = b"".join(struct.pack("<Q", len(field)) + field for field in fields)
        try:
            with open(os.open(beginning, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644), "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o644)
            os.rename(beginning, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(beginning)
            raise

    def remove(self, kuuid: int) -> None:
        """Removes the file of a keep whose unit has gone. One that is not there is no error."""
        try:
            os.unlink(f"{self._directory}/{_PREFIX}{unit_name(kuuid)}")
        except FileNotFoundError:
            return
        except OSError as error:
            LOG.warning("cannot remove journald's settings of %s: %s", unit_name(kuuid), error.strerror)
