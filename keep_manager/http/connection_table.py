"""Connections by the host they come from, bounded in number, and which of them may have to go for another. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Held = TypeVar("Held")
_HOST_BITS = 64
"""Of an IPv6 address the half that a host chooses for itself, as often as it likes (RFC 4291, section 2.5.4)."""


@dataclass(frozen=True)
class Quota:
    """in_all: connections there may be; of_one: how many of them from one source."""

    in_all: int
    of_one: int


def source_of(address: str) -> str:
    """What counts as one host: an IPv4 address, however it is written, or the /64 an IPv6 address lies in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 4:
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(ip) >> _HOST_BITS << _HOST_BITS)}/{_HOST_BITS}"


class ConnectionTable(Generic[Held]):
    """The connections under one quota, each with its source, in the order they came."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._sources: dict[Held, str] = {}
        self._by_source: dict[str, dict[Held, None]] = {}

    def __repr__(self) -> str:
        return f"ConnectionTable({len(self)} of {self._quota.in_all}, {len(self._by_source)} sources)"

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._sources))

    def count(self, source: str) -> int:
        """How many there are of one source."""
        return len(self._by_source.get(source, ()))

    def contenders(self, source: str) -> Collection[Held]:
        """Those of which one has to go before another of `source` is added, the oldest first; none while there is room.

        They are the source's own once it has its share, else those of the source that has the most: a host that floods
        pays before its neighbours do.
        """
        own = self._by_source.get(source, {})
        if len(own) >= self._quota.of_one:
            return own
        if len(self) >= self._quota.in_all:
            return max(self._by_source.values(), key=len)
        return ()

    def add(self, source: str, connection: Held) -> None:
        """Counts `connection` as one of `source`."""
        self._sources[connection] = source
        self._by_source.setdefault(source, {})[connection] = None

    def remove(self, connection: Held) -> None:
        """Forgets it, if it is still known."""
        source = self._sources.pop(connection, None)
        if source is None:
            return
        del self._by_source[source][connection]
        if not self._by_source[source]:
            del self._by_source[source]
