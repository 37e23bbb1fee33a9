"""Declared keeps in a whole manager over fake units: made, adopted, replaced, rolled back, run again, removed."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keep_manager.declared import decision
from keep_manager.keeps.policy import Policy
from keep_protocol.api import NewKeep
from keep_protocol.declared import DeclaredKeep, DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.limits import TEN_YEARS
from keep_protocol.states import Event
from module_store.collect import collect
from module_store.store import Store
from tests.fakes.callers import ALICE
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import THIS_BOOT, ManagerParts, manager_parts

WASM = b"\0asm\x01\0\0\0"
SERVER = "module: web:1\nrestart: always\nready_seconds: 0\n"
SECONDS = 20.0
"""What is waited for comes within milliseconds; this covers a host a thousand times busier."""


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store.create(str(place / "state/store")) as made:
        made.add(io.BytesIO(WASM), reference="web:1")
        made.add(io.BytesIO(WASM + b"\0\1\0"), reference="web:2")
        yield made


class Host:
    """Managers one after the other, over the same units."""

    def __init__(self, units: FakeUnits, place: Path, policy: Policy) -> None:
        self.units, self.place, self.policy, self.events = units, place, policy, FakeEventLog()

    @asynccontextmanager
    async def manager(self, boot: str = THIS_BOOT) -> AsyncIterator[ManagerParts]:
        """A manager, that reconciles while the block runs."""
        async with manager_parts(self.units, str(self.place), self.policy, self.events, boot=boot) as parts:
            await parts.reconciler.open()
            parts.tasks.start(parts.reconciler.run())
            yield parts
            await parts.reconciler.close()


@pytest.fixture
def host(units: FakeUnits, place: Path, policy: Policy, store: Store) -> Host:
    return Host(units, place, policy)


async def until(parts: ManagerParts, name: str, state: DeclaredState, version: int | None = None) -> DeclaredKeep:
    """The declared keep once it is so."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = parts.declarations.get(name)
            if found.state is state and version in (None, found.version):
                return found
            await asyncio.sleep(0)


async def alone(units: FakeUnits, count: int = 1) -> list[int]:
    """The IDs of the units once there are so many."""
    async with asyncio.timeout(SECONDS):
        while len(units.loaders) != count:  # noqa: ASYNC110 - fake units have no event for all of them
            await asyncio.sleep(0)
    return list(units.loaders)


