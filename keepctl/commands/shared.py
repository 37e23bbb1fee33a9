"""click's groups of commands as ours: commands are imported when they are wanted, errors are one line."""

from __future__ import annotations

import datetime
import gc
import importlib
import os
import site
import sys
from _collections_abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
from click.exceptions import NoArgsIsHelpError

from keep_client.credentials import pki_directory
from keep_client.peer import one_line
from keep_protocol.errors import KeepfleetError
from keepctl.arguments import Command
from keepctl.commands import COMMANDS
from keepctl.commands.access import made_of
from keepctl.describe import INTERRUPTED
from keepctl.display import show_failure, unwritten
from keepctl.version import version_line

if TYPE_CHECKING:
    from keepctl.layout import Layout

HELP = """Runs workloads in keeps, shows them, and looks after certificates and installation.

\b
    keepctl run hello.wasm              run a program and see its output
    keepctl ps                          what is there
    keepctl inspect KEEP                everything about one, with why it ended
    keepctl logs -f KEEP                what it prints

KEEP is a keep's ID, the beginning of its ID, or its name.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no answer: not reached, or one side does not trust the other.
`run`, `wait` and `upload --wait` exit as the workload did: see their --help.
"""
FILE = click.Path()
"""A file's name, as text; so marked, a shell completes it."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _WrongUsage(click.UsageError):
    """click's refusal of a command line, shown as every other error: one line, with the next step."""

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.format_message(), error.ctx)

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints it."""
        text = one_line(self.message).removesuffix(".").replace(". (", " (")
        asked = self.ctx.command_path if self.ctx is not None else "keepctl"
        said = f"keepctl: cannot read the command line: {text[:1].lower()}{text[1:]}; see: {asked} --help"
        click.echo(said, file=file, err=file is None)


@contextmanager
def _brief() -> Iterator[None]:
    try:
        yield
    except (_WrongUsage, NoArgsIsHelpError):
        raise
    except click.UsageError as error:
        raise _WrongUsage(error) from error


class Commands(click.Group):
    """A group whose commands may raise KeepfleetError: it is shown as a sentence, and decides the exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib  # here: 5 ms, for those alone who mistype

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} (Did you mean {near[0]!r}?)", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:  # click's own signature
        try:
            with _brief():
                return super().invoke(ctx)
        except KeepfleetError as error:
            ctx.exit(show_failure(error))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


class LazyCommands(Commands):
    """A group whose commands are imported when they are wanted: `run` does not pay for the certificates' library."""

    def __init__(self, name: str, sources: Mapping[str, str], **attributes: Any) -> None:
        """sources: each command's name, and `module:attribute`, where it is."""
        super().__init__(name, **attributes)
        self._sources = dict(sources)

    def main(self, *args: Any, **extra: Any) -> Any:  # click's own signature
        """As click's, which ends quietly when its output's reader has gone; and with one line where output cannot be
        written, or a file cannot be used."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            raise SystemExit(unwritten(error)) from error

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # click's own signature
        with _brief():
            return super().make_context(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._sources)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._sources:
            return None
        module, _, attribute = self._sources[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, Command):
            return made_of(command)
        assert isinstance(command, click.Command)  # noqa: S101  # the table above is ours
        return command


def _layout(ctx: click.Context, param: click.Parameter, value: str | None) -> Layout:
    from keepctl.layout import Layout

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


def _show_version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    del param
    if asked and not ctx.resilient_parsing:
        click.echo(version_line())
        ctx.exit()


version_option = click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)


def build() -> LazyCommands:
    """The whole command line, for click."""
    root = LazyCommands("keepctl", COMMANDS, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
    return version_option(root)


def by_click(words: list[str]) -> int:
    """Runs one command line that click reads, for its exit code."""
    gc.enable()
    if sys.flags.no_site:
        site.main()  # some of these commands want to know in which virtual environment they are
    try:
        build().main(words, prog_name="keepctl")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def now() -> datetime.datetime:
    """The time, once a command."""
    return datetime.datetime.now(datetime.UTC)
