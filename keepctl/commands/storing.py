"""What the commands of `keepctl store` share: which store, who asks, which object is meant, and what is read."""

from __future__ import annotations

import os
import pwd
import sys
from _collections_abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import click

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store import names
from module_store.store import Store

SHOWN_DIGITS = 12
"""Of a digest in a table; enough to type it by."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


def store_option(command: _Command) -> _Command:
    """--store DIR, given to the command as `directory`."""
    return click.option(
        "--store",
        "directory",
        metavar="DIR",
        type=click.Path(readable=False),  # whose it is, and why not, the store says itself
        envvar="KEEPFLEET_STORE",
        help="The store's directory; otherwise $KEEPFLEET_STORE, /var/lib/keepfleet/store for root, "
        "~/.local/share/keepfleet/store for others.",
    )(command)


def store_path(directory: str | None) -> str | None:
    return os.path.abspath(directory) if directory else None


def who() -> str:
    """Who asks, for the history of references."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


@contextmanager
def reading(file: str) -> Iterator[IO[bytes]]:
    """A file, or standard input for `-`, unbuffered."""
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


def meant(store: Store, what: str) -> str:
    """The digest of the object that a person means."""
    if not names.is_abbreviated(what):
        return store.resolve(what)
    found = [each.digest for each in store.objects() if each.digest.startswith(what)]
    if len(found) != 1:
        why = f"{len(found)} objects begin so" if found else f"the module store {store.place.path} has none of it"
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find {what}: {why}")
    return found[0]


def short(digest: str) -> str:
    return digest[: len(names.ALGORITHM) + SHOWN_DIGITS]
