"""Declared jobs in a whole manager over fake units: run when due, over restarts and reboots; their history stays."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keep_manager.keeps.policy import Policy
from keep_protocol.declared import DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.runs import Run, RunState, RunWhy
from keep_protocol.states import Event
from module_store.store import Store
from tests.fakes.callers import ALICE
from tests.fakes.fake_calendar import STARTED_AT
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import THIS_BOOT, ManagerParts, manager_parts

HOURLY = "module: report:1\nschedule: OnCalendar=every 3600\n"
SECONDS = 20.0
"""What is waited for comes within milliseconds; this covers a host a thousand times busier."""
SOON = (STARTED_AT // 3600 + 1) * 3600
EXITED = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0, wall_seconds=0.1, ended_at=SOON + 9)


class Host:
    """Managers one after the other, over the same units; `now` is what all their clocks show."""

    def __init__(self, units: FakeUnits, place: Path, policy: Policy) -> None:
        self.units, self.place, self.policy, self.events = units, place, policy, FakeEventLog()
        self.now = STARTED_AT

    @asynccontextmanager
    async def manager(self, boot: str = THIS_BOOT) -> AsyncIterator[ManagerParts]:
        """A manager, that attends to jobs while the block runs."""
        async with manager_parts(self.units, str(self.place), self.policy, self.events, boot=boot) as parts:
            parts.calendar.now = self.now
            await parts.jobs.open()
            await parts.reconciler.open()
            parts.tasks.start(parts.reconciler.run())
            parts.tasks.start(parts.jobs.run())
            parts.tasks.start(parts.jobs.timers.tend())
            yield parts
            await parts.jobs.close()
            await parts.reconciler.close()

    def set(self, parts: ManagerParts, now: float, name: str = "report") -> None:
        """It is so late now, and the job's timer fires."""
        self.now = parts.calendar.now = now
        parts.jobs.due(name)


@pytest.fixture
def host(units: FakeUnits, place: Path, policy: Policy) -> Iterator[Host]:
    with Store.create(str(place / "state/store")) as made:
        made.add(io.BytesIO(b"\0asm\x01\0\0\0"), reference="report:1")
    yield Host(units, place, policy)


async def until(parts: ManagerParts, fits: Callable[[tuple[Run, ...]], bool], name: str = "report") -> tuple[Run, ...]:
    """The job's runs once they are so."""
    async with asyncio.timeout(SECONDS):
        while True:
            runs = await parts.jobs.runs(name)
            if fits(runs):
                return runs
            await asyncio.sleep(0)


async def state(parts: ManagerParts, wanted: DeclaredState, name: str = "report") -> None:
    """Returns when the job is so."""
    async with asyncio.timeout(SECONDS):
        while parts.declarations.get(name).state is not wanted:  # noqa: ASYNC110 - said() is of what changes
            await asyncio.sleep(0)


def goes_on(runs: tuple[Run, ...]) -> bool:
    return bool(runs) and runs[-1].state is RunState.RUNNING and runs[-1].kuuid is not None


async def finish(host: Host, run: Run, outcome: Outcome = EXITED) -> None:
    assert run.kuuid is not None
    await host.units.loaders[run.kuuid].move(Event.FINISH, outcome)


