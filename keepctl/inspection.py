"""`keepctl pki check`: what is wrong with a PKI directory, one sentence a finding."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Iterator

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from keep_protocol.errors import KeepfleetError
from keepctl import authority, files, pki
from keepctl.layout import SERIAL, Layout, serial_text

WARN_DAYS = 30
"""A certificate this close to its end is worth a line: the month that a yearly renewal leaves."""


def _mode_findings(path: str, wanted: int) -> Iterator[str]:
    try:
        status = os.lstat(path)
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    directory = wanted == files.PRIVATE_DIRECTORY
    if not (stat.S_ISDIR(status.st_mode) if directory else stat.S_ISREG(status.st_mode)):
        yield f"{path}: it must be a {'directory' if directory else 'regular file'}"
    elif stat.S_IMODE(status.st_mode) & ~wanted:
        yield f"{path}: its mode is {stat.S_IMODE(status.st_mode):04o}; run: chmod {wanted:04o} {path}"
    elif status.st_uid not in (0, os.geteuid()):
        yield f"{path}: it belongs to uid {status.st_uid}, who could change it"


def _modes(layout: Layout) -> Iterator[str]:
    for directory in (layout.directory, layout.clients, layout.issued):
        yield from _mode_findings(directory, files.PRIVATE_DIRECTORY)
    for path in (layout.ca_certificate, layout.manager_certificate, layout.revoked):
        yield from _mode_findings(path, files.PUBLIC_FILE)
    keys = [layout.ca_key, layout.manager_key]
    if os.path.isdir(layout.clients):
        keys += [
            os.path.join(layout.clients, name) for name in sorted(os.listdir(layout.clients)) if name[-4:] == ".key"
        ]
    for path in keys:
        yield from _mode_findings(path, files.PRIVATE_FILE)


def _dates(path: str, certificate: x509.Certificate, now: datetime.datetime) -> Iterator[str]:
    if certificate.not_valid_before_utc > now:
        yield f"{path}: it is valid from {certificate.not_valid_before_utc:%F %R} UTC on; is the clock right?"
    left = certificate.not_valid_after_utc - now
    if left.total_seconds() <= 0:
        yield f"{path}: it expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    elif left.days < WARN_DAYS:
        yield f"{path}: it expires on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it"


def _end_certificate(
    path: str, key_path: str, ca: x509.Certificate, revoked: set[str], *, server: bool, now: datetime.datetime
) -> Iterator[str]:
    try:
        certificate = pki.load_identity(path, key_path).certificate
        certificate.verify_directly_issued_by(ca)
    except KeepfleetError as error:
        yield error.message
        return
    except (InvalidSignature, ValueError, TypeError):
        yield f"{path}: this CA did not issue it"
        return
    if not (authority.is_server(certificate) if server else authority.is_client(certificate)):
        yield f"{path}: it is not a {'server' if server else 'client'}'s certificate"
    if serial_text(certificate.serial_number) in revoked:
        if server:
            yield f"{path}: it is revoked; run: keepctl pki renew-server"
        return  # a revoked client's files are no fault, and its dates no longer matter
    yield from _dates(path, certificate, now)


def _revocations(layout: Layout) -> tuple[set[str], list[str]]:
    try:
        text = files.read(layout.revoked).decode("ascii", "replace")
    except OSError as error:
        return set(), [f"{layout.revoked}: {error.strerror}"]
    bad = [line for line in text.split("\n") if line and not SERIAL.fullmatch(line)]
    return pki.revoked_serials(layout), [f"{layout.revoked}: {line[:50]!r} is no serial number" for line in bad]


def findings(layout: Layout, now: datetime.datetime) -> list[str]:
    """Everything wrong, or soon to be; empty when all is well."""
    found = list(_modes(layout))
    try:
        ca = pki.load_ca(layout).certificate
    except KeepfleetError as error:
        return [*found, error.message]
    found += _dates(layout.ca_certificate, ca, now)
    revoked, bad = _revocations(layout)
    found += bad
    found += _end_certificate(layout.manager_certificate, layout.manager_key, ca, revoked, server=True, now=now)
    names = sorted(os.listdir(layout.clients)) if os.path.isdir(layout.clients) else []
    for name in (name for name in names if name.endswith(".crt")):
        path = os.path.join(layout.clients, name)
        found += _end_certificate(path, path[:-4] + ".key", ca, revoked, server=False, now=now)
    return found
