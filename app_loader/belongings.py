"""What a guest finds around it: its arguments, environment, input, directories and secrets, put into one WASI context.

Every descriptor is used up here: what the guest may reach is open in wasmtime, and nothing else stays open.
"""

from __future__ import annotations

import os
import stat

import wasmtime

from app_loader.handover import Handover
from app_loader.secret_files import SecretFiles
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.workload import SECRETS_GUEST

PROGRAM = "workload.wasm"
"""The guest's argv[0]: the module has no name of its own."""


class Belongings:
    """What one guest is given. wasi: the context, to be used once; has_files: whether any directory is in it;
    writes_files: whether it may write to one."""

    def __init__(self, given: Handover | None, runtime_directory: str) -> None:
        """Raises KeepfleetError(CONFIGURATION) naming what cannot be given."""
        self.wasi = wasmtime.WasiConfig()
        self.wasi.inherit_stdout()
        self.wasi.inherit_stderr()
        self.has_files = self.writes_files = False
        self._secrets: SecretFiles | None = None
        if given is None:
            self.wasi.argv = [PROGRAM]
            return
        workload, grants = given.workload, list(given.grants)
        self.wasi.argv = [PROGRAM, *workload.arguments]
        self.wasi.env = workload.environment
        os.close(given.descriptor)
        if workload.stdin:
            self._take_input(grants.pop(0))
        for directory in workload.directories:
            self._take_directory(grants.pop(0), directory.guest, directory.writable)
        if workload.secrets:
            self._secrets = SecretFiles(runtime_directory, list(zip(workload.secrets, grants, strict=True)))
            for grant in grants:
                os.close(grant)
            self._take_directory(self._secrets.descriptor, SECRETS_GUEST, writable=False, keep_open=True)

    def __repr__(self) -> str:
        return f"Belongings(files: {self.has_files}, written: {self.writes_files}, {self._secrets!r})"

    def _take_input(self, grant: int) -> None:
        """Standard input is this process's own; a file is read from its beginning, also when a run is repeated."""
        if stat.S_ISREG(os.fstat(grant).st_mode):
            os.lseek(grant, 0, os.SEEK_SET)
        os.dup2(grant, 0)
        os.close(grant)
        self.wasi.inherit_stdin()

    def _take_directory(self, grant: int, guest: str, writable: bool, *, keep_open: bool = False) -> None:
        try:
            self.wasi.preopen_dir(f"/proc/self/fd/{grant}", guest, writable)
        except wasmtime.WasmtimeError as error:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot give the workload its directory {guest}: the keep's user may not open it; make it readable "
                "and searchable for others",
            ) from error
        if not keep_open:
            os.close(grant)
        self.has_files = True
        self.writes_files = self.writes_files or writable

    def wipe(self) -> None:
        """The guest has ended: its secrets go."""
        if self._secrets is not None:
            self._secrets.wipe()
