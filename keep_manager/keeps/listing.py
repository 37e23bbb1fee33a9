"""Pages of keeps: which to ask for, and what of the answers is shown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keep_manager.keeps import decide
from keep_manager.model import UnitState
from keep_protocol.api import ListKeeps
from keep_protocol.keep import KeepInfo


@dataclass(frozen=True)
class Page:
    """Some keeps by ID; next: the ID to ask for more `after`, None when these are the last."""

    keeps: tuple[KeepInfo, ...]
    next: int | None = None


def candidates(units: Iterable[UnitState], request: ListKeeps) -> list[UnitState]:
    """The units whose loaders may have to be asked, by ID."""
    return sorted(
        (unit for unit in units if decide.is_keep(unit) and unit.kuuid > request.after), key=lambda unit: unit.kuuid
    )


def enough(found: Sequence[KeepInfo], request: ListKeeps) -> bool:
    """Whether the page is known: its keeps, and that there is one more."""
    return request.limit > 0 and len(found) > request.limit


def matches(keep: KeepInfo, request: ListKeeps) -> bool:
    """Whether the keep has every label asked for."""
    return set(request.labels) <= set(keep.labels)


def page(found: Sequence[KeepInfo], request: ListKeeps) -> Page:
    """The page made of what was found, in order."""
    if enough(found, request):
        return Page(tuple(found[: request.limit]), found[request.limit - 1].kuuid)
    return Page(tuple(found))
