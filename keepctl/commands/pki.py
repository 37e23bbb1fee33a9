"""`keepctl init` and `keepctl pki …`: certificates."""

from __future__ import annotations

import datetime
import os

import click

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import authority, configuration, files, hostnames, inspection
from keepctl import pki as store
from keepctl.authority import CLIENT_DAYS, MAX_CLIENT_DAYS, Identity
from keepctl.commands.access import output_option
from keepctl.commands.shared import FAILED, Commands, now, pki_option
from keepctl.display import json_text, show_table
from keepctl.layout import Layout, check_client_name, serial_text

MAX_PASSWORD = 1024

_names = click.option("--name", "names", multiple=True, metavar="DNS", help="A name the manager is reached by.")
_addresses = click.option(
    "--address", "addresses", multiple=True, metavar="IP", help="An address the manager is reached at and listens on."
)


def _epoch(moment: datetime.datetime) -> int:
    """Seconds of the epoch, as every time in our JSON; X.509 knows no parts of them."""
    return int(moment.timestamp())


def _wire(identity: Identity, certificate_path: str, key_path: str) -> dict[str, object]:
    """A certificate that was just issued, as -o json tells it: named as `pki list` names it, and its files."""
    certificate = identity.certificate
    return {
        "name": authority.common_name(certificate),
        "certificate": certificate_path,
        "key": key_path,
        "serial": serial_text(certificate.serial_number),
        "expires": _epoch(certificate.not_valid_after_utc),
    }


def _server_wire(layout: Layout, identity: Identity) -> dict[str, object]:
    names = list(authority.alternative_names(identity.certificate))
    return {**_wire(identity, layout.manager_certificate, layout.manager_key), "names": names}


def _client_wire(layout: Layout, name: str, identity: Identity) -> dict[str, object]:
    return _wire(identity, layout.client_certificate(name), layout.client_key(name))


