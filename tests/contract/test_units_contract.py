"""What the manager may rely on from a service manager; the fake and systemd pass the same tests."""

from __future__ import annotations

import asyncio
import time

import pytest

from keep_manager.keeps import decide
from keep_manager.model import UnitEnd
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec
from tests.contract.conftest import Subject

ENOUGH = 20.0
SPEC = KeepSpec(name="web", labels=(("a", "[Service]\u00e9 %n $HOME"),), owner="alice", created_at=1.5)


async def refusal(work: object) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        await work  # type: ignore[misc] # whatever coroutine a test passes
    return caught.value


async def gone(subject: Subject, kuuid: int) -> bool:
    state = await subject.units.look(kuuid)
    return (state is None or not decide.is_keep(state)) and kuuid not in subject.units.kuuids()


async def test_a_started_unit_is_active_listed_and_has_its_directory(subject: Subject) -> None:
    await subject.units.start(1001, ENOUGH, SPEC)
    state = await subject.units.look(1001)
    assert state is not None
    assert (state.kuuid, state.load, state.active) == (1001, "loaded", "active")
    assert state in await subject.units.listed()
    assert subject.units.kuuids() == {1001}
    assert (await subject.units.end(1001)).result in ("", "success")


async def test_a_unit_that_exists_is_a_conflict_and_stays(subject: Subject) -> None:
    await subject.units.start(1002, ENOUGH, SPEC)
    assert (await refusal(subject.units.start(1002, ENOUGH, SPEC))).kind is ErrorKind.CONFLICT
    state = await subject.units.look(1002)
    assert state is not None
    assert state.active == "active"


async def test_fifty_starts_of_one_unit_have_one_winner(subject: Subject) -> None:
    results = await asyncio.gather(
        *(subject.units.start(1003, ENOUGH, SPEC) for _ in range(50)), return_exceptions=True
    )
    lost = [result for result in results if isinstance(result, KeepfleetError)]
    assert len(lost) == 49
    assert {error.kind for error in lost} == {ErrorKind.CONFLICT}


async def test_a_stopped_unit_leaves_nothing_and_can_be_started_again(subject: Subject) -> None:
    for _ in range(2):
        await subject.units.start(1004, ENOUGH, SPEC)
        await subject.units.stop(1004)
        assert await gone(subject, 1004)


async def test_what_many_units_say_is_what_each_says(subject: Subject) -> None:
    specs = {1101 + number: SPEC.replace(name=f"web-{number}") for number in range(5)}
    for kuuid, spec in specs.items():
        await subject.units.start(kuuid, ENOUGH, spec)
    assert await subject.units.specs(list(specs)) == specs
    assert await subject.units.specs([]) == {}
    assert [await subject.units.spec(kuuid) for kuuid in specs] == list(specs.values())


async def test_a_spare_becomes_what_it_is_claimed_as_in_one_step(subject: Subject) -> None:
    await subject.units.start(1201, ENOUGH, KeepSpec(spare=True))
    assert await subject.units.spec(1201) == KeepSpec(spare=True)
    mark = await subject.units.settings_mark(1201)
    assert await subject.units.settings_mark(1201) == mark
    claimed = SPEC.replace(spare=True)
    for _ in range(2):
        await subject.units.claim(1201, claimed)
    assert await subject.units.spec(1201) == claimed
    assert await subject.units.specs([1201]) == {1201: claimed}
    await subject.units.stop(1201)
    assert (await refusal(subject.units.claim(1201, claimed))).kind is ErrorKind.NOT_FOUND


async def test_a_unit_is_narrowed_once_and_again_and_never_widened(subject: Subject) -> None:
    await subject.units.start(1202, ENOUGH, SPEC)
    for _ in range(2):
        await subject.units.narrow(1202, SPEC)
    await subject.units.stop(1202)
    assert (await refusal(subject.units.narrow(1202, SPEC))).kind is ErrorKind.NOT_FOUND


