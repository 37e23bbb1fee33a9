"""A PKI directory: made whole, added to, never overwritten. Certificates come from `authority`, paths from `layout`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import DEFAULT_TRUST_DOMAIN, Identity, Role, check_trust_domain
from keep_protocol.revocation import RevokedFile, append_revoked, parse_serial, serial_text
from keepctl import authority, files
from keepctl.authority import KeyPair
from keepctl.layout import Layout, check_client_name

FIRST_CLIENT = "admin"


@dataclass(frozen=True)
class Issued:
    """One certificate of the register, as it is listed. identity: None for a server's, and for a client's of before
    there were roles."""

    name: str
    kind: str
    serial: str
    expires: datetime.datetime
    revoked: bool
    fingerprint: str
    identity: Identity | None = None

    def status(self, now: datetime.datetime) -> str:
        """ "revoked", "expired" or "valid"."""
        return "revoked" if self.revoked else "expired" if self.expires <= now else "valid"


@dataclass(frozen=True)
class Grant:
    """A certificate that a client was issued: where it lies, and its key, None where that was made elsewhere."""

    certificate: x509.Certificate
    path: str
    key_path: str | None


def _register(layout: Layout, certificate: x509.Certificate) -> str:
    path = layout.issued_certificate(certificate.serial_number)
    files.write_new(path, authority.certificate_pem(certificate), files.PUBLIC_FILE)
    return path


@contextmanager
def _registered(layout: Layout, certificate: x509.Certificate) -> Iterator[None]:
    """The certificate is in the register before it is anywhere else, and not after the block has failed."""
    path = _register(layout, certificate)
    try:
        yield
    except OSError:
        os.unlink(path)
        raise


def _write_pair(certificate_path: str, key_path: str, pair: KeyPair) -> None:
    files.write_new(key_path, authority.key_pem(pair.key), files.PRIVATE_FILE)
    try:
        files.write_new(certificate_path, authority.certificate_pem(pair.certificate), files.PUBLIC_FILE)
    except OSError:
        os.unlink(key_path)
        raise


def create(
    layout: Layout,
    names: tuple[str, ...],
    client: str,
    now: datetime.datetime,
    trust_domain: str = DEFAULT_TRUST_DOMAIN,
) -> tuple[KeyPair, KeyPair]:
    """A new PKI: a CA, the manager's certificate for `names`, a first operator's. Whole, or nothing is there.

    Returns the manager's and the operator's. Raises KeepfleetError(CONFLICT) when the directory is not empty.
    """
    check_client_name(client)
    check_trust_domain(trust_domain)
    directory = layout.directory
    if os.path.lexists(directory) and (
        not os.path.isdir(directory) or os.path.islink(directory) or os.listdir(directory)
    ):
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot make a PKI in {directory}: something is there already; add clients with `keepctl pki issue`, "
            "renew the manager's certificate with `keepctl pki renew-server`, or move it away to begin again",
        )
    with files.explained(f"make a PKI in {directory}"):
        files.make_directories(os.path.dirname(directory), files.PUBLIC_DIRECTORY)
        with files.directory_in_the_making(directory) as temporary:
            return _fill(Layout(temporary), names, Identity(Role.OPERATOR, client, None, trust_domain), now)


def _fill(
    layout: Layout, names: tuple[str, ...], operator: Identity, now: datetime.datetime
) -> tuple[KeyPair, KeyPair]:
    os.mkdir(layout.clients, files.PRIVATE_DIRECTORY)
    os.mkdir(layout.issued, files.PRIVATE_DIRECTORY)
    ca, key = authority.make_ca(now, operator.trust_domain), authority.new_key()
    server = authority.issue_server(ca, authority.new_key(), names, now)
    issued = authority.issue_client(ca, key.public_key(), operator.name, authority.CLIENT_LIFE, now, operator)
    first = KeyPair(issued, key)
    _write_pair(layout.ca_certificate, layout.ca_key, ca)
    _write_pair(layout.manager_certificate, layout.manager_key, server)
    _write_pair(layout.client_certificate(operator.name), layout.client_key(operator.name), first)
    _register(layout, server.certificate)
    _register(layout, first.certificate)
    files.write_new(layout.revoked, b"", files.PUBLIC_FILE)
    return server, first


@contextmanager
def _reading() -> Iterator[None]:
    """Says what to do where a file cannot be read: make it, or run as its owner."""
    try:
        yield
    except FileNotFoundError as error:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION, f"cannot read the PKI: {error.filename}: {error.strerror}; make one: keepctl init"
        ) from error
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot read the PKI: {error.filename}: {error.strerror}; read it as its owner, or name another directory "
            "with --pki",
        ) from error


def load_pair(certificate_path: str, key_path: str) -> KeyPair:
    """A certificate and its key. Raises KeepfleetError when either cannot be read or they do not belong together."""
    with _reading():
        certificate = authority.load_certificate(files.read(certificate_path), certificate_path)
        key = authority.load_key(files.read(key_path), key_path)
    if key.public_key() != certificate.public_key():
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot use {certificate_path}: {key_path} is the key of another certificate"
        )
    return KeyPair(certificate, key)


def load_cas(layout: Layout) -> list[x509.Certificate]:
    """The CAs that are trusted, the current one first: during a rotation two. Raises KeepfleetError."""
    with _reading():
        return authority.load_certificates(files.read(layout.ca_certificate), layout.ca_certificate)


def load_ca(layout: Layout) -> KeyPair:
    """The authority. Raises KeepfleetError when its key is not there, or that of no CA that is trusted."""
    cas, path = load_cas(layout), layout.ca_key
    try:
        key = authority.load_key(files.read(path), path)
    except FileNotFoundError as error:
        why = "to sign a certificate, bring the CA's key back for as long as it takes"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {path}: {error.strerror}; {why}") from error
    except OSError as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {path}: {error.strerror}") from error
    found = [ca for ca in cas if ca.public_key() == key.public_key()]
    if not found:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot use {path}: it is the key of no certificate in {layout.ca_certificate}"
        )
    return KeyPair(found[0], key)


def issue(
    layout: Layout,
    name: str,
    life: datetime.timedelta,
    now: datetime.datetime,
    role: Role = Role.USER,
    *,
    keep: int | None = None,
    request: bytes | None = None,
) -> Grant:
    """A client's certificate in `clients/`, with a new key unless a signing request (PEM) brings its own; in place of
    an older one only if that is revoked or expired.

    Raises KeepfleetError(CONFLICT) while the name has a valid one.
    """
    check_client_name(name)
    if (role is Role.UPLOADER) != (keep is not None):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, "cannot issue it: a role of uploader, and no other, is for one keep"
        )
    made = authority.new_key() if request is None else None
    key = authority.load_request(request or b"", "the request")[1] if made is None else made.public_key()
    ca = load_ca(layout)
    path, key_path = layout.client_certificate(name, keep), layout.client_key(name, keep)
    identity = Identity(role, name, keep, authority.trust_domain(ca.certificate))
    with files.explained(f"issue a certificate to {name}"), files.locked(layout.directory):
        _remove_expired_uploaders(layout, now)
        if os.path.lexists(path):
            _refuse_second(
                layout, name, path, "" if keep is not None else f"renew it: keepctl pki renew {name}; or ", now
            )
        certificate = authority.issue_client(ca, key, name, life, now, identity)
        with _registered(layout, certificate):
            for old in (key_path, path):
                if os.path.lexists(old):
                    os.unlink(old)
            if made is None:
                files.write_new(path, authority.certificate_pem(certificate), files.PUBLIC_FILE)
            else:
                _write_pair(path, key_path, KeyPair(certificate, made))
    return Grant(certificate, path, None if made is None else key_path)


def _refuse_second(layout: Layout, name: str, path: str, renewal: str, now: datetime.datetime) -> None:
    old = authority.load_certificate(files.read(path), path)
    if old.not_valid_after_utc > now and old.serial_number not in revoked_serials(layout):
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot issue a certificate to {name}: it has one until {old.not_valid_after_utc:%Y-%m-%d %H:%M} UTC "
            f"({path}); {renewal}revoke it first: keepctl pki revoke {name}",
        )


def _remove_expired_uploaders(layout: Layout, now: datetime.datetime) -> None:
    """An uploader's certificate is for one upload; after its ten minutes its files are in the way."""
    for file in os.listdir(layout.clients):
        name, suffix = os.path.splitext(os.path.join(layout.clients, file))
        if "+" not in file or suffix != ".crt":
            continue
        if authority.load_certificate(files.read(name + ".crt"), name + ".crt").not_valid_after_utc <= now:
            os.unlink(name + ".crt")
            if os.path.lexists(name + ".key"):
                os.unlink(name + ".key")


