"""How much a caller may have, and what is refused beyond it."""

from __future__ import annotations

import pytest

from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.callers import CallerEntry, Quotas
from keep_manager.model import Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo
from keep_protocol.limits import MIB, Limits
from keep_protocol.spec import KeepSpec
from keep_protocol.states import State

ANN = Caller("ann", Role.USER, "192.0.2.1", "ann")
BOB = Caller("bob", Role.USER, "192.0.2.2", "bob")
SPEC = KeepSpec(owner="ann", limits=Limits(memory_bytes=64 * MIB))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def keeper(quotas: Quotas, *keeps: KeepInfo, clock: Clock | None = None) -> QuotaKeeper:
    return QuotaKeeper({"ann": CallerEntry(quotas=quotas)}, lambda: keeps, clock or Clock())


def keep(kuuid: int, owner: str = "ann", state: State = State.LISTENING) -> KeepInfo:
    return KeepInfo(kuuid, state, owner=owner, limits=Limits(memory_bytes=64 * MIB))


def test_living_keeps_of_one_s_own_count_and_no_others() -> None:
    others = (keep(1, "bob"), keep(2, state=State.COMPLETE), keep(3, state=State.ERROR))
    keeper(Quotas(keeps=1), *others).admit_creation(ANN, SPEC)
    with pytest.raises(KeepfleetError, match="the quota keeps of ann is 1") as refused:
        keeper(Quotas(keeps=1), *others, keep(4)).admit_creation(ANN, SPEC)
    assert refused.value.kind is ErrorKind.TOO_MANY


def test_memory_counts_in_total_with_the_keep_that_is_to_come() -> None:
    keeper(Quotas(memory_bytes=128 * MIB), keep(1)).admit_creation(ANN, SPEC)
    with pytest.raises(KeepfleetError, match="the quota memory_bytes of ann"):
        keeper(Quotas(memory_bytes=127 * MIB), keep(1)).admit_creation(ANN, SPEC)


def test_starts_count_for_a_minute() -> None:
    clock = Clock()
    quotas = keeper(Quotas(starts_per_minute=2), clock=clock)
    for _ in range(2):
        quotas.admit_start(ANN, 1, "127.0.0.1", 3031)
    with pytest.raises(KeepfleetError, match="2 starts in a minute"):
        quotas.admit_start(ANN, 1, "127.0.0.1", 3031)
    quotas.admit_start(BOB, 2, "127.0.0.1", 3031)
    clock.now = 60.0
    quotas.admit_start(ANN, 1, "127.0.0.1", 3031)


@pytest.mark.parametrize(
    ("address", "port", "why"),
    [("0.0.0.0", 4000, "on address 0.0.0.0: .* allow 127.0.0.1"), ("127.0.0.1", 80, "on port 80: .* 4000 to 4010")],
)
def test_a_keep_listens_only_where_its_caller_may(address: str, port: int, why: str) -> None:
    quotas = keeper(Quotas(first_port=4000, last_port=4010, addresses=("127.0.0.1",)))
    assert quotas.admit_start(ANN, 1, "127.0.0.1", 4000) == (4000, 4010)
    assert quotas.admit_start(ANN, 1, "127.0.0.1", None) == (4000, 4010)
    with pytest.raises(KeepfleetError, match=why) as refused:
        quotas.admit_start(ANN, 1, address, port)
    assert refused.value.kind is ErrorKind.FORBIDDEN


def test_streams_give_their_place_back() -> None:
    quotas = keeper(Quotas(followers=1))
    for _ in range(3):
        with quotas.following(ANN), quotas.following(BOB), pytest.raises(KeepfleetError, match="1 streams are open"):
            quotas.following(ANN).__enter__()
