"""What loaders have told of their keeps that never changes, for the moments in which none answers.

Between two runs of a restarted workload no loader is there, and a keep without its name could be neither found nor
stopped by it. A manager that starts anew hears it again from each loader, so that nothing is lost with this memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from keep_protocol.keep import KeepInfo
from keep_protocol.limits import Limits


@dataclass(frozen=True)
class _Known:
    name: str
    labels: tuple[tuple[str, str], ...]
    owner: str
    limits: Limits


class Lasting:
    """By keep: its name, labels, owner and limits, as its loader told them last."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def __repr__(self) -> str:
        return f"Lasting({len(self._known)} keeps)"

    def heard(self, info: KeepInfo) -> KeepInfo:
        """`info` itself, which a loader has told."""
        self._known[info.kuuid] = _Known(info.name, info.labels, info.owner, info.limits)
        return info

    def filled(self, info: KeepInfo) -> KeepInfo:
        """`info`, which no loader has told, with what one did before."""
        known = self._known.get(info.kuuid)
        if known is None:
            return info
        return KeepInfo(**{**info.fields(), **vars(known)})

    def only(self, kuuids: Iterable[int]) -> None:
        """Forgets every keep that is none of these."""
        there = set(kuuids)
        self._known = {kuuid: known for kuuid, known in self._known.items() if kuuid in there}
