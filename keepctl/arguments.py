"""Commands as tables: their options and arguments, and a reader of the lines that are written as the table says.

From one table come the click command, with its help, messages and completion (`commands.access`), and this reader. It
takes what most lines are, `--long VALUE`, `--long=VALUE`, `-s VALUE`, words, `--`, and says None to any other line, a
wrong one among them: that is click's to read. So a command that is typed well starts without click's 60 ms.
"""

from __future__ import annotations

from _collections_abc import Callable, Sequence

from keep_protocol.errors import KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.patterns import matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class WrongUsage(Exception):
    """A command line that says what a command cannot do, in a sentence; raised before the command does anything."""


class Value:
    """What an option or an argument may be: any text."""

    def read(self, text: str) -> object:
        """The value in `text`. Raises ValueError or KeepfleetError where it has none."""
        return text


class File(Value):
    """The name of a file, as text."""


class ContextName(Value):
    """The name of a context."""


class Choice(Value):
    """One of some words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def read(self, text: str) -> str:
        if text not in self.words:
            raise ValueError
        return text


class Number(Value):
    """A whole number in `low` … `high`."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def read(self, text: str) -> int:
        if not matches("[0-9]{1,18}", text) or not self.low <= int(text) <= self.high:
            raise ValueError
        return int(text)


class Fraction(Value):
    """A number in `low` … `high`."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def read(self, text: str) -> float:
        raise ValueError  # click's to read: no option of a lean command is one


class Parsed(Value):
    """What one of our own functions reads; its KeepfleetError says what is wrong."""

    def __init__(self, parse: Callable[[str], object]) -> None:
        self.parse = parse

    def read(self, text: str) -> object:
        return self.parse(text)


class Reference(Parsed):
    """A keep: its ID, the beginning of its ID, or its name."""


TEXT = Value()
FILE = File()


class Option(Record):
    """One option: how it is written, the name of its value, and what --help says. value: None for a flag.

    many: it may be given again and again, and its value is a tuple. shown: --help names the default.
    """

    flags: tuple[str, ...]
    name: str
    about: str
    value: Value | None = None
    metavar: str = ""
    many: bool = False
    default: object = None
    shown: bool = False

    @property
    def unset(self) -> object:
        """Its value where it is not given."""
        return () if self.many else False if self.value is None else self.default


class Argument(Record):
    """Words of the line that are no options: one, or with `many` all that are left."""

    name: str
    metavar: str
    value: Value = TEXT
    required: bool = True
    many: bool = False


class Command(Record):
    """One command. work: called with every value by its name, for the exit code; raises WrongUsage or KeepfleetError.

    guest_words: what stands after `--` is the guest's and added to `arguments`, whatever comes before.
    """

    name: str
    work: Callable[..., int]
    brief: str
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...] = ()
    guest_words: bool = False

    def read(self, words: Sequence[str]) -> dict[str, Any] | None:
        """The values in a line that is written as the table says; None for any other."""
        words = list(words)
        known = {flag: option for option in self.options for flag in option.flags}
        values: dict[str, Any] = {option.name: option.unset for option in self.options}
        rest: list[str] = []
        after: list[str] = []
        try:
            while words:
                word = words.pop(0)
                if word == "--":
                    after, words = words, []
                elif word[:1] != "-" or word == "-":
                    rest.append(word)
                else:
                    _read_option(known, word, words, values)
            if self.guest_words:
                values |= self._read_arguments(rest)
                values["arguments"] += tuple(after)
            else:
                values |= self._read_arguments(rest + after)
        except (ValueError, LookupError, KeepfleetError):
            return None
        return values

    def _read_arguments(self, words: list[str]) -> dict[str, Any]:
        """Raises ValueError where there are too few, too many, or one that is not what it may be."""
        values: dict[str, Any] = {}
        for argument in self.arguments:
            own = words if argument.many else words[:1]
            words = words[len(own) :]
            if "" in own or (argument.required and not own):
                raise ValueError
            found = tuple(argument.value.read(word) for word in own)
            values[argument.name] = found if argument.many else found[0] if found else None
        if words:
            raise ValueError
        return values


def _read_option(known: dict[str, Option], word: str, words: list[str], values: dict[str, Any]) -> None:
    """Takes an option, and its value from itself or from `words`. Raises LookupError or ValueError where it cannot."""
    flag, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
    option = known[flag]
    if option.value is None:
        if equals:
            raise ValueError
        values[option.name] = True
        return
    value = option.value.read(text if equals else words.pop(0))
    values[option.name] = (*values[option.name], value) if option.many else value