def renew(layout: Layout, name: str, life: datetime.timedelta, now: datetime.datetime) -> Grant:
    """A later certificate for a client's key, name and role: one file is replaced, so it happens or it does not. The
    key need not be here."""
    ca = load_ca(layout)
    path, key_path = layout.client_certificate(name), layout.client_key(name)
    with files.explained(f"renew the certificate of {name}"), files.locked(layout.directory):
        old = authority.load_certificate(files.read(path), path)
        if old.serial_number in revoked_serials(layout):
            raise KeepfleetError(
                ErrorKind.CONFLICT,
                f"cannot renew the certificate of {name}: it is revoked, and so its key must not be used again; "
                f"make a new one: keepctl pki issue {name}",
            )
        key = authority.client_key(old, path)
        identity = authority.identity(old)
        if identity is not None:
            identity = identity.replace(trust_domain=authority.trust_domain(ca.certificate))
        certificate = authority.issue_client(ca, key, name, life, now, identity)
        with _registered(layout, certificate):
            files.replace(path, authority.certificate_pem(certificate), files.PUBLIC_FILE)
    return Grant(certificate, path, key_path if os.path.lexists(key_path) else None)


def renew_server(layout: Layout, names: tuple[str, ...], now: datetime.datetime) -> KeyPair:
    """A later certificate for the manager's existing key, its names until now and `names`: one file is replaced."""
    ca = load_ca(layout)
    with files.explained("renew the manager's certificate"), files.locked(layout.directory):
        old = load_pair(layout.manager_certificate, layout.manager_key)
        kept = authority.alternative_names(old.certificate)
        pair = authority.issue_server(ca, old.key, tuple(dict.fromkeys(kept + names)), now)
        with _registered(layout, pair.certificate):
            files.replace(layout.manager_certificate, authority.certificate_pem(pair.certificate), files.PUBLIC_FILE)
    return pair