async def test_a_job_is_run_when_it_is_due_and_not_before(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await state(parts, DeclaredState.SCHEDULED)
        assert (parts.declarations.get("report").next_run, host.units.loaders) == (SOON, {})
        assert parts.timers.wanted == {"report": "every 3600"}
        host.set(parts, SOON + 1)
        (run,) = await until(parts, goes_on)
        assert (run.number, run.why, run.scheduled) == (1, RunWhy.SCHEDULE, SOON)
        assert parts.declarations.get("report").kuuid == run.kuuid
        await finish(host, run)
        (run,) = await until(parts, lambda runs: runs[-1].state is RunState.DONE)
        assert (run.exit_code, run.output_bytes, run.ended) == (0, 0, SOON + 9)
        await state(parts, DeclaredState.SCHEDULED)
        shown = parts.declarations.get("report")
        assert (shown.last_run, shown.next_run, shown.schedule) == (run, SOON + 3600, "OnCalendar=every 3600")


async def test_a_run_that_lasts_longer_than_its_period_is_not_joined_by_another(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await state(parts, DeclaredState.SCHEDULED)
        host.set(parts, SOON + 1)
        await until(parts, goes_on)
        host.set(parts, SOON + 3601)
        runs = await until(parts, lambda runs: len(runs) == 2)
        assert (runs[1].state, runs[1].text) == (RunState.SKIPPED, "run 1 goes on")
        assert len(host.units.loaders) == 1


async def test_a_timer_that_fires_while_there_is_no_manager_loses_no_run(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await state(parts, DeclaredState.SCHEDULED)
    host.now = SOON + 600
    async with host.manager() as parts:
        (run,) = await until(parts, goes_on)
        assert (run.why, run.scheduled) == (RunWhy.MISSED, SOON)


async def test_what_was_missed_is_skipped_where_the_manifest_says_so(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY + "missed: skip\n", ALICE)
        await state(parts, DeclaredState.SCHEDULED)
    host.now = SOON + 600
    async with host.manager() as parts:
        (run,) = await until(parts, bool)
        assert (run.state, run.text) == (RunState.SKIPPED, "no manager was there to start it")
        assert host.units.loaders == {}


async def test_a_run_goes_on_under_the_next_manager_which_writes_down_its_end(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await state(parts, DeclaredState.SCHEDULED)
        host.set(parts, SOON)
        (before,) = await until(parts, goes_on)
    await finish(host, before)
    async with host.manager() as parts:
        (run,) = await until(parts, lambda runs: runs[-1].state is RunState.DONE)
        assert (run.kuuid, run.began) == (before.kuuid, before.began)


async def test_a_run_that_went_with_its_host_is_made_up_for(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await state(parts, DeclaredState.SCHEDULED)
        host.set(parts, SOON)
        (before,) = await until(parts, goes_on)
    assert before.kuuid is not None
    await host.units.stop(before.kuuid)
    async with host.manager(boot="the next") as parts:
        runs = await until(parts, lambda runs: len(runs) == 2 and goes_on(runs))
        assert (runs[0].state, runs[1].why) == (RunState.LOST, RunWhy.MISSED)


async def test_a_person_can_have_it_run_now_unless_a_run_goes_on(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await parts.declarations.restart("report")
        (run,) = await until(parts, goes_on)
        assert run.why is RunWhy.ASKED
        with pytest.raises(KeepfleetError, match="cannot run report now: run 1 goes on") as refused:
            await parts.declarations.restart("report")
        assert refused.value.kind is ErrorKind.CONFLICT
        assert parts.declarations.get("report").version == 1


async def test_another_schedule_makes_up_for_nothing_that_it_would_have_had_before(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY.replace("3600", "100000"), ALICE)
        await state(parts, DeclaredState.SCHEDULED)
        host.now = parts.calendar.now = SOON + 1800
        await parts.declarations.apply("report", HOURLY, ALICE)
        async with asyncio.timeout(SECONDS):
            while parts.declarations.get("report").next_run != SOON + 3600:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        assert await parts.jobs.runs("report") == ()


async def test_a_schedule_that_is_none_is_refused_with_the_reason(host: Host) -> None:
    async with host.manager() as parts:
        for text in ("OnCalendar=now and then", "OnBootSec=5", "OnCalendar=*:0:0.5"):
            with pytest.raises(KeepfleetError) as refused:
                await parts.declarations.apply("report", f"module: report:1\nschedule: '{text}'\n", ALICE)
            assert refused.value.kind is ErrorKind.BAD_REQUEST
        with pytest.raises(KeepfleetError, match="a job is run again by its schedule"):
            await parts.declarations.apply("report", HOURLY + "restart: always\n", ALICE)
        assert parts.declarations.names() == []


async def test_a_job_that_is_deleted_goes_with_its_runs_and_its_timer(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await parts.declarations.restart("report")
        await until(parts, goes_on)
        await parts.declarations.delete("report")
        async with asyncio.timeout(SECONDS):
            while host.units.loaders or parts.timers.wanted:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        assert await parts.jobs.runs("report") == ()
        assert not (host.place / "state/jobs/report").exists()


async def test_what_ran_permanently_ends_when_it_becomes_a_job_and_the_other_way_round(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", "module: report:1\nrestart: always\nready_seconds: 0\n", ALICE)
        await state(parts, DeclaredState.RUNNING)
        await parts.declarations.apply("report", HOURLY, ALICE)
        async with asyncio.timeout(SECONDS):
            while host.units.loaders:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        await state(parts, DeclaredState.SCHEDULED)
        await parts.declarations.apply("report", "module: report:1\nrestart: always\nready_seconds: 0\n", ALICE)
        await state(parts, DeclaredState.RUNNING)


@pytest.mark.parametrize("damage", [b"", b"# keepfleet job {}\n{}", None], ids=["empty", "foreign", "flipped"])
async def test_a_damaged_history_is_set_aside_and_the_job_goes_on_from_now(host: Host, damage: bytes | None) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("report", HOURLY, ALICE)
        await state(parts, DeclaredState.SCHEDULED)
    file = host.place / "state/jobs/report"
    file.write_bytes(file.read_bytes().replace(b"handled", b"Handled") if damage is None else damage)
    host.now = SOON + 600
    async with host.manager() as parts:
        await state(parts, DeclaredState.SCHEDULED)
        assert await parts.jobs.runs("report") == ()
        assert parts.declarations.get("report").next_run == SOON + 3600
    assert file.with_name("report.damaged").exists()


async def test_without_its_module_a_run_says_why_and_is_begun_when_there_is_one(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("late", HOURLY.replace("report:1", "late:1"), ALICE)
        await state(parts, DeclaredState.SCHEDULED, "late")
        host.set(parts, SOON, "late")
        await state(parts, DeclaredState.UNMET, "late")
        assert "late:1" in parts.declarations.get("late").detail
        with Store.create(str(host.place / "state/store")) as store:
            store.add(io.BytesIO(b"\0asm\x01\0\0\0"), reference="late:1")
        await parts.declarations.apply("late", HOURLY.replace("report:1", "late:1"), ALICE)
        await until(parts, goes_on, "late")
