"""What every command has in common: how errors are shown, the exit codes, options."""

from __future__ import annotations

import datetime
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from keep_client.credentials import pki_directory
from keep_client.failures import ConnectionFailed
from keep_client.text import one_line, printable
from keep_protocol.errors import KeepfleetError
from keepctl.layout import Layout

FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as a shell tells it; nothing is said, since the person knows."""
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
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads its output
        except OSError as error:
            click.echo(f"keepctl: cannot go on: {error.filename or ''} {error.strerror or error}", err=True)
            ctx.exit(FAILED)


class LazyCommands(Commands):
    """A group whose commands are imported when they are wanted: `run` does not pay for the certificates' library."""

    def __init__(self, name: str, sources: Mapping[str, str], **attributes: Any) -> None:
        """sources: each command's name, and `module:attribute`, where it is."""
        super().__init__(name, **attributes)
        self._sources = dict(sources)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._sources)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._sources:
            return None
        module, _, attribute = self._sources[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  # the table above is ours
        return command


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
