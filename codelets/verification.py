"""Verification of a codelet for one hook: the store's verifier with rules of its own on top. Pure.

Import rule: keep_protocol, module_store.verify, codelets.
"""

from __future__ import annotations

from collections.abc import Mapping

from codelets import wasi
from codelets.interface import HelperType, HookType, Interface
from codelets.storage import PAGE_BYTES, Declaration, Unfit, declared, function_of
from keep_protocol.fields import Record
from module_store.verify.bodies import Budget
from module_store.verify.component import parse
from module_store.verify.module import CoreModule, Import, Size
from module_store.verify.policy import Kind, Policy
from module_store.verify.report import Finding, Report
from module_store.verify.verification import verify

ENTRY = "codelet_main"
MEMORY = ("env", "memory")
"""As compilers call a memory that is imported."""
HELPERS = "helper"
MAX_BYTES = 1024 * 1024
"""Of a codelet's module: jbpf's are some ten kilobytes."""
MAX_MAPS, MAX_CHANNELS = 32, 10
"""Maps of one codelet, linked or its own; channels: jbpf's five in each direction."""
POLICY = Policy(
    name="codelet",
    valid=False,  # the engine is asked by compiling
    kinds=(Kind.MODULE,),
    size=MAX_BYTES,
    imports=None,
    memories=0,
    tables=1,
    table_initial=1000,
    table_maximum=None,
    tags=0,
    functions=1000,
    function_bytes=64 * 1024,
    data_segments=1000,
    data_bytes=MAX_BYTES,
    element_segments=100,
    elements=1000,
    locals=1000,
    nesting=200,
    start=False,
    custom_bytes=MAX_BYTES,
)
_BUDGET = Budget()


class Examined(Record):
    """What verification found. imports: each function's, in order, as (module, name); instructions: the worst number
    of one call where a proof can be had, None where fuel alone bounds it."""

    report: Report
    declarations: tuple[tuple[str, Declaration], ...] = ()
    imports: tuple[tuple[str, str], ...] = ()
    memory_pages: int = 0
    instructions: int | None = None
    unbounded: str = ""

    def names_of(self, module: str) -> list[str]:
        """What it imports from `module`."""
        return [name for where, name in self.imports if where == module]

    @property
    def bound(self) -> str:
        """The run time's bound, in words."""
        if self.instructions is None:
            return f"run time: by fuel alone, {self.unbounded or 'no bound was found'}"
        return f"run time: at most {self.instructions:,} instructions, and what maps and helpers take"


def examine(wasm: bytes, hook: HookType, interface: Interface) -> Examined:
    """The report on a module as a codelet of `hook`. Never raises for what is in the module."""
    report = verify(wasm, POLICY, budget=_BUDGET)
    if report.kind is not Kind.MODULE:  # a component, or nothing that can be read
        return Examined(report)
    parsed = parse(wasm)
    if not isinstance(parsed, CoreModule):
        return Examined(report)
    imports = _Imports(parsed, {each.name: each for each in interface.helpers}, hook.wasi)
    findings = [_entry(parsed, hook), _memory(parsed, hook), imports.finding()]
    passed = report.passed and all(finding.passed for finding in findings)
    bound = next((each for each in report.bounds.exports if each.name == ENTRY), None)
    return Examined(
        report.replace(passed=passed, findings=(*report.findings, *findings)),
        tuple(imports.declarations.items()),
        tuple((each.module, each.name) for each in parsed.imports if each.kind == "func"),
        _size(parsed).minimum,
        bound.instructions if bound else None,
        (bound.reason if bound else "") or report.bounds.exports_reason,
    )


def _entry(parsed: CoreModule, hook: HookType) -> Finding:
    allowed = f"a function {ENTRY}({', '.join(hook.parameters)}) -> i64"
    export = next((each for each in parsed.exports if each.name == ENTRY and each.kind == "func"), None)
    if export is None:
        return Finding("entry", False, f"no function {ENTRY} is exported", allowed)
    functions = [each.of for each in parsed.imports if each.kind == "func"] + list(parsed.functions)
    place = functions[export.place] if export.place < len(functions) else len(parsed.type_places)
    if not isinstance(place, int) or place >= len(parsed.type_places):
        return Finding("entry", False, "its type is not there", allowed)
    parameters, results = parsed.signature(place)
    found = f"{ENTRY}({', '.join(parameters)}) -> {', '.join(results) or 'nothing'}"
    return Finding("entry", (parameters, results) == (hook.parameters, ("i64",)), found, allowed)


