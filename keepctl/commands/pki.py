"""`keepctl pki …`: what looks after certificates; those that make them are in `issuing`."""

from __future__ import annotations

import datetime

import click

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import authority, inspection, rotation
from keepctl import pki as store
from keepctl.commands import issuing
from keepctl.commands.access import output_option
from keepctl.commands.issuing import RESTART, epoch
from keepctl.commands.shared import Commands, now, pki_option
from keepctl.describe import FAILED
from keepctl.display import json_text, show_table
from keepctl.layout import Layout
from keepctl.pki import Issued


@click.group("pki", cls=Commands, short_help="Looks after certificates.")
def group() -> None:
    """Issues, renews, revokes, lists and checks certificates.

    \b
    keepctl pki issue alice --role user --p12 alice.p12
    keepctl pki revoke alice
    """


for command in (issuing.issue, issuing.renew, issuing.request, issuing.renew_server):
    group.add_command(command)


@group.command("rotate")
@pki_option
@click.option("--finish", is_flag=True, help="Trust the new CA alone.")
@click.option("--force", is_flag=True, help="With --finish: although the old CA has signed certificates in use.")
@click.option("--trust-domain", metavar="DOMAIN", help="The new CA's; otherwise the old one's.")
@output_option
def rotate(layout: Layout, finish: bool, force: bool, trust_domain: str | None, output: str) -> None:
    """Makes a new CA, which signs from now on; both are trusted until --finish.

    \b
    keepctl pki rotate
    keepctl pki rotate --finish
    """
    if (force and not finish) or (finish and trust_domain is not None):
        raise click.UsageError("--force goes with --finish, and --trust-domain does not")
    if finish:
        rotation.finish(layout, now(), force=force)
    else:
        rotation.begin(layout, now(), trust_domain)
    trusted = [authority.common_name(ca) for ca in store.load_cas(layout)]
    if output == "json":
        click.echo(json_text({"ca": layout.ca_certificate, "trusted": trusted}))
        return
    click.echo(f"certificate {layout.ca_certificate}")
    click.echo(f"trusted     {', '.join(trusted)}")
    click.echo(RESTART)
    if not finish:
        click.echo("Then renew every certificate, give out ca.crt, and end it: keepctl pki rotate --finish")


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


def _role(entry: Issued) -> str:
    if entry.identity is None:
        return "server" if entry.kind == "server" else "-"
    role = entry.identity.role.value
    return role if entry.identity.keep is None else f"{role}/{entry.identity.keep}"


def _entry_wire(entry: Issued, moment: datetime.datetime) -> dict[str, object]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "role": None if entry.identity is None else entry.identity.role.value,
        "keep": None if entry.identity is None else entry.identity.keep,
        "status": entry.status(moment),
        "expires": epoch(entry.expires),
        "serial": entry.serial,
        "fingerprint": entry.fingerprint,
    }


@group.command("list")
@pki_option
@click.option("--all", "everything", is_flag=True, help="Uploaders' certificates that have expired, too.")
@output_option
def list_certificates(layout: Layout, everything: bool, output: str) -> None:
    """Lists every certificate the CA has signed. A role of "-" is what `callers` in manager.yaml says, or operator.

    \b
    keepctl pki list
    keepctl pki list -o json
    """
    moment = now()
    entries = [
        entry
        for entry in store.listed(layout)
        if everything or entry.identity is None or entry.identity.keep is None or entry.expires > moment
    ]
    if output == "json":
        click.echo(json_text([_entry_wire(entry, moment) for entry in entries]))
        return
    rows = [
        (entry.name, _role(entry), entry.status(moment), f"{entry.expires:%Y-%m-%d}", entry.serial) for entry in entries
    ]
    show_table(("NAME", "ROLE", "STATUS", "EXPIRES", "SERIAL"), rows)


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
            ErrorKind.CERTIFICATE, f"cannot vouch for {layout.directory}: there is something to fix", tuple(found)
        )
    click.echo(f"{layout.directory}: all is well")
