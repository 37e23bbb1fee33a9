"""click's side of the tables in `keepctl.arguments`: its types, completion, options, and whole commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from keep_protocol.errors import KeepfleetError
from keepctl import access, arguments
from keepctl.arguments import Argument, Command, Option, Value, WrongUsage

_GUEST_WORDS = "keepctl.guest-words"


class ContextName(click.ParamType[str]):
    """A context's name; a shell completes it."""

    name = "context"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that go on as what is typed; none where the file cannot be read."""
        try:
            known = access.load_contexts().contexts
        except KeepfleetError:
            return []
        found = [CompletionItem(name, help=context.get("manager", "")) for name, context in sorted(known.items())]
        return [item for item in found if item.value.startswith(incomplete)]


class Parsed(click.ParamType[object]):
    """What one of our own functions reads; its refusal is wrong usage."""

    name = "text"

    def __init__(self, value: arguments.Parsed) -> None:
        self._value = value

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        try:
            return self._value.parse(str(value))
        except KeepfleetError as error:
            self.fail(error.message, param, ctx)


class Reference(Parsed):
    """A keep on the command line: its ID, the beginning of its ID, or its name."""

    name = "keep"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names and IDs that go on as what is typed; none where the manager cannot be asked."""
        named = (ctx.params.get(option.name) for option in access.CONNECTION)
        try:
            keeps = access.find(*named).client().keeps()
        except KeepfleetError:
            return []
        found = [CompletionItem(keep.name, help=keep.detail) for keep in keeps if keep.name]
        found += [CompletionItem(str(keep.kuuid), help=keep.name or keep.detail) for keep in keeps]
        return [item for item in found if str(item.value).startswith(incomplete)]


def _type(value: Value | None) -> click.ParamType[Any] | None:
    match value:
        case arguments.File():
            return click.Path()  # so marked, a shell completes it
        case arguments.ContextName():
            return ContextName()
        case arguments.Choice(words=words):
            return click.Choice(words)
        case arguments.Number(low=low, high=high):
            return click.IntRange(low, high)
        case arguments.Fraction(low=low, high=high):
            return click.FloatRange(low, high)
        case arguments.Reference():
            return Reference(value)
        case arguments.Parsed():
            return Parsed(value)
    return None


def _option(option: Option) -> click.Option:
    declared = (*option.flags, option.name)
    if option.value is None:
        return click.Option(declared, is_flag=True, help=option.about)
    chosen: dict[str, Any] = {} if option.default is None else {"default": option.default}
    if option.metavar:
        chosen["metavar"] = option.metavar
    return click.Option(
        declared,
        type=_type(option.value),
        multiple=option.many,
        help=option.about,
        show_default=option.shown,
        **chosen,
    )


def _argument(argument: Argument) -> click.Argument:
    return click.Argument(
        (argument.name,),
        metavar=argument.metavar,
        type=_type(argument.value),
        nargs=-1 if argument.many else 1,
        required=argument.required,
    )


class _GuestCommand(click.Command):
    """A command whose words after `--` are the guest's, whatever comes before: a manifest may name the module."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with those words put aside first."""
        split = args.index("--") if "--" in args else len(args)
        ctx.meta[_GUEST_WORDS] = tuple(args[split + 1 :])
        return super().parse_args(ctx, args[:split])


def made_of(command: Command) -> click.Command:
    """The click command of a table."""

    def work(**values: Any) -> None:
        context = click.get_current_context()
        if command.guest_words:
            values["arguments"] = (*values["arguments"], *context.meta[_GUEST_WORDS])
        try:
            code = command.work(**values)
        except WrongUsage as error:
            raise click.UsageError(str(error), context) from error
        context.exit(code)

    return (_GuestCommand if command.guest_words else click.Command)(
        command.name,
        callback=work,
        params=[*map(_argument, command.arguments), *map(_option, command.options)],
        help=inspect.cleandoc(command.help),
        short_help=command.brief,
    )


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which manager, on a command of click's."""
    for option in access.CONNECTION:
        command = click.option(
            *option.flags,
            option.name,
            metavar=option.metavar,
            type=_type(option.value) or str,
            help=option.about,
        )(command)
    return command


output_option = click.option(
    "-o",
    "--output",
    type=_type(access.OUTPUT.value),
    default=access.OUTPUT.default,
    show_default=True,
    help=access.OUTPUT.about,
)