@click.command("init", short_help="Makes a CA and the first certificates on this host.")
@pki_option
@_names
@_addresses
@click.option("--client", default=store.FIRST_CLIENT, show_default=True, metavar="NAME", help="The first client.")
@output_option
def init(layout: Layout, names: tuple[str, ...], addresses: tuple[str, ...], client: str, output: str) -> None:
    """Makes a new PKI: a local CA, the manager's certificate, a first client's; and manager.yaml beside it.

    The manager's certificate is for this host's own names and addresses and those given. With --address it listens
    there (with several, on every address), otherwise for this host alone. Never overwrites anything.

    \b
    keepctl init --name edge.example --address 192.0.2.7
    """
    known = hostnames.server_names(names, addresses)
    path = configuration.path_beside(layout.directory)
    listening = configuration.listening_address(addresses)
    with configuration.written_if_missing(path, layout.directory, listening) as new:
        server, first = store.create(layout, known, client, now())
    if output == "json":
        made = {
            "pki": layout.directory,
            "ca": layout.ca_certificate,
            "manager": _server_wire(layout, server),
            "client": _client_wire(layout, client, first),
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


@click.group("pki", cls=Commands, short_help="Looks after certificates.")
def group() -> None:
    """Issues, renews, revokes, lists and checks certificates.

    \b
    keepctl pki issue alice --p12 alice.p12
    keepctl pki revoke alice
    """


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


@group.command("issue")
@click.argument("name")
@pki_option
@click.option("--p12", "p12", metavar="FILE", help="Also write certificate and key to a new PKCS#12 file.")
@click.option(
    "--days",
    type=click.IntRange(1, MAX_CLIENT_DAYS),
    default=CLIENT_DAYS,
    show_default=True,
    help="How long it is valid.",
)
@click.option("--password-file", metavar="F", help="The PKCS#12 file's password, instead of asking; may be empty.")
@click.option("--renew", is_flag=True, help="A later certificate for the key NAME has.")
@output_option
def issue(
    layout: Layout, name: str, p12: str | None, days: int, password_file: str | None, renew: bool, output: str
) -> None:
    """Issues a client's certificate to NAME.

    The PKCS#12 file is AES-256-CBC under PBES2 with HMAC-SHA-256, which OpenSSL reads since 1.0.

    \b
    keepctl pki issue alice --p12 alice.p12
    keepctl pki issue alice --renew
    """
    check_client_name(name)
    if p12 is None and password_file is not None:
        raise click.UsageError("--password-file goes with --p12")
    password = _password(password_file) if p12 is not None else b""
    if p12 is not None and os.path.lexists(p12):
        raise KeepfleetError(ErrorKind.CONFLICT, f"cannot write {p12}: it exists; name another file")
    identity = (store.renew if renew else store.issue)(layout, name, days, now())
    if output == "text":
        click.echo(f"certificate {layout.client_certificate(name)}")
        click.echo(f"key         {layout.client_key(name)}")
        click.echo(f"serial      {serial_text(identity.certificate.serial_number)}")
        click.echo(f"expires     {identity.certificate.not_valid_after_utc:%Y-%m-%d}")
    if p12 is not None:
        ca = store.load_ca(layout).certificate
        data = authority.pkcs12_bytes(name, identity, ca, password)
        with files.explained(f"write {p12}"):
            files.write_new(os.path.abspath(p12), data, files.PRIVATE_FILE)
    if output == "json":
        exported = None if p12 is None else {"file": os.path.abspath(p12), "encrypted": bool(password)}
        click.echo(json_text({**_client_wire(layout, name, identity), "p12": exported}))
    elif p12 is not None:
        click.echo(f"PKCS#12     {p12}{'' if password else ' (not encrypted: keep it where only you can read it)'}")


@group.command("renew-server")
@pki_option
@_names
@_addresses
@output_option
def renew_server(layout: Layout, names: tuple[str, ...], addresses: tuple[str, ...], output: str) -> None:
    """Issues the manager a later certificate, for its names until now, this host's, and those given.

    \b
    keepctl pki renew-server && systemctl restart keep-manager
    """
    identity = store.renew_server(layout, hostnames.server_names(names, addresses), now())
    if output == "json":
        click.echo(json_text(_server_wire(layout, identity)))
        return
    click.echo(f"certificate {layout.manager_certificate}")
    click.echo(f"names       {', '.join(authority.alternative_names(identity.certificate))}")
    click.echo(f"expires     {identity.certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo("Now restart the manager: systemctl restart keep-manager")


@group.command("revoke")
@click.argument("what", metavar="NAME|SERIAL")
@pki_option
@output_option
def revoke(layout: Layout, what: str, output: str) -> None:
    """Revokes every certificate of a client, or the one with a serial number; from the next request on.

    \b
    keepctl pki revoke alice
    """
    serials = store.revoke(layout, what)
    if output == "json":
        click.echo(json_text({"revoked": serials}))
        return
    for serial in serials:
        click.echo(f"revoked {serial}")
    if not serials:
        click.echo(f"{what} has no certificate left to revoke; nothing changed")


@group.command("list")
@pki_option
@output_option
def list_certificates(layout: Layout, output: str) -> None:
    """Lists every certificate the CA has signed.

    \b
    keepctl pki list
    keepctl pki list -o json
    """
    moment = now()
    if output == "json":
        listed = [
            {
                "name": entry.name,
                "kind": entry.kind,
                "status": entry.status(moment),
                "expires": _epoch(entry.expires),
                "serial": entry.serial,
            }
            for entry in store.listed(layout)
        ]
        click.echo(json_text(listed))
        return
    rows = [
        (entry.name, entry.kind, entry.status(moment), f"{entry.expires:%Y-%m-%d}", entry.serial)
        for entry in store.listed(layout)
    ]
    show_table(("NAME", "KIND", "STATUS", "EXPIRES", "SERIAL"), rows)


@group.command("check")
@pki_option
@output_option
def check(layout: Layout, output: str) -> None:
    """Checks file modes, the chain, keys, dates and revocations; exits 1 when there is something to do.

    \b
    keepctl pki check
    """
    found = inspection.findings(layout, now())
    if output == "json":
        click.echo(json_text({"pki": layout.directory, "findings": found}))
        raise SystemExit(FAILED if found else 0)
    if found:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot vouch for {layout.directory}: there is something to mend", tuple(found)
        )
    click.echo(f"{layout.directory}: all is well")
