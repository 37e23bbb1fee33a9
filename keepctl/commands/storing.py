"""What the commands of `keepctl store` share: which store, who asks, which object is meant, and what is read.

They work in place where a directory is named, where --in-place is given, and where no manager is chosen; otherwise over
the API of the manager that is chosen, as every other command chooses one.
"""

from __future__ import annotations

import functools
import os
import pwd
import sys
from _collections_abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import click

from keep_client.credentials import MANAGER_VARIABLE
from keep_client.store import StoreClient
from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import access
from keepctl.commands.access import connection_options
from keepctl.display import remember
from keepctl.job import SCRIPTS
from keepctl.program import open_script
from module_store import names
from module_store.operations import Operations

STORE_VARIABLE = "KEEPFLEET_STORE"
SHOWN_DIGITS = 12
"""Of a digest in a table; enough to type it by."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


Modules = Operations | StoreClient
"""A module store, here or behind a manager: the same calls."""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    given = (
        click.option(
            "--in-place",
            "in_place",
            is_flag=True,
            help="This host's store, whatever manager is chosen; also where none is.",
        ),
        click.option(
            "--store",
            "directory",
            metavar="DIR",
            type=click.Path(readable=False),  # whose it is, and why not, the store says itself
            help="The store's directory, in place; otherwise $KEEPFLEET_STORE, /var/lib/keepfleet/store for root, "
            "~/.local/share/keepfleet/store for others.",
        ),
    )
    for option in given:
        command = option(command)
    return command


def _is_in_place(directory: str | None, in_place: bool, connection: dict[str, str | None]) -> bool:
    """Options win over the environment, and that over the current context, as for every command."""
    asked = [f"--{name}" for name, value in connection.items() if value]
    if directory or in_place:
        if asked:
            given = "--store" if directory else "--in-place"
            raise click.UsageError(f"{given} is about this host's store, {asked[0]} about a manager's: give one")
        return True
    if asked:
        return False
    if os.environ.get(STORE_VARIABLE):
        return True
    remote = os.environ.get(access.CONTEXT_VARIABLE) or os.environ.get(MANAGER_VARIABLE)
    return not (remote or access.load_contexts().current)


def store_options(command: _Command) -> _Command:
    """Which store: given to the command as `modules`."""

    @functools.wraps(command)
    def chosen(directory: str | None, in_place: bool, **values: Any) -> Any:
        connection = {option.name: values.pop(option.name) for option in access.CONNECTION}
        modules: Modules
        if _is_in_place(directory, in_place, connection):
            modules = Operations(store_path(directory), who())
        else:
            found = access.find(**connection)
            remember(found.credentials)
            client = found.client()
            modules = StoreClient(client.endpoint, found.credentials.manager_context())
        return command(modules=modules, **values)

    return _options(connection_options(chosen))  # type: ignore[return-value]  # click's change no signature


def in_place_options(command: _Command) -> _Command:
    """Which store, of a command that is for its host alone: given to it as `directory`, None for the usual one."""

    @functools.wraps(command)
    def chosen(directory: str | None, in_place: bool, **values: Any) -> Any:
        if not _is_in_place(directory, in_place, {}):
            why = "a manager is chosen, and this is done on its host alone; for the store of this host: --in-place"
            name = click.get_current_context().command_path.removeprefix("keepctl ")
            raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot do `{name}` over a manager's API: {why}")
        return command(directory=store_path(directory), **values)

    return _options(chosen)  # type: ignore[return-value]  # as above


def store_path(directory: str | None) -> str | None:
    """The store's directory; None for the usual one."""
    given = directory or os.environ.get(STORE_VARIABLE)
    return os.path.abspath(given) if given else None


def who() -> str:
    """Who asks, for the history of references."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


@contextmanager
def reading(file: str) -> Iterator[IO[bytes]]:
    """A file, or standard input for `-`, unbuffered; of a script, what keeps run of it."""
    if file.endswith(SCRIPTS):
        with open_script(file) as script:
            yield script
        return
    if file == "-":
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as opened:
            yield opened
        return
    try:
        opened = open(file, "rb", buffering=0)  # noqa: SIM115  # its errors are one thing, those of the block another
    except OSError as error:
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot read {file}: {error.strerror}") from error
    with opened:
        yield opened


def meant(modules: Modules, what: str) -> str:
    """The digest of the object that a person means."""
    if not names.is_abbreviated(what):
        asked = names.parse_wanted(what)
        return asked.digest or modules.reference(asked.reference).digest
    if names.DIGEST.fullmatch(what):
        return what
    found = [each.digest for each in modules.listing().objects if each.digest.startswith(what)]
    if len(found) != 1:
        why = f"{len(found)} objects begin so" if found else "the module store has none of it"
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find {what}: {why}")
    return found[0]


def short(digest: str) -> str:
    return digest[: len(names.ALGORITHM) + SHOWN_DIGITS]
