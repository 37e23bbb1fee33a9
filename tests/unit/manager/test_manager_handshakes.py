"""Which handshake is given up for another, whose turn it is, and what counts as one host."""

from __future__ import annotations

import asyncio

import pytest

from keep_manager.http import handshakes
from keep_manager.http.acceptor import Established, to_close
from keep_manager.http.handshakes import ConnectionTable, Handshake, Handshakes, Quota, source_of, to_drop


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_a_host_is_an_ipv4_address_or_an_ipv6_64(address: str, source: str) -> None:
    assert source_of(address) == source


def test_a_source_s_own_go_first_and_then_those_of_the_source_that_has_most() -> None:
    table: ConnectionTable[int] = ConnectionTable(Quota(in_all=5, of_one=3))
    for number, source in enumerate("aaabb"):
        assert not table.contenders(source)
        table.add(source, number)
    assert list(table.contenders("a")) == [0, 1, 2]
    assert list(table.contenders("c")) == [0, 1, 2]
    table.remove(0)
    table.remove(0)
    assert not table.contenders("c")
    assert (len(table), table.count("a"), list(table)) == (4, 2, [1, 2, 3, 4])


def made(address: str = "127.0.0.1", *, heard: bool = False, began: float | None = None) -> Handshake:
    handshake = Handshake(None, address)
    handshake.heard, handshake.began = heard, began
    return handshake


def test_the_oldest_silent_handshake_goes_before_all_that_were_heard() -> None:
    speaking, waiting, silent, later = made(heard=True, began=1.0), made(heard=True), made(), made()
    assert to_drop([speaking, waiting, silent, later]) is silent
    assert to_drop([speaking, waiting]) is waiting
    assert to_drop([speaking]) is speaking
    assert to_drop([]) is None


class Connection:
    def __init__(self, idle_since: float | None) -> None:
        self.idle_since = idle_since

    def cut_off(self) -> None:
        raise AssertionError("it is only chosen")


def test_the_connection_that_is_idle_longest_is_closed_and_none_that_is_used() -> None:
    used, short, long = Connection(None), Connection(7.0), Connection(3.0)
    contenders: list[Established] = [used, short, long]
    assert to_close(contenders) is long
    assert to_close([used]) is None


async def begin(table: Handshakes, address: str = "127.0.0.1") -> tuple[Handshake, asyncio.Task[None]]:
    """A handshake that has asked for its turn."""
    handshake = made(address, heard=True)
    table.enter(handshake)
    handshake.task = asyncio.create_task(table.turn(handshake))
    await asyncio.sleep(0)
    return handshake, handshake.task


async def test_turns_go_to_the_host_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "TURNS", Quota(2, 2))
    monkeypatch.setattr(handshakes, "TURN_SECONDS", 3600.0)  # no turn ends by itself
    table = Handshakes()
    (first, _), (second, _), (third, third_turn) = [await begin(table) for _ in range(3)]
    other, other_turn = await begin(table, "192.0.2.7")
    assert (first.began is None, second.began is None) == (False, False)
    assert (third.began, other.began) == (None, None)
    table.leave(first)
    await asyncio.wait_for(other_turn, 60)
    assert third.began is None
    table.leave(second)
    await asyncio.wait_for(third_turn, 60)
    table.close()


async def waits() -> None:
    """As TLS does for a client that has fallen silent."""
    await asyncio.Event().wait()


async def test_a_turn_that_lasts_too_long_ends_only_when_another_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "TURNS", Quota(1, 1))
    monkeypatch.setattr(handshakes, "TURN_SECONDS", 0.01)
    table = Handshakes()
    slow = made(heard=True)
    slow.task = asyncio.create_task(waits())
    table.enter(slow)
    await table.turn(slow)
    assert not slow.task.done()
    _, turn = await begin(table)
    await asyncio.wait_for(turn, 60)
    with pytest.raises(asyncio.CancelledError):
        await slow.task
    table.close()