async def test_a_unit_that_does_not_exist_is_not_found(subject: Subject) -> None:
    assert await subject.units.look(1005) is None
    assert (await refusal(subject.units.stop(1005))).kind is ErrorKind.NOT_FOUND
    assert await subject.units.end(1005) == UnitEnd()


async def test_a_loader_that_fails_is_an_error_and_stop_clears_it_away(subject: Subject) -> None:
    subject.behave("fail")
    error = await refusal(subject.units.start(1006, ENOUGH, SPEC))
    assert error.kind is ErrorKind.KEEP_FAILED
    assert "keep@1006.service" in error.message
    await subject.units.stop(1006)
    assert await gone(subject, 1006)


async def test_a_loader_that_is_never_ready_is_an_error_in_time(subject: Subject) -> None:
    subject.behave("never")
    error = await refusal(subject.units.start(1007, 0.3, SPEC))
    assert error.kind is ErrorKind.KEEP_FAILED
    assert "not ready in time" in error.message
    await subject.units.stop(1007)
    assert await gone(subject, 1007)


async def test_a_stop_ends_a_start_that_is_under_way(subject: Subject) -> None:
    subject.behave("never")
    starting = asyncio.create_task(subject.units.start(1008, ENOUGH, SPEC))
    while await subject.units.look(1008) is None:  # noqa: ASYNC110 # the moment between queued and ready is what is wanted
        await asyncio.sleep(0)
    await subject.units.stop(1008)
    error = await refusal(starting)
    assert error.kind is ErrorKind.KEEP_FAILED
    assert "removed meanwhile" in error.message
    assert await gone(subject, 1008)


async def test_a_start_that_is_cancelled_is_cleared_by_a_stop(subject: Subject) -> None:
    subject.behave("never")
    starting = asyncio.create_task(subject.units.start(1009, ENOUGH, SPEC))
    while await subject.units.look(1009) is None:  # noqa: ASYNC110 # as above
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    await subject.units.stop(1009)
    assert await gone(subject, 1009)


async def test_units_that_are_not_installed_are_said_and_leave_nothing(subject: Subject) -> None:
    subject.install(False)
    error = await refusal(subject.units.start(1010, ENOUGH, SPEC))
    assert error.kind is ErrorKind.CONFIGURATION
    assert "run keepctl install" in error.message
    assert await gone(subject, 1010)


async def test_many_at_a_time_all_start_and_all_stop(subject: Subject) -> None:
    ids = range(2000, 2030)
    await asyncio.gather(*(subject.units.start(kuuid, ENOUGH, SPEC) for kuuid in ids))
    assert {state.kuuid for state in await subject.units.listed()} == set(ids) == subject.units.kuuids()
    await asyncio.gather(*(subject.units.stop(kuuid) for kuuid in ids))
    assert subject.units.kuuids() == set()
    assert [state for state in await subject.units.listed() if decide.is_keep(state)] == []


async def test_a_unit_says_what_its_keep_is(subject: Subject) -> None:
    await subject.units.start(1011, ENOUGH, SPEC)
    assert await subject.units.spec(1011) == SPEC


async def test_how_a_unit_ended_is_known(subject: Subject) -> None:
    subject.behave("fail")
    before = time.monotonic()
    await refusal(subject.units.start(1012, ENOUGH, SPEC))
    state = await subject.units.look(1012)
    assert state is not None
    end = await subject.units.end(1012)
    assert (end.result, end.status) == ("exit-code", 7)
    assert end.inactive_since is None or before <= end.inactive_since <= time.monotonic()
    await subject.units.stop(1012)


async def test_a_masked_template_is_said_and_leaves_nothing(subject: Subject) -> None:
    subject.mask(True)
    error = await refusal(subject.units.start(1013, ENOUGH, SPEC))
    subject.mask(False)
    assert error.kind is ErrorKind.CONFIGURATION
    assert "keep@.service is masked; unmask it: systemctl unmask keep@.service" in error.message
    assert await gone(subject, 1013)
