"""`keepctl create`, `start`, `upload`: the steps of `run`, each by itself."""

from __future__ import annotations

from keep_client.peer import authority, one_line, printable
from keep_protocol.api import ARCHITECTURES
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.outcome import exit_code_of
from keepctl.access import CONNECTION, KEEP, OUTPUT, Access, connected
from keepctl.arguments import FILE, TEXT, Argument, Choice, Command, Option
from keepctl.commands.run import CREATION, ENDPOINT, GUEST
from keepctl.describe import EXIT_CODES, ending, exit_code_of_error
from keepctl.display import echo, json_text, show_error
from keepctl.job import Job
from keepctl.references import resolve
from keepctl.run import create, listen, open_module, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@connected
def _create(output: str, arch: str, replace: bool, access: Access, **options: Any) -> int:
    job = Job().on_top(**options)
    keep = create(access.client(), job, arch, replace)
    echo(json_text(keep.to_wire()) if output == "json" else str(keep.kuuid))
    return 0


@connected
def _start(
    keep: str,
    output: str,
    address: str,
    port: int | None,
    names: tuple[str, ...],
    access: Access,
    **options: Any,  # the guest's options, by their names in the table
) -> int:
    job = Job().on_top(**options)
    with access.client() as client:
        info = listen(client, resolve(client, keep), address or access.address, port, names, job)
    if output == "json":
        echo(json_text(info.to_wire()))
    else:
        echo(f"address     {authority(info.address, info.port)}")
        echo(f"fingerprint {printable(info.fingerprint)}")
    return 0


@connected
def _upload(keep: str, file: str, output: str, wait: bool, access: Access) -> int:
    try:
        info = _sent(access, keep, file, output, wait)
    except KeepfleetError as error:
        if not wait:
            raise
        show_error(error)
        return exit_code_of_error(error)
    return exit_code_of(info.outcome) if wait else 0


def _sent(access: Access, keep: str, file: str, output: str, wait: bool) -> KeepInfo:
    with access.client() as client:
        kuuid = resolve(client, keep)
        with open_module(file) as workload:
            confirmed = send(access.credentials.keep_context(), client.keep(kuuid), client.endpoint.host, workload)
        if output == "text":
            echo(one_line(confirmed))
        info = client.ended(kuuid) if wait else client.keep(kuuid)
    if output == "json":
        echo(json_text(info.to_wire()))
    elif wait:
        echo(one_line(ending(info)))
    return info


CREATE = Command(
    "create",
    _create,
    "Creates a keep and prints its ID.",
    """Creates a keep and prints its ID; `new` and `create` are the same.

    \b
    ID=$(keepctl create --name web --memory 64M --time 1h --label app=web)
    """,
    (
        *CONNECTION,
        OUTPUT,
        Option(("--arch",), "arch", "The kind of keep.", Choice(*ARCHITECTURES), default="wasi", shown=True),
        *CREATION,
    ),
)
START = Command(
    "start",
    _start,
    "Lets a keep listen for its workload.",
    """Lets a keep listen for its workload, and says what its guest will be given.

    \b
    keepctl start web --dir /srv/site:/site --env LEVEL=info -- --verbose
    """,
    (
        *CONNECTION,
        OUTPUT,
        *ENDPOINT,
        Option(("--name",), "names", "Another name for its certificate.", TEXT, "DNS|IP", many=True),
        *GUEST,
    ),
    (KEEP, Argument("arguments", "[-- ARGS]...", required=False, many=True)),
)
UPLOAD = Command(
    "upload",
    _upload,
    "Sends a file to a started keep.",
    "Sends FILE to a started keep, whose certificate must be the one the manager names.\n\n"
    f"\b\nkeepctl upload --wait web site.wasm\n\nWith --wait: {EXIT_CODES[3:]}",
    (*CONNECTION, OUTPUT, Option(("--wait",), "wait", "Wait for the workload's end; exit as it did.")),
    (KEEP, Argument("file", "FILE", FILE)),
)
