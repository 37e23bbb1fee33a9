"""Bounds that hold whatever a module is given: the most memory, and the most instructions that an export runs.

Instructions are counted as the language has them (a copy of memory is one); calls of the host are counted apart.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from module_store.verify.bodies import BLOCK, CALL, ELSE, END, IF, LOOP, PLAIN, Bodies, Body
from module_store.verify.component import Component
from module_store.verify.module import PAGE_BYTES, CoreModule, Size

MAX_PAGES = 65536
"""4 GiB: the most that a memory of 32-bit addresses can have."""
MAX_ELEMENTS = (1 << 32) - 1
MOST = 10**15
"""A bound is not counted further: a host runs fewer instructions in a day, and functions that call functions would
otherwise make numbers of a million digits."""
RECURSION, OVER = "a function on its way may call itself", f"it may run more than {MOST:,} instructions"


class Most(NamedTuple):
    """A bound; none: why there is none, where `value` is None."""

    value: int | None
    none: str = ""


class ExportBound(NamedTuple):
    """What one exported function runs at most; none: why that is not known."""

    name: str
    instructions: int | None
    host_calls: int | None
    none: str = ""


def pages_at_first(size: Size) -> int:
    """In bytes."""
    return size.minimum * PAGE_BYTES


def pages_at_most(size: Size) -> int:
    """In bytes."""
    return (MAX_PAGES if size.maximum is None else size.maximum) * PAGE_BYTES


def elements_at_most(size: Size) -> int:
    """A table's."""
    return MAX_ELEMENTS if size.maximum is None else size.maximum


def own_memories(module: CoreModule) -> tuple[Size, ...]:
    """Those that a module makes; imported ones are another's."""
    return module.memories[sum(each.kind == "memory" for each in module.imports) :]


def own_tables(module: CoreModule) -> tuple[Size, ...]:
    """The same of tables."""
    return module.tables[sum(each.kind == "table" for each in module.imports) :]


def own_tags(module: CoreModule) -> array[int]:
    """The same of tags."""
    return module.tags[sum(each.kind == "tag" for each in module.imports) :]


def memory_bound(parsed: CoreModule | Component, bodies: Bodies | None) -> Most:
    """The bytes that all linear memories can have together: where no body grows one, what they have at first."""
    one = pages_at_first if bodies is not None and not bodies.grows_memory else pages_at_most
    if isinstance(parsed, CoreModule):
        return Most(sum(map(one, own_memories(parsed))))
    if parsed.instances is None:
        return Most(None, "a module of the component may be instantiated any number of times")
    return Most(sum(one(size) for index in parsed.instances for size in own_memories(parsed.modules[index])))


def export_bounds(module: CoreModule, bodies: tuple[Body, ...]) -> tuple[ExportBound, ...]:
    """A bound for each exported function."""
    calls = _Calls(module, bodies)
    found = []
    for export in module.exports:
        if export.kind == "func":
            cost = calls.cost(export.place)
            found.append(
                ExportBound(export.name, None, None, cost) if isinstance(cost, str) else _bound(export.name, cost)
            )
    return tuple(found)


class _Cost(NamedTuple):
    instructions: int = 0
    host_calls: int = 0

    def plus(self, other: _Cost) -> _Cost:
        return _Cost(self.instructions + other.instructions, self.host_calls + other.host_calls)

    def times(self, number: int) -> _Cost:
        return _Cost(self.instructions * number, self.host_calls * number)

    def or_(self, other: _Cost) -> _Cost:
        return _Cost(max(self.instructions, other.instructions), max(self.host_calls, other.host_calls))


def _bound(name: str, cost: _Cost) -> ExportBound:
    return ExportBound(name, cost.instructions, cost.host_calls)


class _Calls:
    """What each function costs, callees first, without recursion."""

    def __init__(self, module: CoreModule, bodies: tuple[Body, ...]) -> None:
        self.bodies, self.imported = bodies, module.imported_functions
        self.costs: dict[int, _Cost | str] = {}

    def cost(self, wanted: int) -> _Cost | str:
        """Of the function with this index; or why it has no bound."""
        path: list[int] = [wanted]
        begun: set[int] = set()
        while path:
            index = path[-1]
            if index in self.costs:
                path.pop()
                continue
            if index < self.imported:
                self.costs[index] = _Cost(0, 1)
                continue
            if index - self.imported >= len(self.bodies):
                self.costs[index] = "it calls a function that is not there"
                continue
            callees = self.callees(index)
            missing = [each for each in callees if each not in self.costs]
            begun.add(index)
            if not missing:
                self.costs[index] = self.sum(index, callees)
            elif begun.isdisjoint(missing):
                path.extend(missing)
                continue
            else:
                self.costs[index] = RECURSION
            begun.discard(index)
        return self.costs[wanted]

    def callees(self, index: int) -> list[int]:
        steps = self.bodies[index - self.imported].steps
        return sorted({steps[at + 1] for at in range(0, len(steps), 2) if steps[at] == CALL})

    def sum(self, index: int, callees: list[int]) -> _Cost | str:
        body = self.bodies[index - self.imported]
        if body.unbounded:
            return body.unbounded
        for callee in callees:
            cost = self.costs[callee]
            if isinstance(cost, str):
                return cost
        total = self.longest(body)
        return OVER if max(total) > MOST else total

    def longest(self, body: Body) -> _Cost:
        """The sum over the longest way: of the two arms of an `if` one is taken, and a loop's body in each turn."""
        total, outer = _Cost(), list[tuple[_Cost, _Cost, int]]()
        for at in range(0, len(body.steps), 2):
            kind, number = body.steps[at], body.steps[at + 1]
            if kind == PLAIN:
                total = total.plus(_Cost(number))
            elif kind == CALL:
                cost = self.costs[number]
                total = total.plus(cost) if isinstance(cost, _Cost) else total
            elif kind in (IF, BLOCK, LOOP):
                outer.append((total, _Cost(), number))
                total = _Cost()
            elif kind == ELSE:
                outer[-1], total = (outer[-1][0], total, 1), _Cost()
            elif kind == END and outer:
                before, other, times = outer.pop()
                total = before.plus(total.or_(other).times(times))
        return total
