"""What an application offers to codelets: hooks and helper functions, as records that can be written to a file.

`Runtime.interface` gives an application's; a codelet is verified against it, in the application or beforehand.
Import rule: keep_protocol, codelets.storage.
"""

from __future__ import annotations

from codelets.storage import MAX_NAME, PAGE_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Flag, Items, Nested, Record, Text, Whole, field

MAX_HOOKS = 256
MAX_HELPERS = 256
MAX_CONTEXT_BYTES = 64 * 1024
MAX_DATA_BYTES = 1024 * 1024
MAX_PARAMETERS = 16
DEFAULT_MEMORY = 4 * PAGE_BYTES
DEFAULT_FUEL = 20_000
"""Instructions of one call, some 20 µs: a hook stands in the way of an application's work."""
MAX_FUEL = 10**12
WASI = ("clock_time_get", "random_get", "fd_write", "proc_exit")
"""What a hook may grant of WASI: it needs nothing of the host but a clock, random numbers and the log."""
NAME = Text(MAX_NAME, "[A-Za-z_][A-Za-z0-9_-]*", f"1 to {MAX_NAME} of A-Z, a-z, 0-9, _ and -, not a digit first")
_TYPES = ("i32", "i64", "f32", "f64", "bytes", "")


class HookType(Record):
    """One hook: what it gives a codelet, and what a codelet may take."""

    name: str = field(NAME, about="what descriptors call it")
    context_bytes: int = field(Whole(0, MAX_CONTEXT_BYTES), about="of the context's fixed fields")
    data_bytes: int = field(
        Whole(0, MAX_DATA_BYTES), default=0, about="of the data region, at most; 0 where the hook has none"
    )
    writable: bool = field(Flag(), default=False, about="whether what a codelet changes comes back to the application")
    control: bool = field(Flag(), default=False, about="whether a codelet's result comes back to the caller")
    memory_bytes: int = field(
        Whole(PAGE_BYTES, 64 * 1024 * 1024), default=DEFAULT_MEMORY, about="of a codelet's memory, at most"
    )
    fuel: int = field(Whole(1, MAX_FUEL), default=DEFAULT_FUEL, about="instructions of one call, at most")
    wasi: tuple[str, ...] = field(
        Items(Text(32, "|".join(WASI), f"of {', '.join(WASI)}"), len(WASI)),
        default=(),
        about="functions of WASI preview 1 that its codelets may import; none where nothing is said",
    )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Of a codelet's entry point: where its context is, and where a data region is and how long."""
        return ("i32", "i32", "i32") if self.data_bytes else ("i32",)

    @property
    def region_bytes(self) -> int:
        """What context and data take of a codelet's memory."""
        return self.data_at + self.data_bytes

    @property
    def data_at(self) -> int:
        """Where the data begins, after the context."""
        return -(-self.context_bytes // 16) * 16


class HelperType(Record):
    """A function that codelets may import from the module `helper`."""

    name: str = field(NAME, about="what codelets call it")
    parameters: tuple[str, ...] = field(
        Items(Text(5, "i32|i64|f32|f64|bytes", "i32, i64, f32, f64 or bytes"), MAX_PARAMETERS),
        default=(),
        about="types, in order; `bytes` are an address and a length to a codelet",
    )
    result: str = field(Text(3, "(i32|i64|f32|f64)?", "i32, i64, f32, f64 or empty"), default="", about="its type")

    @property
    def signature(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """As WebAssembly has it."""
        flat: list[str] = []
        for each in self.parameters:
            flat += ["i32", "i32"] if each == "bytes" else [each]
        return tuple(flat), (self.result,) if self.result else ()


class Interface(Record):
    """All that an application offers."""

    hooks: tuple[HookType, ...] = field(Items(Nested(HookType, "hook"), MAX_HOOKS), about="its hooks")
    helpers: tuple[HelperType, ...] = field(
        Items(Nested(HelperType, "helper"), MAX_HELPERS), default=(), about="its helper functions"
    )

    def hook(self, name: str) -> HookType:
        """The hook of that name. Raises KeepfleetError(NOT_FOUND)."""
        for each in self.hooks:
            if each.name == name:
                return each
        known = ", ".join(each.name for each in self.hooks) or "none"
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the hook {name}; there are: {known}")
