"""A PKI directory: made whole, added to, never overwritten. Certificates come from `authority`, paths from `layout`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import authority, files
from keepctl.authority import Identity
from keepctl.layout import SERIAL, Layout, check_client_name, serial_text

FIRST_CLIENT = "admin"


@dataclass(frozen=True)
class Issued:
    """One certificate of the register, as it is listed."""

    name: str
    kind: str
    serial: str
    expires: datetime.datetime
    revoked: bool

    def status(self, now: datetime.datetime) -> str:
        """ "revoked", "expired" or "valid"."""
        return "revoked" if self.revoked else "expired" if self.expires <= now else "valid"


def _register(layout: Layout, identity: Identity) -> str:
    path = layout.issued_certificate(identity.certificate.serial_number)
    files.write_new(path, authority.certificate_pem(identity.certificate), files.PUBLIC_FILE)
    return path


@contextmanager
def _registered(layout: Layout, identity: Identity) -> Iterator[None]:
    """The certificate is in the register before it is anywhere else, and not after the block has failed."""
    path = _register(layout, identity)
    try:
        yield
    except OSError:
        os.unlink(path)
        raise


def _write_identity(certificate_path: str, key_path: str, identity: Identity) -> None:
    files.write_new(key_path, authority.key_pem(identity.key), files.PRIVATE_FILE)
    try:
        files.write_new(certificate_path, authority.certificate_pem(identity.certificate), files.PUBLIC_FILE)
    except OSError:
        os.unlink(key_path)
        raise


def create(layout: Layout, names: tuple[str, ...], client: str, now: datetime.datetime) -> tuple[Identity, Identity]:
    """A new PKI: a CA, the manager's certificate for `names`, the first client's. Whole, or nothing is there.

    Returns the manager's and the client's. Raises KeepfleetError(CONFLICT) when the directory exists and is not empty.
    """
    check_client_name(client)
    directory = layout.directory
    if os.path.lexists(directory) and (
        not os.path.isdir(directory) or os.path.islink(directory) or os.listdir(directory)
    ):
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot make a PKI in {directory}: something is there already; add clients with `keepctl pki issue`, "
            "renew the manager's certificate with `keepctl pki renew-server`, or move it away to begin anew",
        )
    with files.explained(f"make a PKI in {directory}"):
        files.make_directories(os.path.dirname(directory), files.PUBLIC_DIRECTORY)
        with files.directory_in_the_making(directory) as temporary:
            made = _fill(Layout(temporary), names, client, now)
    return made


def _fill(layout: Layout, names: tuple[str, ...], client: str, now: datetime.datetime) -> tuple[Identity, Identity]:
    os.mkdir(layout.clients, files.PRIVATE_DIRECTORY)
    os.mkdir(layout.issued, files.PRIVATE_DIRECTORY)
    ca = authority.make_ca(now)
    server = authority.issue_server(ca, authority.new_key(), names, now)
    first = authority.issue_client(ca, authority.new_key(), client, authority.CLIENT_DAYS, now)
    _write_identity(layout.ca_certificate, layout.ca_key, ca)
    _write_identity(layout.manager_certificate, layout.manager_key, server)
    _write_identity(layout.client_certificate(client), layout.client_key(client), first)
    _register(layout, server)
    _register(layout, first)
    files.write_new(layout.revoked, b"", files.PUBLIC_FILE)
    return server, first


def load_identity(certificate_path: str, key_path: str) -> Identity:
    """A certificate and its key. Raises KeepfleetError when either cannot be read or they do not belong together."""
    with files.explained("read the PKI (was it made, by `keepctl init`?)"):
        certificate = authority.load_certificate(files.read(certificate_path), certificate_path)
        key = authority.load_key(files.read(key_path), key_path)
    if key.public_key() != certificate.public_key():
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot use {certificate_path}: {key_path} is the key of another certificate"
        )
    return Identity(certificate, key)


def load_ca(layout: Layout) -> Identity:
    """The authority. Raises KeepfleetError when there is none."""
    return load_identity(layout.ca_certificate, layout.ca_key)


def issue(layout: Layout, name: str, days: int, now: datetime.datetime) -> Identity:
    """A new client's certificate and key, in `clients/`; in place of an older one only if that is revoked or expired.

    Raises KeepfleetError(CONFLICT) while the name has a valid one.
    """
    check_client_name(name)
    ca = load_ca(layout)
    with files.explained(f"issue a certificate for {name}"), files.locked(layout.directory):
        certificate_path, key_path = layout.client_certificate(name), layout.client_key(name)
        if os.path.lexists(certificate_path):
            old = authority.load_certificate(files.read(certificate_path), certificate_path)
            if old.not_valid_after_utc > now and serial_text(old.serial_number) not in revoked_serials(layout):
                raise KeepfleetError(
                    ErrorKind.CONFLICT,
                    f"cannot issue a certificate for {name}: it has one until {old.not_valid_after_utc:%Y-%m-%d} "
                    f"({certificate_path}); renew it with --renew, or revoke it first: keepctl pki revoke {name}",
                )
        identity = authority.issue_client(ca, authority.new_key(), name, days, now)
        with _registered(layout, identity):
            for path in (key_path, certificate_path):
                if os.path.lexists(path):
                    os.unlink(path)
            _write_identity(certificate_path, key_path, identity)
    return identity


def renew(layout: Layout, name: str, days: int, now: datetime.datetime) -> Identity:
    """A later certificate for a client's existing key: one file is replaced, so it happens or it does not."""
    ca = load_ca(layout)
    path = layout.client_certificate(name)
    with files.explained(f"renew the certificate of {name}"), files.locked(layout.directory):
        old = load_identity(path, layout.client_key(name))
        if serial_text(old.certificate.serial_number) in revoked_serials(layout):
            raise KeepfleetError(
                ErrorKind.CONFLICT,
                f"cannot renew the certificate of {name}: it is revoked, and so its key must not be used again; "
                f"make a new one: keepctl pki issue {name}",
            )
        identity = authority.issue_client(ca, old.key, name, days, now)
        with _registered(layout, identity):
            files.replace(path, authority.certificate_pem(identity.certificate), files.PUBLIC_FILE)
    return identity


