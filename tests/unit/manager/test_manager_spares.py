"""Spares: made before anyone asks for a keep, without an owner until then, and a keep permanently from then on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.callers import CallerEntry, Quotas
from keep_manager.keeps.interfaces import Quotas as QuotasOf
from keep_manager.keeps.policy import Policy
from keep_manager.keeps.upkeep import Spares, fits, is_spare
from keep_manager.systemd.properties import claim_properties, claimed_in, keep_properties
from keep_manager.tasks import Group
from keep_protocol.api import NewKeep, StartKeep
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import Limits
from keep_protocol.spec import KeepSpec, Profile, RestartPolicy
from keep_protocol.sse import EventType
from keep_protocol.states import State
from tests.fakes.callers import ALICE, BOB
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_loader import FakeLoader
from tests.fakes.fake_units import FAIL, READY, FakeUnits
from tests.fakes.manager_parts import ManagerParts, manager_parts

DEADLINE = 60.0
OWNED = KeepSpec(name="web", owner="alice", labels=(("a", "[Service]\u00e9 %n"),), spare=True)


def spares_of(units: FakeUnits) -> set[int]:
    return {kuuid for kuuid, spec in units.said.items() if is_spare(spec)}


async def until(units: FakeUnits, reached: Callable[[], bool]) -> None:
    """Waits until it is so; looks again after each unit that starts or ends."""
    async with asyncio.timeout(DEADLINE):
        while not reached():
            await units.changed()


@asynccontextmanager
async def with_spares(
    units: FakeUnits,
    place: Path,
    policy: Policy,
    number: int,
    events: FakeEventLog | None = None,
    quotas: QuotasOf | None = None,
) -> AsyncIterator[ManagerParts]:
    """A manager that has so many spares."""
    async with manager_parts(units, str(place), policy.replace(spare_keeps=number), events, quotas) as parts:
        tending = parts.tasks.start(parts.keeps.tend_spares())
        await until(units, lambda: len(spares_of(units)) == number)
        yield parts
        tending.cancel()


async def test_spares_are_no_keeps_to_anyone_and_count_for_no_one(
    units: FakeUnits, place: Path, policy: Policy, events: FakeEventLog
) -> None:
    callers = {"alice": CallerEntry(quotas=Quotas(keeps=1))}
    parts: ManagerParts
    quotas = QuotaKeeper(callers, lambda: parts.view)
    async with with_spares(units, place, policy.replace(max_keeps=1), 2, events, quotas) as parts:
        spare = next(iter(spares_of(units)))
        assert (await parts.keeps.list()).keeps == ()
        with pytest.raises(KeepfleetError) as caught:
            parts.keeps.find(spare)
        assert caught.value.kind is ErrorKind.NOT_FOUND
        await parts.keeps.create(NewKeep(), ALICE)
        assert [event.type for event in events.written] in ([], [EventType.CREATED])


async def test_what_is_wanted_no_more_when_it_has_become_quiet_is_not_made(units: FakeUnits, policy: Policy) -> None:
    wanted = policy.replace(spare_keeps=1)
    spares, quiets = Spares(units, wanted), list[int]()

    async def quiet() -> None:
        quiets.append(len(spares))
        if len(quiets) == 1:
            spares.apply(policy.replace(spare_keeps=0))
            asyncio.get_running_loop().call_soon(spares.apply, wanted)

    async with Group() as tasks:
        tending = tasks.start(spares.run(lambda: 7, quiet))
        await until(units, lambda: len(spares) == 1)
        tending.cancel()
    assert quiets == [0, 0], "what is wanted again waits for quiet again"


async def test_a_creation_takes_a_spare_which_says_from_then_on_what_it_is(
    units: FakeUnits, place: Path, policy: Policy, events: FakeEventLog
) -> None:
    async with with_spares(units, place, policy, 1, events) as parts:
        (spare,) = spares_of(units)
        wanted = NewKeep(name="web", labels=(("a", "b"),), limits=(("tasks", 20),), restart=RestartPolicy.ALWAYS)
        made = await parts.keeps.create(wanted, ALICE)
        assert (made.kuuid, made.state, made.name, made.owner) == (spare, State.LISTENING, "web", "alice")
        assert (made.labels, made.limits.tasks, made.restart) == ((("a", "b"),), 20, RestartPolicy.ALWAYS)
        spec = units.said[spare]
        assert (spec.owner, spec.name, spec.limits.tasks) == ("alice", "web", 20)
        assert units.loaders[spare].spec == spec
        assert (await events.until(EventType.CREATED)).keep.owner == "alice"
        await until(units, lambda: len(spares_of(units)) == 1)
        assert spares_of(units) != {spare}, "another one was made, and that one is given out no more"


async def test_a_creation_with_its_start_takes_a_spare_too(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with with_spares(units, place, policy, 1) as parts:
        (spare,) = spares_of(units)
        made = await parts.keeps.create(NewKeep(start=StartKeep(names=("a.example",))), ALICE)
        assert (made.kuuid, made.state, made.uploaders) == (spare, State.STARTED, ("name:alice",))
        words = [command.type.value for command in units.loaders[spare].commands]
        assert words.index("keep-claim") < words.index("keep-start")


async def test_a_start_that_fails_leaves_nothing_of_the_spare(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with with_spares(units, place, policy, 1) as parts:
        (spare,) = spares_of(units)
        with pytest.raises(KeepfleetError) as caught:
            await parts.keeps.create(NewKeep(start=StartKeep(address="192.0.2.9")), ALICE)
        assert caught.value.kind is ErrorKind.PORT_UNAVAILABLE
        assert spare not in units.kuuids()


async def test_what_cannot_be_set_on_a_unit_that_runs_means_a_unit_of_its_own(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    callers = {"alice": CallerEntry(ceilings=(("log_lines_per_second", 10_000),))}
    async with with_spares(units, place, policy.replace(callers=callers), 1) as parts:
        before = spares_of(units)
        made = await parts.keeps.create(NewKeep(limits=(("log_lines_per_second", 5000),)), ALICE)
        assert made.kuuid not in before
        assert spares_of(units) == before
    assert fits(KeepSpec())
    assert not fits(KeepSpec(limits=Limits(log_lines_per_second=1)))
    assert not fits(KeepSpec(profile=Profile.STRICT))


async def test_of_many_creations_each_gets_a_keep_of_its_own(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with with_spares(units, place, policy, 3) as parts:
        made = await asyncio.gather(*(parts.keeps.create(NewKeep(name=f"w{n}"), ALICE) for n in range(10)))
        assert len({keep.kuuid for keep in made}) == 10
        assert {units.said[keep.kuuid].name for keep in made} == {f"w{n}" for n in range(10)}


async def test_no_spare_is_made_while_a_creation_is_under_way(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with with_spares(units, place, policy, 1) as parts:
        held: asyncio.Queue[FakeLoader] = asyncio.Queue()

        def holds(loader: FakeLoader) -> None:
            loader.hold = asyncio.Event()
            held.put_nowait(loader)

        units.loaders[next(iter(spares_of(units)))].hold = release = asyncio.Event()
        creation = asyncio.create_task(parts.keeps.create(NewKeep(start=StartKeep()), ALICE))
        (taken,) = units.loaders.values()
        await taken.held.wait()
        units.at_ready = holds
        assert held.empty()
        release.set()
        made = await creation
        assert (await held.get()).kuuid != made.kuuid


@pytest.mark.parametrize("lost", ["its unit has gone", "its loader has gone", "it does not answer"])
async def test_a_spare_that_is_lost_while_it_is_assigned_leads_to_an_ordinary_creation(
    units: FakeUnits, place: Path, policy: Policy, lost: str
) -> None:
    async with with_spares(units, place, policy, 1) as parts:
        (spare,) = spares_of(units)
        if lost == "its unit has gone":
            await units.stop(spare)
        elif lost == "its loader has gone":
            await units.vanish(spare)
        else:
            units.loaders[spare].says_it_is = 99
        made = await parts.keeps.create(NewKeep(name="web"), ALICE)
        assert (made.state, made.name) == (State.LISTENING, "web")
        assert made.kuuid != spare
        assert spare not in units.kuuids()


async def test_a_spare_with_other_settings_than_a_new_unit_would_have_is_not_used(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    async with with_spares(units, place, policy, 1) as parts:
        (spare,) = spares_of(units)
        units.mark = "2"
        assert (await parts.keeps.create(NewKeep(), ALICE)).kuuid != spare
        assert spare not in units.kuuids()


async def test_the_next_manager_ends_the_spares_it_finds_and_keeps_what_was_assigned(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    async with with_spares(units, place, policy, 2) as parts:
        made = await parts.keeps.create(NewKeep(name="web"), ALICE)
        await until(units, lambda: len(spares_of(units)) == 2)
        left = spares_of(units)
    async with manager_parts(units, str(place), policy) as parts:
        await until(units, lambda: not left & units.kuuids())
        (kept,) = (await parts.keeps.list()).keeps
        assert (kept.kuuid, kept.name, kept.owner) == (made.kuuid, "web", "alice")


async def test_a_keep_whose_unit_says_what_it_is_before_its_loader_knows_is_that_keep_to_the_next_manager(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    await units.start(7, 2.0, KeepSpec(spare=True))
    await units.claim(7, OWNED)  # and there the manager was killed
    async with manager_parts(units, str(place), policy) as parts:
        assert parts.keeps.find(7).owner == "alice"
        started = await parts.keeps.start(StartKeep(7), ALICE)
        assert started.uploaders == ("name:alice",)
        assert units.loaders[7].spec == OWNED


async def test_fewer_spares_are_kept_after_a_reload_that_says_so(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with with_spares(units, place, policy, 3) as parts:
        parts.keeps.apply(policy.replace(spare_keeps=1))
        await until(units, lambda: len(spares_of(units)) == 1)
        parts.keeps.apply(policy.replace(spare_keeps=0))
        await until(units, lambda: not spares_of(units))


async def test_a_host_on_which_no_spare_can_be_made_serves_as_one_without_spares(
    units: FakeUnits, place: Path, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    units.behaviour = FAIL
    async with manager_parts(units, str(place), policy.replace(spare_keeps=1)) as parts:
        tending = parts.tasks.start(parts.keeps.tend_spares())
        await units.gone.wait()
        units.behaviour = READY
        assert (await parts.keeps.create(NewKeep(), BOB)).state is State.LISTENING
        tending.cancel()
    assert "cannot make a spare keep" in caplog.text


def test_the_description_of_a_claimed_unit_holds_its_spec_in_safe_words() -> None:
    description = next(value for name, _, value in claim_properties(7, OWNED) if name == "Description")
    assert str(description).startswith("Keep web of alice spec:")
    assert str(description).replace(" ", "").replace("spec:", "").replace("-", "").replace("_", "").isalnum()
    assert claimed_in(description) == OWNED
    assert claimed_in("Spare keep 7") is None
    with pytest.raises(KeepfleetError):
        claimed_in("Keep web of alice spec:???")
    before = {name: value for name, _, value in keep_properties(7, KeepSpec(spare=True), None, "")}
    assert before["Description"] == "Spare keep 7"
