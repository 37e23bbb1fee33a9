"""`keepctl store pull`: a module from a registry."""

from __future__ import annotations

import click

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl.commands.access import output_option
from keepctl.commands.shared import FILE
from keepctl.commands.storing import in_place_options, who
from keepctl.describe import size_text
from keepctl.display import echo, json_text
from module_store import names
from module_store.store import Store


@click.command("pull")
@click.argument("address", metavar="oci://HOST/NAME:TAG")
@click.argument("reference", metavar="[NAME:TAG]", required=False)
@click.option("--credentials", metavar="FILE", type=FILE, help="User and password, as `docker login` writes them.")
@click.option("--ca", metavar="FILE", type=FILE, help="The CA of the registry, in place of those of this host.")
@click.option("--plain-http", "plain", is_flag=True, help="Without TLS: for a registry on this host.")
@in_place_options
@output_option
def pull(
    address: str,
    reference: str | None,
    credentials: str | None,
    ca: str | None,
    plain: bool,
    directory: str | None,
    output: str,
) -> None:
    """Takes a WebAssembly artifact from a registry, names it as there or NAME:TAG, and says by which digest to pin it.

    \b
    keepctl store pull oci://ghcr.io/example/web:1.2
    """
    import ssl  # here, and what needs it: 30 ms that no other command of a store pays

    from module_store.registry import Credentials, Registry, parse_address, read_credentials

    wanted = parse_address(address, plain=plain)
    named = names.check_reference(reference) if reference else wanted.reference
    known = read_credentials(credentials) if credentials else Credentials()
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        why = error.strerror or str(error)
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read the CA in {ca}: {why}") from error
    registry = Registry(wanted.site, known, context)
    with Store.create(directory) as store:
        pulled = registry.pull(store, wanted, named, who())
    if output == "json":
        echo(json_text({**pulled.object.to_wire(), "reference": named or None, "from": str(pulled.address)}))
        return
    echo(f"{named or 'no reference'}  {pulled.object.digest}  {size_text(pulled.object.size)}")
    echo(f"from {pulled.address}")