def renew_server(layout: Layout, names: tuple[str, ...], now: datetime.datetime) -> Identity:
    """A later certificate for the manager's existing key, its names until now and `names`: one file is replaced."""
    ca = load_ca(layout)
    with files.explained("renew the manager's certificate"), files.locked(layout.directory):
        old = load_identity(layout.manager_certificate, layout.manager_key)
        kept = authority.alternative_names(old.certificate)
        identity = authority.issue_server(ca, old.key, tuple(dict.fromkeys(kept + names)), now)
        with _registered(layout, identity):
            pem = authority.certificate_pem(identity.certificate)
            files.replace(layout.manager_certificate, pem, files.PUBLIC_FILE)
    return identity


def revoked_serials(layout: Layout) -> set[str]:
    """The serial numbers in `revoked`. Raises OSError when it cannot be read."""
    lines = files.read(layout.revoked).decode("ascii", "replace").lower().split("\n")
    return {line.strip().lstrip("0") for line in lines if SERIAL.fullmatch(line.strip())}


def listed(layout: Layout) -> list[Issued]:
    """Every certificate the CA has signed, the latest to expire first."""
    with files.explained("list the certificates"):
        revoked = revoked_serials(layout)
        names = sorted(name for name in os.listdir(layout.issued) if name.endswith(".crt"))
        paths = [os.path.join(layout.issued, name) for name in names]
        certificates = [authority.load_certificate(files.read(path), path) for path in paths]
    found = []
    for certificate in certificates:
        serial = serial_text(certificate.serial_number)
        kind = "server" if authority.is_server(certificate) else "client"
        expires = certificate.not_valid_after_utc
        found.append(Issued(authority.common_name(certificate), kind, serial, expires, serial in revoked))
    return sorted(found, key=lambda entry: entry.expires, reverse=True)


def _serials_to_revoke(layout: Layout, what: str) -> list[str]:
    entries = listed(layout)
    named = [entry for entry in entries if entry.name == what and entry.kind == "client"]
    if named:
        return [entry.serial for entry in named if not entry.revoked]
    serial = what.lower().replace(":", "").lstrip("0")
    if SERIAL.fullmatch(serial) and any(entry.serial == serial for entry in entries):
        return [entry.serial for entry in entries if entry.serial == serial and not entry.revoked]
    raise KeepfleetError(
        ErrorKind.NOT_FOUND,
        f"cannot revoke {what[:80]!r}: no certificate has that name or serial number; see `keepctl pki list`",
    )


def revoke(layout: Layout, what: str) -> list[str]:
    """Revokes a client's certificates by its name, or one certificate by its serial number.

    Expired ones too: that is the word of a clock, which may be wrong here and right where they are shown.
    Returns the serial numbers newly revoked. Raises KeepfleetError(NOT_FOUND) for an unknown one.
    """
    with files.explained(f"revoke {what}"), files.locked(layout.directory):
        serials = _serials_to_revoke(layout, what)
        for serial in serials:
            files.append_line(layout.revoked, serial)
    return serials
