"""`keepctl init`, and the commands of `keepctl pki` that make certificates and keys."""

from __future__ import annotations

import datetime
import os
from typing import Any

import click
from cryptography import x509

from keep_protocol.constants import parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import DEFAULT_TRUST_DOMAIN, Role
from keep_protocol.revocation import serial_text
from keepctl import access, authority, configuration, files, hostnames
from keepctl import pki as store
from keepctl.authority import CLIENT_LIFE, UPLOADER_LIFE, KeyPair
from keepctl.commands.access import output_option
from keepctl.commands.shared import FILE, now, pki_option
from keepctl.display import json_text
from keepctl.job import parse_duration
from keepctl.layout import Layout, check_client_name
from keepctl.pki import Grant

MAX_PASSWORD = 1024
RESTART = "Now restart the manager: systemctl restart keep-manager"
_ROLES = [role.value for role in Role if role is not Role.ANONYMOUS]

_names = click.option("--name", "names", multiple=True, metavar="DNS", help="A name the manager is reached by.")
_addresses = click.option(
    "--address", "addresses", multiple=True, metavar="IP", help="An address the manager is reached at and listens on."
)


def epoch(moment: datetime.datetime) -> int:
    """Seconds of the epoch, as every time in our JSON; X.509 knows no parts of them."""
    return int(moment.timestamp())


def _wire(certificate: x509.Certificate, path: str, key_path: str | None) -> dict[str, object]:
    """A certificate that was just issued, as -o json shows it: named as `pki list` names it, and its files."""
    return {
        "name": authority.common_name(certificate),
        "certificate": path,
        "key": key_path,
        "serial": serial_text(certificate.serial_number),
        "expires": epoch(certificate.not_valid_after_utc),
    }


def _server_wire(layout: Layout, pair: KeyPair) -> dict[str, object]:
    names = list(authority.alternative_names(pair.certificate))
    return {**_wire(pair.certificate, layout.manager_certificate, layout.manager_key), "names": names}


def _client_wire(grant: Grant) -> dict[str, object]:
    identity = authority.identity(grant.certificate)
    return {
        **_wire(grant.certificate, grant.path, grant.key_path),
        "role": None if identity is None else identity.role.value,
        "keep": None if identity is None else identity.keep,
        "fingerprint": authority.fingerprint(grant.certificate),
    }


