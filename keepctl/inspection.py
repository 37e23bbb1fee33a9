"""What is wrong with a PKI directory, one sentence a finding (`keepctl pki check`), and with a certificate of our own
that a peer has refused."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Iterator

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from keep_protocol.errors import KeepfleetError
from keepctl import authority, files, pki
from keepctl.layout import SERIAL, Layout, check_client_name, serial_text

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


def _issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError):  # another key, another name
        return False
    except (TypeError, UnsupportedAlgorithm):
        return True  # a kind of key we cannot judge
    return True


def _certificates(path: str) -> list[x509.Certificate]:
    with open(path, "rb") as file:  # a link is followed: OpenSSL has read it so, too
        return x509.load_pem_x509_certificates(file.read(files.MAX_FILE_BYTES))


def fault_of_ours(path: str, ca_path: str, now: datetime.datetime) -> str | None:
    """Why a peer of the CA in `ca_path` may refuse our certificate in `path`, with the next step; None where the files
    do not say. It may come after others in its file, which then are of that CA."""
    try:
        chain, authorities = _certificates(path), _certificates(ca_path)
    except (OSError, ValueError):
        return None
    ours = chain[0]
    name = authority.common_name(ours)
    try:
        check_client_name(name)
    except KeepfleetError:
        name = "NAME"
    if not any(_issued_by(certificate, ca) for certificate in chain for ca in authorities):
        return (
            f"your certificate {path} was issued by another CA than {ca_path}; "
            f"ask for one of that CA: keepctl pki issue {name}"
        )
    if ours.not_valid_after_utc <= now:
        ended = f"{ours.not_valid_after_utc:%Y-%m-%d}"
        return f"your certificate {path} expired on {ended}; ask for a new one: keepctl pki issue {name}"
    if ours.not_valid_before_utc > now:
        begins = f"{ours.not_valid_before_utc:%F %R} UTC"
        return f"your certificate {path} is valid from {begins} on; is this machine's clock right?"
    return None
