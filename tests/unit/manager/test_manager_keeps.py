"""The life of keeps, with a fake service manager and fake loaders on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from keep_grants.protocol import SOCKET_NAME
from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.callers import CallerEntry, GrantRoot, Quotas
from keep_manager.keeps import creation, decide, manager
from keep_manager.keeps.creation import spec_for
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.policy import Policy
from keep_manager.loader_client import Loaders, LoaderSession
from keep_manager.model import Answer, UnitState
from keep_manager.tasks import Group
from keep_protocol.api import ListKeeps, NewKeep, StartKeep
from keep_protocol.api_workload import WorkloadRequest, parse_workload
from keep_protocol.constants import OUTPUT_DESCRIPTORS, START_DESCRIPTORS, STOP_REPLY_SECONDS, TERM_SECONDS
from keep_protocol.control import Command, CommandType, StartMessage
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.limits import Limits
from keep_protocol.spec import Compiler, KeepSpec, Profile, RestartPolicy
from keep_protocol.sse import EventType
from keep_protocol.states import Event, Phase, State
from keep_protocol.workload import Workload
from tests.fakes.callers import ALICE, BOB, STRANGER
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_loader import FINGERPRINT, FakeLoader
from tests.fakes.fake_units import FAIL, NEVER, READY, FakeUnits
from tests.fakes.grants_helper import grants_helper
from tests.fakes.manager_parts import ManagerParts, manager_parts


@pytest.fixture
def keeps(parts: ManagerParts) -> Keeps:
    return parts.keeps


async def refusal(work: object) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        await work  # type: ignore[misc] # whatever coroutine a test passes
    return caught.value


def empty(units: FakeUnits, place: Path) -> bool:
    return not units.kuuids() and not units.loaders and os.listdir(place / "keepfleet") == []


async def test_a_new_keep_listens_for_its_start(keeps: Keeps) -> None:
    info = await keeps.create(NewKeep(), ALICE)
    assert info.state is State.LISTENING
    assert info.unit == f"keep@{info.kuuid}.service"
    assert 0 < info.kuuid < 1 << 53


@pytest.mark.parametrize("arch", ["AMD-SEV", "Intel-SGX"])
async def test_hardware_that_is_not_there_is_said(keeps: Keeps, arch: str) -> None:
    assert (await refusal(keeps.create(NewKeep(arch), ALICE))).kind is ErrorKind.UNSUPPORTED


async def test_fifty_concurrent_ones_are_fifty_and_never_more_than_allowed_at_a_time(
    keeps: Keeps, units: FakeUnits
) -> None:
    made = await asyncio.gather(*(keeps.create(NewKeep(), ALICE) for _ in range(50)))
    assert len({info.kuuid for info in made}) == 50
    assert units.most_at_once <= 4
    assert len((await keeps.list()).keeps) == 50


async def test_a_failed_creation_leaves_nothing_and_shows_the_journal(
    keeps: Keeps, units: FakeUnits, place: Path
) -> None:
    units.behaviour = FAIL
    error = await refusal(keeps.create(NewKeep(), ALICE))
    assert (error.kind, error.evidence) == (ErrorKind.KEEP_FAILED, ("exit code 7",))
    assert empty(units, place)


async def test_what_cannot_be_rolled_back_yet_is_when_systemd_is_back(
    keeps: Keeps, units: FakeUnits, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "ROLL_BACK_SECONDS", 0)
    units.behaviour, units.away = FAIL, 3
    assert (await refusal(keeps.create(NewKeep(), ALICE))).kind is ErrorKind.KEEP_FAILED
    assert len((await keeps.list()).keeps) == 1
    await units.gone.wait()
    assert empty(units, place)


async def test_a_manager_that_stops_gives_a_rollback_up_that_waits_for_systemd(
    keeps: Keeps, units: FakeUnits, caplog: pytest.LogCaptureFixture
) -> None:
    units.behaviour, units.away = FAIL, 1
    await refusal(keeps.create(NewKeep(), ALICE))
    await keeps.settle()
    assert "cannot roll back yet" in caplog.text
    assert len((await keeps.list()).keeps) == 1


async def test_a_loader_that_never_gets_ready_leaves_nothing(units: FakeUnits, place: Path, policy: Policy) -> None:
    units.behaviour = NEVER
    async with manager_parts(units, str(place), policy.replace(start_timeout_seconds=0.02)) as parts:
        error = await refusal(parts.keeps.create(NewKeep(), ALICE))
    assert error.kind is ErrorKind.KEEP_FAILED
    assert "not ready in time" in error.message
    assert empty(units, place)


async def test_the_first_answer_of_a_new_keep_is_waited_for_as_long_as_its_readiness(
    keeps: Keeps, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy host may let its loader not run for seconds, and what was made would be ended for that."""
    ask, waits = LoaderSession.ask, list[float]()

    async def recorded(
        session: LoaderSession, command: Command, seconds: float = 1.0, files: tuple[int, ...] = ()
    ) -> Answer:
        waits.extend([seconds] if command.type is CommandType.HELLO else [])
        return await ask(session, command, seconds, files)

    monkeypatch.setattr(LoaderSession, "ask", recorded)
    for start in (None, StartKeep()):
        await keeps.create(NewKeep(start=start), ALICE)
    assert waits == [policy.start_timeout_seconds] * 2