def _show_grant(grant: Grant) -> None:
    identity = authority.identity(grant.certificate)
    if identity is not None:
        click.echo(f"identity    {identity.uri()}")
    click.echo(f"certificate {grant.path}")
    if grant.key_path is not None:
        click.echo(f"key         {grant.key_path}")
    click.echo(f"serial      {serial_text(grant.certificate.serial_number)}")
    click.echo(f"fingerprint {authority.fingerprint(grant.certificate)}")
    click.echo(f"expires     {grant.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


@click.command("init", short_help="Makes a CA and the first certificates on this host.")
@pki_option
@_names
@_addresses
@click.option("--client", default=store.FIRST_CLIENT, show_default=True, metavar="NAME", help="The first operator.")
@click.option(
    "--trust-domain",
    default=DEFAULT_TRUST_DOMAIN,
    show_default=True,
    metavar="DOMAIN",
    help="Whose the identities are: each is spiffe://DOMAIN/ROLE/NAME.",
)
@output_option
def init(
    layout: Layout, names: tuple[str, ...], addresses: tuple[str, ...], client: str, trust_domain: str, output: str
) -> None:
    """Makes a new PKI: a local CA, the manager's certificate, a first operator's; and manager.yaml next to it.

    The manager's certificate is for this host's own names and addresses and those given. With --address it listens
    there (with several, on every address), otherwise for this host alone. Never overwrites anything.

    \b
    keepctl init --name edge.example --address 192.0.2.7
    """
    known = hostnames.server_names(names, addresses)
    path = access.configuration_path(layout.directory)
    listening = configuration.listening_address(addresses)
    with configuration.written_if_missing(path, layout.directory, listening) as new:
        server, first = store.create(layout, known, client, now(), trust_domain)
    if output == "json":
        made = {
            "pki": layout.directory,
            "ca": layout.ca_certificate,
            "manager": _server_wire(layout, server),
            "client": _client_wire(
                Grant(first.certificate, layout.client_certificate(client), layout.client_key(client))
            ),
            "configuration": {"file": path, "written": new, "address": listening if new else None},
        }
        click.echo(json_text(made))
        return
    click.echo(f"certificates  {layout.directory}")
    click.echo(f"manager       {layout.manager_certificate}, for {', '.join(known)}")
    click.echo(f"client        {layout.client_certificate(client)}")
    unchanged = f" (was there, and is unchanged; to listen there it needs: address: {listening})" if addresses else ""
    unchanged = unchanged or " (was there, and is unchanged)"
    click.echo(f"configuration {path}{f': listens on {listening}' if new else unchanged}")


def _password(file: str | None) -> bytes:
    if file is not None:
        with files.explained("read the password"):
            data = files.read(file).removesuffix(b"\n")
    else:
        prompt = "Password for the PKCS#12 file (empty: none)"
        # On standard error: standard output may be read by a program, as JSON.
        text: str = click.prompt(
            prompt, default="", show_default=False, hide_input=True, confirmation_prompt=True, err=True
        )
        data = text.encode("utf-8")
    if len(data) > MAX_PASSWORD:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot use a password of over {MAX_PASSWORD} bytes")
    return data


class Duration(click.ParamType[datetime.timedelta]):
    """A time on the command line: `10m`, `12h`, `30d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime.timedelta:
        if isinstance(value, datetime.timedelta):
            return value
        try:
            return datetime.timedelta(seconds=parse_duration(str(value)))
        except KeepfleetError as error:
            self.fail(error.message, param, ctx)


_life = click.option(
    "--for", "life", type=Duration(), metavar="TIME", help="How long it is valid: 30d, 12h; 397d, an uploader's 10m."
)


@click.command("issue")
@click.argument("name", required=False)
@pki_option
@click.option("--role", type=click.Choice(_ROLES), default=Role.USER.value, show_default=True, help="What NAME may do.")
@click.option("--keep", metavar="ID", help="The one keep an uploader may send its workload to.")
@_life
@click.option(
    "--csr", "csr", type=FILE, metavar="FILE", help="Sign this request, made by `pki request`; NAME may be left out."
)
@click.option("--p12", "p12", metavar="FILE", help="Also write certificate and key to a new PKCS#12 file.")
@click.option("--password-file", metavar="F", help="The PKCS#12 file's password, instead of asking; may be empty.")
@output_option
def issue(
    layout: Layout,
    name: str | None,
    role: str,
    keep: str | None,
    life: datetime.timedelta | None,
    csr: str | None,
    p12: str | None,
    password_file: str | None,
    output: str,
) -> None:
    """Issues a client's certificate to NAME.

    A role is operator (everything), user (its own keeps), viewer (reads what an operator may) or uploader (one upload
    into one keep, within ten minutes). The PKCS#12 file is AES-256-CBC under PBES2 with HMAC-SHA-256.

    \b
    keepctl pki issue alice --role user --p12 alice.p12
    keepctl pki issue ci --role uploader --keep 7 --for 5m
    keepctl pki issue --csr alice.csr --role viewer
    """
    chosen = Role(role)
    if (chosen is Role.UPLOADER) != (keep is not None):
        raise click.UsageError("--keep ID goes with --role uploader, and an uploader needs one")
    if csr is not None and p12 is not None:
        raise click.UsageError("--p12 holds the key, which a request does not bring")
    request = _request(csr)
    if name is None and csr is not None:
        name = authority.load_request(request or b"", csr)[0]
    if name is None:
        raise click.UsageError("Missing argument 'NAME'")
    check_client_name(name)
    password = _export_password(p12, password_file)
    life = life or (UPLOADER_LIFE if chosen is Role.UPLOADER else CLIENT_LIFE)
    kuuid = None if keep is None else parse_kuuid(keep)
    grant = store.issue(layout, name, life, now(), chosen, keep=kuuid, request=request)
    if output == "text":
        _show_grant(grant)
    exported = _export(layout, name, grant, p12, password)
    if output == "json":
        click.echo(json_text({**_client_wire(grant), "p12": exported}))
    elif p12 is not None:
        click.echo(f"PKCS#12     {p12}{'' if password else ' (not encrypted: keep it where only you can read it)'}")


def _request(csr: str | None) -> bytes | None:
    if csr is None:
        return None
    with files.explained(f"read the request {csr}"):
        return files.read(csr)


def _export_password(p12: str | None, password_file: str | None) -> bytes:
    """The password of the PKCS#12 file, asked for before anything is issued."""
    if p12 is None:
        if password_file is not None:
            raise click.UsageError("--password-file goes with --p12")
        return b""
    password = _password(password_file)
    if os.path.lexists(p12):
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot write {p12}: it exists; name another file")
    return password


def _export(layout: Layout, name: str, grant: Grant, p12: str | None, password: bytes) -> dict[str, object] | None:
    if p12 is None or grant.key_path is None:
        return None
    pair = store.load_pair(grant.path, grant.key_path)
    data = authority.pkcs12_bytes(name, pair, store.load_cas(layout), password)
    with files.explained(f"write {p12}"):
        files.write_new(os.path.abspath(p12), data, files.PRIVATE_FILE)
    return {"file": os.path.abspath(p12), "encrypted": bool(password)}


@click.command("renew")
@click.argument("name")
@pki_option
@_life
@output_option
def renew(layout: Layout, name: str, life: datetime.timedelta | None, output: str) -> None:
    """Issues NAME a later certificate, for the key and the role it has. Only the certificate is replaced.

    \b
    keepctl pki renew alice
    """
    grant = store.renew(layout, check_client_name(name), life or CLIENT_LIFE, now())
    if output == "json":
        click.echo(json_text(_client_wire(grant)))
    else:
        _show_grant(grant)


@click.command("request")
@click.argument("name")
@click.option("--out", "directory", default=".", type=FILE, metavar="DIR", help="Where to; here, unless said.")
@output_option
def request(name: str, directory: str, output: str) -> None:
    """Makes a key, NAME.key, that never leaves this machine, and NAME.csr, for `pki issue --csr` where the CA is.

    \b
    keepctl pki request alice
    """
    base = os.path.join(os.path.abspath(directory), check_client_name(name))
    key = authority.new_key()
    with files.explained(f"write the request of {name}"):
        files.write_new(f"{base}.key", authority.key_pem(key), files.PRIVATE_FILE)
        files.replace(f"{base}.csr", authority.make_request(name, key), files.PUBLIC_FILE)
    if output == "json":
        click.echo(json_text({"name": name, "key": f"{base}.key", "request": f"{base}.csr"}))
        return
    click.echo(f"key         {base}.key")
    click.echo(f"request     {base}.csr")
    click.echo(f"Now have it signed where the CA is: keepctl pki issue --csr {name}.csr --role ROLE")


@click.command("renew-server")
@pki_option
@_names
@_addresses
@output_option
def renew_server(layout: Layout, names: tuple[str, ...], addresses: tuple[str, ...], output: str) -> None:
    """Issues the manager a later certificate, for its names until now, this host's, and those given.

    \b
    keepctl pki renew-server && systemctl restart keep-manager
    """
    pair = store.renew_server(layout, hostnames.server_names(names, addresses), now())
    if output == "json":
        click.echo(json_text(_server_wire(layout, pair)))
        return
    click.echo(f"certificate {layout.manager_certificate}")
    click.echo(f"names       {', '.join(authority.alternative_names(pair.certificate))}")
    click.echo(f"expires     {pair.certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(RESTART)
