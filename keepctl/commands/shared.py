"""What every command has in common: how errors are shown, the exit codes, options, tables."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from keep_client.credentials import pki_directory
from keep_client.failures import ConnectionFailed
from keep_client.text import one_line, printable
from keep_protocol.constants import parse_kuuid
from keep_protocol.errors import KeepfleetError
from keepctl.layout import Layout

FAILED = 1
NO_ANSWER = 3
_Command = TypeVar("_Command", bound=Callable[..., Any])


def show_error(error: KeepfleetError) -> None:
    """One line, and the evidence indented below it, on standard error."""
    click.echo(f"keepctl: {one_line(error.message)}", err=True)
    for line in error.evidence:
        click.echo(f"    {printable(line)}", err=True)


class Commands(click.Group):
    """A group whose commands may raise KeepfleetError: it is shown as a sentence, and decides the exit code."""

    def invoke(self, ctx: click.Context) -> Any:  # click's own signature
        try:
            return super().invoke(ctx)
        except KeepfleetError as error:
            show_error(error)
            ctx.exit(NO_ANSWER if isinstance(error, ConnectionFailed) else FAILED)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads its output
        except OSError as error:
            click.echo(f"keepctl: cannot go on: {error.filename or ''} {error.strerror or error}", err=True)
            ctx.exit(FAILED)


class Kuuid(click.ParamType[int]):
    """A keep's ID on the command line."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_kuuid(str(value))
        except KeepfleetError as error:
            self.fail(error.message, param, ctx)


def _layout(ctx: click.Context, param: click.Parameter, value: str | None) -> Layout:
    del ctx, param
    return Layout(os.path.abspath(value) if value else pki_directory())


def pki_option(command: _Command) -> _Command:
    """--pki DIR, given to the command as `layout`."""
    return click.option(
        "--pki",
        "layout",
        metavar="DIR",
        callback=_layout,
        help="The certificates' directory; otherwise $KEEPFLEET_PKI, /etc/keepfleet/pki for root, "
        "~/.config/keepfleet/pki for others.",
    )(command)


def now() -> datetime.datetime:
    """The time, once a command."""
    return datetime.datetime.now(datetime.UTC)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns two spaces apart, the last one as long as it likes."""
    lines = [header, *[tuple(one_line(cell) or "-" for cell in row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    return "\n".join(
        "".join(cell.ljust(width + 2) for cell, width in zip(line, widths, strict=False)) + line[-1] for line in lines
    )
