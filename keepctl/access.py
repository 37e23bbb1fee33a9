"""Which manager a command speaks to and as whom: the options of every command that does."""

from __future__ import annotations

import os
import sys
from _collections_abc import Callable

from keep_client.credentials import MANAGER_VARIABLE, PKI_VARIABLE, Credentials, parse_manager, pki_directory
from keep_client.manager import ManagerClient
from keep_client.streams import RECONNECT_SECONDS
from keep_protocol.fields import Record
from keepctl import contexts
from keepctl.arguments import FILE, TEXT, Argument, Choice, ContextName, Option, Parsed, Reference
from keepctl.display import WaitingLine
from keepctl.ending import remember
from keepctl.references import check_reference

CONTEXT_VARIABLE = "KEEPFLEET_CONTEXT"
CONNECTION = (
    Option(("--context",), "context", "One of `keepctl context list`; also $KEEPFLEET_CONTEXT.", ContextName(), "NAME"),
    Option(
        ("--manager",),
        "manager",
        "The manager: HOST:PORT or https://HOST:PORT; also $KEEPFLEET_MANAGER; otherwise the context's, "
        "or this host's, where its manager.yaml says.",
        TEXT,
        "URL",
    ),
    Option(("--ca",), "ca", "The CA of the manager; otherwise ca.crt of the PKI directory.", FILE, "FILE"),
    Option(("--cert",), "cert", "Your certificate; otherwise clients/admin.crt.", FILE, "FILE"),
    Option(("--key",), "key", "Its key; otherwise the .key next to it.", FILE, "FILE"),
)


def _seconds(text: str) -> int:
    from keepctl.job import parse_duration  # here: for those alone who say how long

    return parse_duration(text)


RECONNECT = Option(
    ("--reconnect-for",),
    "reconnect",
    "How long to wait for a manager that is away meanwhile: 2m, or 0.",
    Parsed(_seconds),
    "TIME",
)
"""Of the commands that wait for what a keep does."""
OUTPUT = Option(("-o", "--output"), "output", "How to print it.", Choice("text", "json"), default="text", shown=True)
KEEP = Argument("keep", "KEEP", Reference(check_reference))
KEEPS = Argument("keeps", "KEEP...", Reference(check_reference), many=True)


class Access(Record):
    """Which manager, who we are to it and to its keeps, and where these are to listen ("": where it is reached)."""

    manager: str
    credentials: Credentials
    address: str = ""
    reconnect_seconds: float = RECONNECT_SECONDS

    def client(self) -> ManagerClient:
        """The manager's calls, inside `with` all on one connection. Raises KeepfleetError when the address or a file
        cannot be used."""
        client = ManagerClient(parse_manager(self.manager), self.credentials.manager_context(), self.reconnect_seconds)
        if sys.stderr.isatty():
            client.waiting = WaitingLine()
        return client


def find(context: str | None, manager: str | None, ca: str | None, cert: str | None, key: str | None) -> Access:
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
    return Access(address or contexts.local_manager(pki_directory()), credentials, listening.get("address", ""))


def connected(work: Callable[..., int]) -> Callable[..., int]:
    """What takes `access`, made to take CONNECTION's values."""

    def with_access(
        context: str | None,
        manager: str | None,
        ca: str | None,
        cert: str | None,
        key: str | None,
        reconnect: int | None = None,
        **values: object,
    ) -> int:
        access = find(context, manager, ca, cert, key)
        if reconnect is not None:
            access = access.replace(reconnect_seconds=float(reconnect))
        remember(access.credentials)
        return work(access=access, **values)

    return with_access
