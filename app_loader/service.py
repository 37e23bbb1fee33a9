"""Wires the door together, in this order: settings, the openssl program, the imports of TLS beside it, the identity,
LISTENING, and with the first client the door's lock, h11 and the door; at its end the runner, by exec.

The kernel accepts connections from the first moment on; LISTENING says that the certificate they will see is made.
h11 and what it brings are 2.4 MB of every keep that waits, and 20 ms of one client's time: they come with the client.
"""

from __future__ import annotations

import os
import select
import socket
import sys

from app_loader.handover import Handover, handed_over, place_for_runner
from app_loader.identity import Identity, Making, read_identity
from app_loader.limits import (
    CLIENT_CA_FD,
    DOOR_WORKLOAD_FD,
    IDENTITY_FD,
    LISTENER_FD,
    MAX_CLIENT_CA_BYTES,
    REVOKED_FD,
    STATUS_FD,
)
from app_loader.reports import Reporter
from app_loader.settings import Settings, read_settings
from keep_protocol.control import Report, ReportType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind


def serve() -> int:
    """The app-loader's life up to the runner's. Returns the exit code where there is no workload to run."""
    reporter = Reporter()
    try:
        settings = read_settings(dict(os.environ))
        given = _keep_to_ourselves(settings)
        compiled = _receive(settings, given, reporter)
    except KeepfleetError as error:
        print(f"app-loader: {error.message}", *error.evidence, sep="\n  ", file=sys.stderr, flush=True)
        reporter.send(Report(ReportType.FAILED, error.message, error=error))
        return 1
    if compiled is None:
        return 0
    try:
        become_runner(compiled, given, settings)
    except OSError as error:
        text = f"cannot start the runner: {error}"
        reporter.send(Report(ReportType.ENDED, text, outcome=Outcome(OutcomeKind.LOST, text)))
    return 1


def _keep_to_ourselves(settings: Settings) -> Handover | None:
    """Keeps what was handed over from every program this one starts, and closes anything else that came along.

    Returns what is for the workload. Raises KeepfleetError(CONFIGURATION) when something was not handed over.
    """
    given = handed_over(DOOR_WORKLOAD_FD)
    handed = (STATUS_FD, LISTENER_FD, CLIENT_CA_FD, REVOKED_FD) + ((IDENTITY_FD,) if settings.has_identity else ())
    if given is not None:
        handed += (given.descriptor, *given.grants)
    for descriptor in handed:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION, f"cannot start the app-loader: descriptor {descriptor}: {error.strerror}"
            ) from error
    if not settings.has_identity:
        os.closerange(IDENTITY_FD, IDENTITY_FD + 1)
    os.closerange(handed[-1] + 1, os.sysconf("SC_OPEN_MAX"))
    return given


def _receive(settings: Settings, given: Handover | None, reporter: Reporter) -> int | None:
    making = None if settings.has_identity else Making(settings)
    from keep_protocol import tls

    identity: Identity = read_identity() if making is None else making.result()
    context = tls.server_context(identity.path, None, _client_ca())
    report = Report(
        ReportType.LISTENING,
        "awaiting a workload",
        fingerprint=tls.fingerprint_of(identity.der),
        certificate=identity.certificate,
    )
    if not reporter.send_with(report, identity.descriptor):
        return None
    if not _somebody_comes():
        return None
    from app_loader.access import UploadAccess
    from app_loader.door import Door
    from app_loader.lock import lock_door

    lock_door()  # before the first byte of a stranger's is read
    access = UploadAccess(REVOKED_FD)
    compiled = Door(settings, socket.socket(fileno=LISTENER_FD), context, access, reporter, given).run()
    if compiled is not None:
        identity.wipe()
    return compiled


def _somebody_comes() -> bool:
    """Waits for the first connection; False when the keep-loader has gone instead."""
    poll = select.poll()
    poll.register(LISTENER_FD, select.POLLIN)
    poll.register(STATUS_FD, 0)
    return STATUS_FD not in (descriptor for descriptor, _ in poll.poll())


def _client_ca() -> str:
    try:
        return os.pread(CLIENT_CA_FD, MAX_CLIENT_CA_BYTES, 0).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read the client CA: {error}") from error


def become_runner(compiled: int, given: Handover | None, settings: Settings) -> None:
    """Replaces this process by the runner, which gets the status socket, the compiled module and what the workload was
    granted, and nothing else.

    Raises OSError when that cannot be done.
    """
    from app_loader.checking import ENTRY

    place_for_runner(compiled, given)
    environment = {
        "LANG": "C.UTF-8",
        "KEEPFLEET_LIMITS": settings.limits.to_text(),
        "KEEPFLEET_RUNTIME_DIRECTORY": settings.runtime_directory,
    }
    os.execve(sys.executable, [sys.executable, "-I", "-S", ENTRY, "run"], environment)  # noqa: S606 - a fixed list
