"""`keepctl store pull`: a module from a registry."""

from __future__ import annotations

import click

from keep_client.store import StoreClient
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.pulling import Pull, Pulling
from keep_protocol.store import Object
from keepctl.commands.access import output_option
from keepctl.commands.shared import FILE
from keepctl.commands.storing import Modules, store_options
from keepctl.describe import size_text
from keepctl.display import WaitingLine, echo, json_text
from module_store import names
from module_store.operations import Operations


@click.command("pull")
@click.argument("address", metavar="oci://HOST/NAME:TAG")
@click.argument("reference", metavar="[NAME:TAG]", required=False)
@click.option(
    "--credentials", metavar="FILE", type=FILE, help="In place: user and password, as `docker login` writes them."
)
@click.option(
    "--registry-ca",
    "registry_ca",
    metavar="FILE",
    type=FILE,
    help="In place: the CA of the registry, not those of this host.",
)
@click.option("--plain-http", "plain", is_flag=True, help="In place: without TLS, for a registry on this host.")
@store_options
@output_option
def pull(
    address: str,
    reference: str | None,
    credentials: str | None,
    registry_ca: str | None,
    plain: bool,
    modules: Modules,
    output: str,
) -> None:
    """Takes a WebAssembly artifact from a registry, names it as there or NAME:TAG, and says by which digest to pin it.

    Over a manager's API a unit of its own on that host asks the registry, which the manager's configuration names under
    `registries`, with the password and the CA that it names.

    \b
    keepctl store pull oci://ghcr.io/example/web:1.2
    """
    named = names.check_reference(reference) if reference else ""
    if isinstance(modules, StoreClient):
        for option, given in (("--credentials", credentials), ("--registry-ca", registry_ca), ("--plain-http", plain)):
            if given:
                why = "the manager's configuration says that, under registries; for the store of this host: --in-place"
                raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot pull with {option} over a manager's API: {why}")
        with WaitingLine(hint="") as waiting:
            pulled = modules.pull(Pulling(address, named), lambda far: waiting(_progress(far)))
        if pulled.object is None:
            raise KeepfleetError(ErrorKind.INTERNAL, f"cannot pull {address}: the manager names no module")
        _show(pulled.object, pulled.reference, pulled.address, output)
    else:
        _show(*_in_place(modules, address, named, credentials, registry_ca, plain=plain), output)


def _progress(pull: Pull) -> str:
    if pull.size is None:
        return f"pulling {pull.address}"
    return f"pulling {pull.address}: {size_text(pull.received)} of {size_text(pull.size)}"


def _in_place(
    modules: Operations, address: str, named: str, credentials: str | None, ca: str | None, *, plain: bool
) -> tuple[Object, str, str]:
    """The module, what it is called, and where it came from."""
    import ssl  # here, and what needs it: 30 ms that no other command of a store pays

    from module_pull import apart
    from module_pull.artifact import parse_address, reference_of
    from module_pull.registry import Credentials, read_credentials

    wanted = parse_address(address, plain=plain)
    reference = reference_of(wanted, named)
    known = read_credentials(credentials) if credentials else Credentials()
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        why = error.strerror or str(error)
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read the CA in {ca}: {why}") from error
    with apart.pulled(wanted, known, context) as incoming:
        artifact = incoming.begin()
        source = str(artifact.address)
        return modules.add(incoming.body(), reference, artifact.digest, origin=source), reference, source


def _show(pulled: Object, reference: str, source: str, output: str) -> None:
    if output == "json":
        echo(json_text({**pulled.to_wire(), "reference": reference or None, "from": source}))
        return
    echo(f"{reference or 'no reference'}  {pulled.digest}  {size_text(pulled.size)}")
    echo(f"from {source}")
