"""The descriptor of a codelet set: YAML or JSON with jbpf's words, read strictly, every fault with its line. Pure.

Import rule: keep_protocol, strict_yaml, codelets.interface.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from codelets.interface import NAME
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Nested, Record, Text, Whole, field, invalid
from keep_protocol.store import DIGEST, REFERENCE
from strict_yaml import records, tree

MAX_BYTES = 256 * 1024
"""Of a descriptor: sixteen codelets with all their channels and maps are 30 KB."""
MAX_CODELETS, MAX_CHANNELS, MAX_LINKED_MAPS = 16, 5, 10
"""jbpf's: codelets of a set; channels of a codelet in each direction; linked maps of a codelet."""
_STREAM = "[0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


class _Module(Text):
    """A module of the store."""

    def __init__(self) -> None:
        super().__init__(300, None, "NAME:TAG, NAME:TAG@sha256:… or sha256:… of the module store, and no path")

    def parse(self, value: object) -> str:
        text = super().parse(value)
        reference, at, digest = text.partition("@")
        if DIGEST.fullmatch(text) or (REFERENCE.fullmatch(reference) and (not at or DIGEST.fullmatch(digest))):
            return text
        raise ValueError


class Channel(Record):
    """A channel of a codelet, and the stream that it is to the application."""

    name: str = field(NAME, about="what the codelet calls it")
    stream_id: str = field(
        Text(
            36, "[0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", "16 bytes in hexadecimal digits"
        ),
        about="the stream's ID, 16 bytes in hexadecimal digits",
    )
    serde: str = field(Text(255), default="", about="the name of a serialiser that the application registered")

    @property
    def stream(self) -> bytes:
        """The 16 bytes of its ID."""
        return bytes.fromhex(self.stream_id.replace("-", ""))


class LinkedMap(Record):
    """A map that is another codelet's of the same set."""

    map_name: str = field(NAME, about="what this codelet calls it")
    linked_codelet_name: str = field(NAME, about="the codelet whose map it is")
    linked_map_name: str = field(NAME, about="what that one calls it")


class CodeletDescriptor(Record):
    """One codelet of a set."""

    codelet_name: str = field(NAME, about="its name, one in the set")
    codelet_path: str = field(_Module(), about="a module in the store, by reference or digest")
    hook_name: str = field(NAME, about="the hook that it is loaded on")
    priority: int = field(Whole(0, 2**31 - 1), default=1, about="of a hook's codelets the highest runs first")
    runtime_threshold: int = field(
        Whole(0, 10**12), default=0, about="nanoseconds that a call may take before it counts as a fault; 0: any"
    )
    in_io_channel: tuple[Channel, ...] = field(
        Items(Nested(Channel, "channel", strict=True), MAX_CHANNELS), default=(), about="channels to the codelet"
    )
    out_io_channel: tuple[Channel, ...] = field(
        Items(Nested(Channel, "channel", strict=True), MAX_CHANNELS), default=(), about="channels from the codelet"
    )
    linked_maps: tuple[LinkedMap, ...] = field(
        Items(Nested(LinkedMap, "linked map", strict=True), MAX_LINKED_MAPS),
        default=(),
        about="maps that are another codelet's",
    )

    def _check(self) -> None:
        names = [each.name for each in (*self.in_io_channel, *self.out_io_channel)]
        names += [each.map_name for each in self.linked_maps]
        _unique(names, f"codelet {self.codelet_name}", "channel or linked map")


class CodeletSet(Record):
    """Codelets that are loaded together or not at all."""

    codeletset_id: str = field(NAME, about="the set's ID, one in the application")
    codelet_descriptor: tuple[CodeletDescriptor, ...] = field(
        Items(Nested(CodeletDescriptor, "codelet", strict=True), MAX_CODELETS), about="its codelets"
    )

    def _check(self) -> None:
        if not self.codelet_descriptor:
            raise invalid("descriptor", f"the codelet set {self.codeletset_id} has no codelets")
        codelets = {each.codelet_name: each for each in self.codelet_descriptor}
        _unique([each.codelet_name for each in self.codelet_descriptor], "the set", "codelet")
        streams = [s.stream for each in codelets.values() for s in (*each.in_io_channel, *each.out_io_channel)]
        if len(set(streams)) != len(streams):
            raise invalid("descriptor", "two channels have one stream_id")
        for each in codelets.values():
            for link in each.linked_maps:
                if link.linked_codelet_name not in codelets:
                    why = f"map {link.map_name} of codelet {each.codelet_name} is linked to codelet"
                    raise invalid("descriptor", f"{why} {link.linked_codelet_name}, which the set does not have")


def _unique(names: list[str], where: str, what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise invalid("descriptor", f"{where} has two of the {what} {name}")


def read_descriptor(data: bytes, file: str = "", variables: Mapping[str, str] | None = None) -> CodeletSet:
    """The set in a descriptor's bytes; JSON is YAML, too.

    variables: what `${NAME}` in a value stands for, and no other may be used: nothing comes from the environment.
    Raises KeepfleetError(BAD_REQUEST), with every fault and its place as evidence, and TOO_LARGE.
    """
    name = file or "the descriptor"
    if len(data) > MAX_BYTES:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read {name}: it is over {MAX_BYTES} bytes")
    known = dict(variables or {})
    found, faults = records.read_bytes(CodeletSet, data, lambda root, faults: _substitute(root, known, faults))
    if found is None:
        raise records.refused("read", name, faults, ErrorKind.BAD_REQUEST)
    return found


def _substitute(node: tree.Node, variables: Mapping[str, str], faults: list[tree.Fault]) -> None:
    """Puts variables' values into the strings of a tree; what they hold is text and no YAML."""
    if isinstance(node.value, dict):
        for each in node.value.values():
            _substitute(each, variables, faults)
    elif isinstance(node.value, list):
        for each in node.value:
            _substitute(each, variables, faults)
    elif isinstance(node.value, str):
        for name in _VARIABLE.findall(node.value):
            if not _VARIABLE_NAME.fullmatch(name) or name not in variables:
                known = ", ".join(sorted(variables)) or "none"
                faults.append(
                    tree.Fault(node.line, node.column, f"unknown variable ${{{name[:64]}}}; there are {known}")
                )
        node.value = _VARIABLE.sub(lambda match: variables.get(match[1], ""), node.value)
