"""What is wrong with a PKI directory, one sentence a finding (`keepctl pki check`), and with a certificate of our own
that a peer has refused."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Iterator

from cryptography import x509

from keep_protocol.errors import KeepfleetError
from keepctl import authority, files, pki
from keepctl.layout import Layout, check_client_name

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
    keys = [layout.manager_key]
    if os.path.lexists(layout.ca_key):  # the documentation advises to move it away
        keys.append(layout.ca_key)
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


def _loaded(path: str, key_path: str) -> x509.Certificate:
    """The certificate, after a look at its key; a client's key that is not here was made elsewhere (`--csr`)."""
    if os.path.lexists(key_path):
        return pki.load_pair(path, key_path).certificate
    with files.explained(f"read {path}"):
        return authority.load_certificate(files.read(path), path)


def _end_certificate(
    path: str, cas: list[x509.Certificate], revoked: frozenset[int], *, server: bool, now: datetime.datetime
) -> Iterator[str]:
    key_path = path.removesuffix(".crt") + ".key"
    try:
        certificate = pki.load_pair(path, key_path).certificate if server else _loaded(path, key_path)
        if not server:
            authority.identity(certificate)
    except KeepfleetError as error:
        yield error.message
        return
    if certificate.serial_number in revoked:
        if server:
            yield f"{path}: it is revoked; run: keepctl pki renew-server"
        return  # a revoked client's files are no fault, and neither its dates nor its CA matter any more
    if not any(authority.issued_by(certificate, ca) for ca in cas):
        yield f"{path}: this CA did not issue it"
        return
    if not (authority.is_server(certificate) if server else authority.is_client(certificate)):
        yield f"{path}: it is not a {'server' if server else 'client'}'s certificate"
    yield from _dates(path, certificate, now)


def _authorities(layout: Layout, cas: list[x509.Certificate], now: datetime.datetime) -> Iterator[str]:
    """The CA's dates and key, and a rotation that has to be ended."""
    for ca in cas:
        yield from _dates(layout.ca_certificate, ca, now)
    if os.path.lexists(layout.client_ca):
        yield from _client_cas(layout.client_ca, cas, now)
    if len(cas) > 1:
        yield f"{layout.ca_certificate}: a rotation is under way; end it with: keepctl pki rotate --finish"
    if os.path.lexists(layout.ca_key):
        try:
            pki.load_ca(layout)
        except KeepfleetError as error:
            yield error.message


def _client_cas(path: str, ours: list[x509.Certificate], now: datetime.datetime) -> Iterator[str]:
    yield from _mode_findings(path, files.PUBLIC_FILE)
    try:
        with files.explained(f"read {path}"):
            found = authority.load_certificates(files.read(path), path)
    except KeepfleetError as error:
        yield error.message
        return
    if not set(ours) <= set(found):
        yield f"{path}: our own CA is not in it, so that its clients are not served; add what is in ca.crt"
    for ca in found:
        if ca not in ours:
            yield from _dates(path, ca, now)


def findings(layout: Layout, now: datetime.datetime) -> list[str]:
    """Everything wrong, or soon to be; empty when all is well."""
    found = list(_modes(layout))
    try:
        cas = pki.load_cas(layout)
    except KeepfleetError as error:
        return [*found, error.message]
    found += _authorities(layout, cas, now)
    revoked: frozenset[int] = frozenset()
    try:
        revoked = pki.revoked_serials(layout)
    except KeepfleetError as error:
        found.append(error.message)
    found += _end_certificate(layout.manager_certificate, cas, revoked, server=True, now=now)
    names = sorted(os.listdir(layout.clients)) if os.path.isdir(layout.clients) else []
    for name in (name for name in names if name.endswith(".crt") and "+" not in name):  # uploaders' are made to expire
        found += _end_certificate(os.path.join(layout.clients, name), cas, revoked, server=False, now=now)
    return found


def _certificates(path: str) -> list[x509.Certificate]:
    with open(path, "rb") as file:  # a link is followed: OpenSSL has read it so, too
        return x509.load_pem_x509_certificates(file.read(files.MAX_FILE_BYTES))


def _later(ours: x509.Certificate, name: str) -> str:
    """What keepctl is asked for in place of an expired certificate."""
    try:
        identity = authority.identity(ours)
    except KeepfleetError:
        identity = None
    if identity is None or identity.keep is None:
        return f"renew {name}"
    return f"issue {name} --role uploader --keep {identity.keep}"


def fault_of_ours(path: str, ca_path: str, now: datetime.datetime) -> str | None:
    """Why a peer of the CA in `ca_path` may refuse our certificate in `path`, with the next step; None where the files
    do not show it. Certificates between the two may follow ours in its file."""
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
    if not any(authority.issued_by(certificate, ca) for certificate in chain for ca in authorities):
        return (
            f"your certificate {path} was issued by another CA than {ca_path}; "
            f"ask for one of that CA: keepctl pki issue {name}"
        )
    if ours.not_valid_after_utc <= now:
        ended = f"{ours.not_valid_after_utc:%Y-%m-%d}"
        return f"your certificate {path} expired on {ended}; ask for a later one: keepctl pki {_later(ours, name)}"
    if ours.not_valid_before_utc > now:
        begins = f"{ours.not_valid_before_utc:%F %R} UTC"
        return f"your certificate {path} is valid from {begins} on; is this machine's clock right?"
    return None
