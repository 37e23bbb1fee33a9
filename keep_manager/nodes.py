"""Reads YAML as nodes, and refuses with line and column what has no meaning in a configuration.

A file is composed into nodes and never constructed, so that each refusal names its place, and so that no tag, alias or
duplicate key is ever acted upon.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from typing import Protocol

import yaml

from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_CONFIG_BYTES = 64 * 1024
"""The longest sensible file is 1 KiB; this bounds what the YAML scanner is asked to look at."""

MAX_DIGITS = 12
"""The largest number there is a use for counts bytes, below a terabyte."""


class _Mark(Protocol):
    """A place in the file; the scanner in C and the one in Python have a class each."""

    line: int
    column: int


def refuse(where: str, why: str) -> KeepfleetError:
    """The error for what stands at `where`."""
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {where}: {why}")


def whole(low: int, high: int) -> Callable[[str, object], int]:
    """A check for a whole number in `low` … `high`."""

    def check(where: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise refuse(where, f"it must be a whole number in {low} … {high}")
        return value

    return check


def one_of(*words: str) -> Callable[[str, object], object]:
    """A check for one of `words`."""

    def check(where: str, value: object) -> object:
        if value not in words:
            raise refuse(where, f"it must be one of {', '.join(words)}")
        return value

    return check


def address(where: str, value: object) -> str:
    """The address, in its canonical form."""
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise refuse(where, "it must be an IPv4 or IPv6 address") from None


def directory(where: str, value: object) -> str:
    """The absolute path, `~` resolved and without `..`."""
    if not isinstance(value, str) or not os.path.isabs(os.path.expanduser(value)) or "\0" in value:
        raise refuse(where, "it must be the absolute path of a directory")
    return os.path.normpath(os.path.expanduser(value))


def place(name: str, mark: _Mark | None) -> str:
    """FILE:LINE:COLUMN, as editors and compilers write it."""
    return name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"


def compose(text: bytes, name: str) -> yaml.Node | None:
    """The file's root node; None for an empty file."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise refuse(place(name, event.start_mark), "aliases (*name) are not taken")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise refuse(place(name, error.problem_mark), f"it is not YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise refuse(name, f"it is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise refuse(name, "it is nested too deeply") from None


def at(name: str, node: yaml.Node, key: str) -> str:
    """Where `node` stands, and as what."""
    return f"{place(name, node.start_mark)} ({key})"


def members(node: yaml.Node, name: str, known: list[str] | None) -> list[tuple[str, yaml.Node]]:
    """The pairs of a mapping, each key one of `known` (None: any) and standing once."""
    if not isinstance(node, yaml.MappingNode):
        raise refuse(place(name, node.start_mark), "it must be a mapping")
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a key"
        if not isinstance(key_node, yaml.ScalarNode) or (known is not None and key not in known):
            known_ones = "names" if known is None else ", ".join(known)
            raise refuse(at(name, key_node, key[:40]), f"the key is not known; known are {known_ones}")
        if key in found:
            raise refuse(at(name, key_node, key), "the key stands twice")
        found[key] = value
    return list(found.items())


def scalar(node: yaml.Node, name: str, key: str) -> object:
    """A plain string or whole number; nothing else has a meaning here."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        if node.tag == "tag:yaml.org,2002:int" and str(node.value).isdecimal() and len(node.value) <= MAX_DIGITS:
            return int(node.value)
    raise refuse(at(name, node, key), "it must be a plain string or a whole number")


def items(node: yaml.Node, name: str, key: str) -> list[yaml.Node]:
    """The items of a list."""
    if not isinstance(node, yaml.SequenceNode):
        raise refuse(at(name, node, key), "it must be a list")
    return list(node.value)


def boolean(node: yaml.Node, name: str, key: str) -> bool:
    """`true` or `false`, in these letters alone."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool" and node.value in ("true", "false"):
        return str(node.value) == "true"
    raise refuse(at(name, node, key), "it must be true or false")
