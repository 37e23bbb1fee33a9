"""Which manager a command speaks to and as whom, and which keep it means: options every such command has."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from keep_client.credentials import MANAGER_VARIABLE, PKI_VARIABLE, Credentials, parse_manager, pki_directory
from keep_client.manager import ManagerClient
from keep_protocol.errors import KeepfleetError
from keepctl import contexts
from keepctl.commands.shared import FILE, remember
from keepctl.configuration import local_manager
from keepctl.references import check_reference, resolve

CONTEXT_VARIABLE = "KEEPFLEET_CONTEXT"


@dataclass(frozen=True)
class Access:
    """Which manager, who we are to it and to its keeps, and where these are to listen ("": where it is reached)."""

    manager: str
    credentials: Credentials
    address: str = ""

    def client(self) -> ManagerClient:
        """The manager's calls. Raises KeepfleetError when the address or a file cannot be used."""
        return ManagerClient(parse_manager(self.manager), self.credentials.manager_context())

    def keep(self, reference: str) -> tuple[ManagerClient, int]:
        """The manager's calls, and the ID of the keep that `reference` means. Raises KeepfleetError."""
        client = self.client()
        return client, resolve(client, reference)


def _find(context: str | None, manager: str | None, ca: str | None, cert: str | None, key: str | None) -> Access:
    """An option wins over a context that was asked for, that over the environment, that over the current context."""
    asked = context or os.environ.get(CONTEXT_VARIABLE)
    known = contexts.load() if not (manager and ca and cert) or asked else contexts.Contexts()
    chosen = known.get(asked) if asked else {}
    current = known.get(known.current) if known.current and not asked else {}
    files = current if PKI_VARIABLE not in os.environ else {}
    address = manager or chosen.get("manager") or os.environ.get(MANAGER_VARIABLE) or current.get("manager")
    found = {name: chosen.get(name) or files.get(name) for name in ("ca", "cert", "key")}
    credentials = Credentials.find(ca or found["ca"], cert or found["cert"], key or (None if cert else found["key"]))
    listening = {} if manager else chosen if asked else {} if MANAGER_VARIABLE in os.environ else current
    return Access(address or local_manager(pki_directory()), credentials, listening.get("address", ""))


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --context, --manager, --ca, --cert and --key; the command gets them as one `access`."""

    @click.option(
        "--context", metavar="NAME", type=ContextName(), help="One of `keepctl context list`; also $KEEPFLEET_CONTEXT."
    )
    @click.option(
        "--manager",
        metavar="URL",
        help="The manager: HOST:PORT or https://HOST:PORT; also $KEEPFLEET_MANAGER; otherwise the context's, "
        "or this host's, where its manager.yaml says.",
    )
    @click.option(
        "--ca", metavar="FILE", type=FILE, help="The CA of the manager; otherwise ca.crt of the PKI directory."
    )
    @click.option("--cert", metavar="FILE", type=FILE, help="Your certificate; otherwise clients/admin.crt.")
    @click.option("--key", metavar="FILE", type=FILE, help="Its key; otherwise the .key next to it.")
    @functools.wraps(command)
    def with_access(
        context: str | None,
        manager: str | None,
        ca: str | None,
        cert: str | None,
        key: str | None,
        **arguments: object,
    ) -> None:
        access = _find(context, manager, ca, cert, key)
        remember(access.credentials)
        command(access=access, **arguments)

    return with_access


class ContextName(click.ParamType[str]):
    """A context's name; a shell completes it."""

    name = "context"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that go on as what is typed; none where the file cannot be read."""
        try:
            known = contexts.load().contexts
        except KeepfleetError:
            return []
        found = [CompletionItem(name, help=context.get("manager", "")) for name, context in sorted(known.items())]
        return [item for item in found if item.value.startswith(incomplete)]


class Reference(click.ParamType[str]):
    """A keep on the command line: its ID, the beginning of its ID, or its name."""

    name = "keep"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_reference(str(value))
        except KeepfleetError as error:
            self.fail(error.message, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names and IDs that go on as what is typed; none where the manager cannot be asked."""
        named = (ctx.params.get(name) for name in ("context", "manager", "ca", "cert", "key"))
        try:
            keeps = _find(*named).client().keeps()
        except KeepfleetError:
            return []
        found = [CompletionItem(keep.name, help=keep.detail) for keep in keeps if keep.name]
        found += [CompletionItem(str(keep.kuuid), help=keep.name or keep.detail) for keep in keeps]
        return [item for item in found if str(item.value).startswith(incomplete)]


keep_argument = click.argument("keep", metavar="KEEP", type=Reference())
keeps_argument = click.argument("keeps", metavar="KEEP...", type=Reference(), nargs=-1, required=True)
output_option = click.option(
    "-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True, help="How to print it."
)
