"""What every command has in common: how errors are shown, the exit codes, options."""

from __future__ import annotations

import datetime
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
from click.exceptions import NoArgsIsHelpError

from keep_client.credentials import Credentials, pki_directory
from keep_client.peer import CertificateRefused, ConnectionFailed
from keep_client.text import one_line, printable
from keep_protocol.errors import KeepfleetError
from keepctl.describe import exit_code_of_error
from keepctl.display import discard_output, say

if TYPE_CHECKING:
    from keepctl.layout import Layout

FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as a shell says it; no message, since the person knows."""
NO_ANSWER = 3
FILE = click.Path()
"""A file's name, as text; so marked, a shell completes it."""
_CREDENTIALS = "keepctl.credentials"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def remember(credentials: Credentials) -> None:
    """This command shows these: `show_error` looks at them where they were refused."""
    click.get_current_context().meta[_CREDENTIALS] = credentials


def _words(error: KeepfleetError) -> str:
    """The error's message; of a refused certificate, better than a guess, what is wrong with our file."""
    context = click.get_current_context(silent=True)
    shown = context.meta.get(_CREDENTIALS) if context is not None else None
    if not isinstance(error, CertificateRefused) or shown is None:
        return error.message
    from keepctl.inspection import fault_of_ours  # here: its library costs 45 ms, and only a refusal needs it

    fault = fault_of_ours(shown.certificate, shown.ca, now())
    return f"cannot use {error.peer}: {fault}" if fault else error.message


def show_error(error: KeepfleetError) -> None:
    """One line, and the evidence it does not hold already indented below it, on standard error."""
    say(f"keepctl: {one_line(_words(error))}")
    for line in error.evidence:
        if line not in error.message:
            say(f"    {printable(line)}")


@contextmanager
def exiting_as_the_workload() -> Iterator[None]:
    """What fails inside has the exit code of a workload that was not run or not watched, as `keepctl run` has it."""
    try:
        yield
    except KeepfleetError as error:
        show_error(error)
        raise SystemExit(exit_code_of_error(error)) from error


class WrongUsage(click.UsageError):
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
    except (WrongUsage, NoArgsIsHelpError):
        raise
    except click.UsageError as error:
        raise WrongUsage(error) from error


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
            show_error(error)
            ctx.exit(NO_ANSWER if isinstance(error, ConnectionFailed) else FAILED)
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
            say(one_line(f"keepctl: cannot go on: {error.filename or ''} {error.strerror or error}"))
            discard_output()
            raise SystemExit(FAILED) from error

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
    if not asked or ctx.resilient_parsing:
        return
    import importlib.metadata  # here: 27 ms, for those alone who ask

    try:
        version = importlib.metadata.version("keepfleet")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown (not installed)"  # a checkout: git says what it holds, and not pyproject.toml
    click.echo(f"keepctl {version}")
    ctx.exit()


version_option = click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)


def now() -> datetime.datetime:
    """The time, once a command."""
    return datetime.datetime.now(datetime.UTC)
