"""Wires the endpoint together, in this order: descriptors, settings, the identity, LISTENING, what serves a client and
the endpoint's lock, and with the first client CONNECTED and the endpoint.

The kernel accepts connections from the first moment on; LISTENING says that the certificate they will see is made.
What serves a client is imported behind it, while the client still hears where to connect. With the first client
comes the runner, which is forked before a byte of that client is read here.
"""

from __future__ import annotations

import _ssl
import os
import select
import sys

from app_loader.receive.identity import make_identity, prepare_key, read_identity
from app_loader.settings import Passed, Reporter, Settings, claim, read_settings
from keep_protocol import sockets as socket
from keep_protocol.constants import CHECKS, IDENTITY, MAX_CA_FILE_BYTES, START_DESCRIPTORS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.forking import REPORT_DESCRIPTOR
from keep_protocol.reports import READY_PACKET, Report, ReportType
from keep_protocol.tls_server import fingerprint_of, light_server_context


def prepare() -> None:
    """What can be done before it is known whose keep it will be, and where it is to listen. For a fork that waits."""
    from app_loader.receive.access import UploadAccess  # noqa: F401  # what `_receive` imports
    from app_loader.receive.endpoint import Endpoint  # noqa: F401
    from keep_isolation.locks import lock_endpoint  # noqa: F401

    prepare_key()
    _ssl._SSLContext(_ssl.PROTOCOL_TLS_SERVER)  # the first one has OpenSSL read its configuration, and its algorithms


def serve() -> int:
    """The endpoint's life, to the workload that it lets in. Returns the exit code."""
    reporter = Reporter()
    try:
        passed = claim(os.environ)
        _receive(read_settings(os.environ), passed, reporter)
    except KeepfleetError as error:
        print(f"app-loader: {error.message}", *error.evidence, sep="\n  ", file=sys.stderr, flush=True)
        reporter.fail(error, "cannot serve")
        return 1
    except BaseException as error:
        reporter.fail(error, "cannot serve")
        raise
    return 0


def _receive(settings: Settings, passed: Passed, reporter: Reporter) -> None:
    """Serves until a workload is accepted, or the keep-loader has gone."""
    listener, client_ca, revoked = (passed.number(name) for name in START_DESCRIPTORS)
    identity = read_identity(passed.number(IDENTITY)) if IDENTITY in passed else make_identity(settings)
    context = light_server_context(identity.path, _client_ca(client_ca))
    report = Report(
        ReportType.LISTENING,
        "awaiting a workload",
        fingerprint=fingerprint_of(identity.der),
        certificate=identity.certificate,
        descriptors=(IDENTITY,),
    )
    if not reporter.send(report, (identity.descriptor,)):
        return
    from app_loader.receive.access import UploadAccess
    from app_loader.receive.endpoint import Endpoint
    from keep_isolation.locks import lock_endpoint

    lock_endpoint()  # before the first byte of a client's is read
    if not _client_comes(listener) or not reporter.send(Report(ReportType.CONNECTED)):
        return
    if os.read(REPORT_DESCRIPTOR, len(READY_PACKET)) != READY_PACKET:
        return
    access = UploadAccess(revoked, settings.kuuid, settings.uploaders)
    sock = socket.socket(fileno=listener)
    if Endpoint(settings, sock, context, access, reporter, passed.number(CHECKS)).run():
        identity.wipe()


def _client_comes(listener: int) -> bool:
    """Waits for the first connection; False when the keep-loader has gone instead."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(REPORT_DESCRIPTOR, 0)
    return REPORT_DESCRIPTOR not in (descriptor for descriptor, _ in poll.poll())


def _client_ca(descriptor: int) -> str:
    try:
        return os.pread(descriptor, MAX_CA_FILE_BYTES, 0).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read the client CA: {error}") from error