def revoked_serials(layout: Layout) -> frozenset[int]:
    """The serial numbers in `revoked`. Raises KeepfleetError(CERTIFICATE) when it cannot be read whole."""
    return RevokedFile(layout.revoked).serials()


def listed(layout: Layout) -> list[Issued]:
    """Every certificate the CA has signed, the latest to expire first."""
    with _reading():
        revoked = revoked_serials(layout)
        names = sorted(name for name in os.listdir(layout.issued) if name.endswith(".crt"))
        paths = [os.path.join(layout.issued, name) for name in names]
        certificates = [authority.load_certificate(files.read(path), path) for path in paths]
    found = [
        Issued(
            name=authority.common_name(certificate),
            kind="server" if authority.is_server(certificate) else "client",
            serial=serial_text(certificate.serial_number),
            expires=certificate.not_valid_after_utc,
            revoked=certificate.serial_number in revoked,
            fingerprint=authority.fingerprint(certificate),
            identity=authority.identity(certificate),
        )
        for certificate in certificates
    ]
    return sorted(found, key=lambda entry: entry.expires, reverse=True)


def _serials_to_revoke(layout: Layout, what: str) -> list[str]:
    entries = listed(layout)
    chosen = [entry for entry in entries if entry.name == what and entry.kind == "client"]
    if not chosen:
        try:
            serial = serial_text(parse_serial(what.encode("utf-8")))
        except ValueError:
            serial = ""
        chosen = [entry for entry in entries if entry.serial == serial]
    if not chosen:
        raise KeepfleetError(
            ErrorKind.NOT_FOUND,
            f"cannot revoke {what[:80]!r}: no certificate has that name or serial number; see `keepctl pki list`",
        )
    return [entry.serial for entry in chosen if not entry.revoked]


def revoke(layout: Layout, what: str) -> list[str]:
    """Revokes a client's certificates by its name, or one certificate by its serial number.

    Expired ones too: that is the word of a clock, which may be wrong here and right where they are shown.
    Returns the serial numbers newly revoked. Raises KeepfleetError(NOT_FOUND) for an unknown one.
    """
    with files.explained(f"revoke {what}"), files.locked(layout.directory):
        serials = _serials_to_revoke(layout, what)
        for serial in serials:
            append_revoked(layout.revoked, int(serial, 16))
    return serials
