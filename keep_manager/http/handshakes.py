"""Connections by the host they come from, bounded in number; and of those whose handshake is not complete, whose turn
it is for TLS, and which is given up for another.

A handshake is silent until its client's first byte, then it waits for its turn, then TLS is spoken. Silent and waiting
ones cost a socket each, so there may be many; TLS costs buffers and arithmetic, so there are few turns, given to the
host with the fewest first. A turn lasts until the handshake is complete; past TURN_SECONDS it ends when another
waits. So neither silence nor half a handshake, repeated as fast as a host can, keeps a client of the same host out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

from keep_protocol.fields import Record

Held = TypeVar("Held")
_HOST_BITS = 64
"""Of an IPv6 address the half that a host chooses for itself, as often as it likes (RFC 4291, section 2.5.4)."""
STRANGERS = logging.getLogger("keepfleet.security.strangers")
"""What clients do that have shown no good certificate: as many lines as they like, so rationed apart (log.py)."""
TURN_SECONDS = 0.5
"""A handshake takes two round trips, and 2 ms of processor time: enough for a busy host and half the globe."""


class Quota(Record):
    """in_all: connections there may be; of_one: how many of them from one source."""

    in_all: int
    of_one: int


UNFINISHED = Quota(in_all=512, of_one=256)
"""Five kilobytes each."""
TURNS = Quota(in_all=128, of_one=64)
"""A hundred kilobytes each."""


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


class Handshake:
    """One connection until it is established or given up.

    sock: its socket, until asyncio owns it. heard: whether the client has said anything. began: when its turn began, by
    the loop's clock, or None. task: what is at work on it.
    """

    __slots__ = ("address", "began", "heard", "sock", "source", "task")

    def __init__(self, sock: socket.socket | None, address: str) -> None:
        self.sock = sock
        self.address = address
        self.source = source_of(address)
        self.heard = False
        self.began: float | None = None
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        stage = "silent" if not self.heard else "waiting" if self.began is None else "in TLS"
        return f"Handshake({self.address}, {stage})"


def to_drop(contenders: Iterable[Handshake]) -> Handshake | None:
    """Of handshakes of which one has to go, oldest first: the oldest silent, else waiting, else any. Pure."""
    return min(contenders, key=lambda one: (one.heard, one.began is not None), default=None)


class Handshakes:
    """All that are not complete."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._unfinished: ConnectionTable[Handshake] = ConnectionTable(UNFINISHED)
        self._turns: ConnectionTable[Handshake] = ConnectionTable(TURNS)
        self._waiting: dict[Handshake, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._unfinished)

    def __repr__(self) -> str:
        return f"Handshakes({len(self)}, {len(self._turns)} in TLS, {len(self._waiting)} waiting)"

    def enter(self, handshake: Handshake) -> None:
        """Counts a new one; where there are too many another one is given up for it."""
        victim = to_drop(self._unfinished.contenders(handshake.source))
        if victim is not None:
            self._give_up(victim)
        self._unfinished.add(handshake.source, handshake)

    async def turn(self, handshake: Handshake) -> None:
        """Returns when TLS may begin."""
        turn = self._waiting[handshake] = self._loop.create_future()
        self._hand_out()
        try:
            await turn
        finally:
            self._waiting.pop(handshake, None)

    def leave(self, handshake: Handshake) -> None:
        """Forgets one that is complete or has failed, if it is still known."""
        self._unfinished.remove(handshake)
        self._turns.remove(handshake)
        self._hand_out()

    def close(self) -> None:
        """Hands out no more turns."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self, victim: Handshake) -> None:
        STRANGERS.info("gave up a handshake with %s: others wait", victim.address)
        self._unfinished.remove(victim)
        self._turns.remove(victim)
        self._waiting.pop(victim, None)
        if victim.task is not None:
            victim.task.cancel()

    def _hand_out(self) -> None:
        """Lets those begin whose turn it is, and looks again when the next turn may end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (chosen := self._next()) is not None:
            turn = self._waiting.pop(chosen)
            self._turns.add(chosen.source, chosen)
            chosen.began = self._loop.time()
            if not turn.done():
                turn.set_result(None)

    def _next(self) -> Handshake | None:
        """The one that waits longest of the host with the fewest turns, after one of another has ended if need be."""
        first: dict[str, Handshake] = {}
        for handshake in self._waiting:
            first.setdefault(handshake.source, handshake)
        ends: list[float] = []
        for source in sorted(first, key=self._turns.count):
            oldest = next(iter(self._turns.contenders(source)), None)
            if oldest is None:
                return first[source]
            ends.append((oldest.began or 0.0) + TURN_SECONDS)
            if ends[-1] <= self._loop.time():
                self._give_up(oldest)
                return first[source]
        if ends:
            self._timer = self._loop.call_at(min(ends), self._hand_out)
        return None