async def test_what_is_applied_runs_for_its_owner_without_an_end(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        web = await until(parts, "web", DeclaredState.RUNNING)
        assert web.kuuid is not None
        info = parts.view.find(web.kuuid)
        assert (info.name, info.owner, info.limits.wall_seconds) == ("web", ALICE.name, TEN_YEARS)
        assert (web.version, web.module, web.owner, web.manifest) == (1, "web:1", ALICE.name, SERVER)


async def test_the_same_again_changes_nothing(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        before = await until(parts, "web", DeclaredState.RUNNING)
        await parts.declarations.apply("web", SERVER, ALICE)
        assert await until(parts, "web", DeclaredState.RUNNING) == before


async def test_a_new_manager_adopts_what_runs(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        before = await until(parts, "web", DeclaredState.RUNNING)
    async with host.manager() as parts:
        assert await until(parts, "web", DeclaredState.RUNNING) == before
        assert len(host.units.loaders) == 1


async def test_after_a_reboot_it_is_there_again(host: Host, tmp_path: Path) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        before = await until(parts, "web", DeclaredState.RUNNING)
    assert before.kuuid is not None
    await host.units.stop(before.kuuid)
    async with host.manager(boot="the next") as parts:
        after = await until(parts, "web", DeclaredState.RUNNING)
        assert after.kuuid not in (None, before.kuuid)


async def test_what_changed_is_replaced_and_an_older_version_can_be_had_again(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        first = await until(parts, "web", DeclaredState.RUNNING)
        await parts.declarations.apply("web", SERVER.replace("web:1", "web:2"), ALICE)
        second = await until(parts, "web", DeclaredState.RUNNING, 2)
        await alone(host.units)
        assert (second.module, second.kuuid != first.kuuid) == ("web:2", True)
        await parts.declarations.roll_back("web")
        third = await until(parts, "web", DeclaredState.RUNNING, 3)
        assert (third.module, third.digest) == ("web:1", first.digest)
        assert third.note == "version 2 was rolled back to version 1: it was asked for"
        assert await alone(host.units) == [third.kuuid]


async def test_what_ends_before_it_is_ready_is_rolled_back_by_itself(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        first = await until(parts, "web", DeclaredState.RUNNING)
        await parts.declarations.apply("web", "module: web:2\nrestart: always\nready_seconds: 60\n", ALICE)
        new = (await until(parts, "web", DeclaredState.REPLACING, 2)).kuuid
        while new in (None, first.kuuid):
            await asyncio.sleep(0)
            new = parts.declarations.get("web").kuuid
        assert new is not None
        outcome = Outcome(OutcomeKind.EXITED, "exited 3", exit_code=3, wall_seconds=0.1)
        await host.units.loaders[new].move(Event.FINISH, outcome)
        back = await until(parts, "web", DeclaredState.RUNNING, 3)
        assert (back.kuuid, back.module) == (first.kuuid, "web:1")
        assert back.note == "version 2 was rolled back to version 1: it was not ready: exited 3"
    async with host.manager() as parts:  # and stays so
        assert (await until(parts, "web", DeclaredState.RUNNING)).kuuid == first.kuuid


async def test_what_crashes_is_back_after_a_pause_that_its_unit_remembers(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "FIRST_PAUSE_SECONDS", 0.0)
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        for attempt in range(1, 5):
            web = await until(parts, "web", DeclaredState.RUNNING)
            assert web.kuuid is not None
            await host.units.loaders[web.kuuid].move(Event.FINISH, Outcome(OutcomeKind.TRAPPED, "trapped"))
            async with asyncio.timeout(SECONDS):
                while web.kuuid == parts.declarations.get("web").kuuid:  # noqa: ASYNC110 - as `until`
                    await asyncio.sleep(0)
            again = await until(parts, "web", DeclaredState.RUNNING)
            assert again.kuuid is not None
            declared = host.units.said[again.kuuid].declared
            assert declared is not None
            assert declared.attempt == attempt


async def test_what_waits_says_why(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        web = await until(parts, "web", DeclaredState.RUNNING)
        assert web.kuuid is not None
        await host.units.loaders[web.kuuid].move(Event.FINISH, Outcome(OutcomeKind.EXITED, "exited 3", exit_code=3))
        waiting = await until(parts, "web", DeclaredState.WAITING)
        assert waiting.detail == "exited 3"


async def test_a_restart_is_another_keep(host: Host) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        before = await until(parts, "web", DeclaredState.RUNNING)
        await parts.declarations.restart("web")
        after = await until(parts, "web", DeclaredState.RUNNING, 2)
        assert await alone(host.units) == [after.kuuid]
        assert after.kuuid != before.kuuid


async def test_what_is_deleted_ends_and_another_one_does_not(host: Host) -> None:
    async with host.manager() as parts:
        for name in ("web", "other"):
            await parts.declarations.apply(name, SERVER, ALICE)
        await until(parts, "web", DeclaredState.RUNNING)
        other = await until(parts, "other", DeclaredState.RUNNING)
        await parts.declarations.delete("web")
        assert await alone(host.units) == [other.kuuid]
        with pytest.raises(KeepfleetError) as gone:
            parts.declarations.get("web")
        assert gone.value.kind is ErrorKind.NOT_FOUND


async def test_what_cannot_be_met_says_why_and_the_others_go_on(host: Host, store: Store) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("early", "module: late:1\nrestart: always\nready_seconds: 0\n", ALICE)
        await parts.declarations.apply("web", SERVER, ALICE)
        await until(parts, "web", DeclaredState.RUNNING)
        unmet = await until(parts, "early", DeclaredState.UNMET)
        assert "cannot find the reference late:1" in unmet.detail
        late = store.add(io.BytesIO(WASM + b"\0\2\0\0"), reference="late:1").digest
        await parts.declarations.apply("early", unmet.manifest, ALICE)
        assert (await until(parts, "early", DeclaredState.RUNNING)).digest == late


async def test_what_is_declared_is_not_collected_nor_what_was_before(host: Host, store: Store) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        await parts.declarations.apply("web", SERVER.replace("web:1", "web:2"), ALICE)
        for name in ("web:1", "web:2"):
            store.untag(name)
        assert collect(store, grace=0).removed == ()
        await parts.declarations.delete("web")
        await alone(host.units, 0)


async def test_a_name_that_an_undeclared_keep_has_is_waited_for(host: Host) -> None:
    async with host.manager() as parts:
        await parts.keeps.create(NewKeep(name="web"), ALICE)
        await parts.declarations.apply("web", SERVER, ALICE)
        unmet = await until(parts, "web", DeclaredState.UNMET)
        assert "has it; remove that one, or replace it" in unmet.detail
        assert len(host.units.loaders) == 1


async def test_a_damaged_specification_leaves_its_keep_alone(host: Host, place: Path) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        web = await until(parts, "web", DeclaredState.RUNNING)
    file = place / "state/declared/web.yaml"
    file.write_bytes(file.read_bytes() + b"# by hand\n")
    async with host.manager() as parts:
        assert "changed since it was applied" in (await until(parts, "web", DeclaredState.UNREADABLE)).detail
        assert list(host.units.loaders) == [web.kuuid]
        await parts.declarations.apply("web", SERVER, ALICE)
        after = await until(parts, "web", DeclaredState.RUNNING)
        assert await alone(host.units) == [after.kuuid]


async def test_a_reference_that_moves_while_its_keep_starts_means_what_it_meant(host: Host, store: Store) -> None:
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        first = parts.declarations.get("web").digest
        store.tag("web:1", store.resolve("web:2"))
        web = await until(parts, "web", DeclaredState.RUNNING)
        assert web.kuuid is not None
        spec = parts.view.entry(web.kuuid).spec
        assert spec is not None
        assert (web.digest, spec.digest) == (first, first)


async def test_of_many_who_change_one_name_together_each_is_a_version_and_one_is_wanted(host: Host) -> None:
    async with host.manager() as parts:
        texts = [f"{SERVER}arguments: ['{number}']\n" for number in range(6)]
        await asyncio.gather(*(parts.declarations.apply("web", text, ALICE) for text in texts))
        web = await until(parts, "web", DeclaredState.RUNNING, len(texts))
        assert web.manifest in texts
        assert await alone(host.units) == [web.kuuid]


async def test_a_keep_with_a_volume_ends_before_the_next_one_is_made(host: Host) -> None:
    volume = "volume: {name: data, size: 16M, guest: /data}\n"
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        first = await until(parts, "web", DeclaredState.RUNNING)
        await parts.declarations.apply("web", SERVER + volume, ALICE)  # which no user's own instance can give
        unmet = await until(parts, "web", DeclaredState.UNMET, 2)
        assert "cannot grant directories or files" in unmet.detail
        assert first.kuuid not in await alone(host.units, 0)
        found = await asyncio.to_thread(parts.volumes.find, "data")
        assert (found.owner, found.in_use) == (ALICE.name, False)
        await parts.declarations.apply("web", SERVER, ALICE)
        await until(parts, "web", DeclaredState.RUNNING, 3)


@pytest.mark.parametrize("kind", ["restart: always\n", "schedule: OnCalendar=every 10\n"], ids=["a keep", "a job"])
async def test_a_volume_whose_keep_was_deleted_while_it_waited_to_be_made_is_not_made(host: Host, kind: str) -> None:
    async with host.manager() as parts:
        if "schedule" in kind:
            await parts.jobs.open()
            parts.tasks.start(parts.jobs.run())
        async with parts.volumes.lock:  # as one that is made, or removed, holds it
            text = f"module: web:1\n{kind}volume: {{name: data, size: 16M, guest: /data}}\n"
            await parts.declarations.apply("web", text, ALICE)
            if "schedule" in kind:
                running = asyncio.create_task(parts.declarations.restart("web"))
            async with asyncio.timeout(SECONDS):
                while not parts.volumes.lock._waiters:  # noqa: ASYNC110 - a lock has no event for it
                    await asyncio.sleep(0)
            await parts.declarations.delete("web")
        async with asyncio.timeout(SECONDS):
            while parts.reconciler._rounds.busy or parts.jobs._rounds.busy:  # noqa: ASYNC110 - as `until`
                await asyncio.sleep(0)
        assert await parts.kept_volumes.list() == []
        assert host.units.loaders == {}
        if "schedule" in kind:
            await running
            await parts.jobs.close()


async def test_another_s_volume_is_not_had(host: Host) -> None:
    async with host.manager() as parts:
        parts.volumes.open()
        await asyncio.to_thread(parts.volumes.ensure, "data", "bob", 16 << 20, 1024)
        await parts.declarations.apply("web", f"{SERVER}volume: {{name: data, size: 16M, guest: /data}}\n", ALICE)
        unmet = await until(parts, "web", DeclaredState.UNMET)
        assert unmet.detail == "cannot have volume data: it is another's"


async def test_a_directory_of_volumes_that_cannot_be_used_stops_those_keeps_alone_that_have_one(
    host: Host, place: Path
) -> None:
    (place / "state").mkdir(exist_ok=True)
    (place / "state/volumes").symlink_to(place)
    async with host.manager() as parts:
        await parts.declarations.apply("web", SERVER, ALICE)
        await parts.declarations.apply("kept", f"{SERVER}volume: {{name: data, size: 16M, guest: /data}}\n", ALICE)
        await until(parts, "web", DeclaredState.RUNNING)
        unmet = await until(parts, "kept", DeclaredState.UNMET)
        assert unmet.detail.startswith("cannot make volume data: ")
