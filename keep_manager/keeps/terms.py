"""What the configuration lets keeps have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from keep_manager.callers import CallerEntry


@dataclass(frozen=True)
class Terms:
    """Limits, and where things lie. client_ca and revoked: the files whose descriptors each door gets; callers: what
    each may ask for."""

    client_ca: str
    revoked: str
    first_port: int
    last_port: int
    start_timeout_seconds: float = 15.0
    max_keeps: int = 2000
    max_creations_at_once: int = 8
    callers: Mapping[str, CallerEntry] = field(default_factory=dict)