def _size(parsed: CoreModule) -> Size:
    for each in parsed.imports:
        if each.kind == "memory" and isinstance(each.of, Size):
            return each.of
    return Size(0, None)


def _memory(parsed: CoreModule, hook: HookType) -> Finding:
    allowed = f"one import of {'.'.join(MEMORY)}, of at most {hook.memory_bytes:,} bytes"
    memories = [each for each in parsed.imports if each.kind == "memory"]
    if [(each.module, each.name) for each in memories] != [MEMORY]:
        found = ", ".join(f"{each.module}.{each.name}"[:100] for each in memories[:5]) or "none"
        return Finding("memory", False, f"imported memories: {found}", allowed)
    size = _size(parsed)
    found_bytes = size.minimum * PAGE_BYTES
    fits = found_bytes <= hook.memory_bytes and not size.flags & ~1
    if size.maximum is not None:  # the memory that it gets has its context behind what it asks for
        needed = size.minimum + -(-hook.region_bytes // PAGE_BYTES)
        if size.maximum < needed:
            why = f"its maximum is {size.maximum} pages, and with its context it has {needed}"
            return Finding("memory", False, why, allowed, found_bytes, hook.memory_bytes)
    return Finding("memory", fits, f"{found_bytes:,} bytes", allowed, found_bytes, hook.memory_bytes)


class _Imports:
    """Reads what a codelet imports besides its memory."""

    def __init__(self, parsed: CoreModule, helpers: Mapping[str, HelperType], granted: tuple[str, ...]) -> None:
        self.declarations: dict[str, Declaration] = {}
        self._parsed, self._helpers, self._granted = parsed, helpers, granted
        self._faults: list[str] = []
        for each in parsed.imports:
            if each.kind == "memory":
                continue
            try:
                self._read(each)
            except Unfit as unfit:
                self._faults.append(f"{each.module[:100]} {each.name[:100]}: {unfit}")
        maps = sum(found.kind.is_map for found in self.declarations.values())
        if maps > MAX_MAPS or len(self.declarations) - maps > MAX_CHANNELS:
            self._faults.append(f"it has {maps} maps of at most {MAX_MAPS}, and of channels at most {MAX_CHANNELS}")

    def finding(self) -> Finding:
        names = ", ".join(f"{name} ({what})" for name, what in self.declarations.items())
        helpers = sorted({each.name for each in self._parsed.imports if each.module == HELPERS})
        found = "; ".join(filter(None, (names, f"helpers {', '.join(helpers)}" if helpers else ""))) or "none"
        allowed = f"maps, channels, and helpers: {', '.join(sorted(self._helpers)) or 'there are none'}"
        return Finding(
            "codelet-imports", not self._faults, found[:4000], allowed[:4000], details=tuple(self._faults[:20])
        )

    def _read(self, wanted: Import) -> None:
        if wanted.kind != "func" or not isinstance(wanted.of, int):
            raise Unfit(f"a {wanted.kind} cannot be imported")
        if wanted.of >= len(self._parsed.type_places):
            raise Unfit("its type is not there")
        signature = self._parsed.signature(wanted.of)
        if wanted.module == HELPERS:
            helper = self._helpers.get(wanted.name)
            if helper is None:
                raise Unfit("there is no such helper")
            self._same(signature, helper.signature)
            return
        if wanted.module == wasi.MODULE:
            if wanted.name not in self._granted:
                granted = ", ".join(self._granted) or "nothing"
                raise Unfit(f"its hook grants {granted} of WASI")
            self._same(signature, wasi.signature(wanted.name))
            return
        declaration = declared(wanted.module)
        if declaration is None:
            raise Unfit("a codelet imports its memory, maps, channels and helpers alone")
        name, function = function_of(wanted.name)
        if function not in declaration.functions:
            raise Unfit(f"there is no such function; there are: {', '.join(declaration.functions)}")
        self._same(signature, declaration.functions[function])
        if self.declarations.setdefault(name, declaration) != declaration:
            raise Unfit(f"{name} is declared as {self.declarations[name]} before")

    @staticmethod
    def _same(found: tuple[tuple[str, ...], tuple[str, ...]], wanted: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        if found != wanted:
            words = [f"({', '.join(parameters)}) -> ({', '.join(results)})" for parameters, results in (found, wanted)]
            raise Unfit(f"its type is {words[0]} and must be {words[1]}")
