"""The rules: what a parsed module has, compared with a policy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from module_store.verify.bodies import Bodies
from module_store.verify.bounds import (
    ExportBound,
    elements_at_most,
    own_memories,
    own_tables,
    own_tags,
    pages_at_first,
    pages_at_most,
)
from module_store.verify.component import Component
from module_store.verify.module import CoreModule
from module_store.verify.policy import Allowed, Kind, Policy
from module_store.verify.report import MAX_DETAILS, Finding

Parsed = CoreModule | Component
MAX_SHOWN = 200
"""Characters of a name that a stranger chose."""


def shown(name: str) -> str:
    """A stranger's name, in ASCII and bounded: it is printed on a terminal."""
    text = name.encode("ascii", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def modules_of(parsed: Parsed) -> tuple[CoreModule, ...]:
    """Every core module in it."""
    return (parsed,) if isinstance(parsed, CoreModule) else parsed.modules


def kind_of(parsed: Parsed) -> Kind:
    """What it is."""
    return Kind.MODULE if isinstance(parsed, CoreModule) else Kind.COMPONENT


def _summed(measure: Callable[[CoreModule], int]) -> Callable[[Parsed], int]:
    return lambda parsed: sum(map(measure, modules_of(parsed)))


_MEASURES: tuple[tuple[str, str, Callable[[Parsed], int]], ...] = (
    ("size", "bytes", lambda parsed: parsed.size),
    ("memories", "memories", _summed(lambda module: len(own_memories(module)))),
    ("memory_initial", "bytes at first", _summed(lambda module: sum(map(pages_at_first, own_memories(module))))),
    ("memory_maximum", "bytes at most", _summed(lambda module: sum(map(pages_at_most, own_memories(module))))),
    ("tables", "tables", _summed(lambda module: len(own_tables(module)))),
    ("table_initial", "elements at first", _summed(lambda module: sum(size.minimum for size in own_tables(module)))),
    ("table_maximum", "elements at most", _summed(lambda module: sum(map(elements_at_most, own_tables(module))))),
    ("tags", "tags of exceptions", _summed(lambda module: len(own_tags(module)))),
    ("functions", "functions", _summed(lambda module: module.code.number)),
    (
        "function_bytes",
        "bytes in the largest",
        lambda parsed: max((module.code.largest for module in modules_of(parsed)), default=0),
    ),
    ("data_segments", "data segments", _summed(lambda module: module.data_segments.number)),
    ("data_bytes", "bytes of data", _summed(lambda module: module.data_segments.items)),
    ("element_segments", "element segments", _summed(lambda module: module.elements.number)),
    ("elements", "elements", _summed(lambda module: module.elements.items)),
    ("custom_bytes", "bytes of custom sections", lambda parsed: sum(size for _, size in parsed.custom)),
    ("modules", "core modules", lambda parsed: len(modules_of(parsed))),
    ("depth", "components in components", lambda parsed: parsed.depth if isinstance(parsed, Component) else 0),
)
"""Each member of a policy that is the most of something, what it counts, and how it is measured."""


def _numbered(rule: str, what: str, value: int, limit: int | None) -> Finding:
    passed = limit is None or value <= limit
    return Finding(rule, passed, f"{value:,} {what}", f"at most {limit:,}" if limit is not None else "", value, limit)


def _listed(details: list[str]) -> tuple[str, ...]:
    more = len(details) - MAX_DETAILS
    return (*details[:MAX_DETAILS], *([f"… and {more:,} more"] if more > 0 else []))


def kind_rule(parsed: Parsed, policy: Policy) -> Finding:
    """A core module or a component."""
    kind = kind_of(parsed)
    return Finding(
        "kinds", kind in policy.kinds, kind.value, " or ".join(each.value for each in policy.kinds) or "none"
    )


def imported(parsed: Parsed) -> Iterator[tuple[str, str | None]]:
    """Each interface and function that it asks for; None for a function where any of them may be meant.

    Types that a component imports are not among them: nothing can be done with one.
    """
    if isinstance(parsed, CoreModule):
        for each in parsed.imports:
            yield each.module, each.name
        return
    for asked in parsed.imports:
        if asked.kind == "instance" and asked.functions is not None:
            for function in asked.functions or ("",):
                yield asked.name, function
        elif asked.kind == "func":
            yield asked.name, ""
        elif asked.kind != "type":
            yield asked.name, None


def _keys(interface: str) -> Iterator[str]:
    """The names by which a policy may mean an interface: with its whole version, with two numbers of it, with none."""
    yield interface
    name, at, version = interface.partition("@")
    while at and "." in version:
        version = version.rpartition(".")[0]
        yield f"{name}@{version}"
    if at:
        yield name


def _is_allowed(allowed: dict[str, frozenset[str] | None], interface: str, function: str | None) -> bool:
    for key in _keys(interface):
        if key in allowed:
            functions = allowed[key]
            return functions is None or function == "" or (function is not None and function in functions)
    return False


def imports_rule(parsed: Parsed, allowed: Allowed | None) -> Finding:
    """Every import is on the allow-list."""
    asked = list(dict.fromkeys(imported(parsed)))
    found = f"{len(asked):,} from {len({interface for interface, _ in asked}):,} interfaces" if asked else "none"
    if allowed is None:
        return Finding("imports", True, found, "")
    known = {name: None if functions is None else frozenset(functions) for name, functions in allowed}
    refused = [(interface, function) for interface, function in asked if not _is_allowed(known, interface, function)]
    names = [
        f"{shown(interface)} {shown('(any)' if function is None else function)}".rstrip()
        for interface, function in refused
    ]
    words = f"{len(refused):,} that are not allowed, of {len(asked):,}" if refused else found
    return Finding("imports", not refused, words, f"those of {len(known)} interfaces", None, None, _listed(names))


def start_rule(parsed: Parsed, policy: Policy) -> Finding:
    """A start function, of a module or of one in a component, runs before the entry that is called."""
    has = any(module.start is not None for module in modules_of(parsed))
    found = "a start function" if has else "no start function"
    return Finding("start", policy.start or not has, found, "" if policy.start else "none")


def custom_rule(parsed: Parsed, policy: Policy) -> Finding:
    """Custom sections by name."""
    names = dict.fromkeys(name for name, _ in parsed.custom)
    found = f"{len(parsed.custom):,} custom sections"
    if policy.custom_sections is None:
        return Finding("custom_sections", True, found, "")
    others = [shown(name) for name in names if name not in policy.custom_sections]
    allowed = ", ".join(map(shown, policy.custom_sections)) or "none"
    return Finding("custom_sections", not others, found, allowed[:MAX_SHOWN], None, None, _listed(others))


def decoded_rules(policy: Policy, bodies: Bodies | None, exhausted: str) -> Iterator[Finding]:
    """What only decoded bodies show. Where they were not decoded, a rule that asks for it fails."""
    for rule, what in (("locals", "locals in one function"), ("nesting", "blocks in blocks")):
        limit = getattr(policy, rule)
        if bodies is not None:
            yield _numbered(rule, what, getattr(bodies, rule), limit)
        elif limit is not None:
            yield Finding(rule, False, f"not known: {exhausted}", f"at most {limit:,}", None, limit)


def instructions_rule(policy: Policy, bounds: tuple[ExportBound, ...], reason: str) -> Iterator[Finding]:
    """Each exported function has a bound, and not too large a one."""
    limit = policy.instructions
    if limit is None:
        return
    if reason:
        yield Finding("instructions", False, f"not known: {reason}", f"at most {limit:,}", None, limit)
        return
    worst = max((bound.instructions or 0 for bound in bounds), default=0)
    over = [bound for bound in bounds if bound.instructions is None or bound.instructions > limit]
    names = [f"{shown(bound.name)}: {bound.none or f'{bound.instructions:,}'}" for bound in over]
    found = f"{len(over):,} of {len(bounds):,} exports are not bounded so" if over else f"{worst:,} at most"
    yield Finding("instructions", not over, found, f"at most {limit:,}", worst, limit, _listed(names))


def check(parsed: Parsed, policy: Policy) -> Iterator[Finding]:
    """Every rule that needs no bodies."""
    yield kind_rule(parsed, policy)
    yield imports_rule(parsed, policy.imports)
    yield start_rule(parsed, policy)
    for rule, what, measure in _MEASURES:
        yield _numbered(rule, what, measure(parsed), getattr(policy, rule))
    yield custom_rule(parsed, policy)