async def test_a_loader_that_is_ready_and_does_not_answer_leaves_nothing(
    keeps: Keeps, units: FakeUnits, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(loader: FakeLoader) -> None:
        loader.says_it_is = 1

    units.at_ready = lie
    assert (await refusal(keeps.create(NewKeep(), ALICE))).kind is ErrorKind.KEEP_FAILED
    assert empty(units, place)


async def test_a_client_that_goes_away_leaves_nothing(keeps: Keeps, units: FakeUnits, place: Path) -> None:
    units.behaviour = NEVER
    creation = asyncio.create_task(keeps.create(NewKeep(), ALICE))
    await units.begun.wait()
    creation.cancel()
    await asyncio.wait({creation})
    await keeps.settle()
    assert creation.cancelled()
    assert empty(units, place)


async def test_units_that_are_not_installed_are_said(keeps: Keeps, units: FakeUnits) -> None:
    units.installed = False
    error = await refusal(keeps.create(NewKeep(), ALICE))
    assert error.kind is ErrorKind.CONFIGURATION
    assert "run keepctl install" in error.message


async def test_an_id_that_is_taken_is_drawn_again(
    keeps: Keeps, units: FakeUnits, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([5, 35, 40, 64])  # in the one group that few keeps need: 0, 32, 32, 64
    monkeypatch.setattr("secrets.randbits", lambda bits: next(drawn))
    assert (await keeps.create(NewKeep(), ALICE)).kuuid == 32
    assert (await keeps.create(NewKeep(), ALICE)).kuuid == 64


async def test_the_sixty_first_keep_of_sixty_is_too_many(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with manager_parts(units, str(place), policy.replace(max_keeps=2)) as parts:
        made = await asyncio.gather(*(parts.keeps.create(NewKeep(), ALICE) for _ in range(5)), return_exceptions=True)
    refused = [error for error in made if isinstance(error, KeepfleetError)]
    assert [error.kind for error in refused] == [ErrorKind.TOO_MANY] * 3
    assert len(units.kuuids()) == 2


async def test_a_start_hands_over_listener_ca_and_list(keeps: Keeps, units: FakeUnits, policy: Policy) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    before = len(os.listdir("/proc/self/fd"))
    info = await keeps.start(StartKeep(kuuid, port=43000, names=("a.example", "192.0.2.1")), ALICE)
    loader = units.loaders[kuuid]
    assert (info.state, info.address, info.fingerprint) == (State.STARTED, "127.0.0.1", FINGERPRINT)
    assert 43000 <= info.port <= 43999
    assert loader.started == StartMessage(
        "127.0.0.1", ("a.example", "192.0.2.1"), ("name:alice",), (*START_DESCRIPTORS, *OUTPUT_DESCRIPTORS)
    )
    said = [c.type for c in loader.commands if c.type not in (CommandType.WAIT, CommandType.INFO)]  # but the watch's
    assert said == [CommandType.HELLO, CommandType.HELLO, CommandType.KEEP_START], "one request, where there were five"
    assert loader.received[1:3] == [os.stat(policy.client_ca).st_ino, os.stat(policy.revoked).st_ino]
    assert (
        len(os.listdir("/proc/self/fd")) <= before + 6
    )  # the loader's copies, and both ends of the watch's connection


async def test_a_taken_port_moves_on_and_a_second_start_is_a_conflict(keeps: Keeps) -> None:
    one, two = [(await keeps.create(NewKeep(), ALICE)).kuuid for _ in range(2)]
    first = await keeps.start(StartKeep(one, port=43500), ALICE)
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        second = await keeps.start(StartKeep(two, port=occupant.getsockname()[1]), ALICE)
        assert second.port not in (first.port, occupant.getsockname()[1])
    assert (await refusal(keeps.start(StartKeep(one), ALICE))).kind is ErrorKind.CONFLICT


async def test_of_two_concurrent_starts_exactly_one_wins(keeps: Keeps) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    results = await asyncio.gather(*(keeps.start(StartKeep(kuuid), ALICE) for _ in range(5)), return_exceptions=True)
    lost = [result for result in results if isinstance(result, KeepfleetError)]
    assert [error.kind for error in lost] == [ErrorKind.CONFLICT] * 4


async def test_a_start_on_a_foreign_address_leaves_the_keep_startable(keeps: Keeps) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    error = await refusal(keeps.start(StartKeep(kuuid, address="192.0.2.9"), ALICE))
    assert error.kind is ErrorKind.PORT_UNAVAILABLE
    assert (await keeps.start(StartKeep(kuuid), ALICE)).state is State.STARTED


def listening() -> set[tuple[str, int]]:
    """Where this process listens: whether a port is free others decide, too."""
    found = set()
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:
            if sock.family == socket.AF_INET and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.add(sock.getsockname())
    return found


async def test_a_start_the_loader_refuses_frees_the_port(keeps: Keeps, units: FakeUnits) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    units.loaders[kuuid].refuse = KeepfleetError(ErrorKind.KEEP_FAILED, "cannot make a certificate", ("openssl died",))
    before = listening()
    error = await refusal(keeps.start(StartKeep(kuuid), ALICE))
    assert error.evidence == ("openssl died",)
    assert listening() == before


async def test_a_missing_ca_file_is_an_error_before_the_keep_starts(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    async with manager_parts(units, str(place), policy.replace(client_ca=f"{place}/none")) as parts:
        kuuid = (await parts.keeps.create(NewKeep(), ALICE)).kuuid
        assert (await refusal(parts.keeps.start(StartKeep(kuuid), ALICE))).kind is ErrorKind.CERTIFICATE
        assert (await parts.keeps.get(kuuid)).state is State.LISTENING


async def test_every_operation_on_a_keep_that_does_not_exist_says_so(keeps: Keeps) -> None:
    for work in (
        keeps.get(5),
        keeps.start(StartKeep(5), ALICE),
        keeps.stop(5, ALICE),
        keeps.remove(5, ALICE),
        keeps.wait(5, State.LISTENING, 1.0),
    ):
        error = await refusal(work)
        assert error.kind is ErrorKind.NOT_FOUND
        assert "keep@5.service" in error.message


async def test_a_keep_that_crashed_is_in_state_15_with_the_reason(keeps: Keeps, units: FakeUnits) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await units.crash(kuuid)
    info = await keeps.wait(kuuid, State.LISTENING, 60.0)
    assert info.state is State.ERROR
    assert "failed (failed, exit-code)" in info.detail
    assert [keep.detail for keep in (await keeps.list()).keeps] == ["the unit is failed (failed, exit-code)"]
    await keeps.remove(kuuid, ALICE)
    assert (await keeps.list()).keeps == ()


async def test_a_silent_loader_does_not_hold_up_what_finds_the_keeps(
    units: FakeUnits, keeps: Keeps, place: Path, policy: Policy, over_after: Callable[[int], None]
) -> None:
    one, two = [(await keeps.create(NewKeep(name=name), ALICE)).kuuid for name in ("one", "two")]
    units.loaders[one].silent = True
    over_after(1)
    async with manager_parts(units, str(place), policy) as other:
        shown = {keep.kuuid: keep for keep in (await other.keeps.list()).keeps}
        assert (shown[one].state, shown[one].name) == (State.UNDEFINED, "one")
        assert "no answer" in shown[one].detail
        assert shown[two].state is State.LISTENING


async def test_another_manager_finds_every_keep_as_it_is(
    keeps: Keeps, units: FakeUnits, place: Path, policy: Policy
) -> None:
    one, two = [(await keeps.create(NewKeep(), ALICE)).kuuid for _ in range(2)]
    await keeps.start(StartKeep(one), ALICE)
    before = (await keeps.list()).keeps
    async with manager_parts(units, str(place), policy) as parts:
        other = parts.keeps
        assert (await other.list()).keeps == before
        assert {k.kuuid: k.state for k in before} == {one: State.STARTED, two: State.LISTENING}
        assert (await refusal(other.start(StartKeep(one), ALICE))).kind is ErrorKind.CONFLICT
        assert (await other.start(StartKeep(two), ALICE)).state is State.STARTED


async def test_a_wait_returns_when_the_state_changes(keeps: Keeps, units: FakeUnits) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await keeps.start(StartKeep(kuuid), ALICE)
    loader = units.loaders[kuuid]
    loader.heard.clear()
    waiting = asyncio.create_task(keeps.wait(kuuid, State.STARTED, 60.0))
    await loader.heard.wait()
    await loader.move(Event.ACCEPT)
    await loader.move(Event.FINISH)
    assert (await waiting).state is State.COMPLETE


async def test_a_wait_without_a_change_returns_the_keep_at_its_end(keeps: Keeps) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    assert (await keeps.wait(kuuid, State.LISTENING, 0.02)).state is State.LISTENING


async def test_a_keep_between_two_loaders_is_restarting_with_its_state_and_all_it_is(
    keeps: Keeps, units: FakeUnits
) -> None:
    wanted = NewKeep(name="web", labels=(("app", "shop"),), limits=(("tasks", 20),))
    before = await keeps.create(wanted, ALICE)
    waiting = asyncio.create_task(keeps.wait(before.kuuid, State.LISTENING, 60.0))
    await units.vanish(before.kuuid)
    async with asyncio.timeout(60):
        while not (shown := await keeps.get(before.kuuid)).detail.startswith("restarting: "):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert shown.detail == "restarting: its loader has just ended; the unit is active (running)"
    assert shown == before.replace(detail=shown.detail, phase="")
    assert (await keeps.list(ListKeeps(labels=(("app", "shop"),)))).keeps == (shown,)
    assert not waiting.done(), "it will be in the same state again"
    units.back(before.kuuid)
    loader = units.loaders[before.kuuid]
    await loader.heard.wait()
    await loader.move(Event.FAIL)
    assert (await waiting).state is State.ERROR


async def test_waiters_are_bounded(keeps: Keeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "MAX_WAITERS", 0)
    assert (await refusal(keeps.wait(5, State.LISTENING, 1.0))).kind is ErrorKind.TOO_MANY


async def test_creations_that_queue_are_bounded(keeps: Keeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "MAX_WAITING_CREATIONS", 0)
    assert (await refusal(keeps.create(NewKeep(), ALICE))).kind is ErrorKind.TOO_MANY


async def test_a_stop_ends_the_upload_endpoint_and_keeps_the_outcome(keeps: Keeps, units: FakeUnits) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await keeps.start(StartKeep(kuuid), ALICE)
    info = await keeps.stop(kuuid, ALICE)
    assert info.state is State.COMPLETE
    assert info.outcome is not None
    assert info.outcome.by == "alice"
    assert await keeps.stop(kuuid, BOB) == info, "it has ended already"


async def test_a_keep_that_was_never_started_has_nothing_to_stop(keeps: Keeps) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    error = await refusal(keeps.stop(kuuid, ALICE))
    assert error.kind is ErrorKind.CONFLICT
    assert error.message == f"cannot stop keep {kuuid}: nothing runs in it, it is listening: ready for a start"


async def test_a_keep_that_is_being_started_again_is_stopped_by_its_next_loader(keeps: Keeps, units: FakeUnits) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await units.vanish(kuuid)
    stopping = asyncio.create_task(keeps.stop(kuuid, ALICE))
    await asyncio.sleep(3 * manager.STOP_AGAIN_SECONDS)
    assert not stopping.done()
    units.back(kuuid)
    loader = units.loaders[kuuid]
    loader.phase = Phase.RESTARTING
    loader.heard.clear()
    await loader.heard.wait()
    assert not stopping.done(), "a run that has just ended is not stopped either, and the next one will be"
    loader.phase = Phase.RUNNING
    info = await stopping
    assert info.outcome is not None
    assert info.outcome.by == "alice"


async def test_a_stop_gives_up_where_no_loader_comes_back(
    keeps: Keeps, units: FakeUnits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "STOP_SECONDS", 0.05)
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await units.vanish(kuuid)
    assert (await refusal(keeps.stop(kuuid, ALICE))).kind is ErrorKind.UNAVAILABLE


async def test_a_removal_while_the_keep_starts_ends_both_cleanly(keeps: Keeps, units: FakeUnits, place: Path) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    loader = units.loaders[kuuid]
    loader.hold = asyncio.Event()
    starting = asyncio.create_task(keeps.start(StartKeep(kuuid), ALICE))
    while not any(c.type is CommandType.KEEP_START for c in loader.commands):
        loader.heard.clear()
        await loader.heard.wait()
    await keeps.remove(kuuid, ALICE)
    assert (await refusal(starting)).kind is ErrorKind.NOT_FOUND
    assert empty(units, place)


async def test_a_removal_whose_client_went_away_is_carried_through(keeps: Keeps, units: FakeUnits, place: Path) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    removal = asyncio.create_task(keeps.remove(kuuid, ALICE))
    await asyncio.sleep(0)
    removal.cancel()
    await asyncio.wait({removal})
    await keeps.settle()
    assert empty(units, place)


async def test_a_keep_is_called_what_its_creator_said_and_belongs_to_it(keeps: Keeps) -> None:
    made = await keeps.create(NewKeep(name="web", labels=(("tier", "front"),)), ALICE)
    assert (made.name, made.labels, made.owner) == ("web", (("tier", "front"),), "alice")
    assert (await keeps.create(NewKeep(), STRANGER)).owner == "anonymous"


async def test_a_keep_has_the_limits_asked_for_and_the_rest_by_default(keeps: Keeps) -> None:
    made = await keeps.create(NewKeep(limits=(("wall_seconds", 5),)), ALICE)
    assert made.limits == Limits(wall_seconds=5)


async def test_a_limit_above_the_ceiling_is_forbidden_and_nothing_is_made(keeps: Keeps, units: FakeUnits) -> None:
    error = await refusal(keeps.create(NewKeep(limits=(("tasks", 65),)), ALICE))
    assert error.kind is ErrorKind.FORBIDDEN
    assert "cannot make a keep with tasks 65: the ceiling for alice is 64; " in error.message
    assert "the manager's configuration sets it" in error.message
    assert not units.kuuids()


async def test_a_loader_that_takes_no_description_is_rolled_back(keeps: Keeps, units: FakeUnits, place: Path) -> None:
    units.at_ready = lambda loader: setattr(loader, "says_it_is", 4)
    assert (await refusal(keeps.create(NewKeep(), ALICE))).kind is ErrorKind.KEEP_FAILED
    assert empty(units, place)


async def test_pages_follow_one_another_and_hold_every_keep_once(keeps: Keeps) -> None:
    made = sorted([(await keeps.create(NewKeep(), ALICE)).kuuid for _ in range(5)])
    seen: list[int] = []
    after, pages = 0, 0
    while pages == 0 or after:
        page = await keeps.list(ListKeeps(limit=2, after=after))
        seen += [keep.kuuid for keep in page.keeps]
        after, pages = page.next or 0, pages + 1
    assert (seen, pages) == (made, 3)


async def test_a_last_page_that_is_full_names_no_next_one(keeps: Keeps) -> None:
    for _ in range(2):
        await keeps.create(NewKeep(), ALICE)
    assert (await keeps.list(ListKeeps(limit=2))).next is None


async def test_labels_choose_keeps_across_pages(keeps: Keeps) -> None:
    colours = ("red", "blue", "red", "blue", "red")
    made = [await keeps.create(NewKeep(labels=(("c", colour), ("all", "x"))), ALICE) for colour in colours]
    red = sorted(keep.kuuid for keep in made if ("c", "red") in keep.labels)
    first = await keeps.list(ListKeeps(limit=2, labels=(("c", "red"),)))
    assert ([keep.kuuid for keep in first.keeps], first.next) == (red[:2], red[1])
    rest = await keeps.list(ListKeeps(limit=2, after=red[1], labels=(("c", "red"), ("all", "x"))))
    assert ([keep.kuuid for keep in rest.keeps], rest.next) == (red[2:], None)
    assert (await keeps.list(ListKeeps(labels=(("c", "green"),)))).keeps == ()


@pytest.fixture
def helper(place: Path) -> Iterator[None]:
    """What the manager asks for directories."""
    with grants_helper(place / SOCKET_NAME):
        yield


def given(place: Path, **more: object) -> WorkloadRequest:
    (place / "root" / "data").mkdir(parents=True, exist_ok=True)
    directories = [{"host": f"{place}/root/data", "guest": "/data"}]
    return parse_workload({"arguments": ["-v"], "directories": directories, **more})


@pytest.mark.usefixtures("helper")
async def test_a_start_hands_over_what_the_guest_is_granted(units: FakeUnits, place: Path, policy: Policy) -> None:
    callers = {"alice": CallerEntry(grant_roots=(GrantRoot(f"{place}/root"),))}
    async with manager_parts(units, str(place), policy.replace(callers=callers)) as parts:
        kuuid = (await parts.keeps.create(NewKeep(restart=RestartPolicy.ALWAYS), ALICE)).kuuid
        request = given(place)
        await parts.keeps.start(StartKeep(kuuid, workload=request), ALICE)
        loader = units.loaders[kuuid]
        assert loader.workload == request.workload.replace(restart=RestartPolicy.ALWAYS)
        assert [os.fstat(descriptor).st_ino for descriptor in loader.granted] == [(place / "root/data").stat().st_ino]


@pytest.mark.parametrize(
    "choice", [NewKeep(profile=Profile.STRICT), NewKeep(compiler=Compiler.FAST)], ids=["strict", "fast"]
)
async def test_a_start_hands_over_what_runs_the_guest_also_where_it_is_given_nothing(
    units: FakeUnits, place: Path, policy: Policy, choice: NewKeep
) -> None:
    async with manager_parts(units, str(place), policy) as parts:
        for asked in (None, parse_workload({"arguments": ["-v"]})):
            made = await parts.keeps.create(choice.replace(restart=RestartPolicy.ALWAYS), ALICE)
            await parts.keeps.start(StartKeep(made.kuuid, workload=asked), ALICE)
            expected = (asked or WorkloadRequest(Workload())).workload.replace(
                restart=RestartPolicy.ALWAYS, profile=choice.profile, compiler=choice.compiler
            )
            assert units.loaders[made.kuuid].workload == expected
            assert (made.profile, made.compiler) == (expected.profile, expected.compiler)


@pytest.mark.usefixtures("helper")
async def test_what_a_starter_gives_goes_to_no_one_whom_another_owner_chose(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    callers = {"alice": CallerEntry(grant_roots=(GrantRoot(f"{place}/root"),))}
    async with manager_parts(units, str(place), policy.replace(callers=callers)) as parts:
        for owner, uploaders in ((BOB, ("name:bob",)), (STRANGER, ("*",))):
            for options, expected in ((given(place), ("name:alice",)), (parse_workload({}), uploaders)):
                kuuid = (await parts.keeps.create(NewKeep(uploaders=uploaders), owner)).kuuid
                await parts.keeps.start(StartKeep(kuuid, workload=options), ALICE)
                message = units.loaders[kuuid].started
                assert message is not None
                assert message.uploaders == expected


async def test_a_loader_that_lets_every_certificate_upload_is_given_nothing(
    keeps: Keeps, units: FakeUnits, place: Path
) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    units.loaders[kuuid].version = 1
    for options in (given(place), parse_workload({"environment": {"TOKEN": "x"}})):
        error = await refusal(keeps.start(StartKeep(kuuid, workload=options), ALICE))
        assert error.kind is ErrorKind.CONFLICT
        assert "its loader is of the version before" in error.message
    assert (await keeps.start(StartKeep(kuuid, workload=parse_workload({})), ALICE)).state is State.STARTED


async def test_a_keep_whose_spec_cannot_be_read_now_is_lost_to_its_owner_by_no_manager(
    keeps: Keeps, units: FakeUnits, place: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeps.create(NewKeep(), ALICE)

    async def away(_: Sequence[int]) -> Mapping[int, KeepSpec | None]:
        raise KeepfleetError(ErrorKind.UNAVAILABLE, "systemd has not answered")

    monkeypatch.setattr(units, "specs", away)
    with pytest.raises(KeepfleetError, match="systemd has not answered"):
        async with manager_parts(units, str(place), policy):
            pass


async def test_a_keep_that_cannot_be_rolled_back_is_shown_until_it_is(
    keeps: Keeps, units: FakeUnits, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "ROLL_BACK_SECONDS", 0)
    real, tries = units.stop, 0

    async def stuck(kuuid: int) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise KeepfleetError(ErrorKind.KEEP_FAILED, "it does not end")
        await real(kuuid)

    monkeypatch.setattr(units, "stop", stuck)
    units.behaviour = FAIL
    await refusal(keeps.create(NewKeep(), ALICE))
    assert len((await keeps.list()).keeps) == 1
    await units.gone.wait()
    await keeps.settle()
    assert empty(units, place)


async def test_a_grant_that_is_refused_leaves_the_keep_as_it_was(keeps: Keeps, units: FakeUnits, place: Path) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    open_before = len(os.listdir("/proc/self/fd"))
    error = await refusal(keeps.start(StartKeep(kuuid, workload=given(place)), ALICE))
    assert error.kind is ErrorKind.FORBIDDEN
    assert (await keeps.get(kuuid)).state is State.LISTENING
    assert len(os.listdir("/proc/self/fd")) <= open_before + 2  # both ends of the watch's connection
    assert (await keeps.start(StartKeep(kuuid, workload=parse_workload({})), ALICE)).state is State.STARTED


async def test_a_name_belongs_to_one_living_keep_of_its_owner(keeps: Keeps, units: FakeUnits) -> None:
    first = (await keeps.create(NewKeep(name="web"), ALICE)).kuuid
    error = await refusal(keeps.create(NewKeep(name="web"), ALICE))
    assert error.kind is ErrorKind.CONFLICT
    assert f"your keep {first} has it" in error.message
    assert (await keeps.create(NewKeep(name="web"), BOB)).name == "web", "another owner's"
    await keeps.start(StartKeep(first), ALICE)
    await keeps.stop(first, ALICE)
    second = (await keeps.create(NewKeep(name="web"), ALICE)).kuuid
    assert {keep.kuuid for keep in (await keeps.list(visible=lambda keep: keep.owner == "alice")).keeps} == {
        first,
        second,
    }


async def test_fifty_creations_of_one_name_have_one_winner_and_the_others_hear_of_it(keeps: Keeps) -> None:
    made = await asyncio.gather(*(keeps.create(NewKeep(name="web"), ALICE) for _ in range(50)), return_exceptions=True)
    errors = [result for result in made if isinstance(result, KeepfleetError)]
    (winner,) = [result for result in made if not isinstance(result, BaseException)]
    assert [error.kind for error in errors] == [ErrorKind.CONFLICT] * 49
    assert {error.message for error in errors} == {
        f"cannot make a keep with the name 'web': your keep {winner.kuuid} has it; remove that one, or replace it"
    }


async def test_a_creation_may_replace_the_living_keep_of_its_name(
    keeps: Keeps, units: FakeUnits, events: FakeEventLog
) -> None:
    first = (await keeps.create(NewKeep(name="web"), ALICE)).kuuid
    await events.until(EventType.CREATED, first)
    second = (await keeps.create(NewKeep(name="web", replace_living=True), ALICE)).kuuid
    assert units.kuuids() == {second}
    assert (await events.until(EventType.REMOVED, first)).by == "alice"


async def test_a_name_whose_creation_failed_is_free(keeps: Keeps, units: FakeUnits) -> None:
    units.behaviour = FAIL
    await refusal(keeps.create(NewKeep(name="web"), ALICE))
    units.behaviour = READY
    assert (await keeps.create(NewKeep(name="web"), ALICE)).name == "web"


async def test_a_keep_that_a_manager_left_half_made_has_its_owner_and_name(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    """The manager was killed between the unit and its answer, before the unit was ready."""
    spec = spec_for(NewKeep(name="web", labels=(("a", "b"),)), ALICE, policy, "key-1")
    units.behaviour = NEVER
    starting = asyncio.create_task(units.start(7, 60.0, spec))
    await units.begun.wait()
    async with manager_parts(units, str(place), policy) as parts:
        found = await parts.keeps.get(7)
        assert (found.owner, found.name, found.labels, found.state) == ("alice", "web", (("a", "b"),), State.UNDEFINED)
        error = await refusal(parts.keeps.create(NewKeep(name="web"), ALICE))
        assert "your keep 7 has it" in error.message
        await parts.keeps.remove(7, ALICE)
    await refusal(starting)


async def test_a_list_looks_again_at_one_s_own_keeps_alone_and_at_all_of_them_concurrently(
    keeps: Keeps, units: FakeUnits, parts: ManagerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = [units.loaders[(await keeps.create(NewKeep(), ALICE)).kuuid] for _ in range(3)]
    for loader in loaders:
        parts.view.entry(loader.kuuid).passing = True
    looks, real = 0, units.listed

    async def listed() -> list[UnitState]:
        nonlocal looks
        looks += 1
        return await real()

    monkeypatch.setattr(units, "listed", listed)
    monkeypatch.setattr(manager, "ASKED_CONCURRENTLY", 3)
    assert (await keeps.list(visible=lambda keep: keep.owner == "bob")).keeps == ()
    assert looks == 0
    meeting = asyncio.Barrier(3)

    async def ask(*_: object) -> Answer:
        await asyncio.wait_for(meeting.wait(), 60)
        raise KeepfleetError(ErrorKind.UNAVAILABLE, "no answer")

    monkeypatch.setattr("keep_manager.loader_client.Loaders.ask", ask)
    assert len((await keeps.list()).keeps) == 3
    assert (looks, meeting.n_waiting) == (1, 0)


async def test_a_keep_is_replaced_within_the_quotas_or_stays(units: FakeUnits, place: Path, policy: Policy) -> None:
    callers = {"alice": CallerEntry(quotas=Quotas(keeps=1, memory_bytes=256 << 20))}
    keeper = QuotaKeeper(callers, lambda: parts.view)
    async with manager_parts(units, str(place), policy, quotas=keeper) as parts:
        first = (await parts.keeps.create(NewKeep(name="web"), ALICE)).kuuid
        more = NewKeep(name="web", limits=(("memory_bytes", 512 << 20),), replace_living=True)
        assert (await refusal(parts.keeps.create(more, ALICE))).kind is ErrorKind.TOO_MANY
        assert units.kuuids() == {first}
        second = (await parts.keeps.create(NewKeep(name="web", replace_living=True), ALICE)).kuuid
        assert units.kuuids() == {second}


async def test_a_retry_at_the_next_manager_gets_the_keep_that_was_made(
    keeps: Keeps, units: FakeUnits, place: Path, policy: Policy
) -> None:
    request = NewKeep(name="web")
    made = await keeps.create(request, ALICE, "key-1")
    async with manager_parts(units, str(place), policy) as parts:
        assert (await parts.keeps.create(request, ALICE, "key-1")).kuuid == made.kuuid
        error = await refusal(parts.keeps.create(NewKeep(name="other"), ALICE, "key-1"))
        assert error.message == "cannot make a keep: its idempotency key came with another request before"
        assert (await parts.keeps.create(request, BOB, "key-1")).kuuid != made.kuuid
        assert len(units.kuuids()) == 2


async def test_a_unit_of_the_version_before_is_no_one_s_and_called_what_its_loader_says(
    keeps: Keeps, units: FakeUnits, place: Path, policy: Policy
) -> None:
    """Its loader speaks the control protocol of its time, and takes five requests to start."""
    made = await keeps.create(NewKeep(name="web", labels=(("a", "b"),), limits=(("tasks", 20),)), ALICE)
    loader = units.loaders[made.kuuid]
    del units.said[made.kuuid]
    loader.version = 1
    loader.commands.clear()
    async with manager_parts(units, str(place), policy) as parts:
        found = await parts.keeps.get(made.kuuid)
        assert (found.owner, found.name, found.labels, found.limits.tasks) == ("", "web", (("a", "b"),), 20)
        started = await parts.keeps.start(StartKeep(made.kuuid, names=("a.example",)), ALICE)
    assert started.state is State.STARTED
    said = [(c.type, c.contents) for c in loader.commands if c.type not in (CommandType.INFO, CommandType.WAIT)]
    assert said == [
        (CommandType.ADDR, "127.0.0.1"),
        (CommandType.PORT, str(started.port)),
        (CommandType.NAMES, "a.example"),
        (CommandType.START, ""),
    ]


async def test_what_a_loader_claims_to_be_changes_nothing(keeps: Keeps, units: FakeUnits) -> None:
    made = await keeps.create(NewKeep(name="web"), ALICE)
    loader = units.loaders[made.kuuid]
    loader.spec = loader.spec.replace(name="other", owner="bob", labels=(("x", "y"),))
    shown = await keeps.start(StartKeep(made.kuuid), ALICE)
    assert (shown.name, shown.owner, shown.labels) == ("web", "alice", ())


async def test_a_stop_waits_for_a_process_that_takes_its_time_to_die(
    keeps: Keeps, units: FakeUnits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "STOP_SECONDS", 0.0)
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    await keeps.start(StartKeep(kuuid), ALICE)
    waits: list[float] = []

    async def ask(loaders: Loaders, kuuid: int, command: Command, seconds: float = 0.0) -> Answer:
        waits.append(seconds)
        async with loaders.session(kuuid) as session:
            return await session.ask(command, seconds)

    monkeypatch.setattr(Loaders, "ask", ask)
    loader = units.loaders[kuuid]
    loader.dies = asyncio.Event()
    loader.heard.clear()
    stopping = asyncio.create_task(keeps.stop(kuuid, ALICE))
    await loader.heard.wait()
    assert STOP_REPLY_SECONDS >= TERM_SECONDS + 5.0
    assert not stopping.done()
    loader.dies.set()
    assert (await stopping).state is State.COMPLETE
    assert waits == [STOP_REPLY_SECONDS]


async def test_a_stop_that_a_loader_does_not_answer_fails_and_leaves_the_keep_as_it_was(
    keeps: Keeps, units: FakeUnits, monkeypatch: pytest.MonkeyPatch
) -> None:
    kuuid = (await keeps.create(NewKeep(), ALICE)).kuuid
    before = await keeps.start(StartKeep(kuuid), ALICE)
    monkeypatch.setattr(manager, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(manager, "STOP_REPLY_SECONDS", 0.02)
    monkeypatch.setattr(Loaders.ask, "__defaults__", (0.02,))
    units.loaders[kuuid].silent = True
    assert "no answer to apploader-stop" in (await refusal(keeps.stop(kuuid, ALICE))).message
    assert keeps.find(kuuid) == before


async def test_a_quota_counts_creations_that_are_under_way(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with Group() as tasks:
        parts = ManagerParts(tasks, units, str(place), policy, FakeEventLog())
        callers = {"alice": CallerEntry(quotas=Quotas(keeps=3))}
        keeper = QuotaKeeper(callers, lambda: parts.view)
        other = ManagerParts(tasks, units, str(place), policy, FakeEventLog(), keeper)
        parts.view = other.view
        made = await asyncio.gather(*(other.keeps.create(NewKeep(), ALICE) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(result, KeepInfo) for result in made) == 3


async def test_a_thousand_keeps_are_listed_from_memory(units: FakeUnits, place: Path, policy: Policy) -> None:
    async with manager_parts(units, str(place), policy) as parts:
        loader = FakeLoader(str(place), 1)
        report = loader.report()
        await loader.close()
        for kuuid in range(1, 1001):
            spec = KeepSpec(name=f"web-{kuuid}", owner="alice", labels=(("n", str(kuuid % 10)),))
            parts.view.begin(kuuid, spec)
            parts.view.answered(kuuid, Answer(report.replace(kuuid=kuuid), KeepSpec()))
        began = time.process_time()
        for _ in range(10):
            page = await parts.keeps.list(ListKeeps(labels=(("n", "3"),)), visible=lambda keep: keep.owner == "alice")
        used = time.process_time() - began
        assert len(page.keeps) == 100
        assert used < 1.0, "ten lists; each of them in well under a tenth of a second of processor time"
        assert {keep.state for keep in page.keeps} == {State.LISTENING}


def test_a_list_of_the_commands_of_2020_is_in_the_order_of_creation() -> None:
    made = [KeepInfo(kuuid, State.LISTENING, created_at=at) for kuuid, at in ((5, 2.0), (9, 1.0), (3, 2.0), (8, None))]
    assert [keep.kuuid for keep in decide.by_creation(made)] == [8, 9, 3, 5]
