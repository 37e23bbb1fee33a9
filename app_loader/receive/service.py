"""Wires the endpoint together, in this order: descriptors, settings, the identity, LISTENING, and with the first client
the endpoint's lock and the endpoint; at its end the runner, by exec.

The kernel accepts connections from the first moment on; LISTENING says that the certificate they will see is made.
"""

from __future__ import annotations

import os
import select
import socket
import sys

from app_loader.limits import MAX_CLIENT_CA_BYTES, REPORT_FD
from app_loader.receive.identity import make_identity, read_identity
from app_loader.reports import Reporter
from app_loader.settings import VARIABLE, Grants, Passed, Settings, claim, place, read_grants, read_settings
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.reports import COMPILED, IDENTITY, Report, ReportType


def serve() -> int:
    """The app-loader's life up to the runner's. Returns the exit code where there is no workload to run."""
    reporter = Reporter()
    try:
        passed = claim(os.environ)
        settings, grants = read_settings(os.environ), read_grants(passed)
        compiled = _receive(settings, passed, grants, reporter)
    except KeepfleetError as error:
        print(f"app-loader: {error.message}", *error.evidence, sep="\n  ", file=sys.stderr, flush=True)
        reporter.send(Report(ReportType.FAILED, error.message, error=error))
        return 1
    except BaseException as error:  # a fault of ours, or of the installation: the loader must hear of that, too
        text = f"cannot serve: {type(error).__name__}: {error}"
        reporter.send(Report(ReportType.FAILED, text, error=KeepfleetError(ErrorKind.INTERNAL, text)))
        raise
    if compiled is None:
        return 0
    try:
        become_runner(compiled, grants, settings)
    except OSError as error:
        text = f"cannot start the runner: {error}"
        reporter.send(Report(ReportType.ENDED, text, outcome=Outcome(OutcomeKind.LOST, text)))
    return 1


def _receive(settings: Settings, passed: Passed, grants: Grants | None, reporter: Reporter) -> int | None:
    """Serves until a workload is accepted: its compiled module, or None when the keep-loader has gone."""
    listener, client_ca, revoked = (passed.number(name) for name in ("listener", "client-ca", "revoked"))
    from keep_protocol import tls

    identity = read_identity(passed.number(IDENTITY)) if IDENTITY in passed else make_identity(settings)
    context = tls.server_context(identity.path, None, _client_ca(client_ca))
    report = Report(
        ReportType.LISTENING,
        "awaiting a workload",
        fingerprint=tls.fingerprint_of(identity.der),
        certificate=identity.certificate,
        descriptors=(IDENTITY,),
    )
    if not reporter.send(report, (identity.descriptor,)):
        return None
    if not _client_comes(listener):
        return None
    from app_loader.receive.access import UploadAccess
    from app_loader.receive.endpoint import Endpoint
    from keep_isolation.locks import lock_endpoint

    lock_endpoint(programs=True)  # before the first byte of a client's is read
    access = UploadAccess(revoked, settings.kuuid, settings.uploaders)
    compiled = Endpoint(settings, socket.socket(fileno=listener), context, access, reporter, grants).run()
    if compiled is not None:
        identity.wipe()
    return compiled


def _client_comes(listener: int) -> bool:
    """Waits for the first connection; False when the keep-loader has gone instead."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(REPORT_FD, 0)
    return REPORT_FD not in (descriptor for descriptor, _ in poll.poll())


def _client_ca(descriptor: int) -> str:
    try:
        return os.pread(descriptor, MAX_CLIENT_CA_BYTES, 0).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read the client CA: {error}") from error


def become_runner(compiled: int, grants: Grants | None, settings: Settings) -> None:
    """Replaces this process by the runner, which gets the report socket, the compiled module and what the workload was
    granted, and nothing else.

    Raises OSError when that cannot be done.
    """
    from app_loader.check.checking import ENTRY

    environment = {
        "LANG": "C.UTF-8",
        "KEEPFLEET_LIMITS": settings.limits.to_text(),
        "KEEPFLEET_RUNTIME_DIRECTORY": settings.runtime_directory,
        VARIABLE: place([(COMPILED, compiled), *([] if grants is None else grants.named)]),
    }
    os.execve(sys.executable, [sys.executable, "-I", "-S", ENTRY, "run"], environment)  # noqa: S606 - a fixed list
