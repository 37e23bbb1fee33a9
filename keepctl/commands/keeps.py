"""`keepctl ps`, `new`, `start`, `upload`, `inspect`, `stop`, `rm`: the manager's calls."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import click

from keep_client import keep as keep_client
from keep_client.credentials import DEFAULT_MANAGER, MANAGER_VARIABLE, Credentials, parse_manager
from keep_client.endpoint import authority
from keep_client.failures import ConnectionFailed
from keep_client.manager import ManagerClient
from keep_client.text import one_line, printable
from keep_protocol.api import ARCHITECTURES
from keep_protocol.constants import LAST_KEEP_PORT
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo, OutcomeKind
from keep_protocol.states import State
from keepctl.commands.shared import FAILED, NO_ANSWER, Kuuid, show_error, table

WAIT_STEP_SECONDS = 60
"""The longest the manager lets one request wait for a change; `upload --wait` asks again."""
_SHOWN_DIGITS = 16
"""How much of a fingerprint a table shows; `inspect` shows all of it."""

_kuuid = click.argument("kuuid", metavar="ID", type=Kuuid())
_output = click.option(
    "-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True, help="How to print it."
)


@dataclass(frozen=True)
class Access:
    """Which manager, and who we are to it and to its keeps."""

    manager: str
    credentials: Credentials

    def client(self) -> ManagerClient:
        """The manager's calls. Raises KeepfleetError when the address or a file cannot be used."""
        return ManagerClient(parse_manager(self.manager), self.credentials.manager_context())


def _connected(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --manager, --ca, --cert and --key; the command gets them as one `access`."""

    @click.option(
        "--manager",
        envvar=MANAGER_VARIABLE,
        default=DEFAULT_MANAGER,
        show_default=True,
        metavar="URL",
        help="The manager: HOST:PORT or https://HOST:PORT; also $KEEPFLEET_MANAGER.",
    )
    @click.option("--ca", metavar="FILE", help="The CA of the manager; otherwise ca.crt of the PKI directory.")
    @click.option("--cert", metavar="FILE", help="Your certificate; otherwise clients/admin.crt.")
    @click.option("--key", metavar="FILE", help="Its key; otherwise the .key beside it.")
    @functools.wraps(command)
    def connected(manager: str, ca: str | None, cert: str | None, key: str | None, **arguments: object) -> None:
        command(access=Access(manager, Credentials.find(ca, cert, key)), **arguments)

    return connected


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


def _row(keep: KeepInfo) -> tuple[str, ...]:
    where = authority(keep.address, keep.port) if keep.port else ""
    short = keep.fingerprint[: len("sha256:") + _SHOWN_DIGITS]
    return str(keep.kuuid), f"{int(keep.state)} {keep.state.name.lower()}", where, short, keep.detail


@click.command("ps")
@_connected
@_output
def ps(output: str, access: Access) -> None:
    """Lists the keeps."""
    keeps = access.client().keeps()
    if output == "json":
        click.echo(_json([keep.to_wire() for keep in keeps]))
    else:
        click.echo(table(("ID", "STATE", "ADDRESS", "FINGERPRINT", "DETAIL"), [_row(keep) for keep in keeps]))


@click.command("new")
@_connected
@_output
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="wasi", show_default=True, help="The kind of keep.")
def new(output: str, arch: str, access: Access) -> None:
    """Creates a keep and prints its ID."""
    keep = access.client().create(arch)
    click.echo(_json(keep.to_wire()) if output == "json" else str(keep.kuuid))


@click.command("start")
@_kuuid
@_connected
@_output
@click.option("--address", default="127.0.0.1", show_default=True, metavar="IP", help="Where it is to listen.")
@click.option(
    "--port", type=click.IntRange(1, LAST_KEEP_PORT), help="The port; on 127.0.0.1 a taken one moves to the next."
)
@click.option("--name", "names", multiple=True, metavar="DNS|IP", help="Another name for its certificate.")
def start(kuuid: int, output: str, address: str, port: int | None, names: tuple[str, ...], access: Access) -> None:
    """Lets the keep ID listen for its workload."""
    keep = access.client().start(kuuid, address, port, names)
    if output == "json":
        click.echo(_json(keep.to_wire()))
    else:
        click.echo(f"address     {authority(keep.address, keep.port)}")
        click.echo(f"fingerprint {printable(keep.fingerprint)}")


def _wait_for_end(client: ManagerClient, kuuid: int) -> KeepInfo:
    keep = client.keep(kuuid)
    while keep.state is State.STARTED:
        keep = client.changed(kuuid, keep.state, WAIT_STEP_SECONDS)
    return keep


def _succeeded(keep: KeepInfo) -> bool:
    return keep.outcome is not None and keep.outcome.kind is OutcomeKind.EXITED and keep.outcome.exit_code == 0


@click.command("upload")
@_kuuid
@click.argument("file")
@_connected
@click.option("--wait", is_flag=True, help="Wait for the workload's end; exit 1 unless it ended well.")
def upload(kuuid: int, file: str, wait: bool, access: Access) -> None:
    """Sends FILE to the keep ID, whose certificate must be the one the manager tells."""
    client = access.client()
    door = keep_client.door_of(client.keep(kuuid), client.endpoint.host)
    with keep_client.open_workload(file) as workload:
        reply = keep_client.upload_raw(door, access.credentials.keep_context(), workload)
        click.echo(one_line(keep_client.received(reply, workload)))
    if wait:
        keep = _wait_for_end(client, kuuid)
        click.echo(one_line(keep.outcome.text if keep.outcome is not None else keep.detail))
        raise SystemExit(0 if _succeeded(keep) else FAILED)


@click.command("inspect")
@_kuuid
@_connected
def inspect(kuuid: int, access: Access) -> None:
    """Prints everything known about the keep ID, as JSON."""
    click.echo(_json(access.client().keep(kuuid).to_wire()))


@click.command("stop")
@_kuuid
@_connected
def stop(kuuid: int, access: Access) -> None:
    """Ends what the keep ID runs; its outcome stays to be seen."""
    keep = access.client().stop(kuuid)
    click.echo(one_line(keep.outcome.text if keep.outcome is not None else keep.detail))


@click.command("rm")
@click.argument("kuuids", metavar="ID...", type=Kuuid(), nargs=-1, required=True)
@_connected
def remove(kuuids: tuple[int, ...], access: Access) -> None:
    """Stops and forgets keeps. One that cannot be removed does not keep the others."""
    client = access.client()
    code = 0
    for kuuid in kuuids:
        try:
            client.remove(kuuid)
            click.echo(f"removed {kuuid}")
        except ConnectionFailed as error:
            show_error(error)
            raise SystemExit(NO_ANSWER) from error
        except KeepfleetError as error:
            show_error(error)
            code = FAILED
    raise SystemExit(code)
