"""One request to a keep that listens: `POST /v1/keeps` with `start` makes and starts it, or leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path

import pytest

from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.callers import CallerEntry, Quotas
from keep_manager.keeps.creation import request_digest, spec_for
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.policy import Policy
from keep_protocol import strict_json
from keep_protocol.api import NewKeep, StartKeep, parse_v1_create
from keep_protocol.api_workload import parse_workload
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import EventType
from keep_protocol.states import Event, Phase, State
from tests.fakes.callers import ALICE
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_loader import FINGERPRINT, FakeLoader
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import ManagerParts, manager_parts
from tests.fakes.running_manager import RunningManager
from tests.unit.manager.conftest import reserved_port

STARTED = NewKeep(start=StartKeep())
NAMED = NewKeep(name="web", start=StartKeep())
ELSEWHERE = StartKeep(address="192.0.2.9")
"""On an address that this host does not have."""
NOT_GRANTED = StartKeep(workload=parse_workload({"stdin": {"file": "/etc/passwd"}}))


@pytest.fixture
def keeps(parts: ManagerParts) -> Keeps:
    return parts.keeps


async def refusal(call: Coroutine[None, None, KeepInfo]) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        await call
    return caught.value


async def made_before(units: FakeUnits, policy: Policy, request: NewKeep, key: str) -> FakeLoader:
    """The keep that a manager made for `request` before it was killed, and its loader."""
    await units.start(7, 2.0, spec_for(request, ALICE, policy, key))
    return units.loaders[7]


async def test_the_answer_is_a_keep_that_listens(keeps: Keeps, units: FakeUnits) -> None:
    with reserved_port() as port:
        info = await keeps.create(NewKeep(start=StartKeep(port=port, names=("a.example",))), ALICE)
    assert (info.state, info.phase, info.fingerprint) == (State.STARTED, Phase.AWAITING.value, FINGERPRINT)
    assert (info.address, info.port, info.uploaders) == ("127.0.0.1", port, ("name:alice",))
    loader = units.loaders[info.kuuid]
    assert loader.started is not None
    assert loader.started.names == ("a.example",)
    commands = [command.type.value for command in loader.commands[:2]]
    assert commands == ["keep-hello", "keep-start"], "both on one connection"


async def test_its_events_are_those_of_a_creation_and_a_start(keeps: Keeps, events: FakeEventLog) -> None:
    info = await keeps.create(STARTED, ALICE)
    await events.until(EventType.STARTED)
    assert [(event.type, event.keep.kuuid) for event in events.written] == [
        (EventType.CREATED, info.kuuid),
        (EventType.STARTED, info.kuuid),
    ]


async def test_a_start_that_its_loader_refuses_leaves_no_keep_and_says_why(
    keeps: Keeps, units: FakeUnits, events: FakeEventLog
) -> None:
    def refuses(loader: FakeLoader) -> None:
        loader.refuse = KeepfleetError(ErrorKind.CERTIFICATE, "cannot make the identity: no randomness", ("a line",))

    units.at_ready = refuses
    error = await refusal(keeps.create(NAMED, ALICE))
    assert (error.kind, error.evidence) == (ErrorKind.CERTIFICATE, ("a line",))
    assert error.message == "cannot make a keep that is started: cannot make the identity: no randomness"
    assert units.kuuids() == set()
    assert (await keeps.list()).keeps == ()
    assert events.written == []
    units.at_ready = lambda _: None
    assert (await keeps.create(NAMED, ALICE)).name == "web", "its name is free again"


async def test_a_port_that_cannot_be_had_leaves_no_keep(keeps: Keeps, units: FakeUnits) -> None:
    error = await refusal(keeps.create(NewKeep(start=ELSEWHERE), ALICE))
    assert error.kind is ErrorKind.PORT_UNAVAILABLE
    assert "192.0.2.9" in error.message
    assert units.kuuids() == set()


@pytest.fixture
def held(units: FakeUnits) -> asyncio.Queue[FakeLoader]:
    """The next keep's loader, which does not answer its start."""
    loaders: asyncio.Queue[FakeLoader] = asyncio.Queue()

    def holds(loader: FakeLoader) -> None:
        loader.hold = asyncio.Event()
        loaders.put_nowait(loader)

    units.at_ready = holds
    return loaders


async def test_a_client_that_goes_away_during_the_start_leaves_no_keep(
    keeps: Keeps, units: FakeUnits, held: asyncio.Queue[FakeLoader]
) -> None:
    creation = asyncio.create_task(keeps.create(STARTED, ALICE))
    await (await held.get()).held.wait()
    creation.cancel()
    await asyncio.wait({creation})
    await keeps.settle()
    assert creation.cancelled()
    assert units.kuuids() == set()


async def test_a_keep_that_is_removed_during_its_start_is_said_to_have_gone(
    keeps: Keeps, held: asyncio.Queue[FakeLoader]
) -> None:
    async def removes() -> None:
        loader = await held.get()
        await loader.held.wait()
        await keeps.remove(loader.kuuid, ALICE)

    removal = asyncio.create_task(removes())
    assert (await refusal(keeps.create(STARTED, ALICE))).kind is ErrorKind.UNAVAILABLE
    await removal
    assert (await keeps.list()).keeps == ()


async def test_another_s_start_of_the_same_keep_fails_the_creation_whole(keeps: Keeps, units: FakeUnits) -> None:
    async def begins(loader: FakeLoader) -> None:
        await loader.move(Event.START)

    tasks: list[asyncio.Task[None]] = []
    units.at_ready = lambda loader: tasks.append(asyncio.create_task(begins(loader)))
    error = await refusal(keeps.create(STARTED, ALICE))
    assert error.kind is ErrorKind.KEEP_FAILED
    assert units.kuuids() == set()


@pytest.mark.parametrize("start", [NOT_GRANTED, StartKeep(uploaders=("*",))], ids=["a grant", "uploaders"])
async def test_what_cannot_be_given_is_refused_before_anything_is_made(
    keeps: Keeps, units: FakeUnits, start: StartKeep
) -> None:
    assert (await refusal(keeps.create(NewKeep(start=start), ALICE))).kind is ErrorKind.FORBIDDEN
    assert not units.begun.is_set()


async def test_a_replacement_whose_start_cannot_be_given_leaves_the_old_keep(keeps: Keeps, units: FakeUnits) -> None:
    first = await keeps.create(NAMED, ALICE)
    wanted = NewKeep(name="web", replace_living=True, start=NOT_GRANTED)
    assert (await refusal(keeps.create(wanted, ALICE))).kind is ErrorKind.FORBIDDEN
    assert keeps.find(first.kuuid).state is State.STARTED


async def test_a_replacement_takes_over_the_port_of_the_keep_before(keeps: Keeps, units: FakeUnits) -> None:
    with reserved_port("127.0.0.2") as port:
        at = StartKeep(address="127.0.0.2", port=port)
        await keeps.create(NewKeep(name="web", start=at), ALICE)
        second = await keeps.create(NewKeep(name="web", start=at, replace_living=True), ALICE)
    assert (second.address, second.port) == ("127.0.0.2", port)
    assert units.kuuids() == {second.kuuid}


async def test_quotas_are_asked_before_anything_is_made_and_count_one_start(
    units: FakeUnits, place: Path, policy: Policy, events: FakeEventLog
) -> None:
    callers = {"alice": CallerEntry(quotas=Quotas(starts_per_minute=1, addresses=("127.0.0.1",)))}
    parts: ManagerParts
    quotas = QuotaKeeper(callers, lambda: parts.view)
    async with manager_parts(units, str(place), policy, events, quotas) as parts:
        error = await refusal(parts.keeps.create(NewKeep(start=ELSEWHERE), ALICE))
        assert error.kind is ErrorKind.FORBIDDEN
        assert "cannot start a new keep on address 192.0.2.9" in error.message
        await parts.keeps.create(STARTED, ALICE)
        assert (await refusal(parts.keeps.create(STARTED, ALICE))).kind is ErrorKind.TOO_MANY
        assert len(units.kuuids()) == 1
        await parts.keeps.create(NewKeep(), ALICE)


async def test_one_key_names_one_keep_that_is_started_once(keeps: Keeps, units: FakeUnits) -> None:
    made = await asyncio.gather(*(keeps.create(STARTED, ALICE, "key") for _ in range(10)))
    assert len({keep.kuuid for keep in made}) == 1
    assert {keep.state for keep in made} == {State.STARTED}
    other = NewKeep(start=StartKeep(names=("b.example",)))
    assert (await refusal(keeps.create(other, ALICE, "key"))).kind is ErrorKind.CONFLICT
    assert (await refusal(keeps.create(NewKeep(), ALICE, "key"))).kind is ErrorKind.CONFLICT


async def test_the_next_manager_starts_what_the_one_before_made_and_did_not_start(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    await made_before(units, policy, STARTED, "key")
    async with manager_parts(units, str(place), policy) as parts:
        info = await parts.keeps.create(STARTED, ALICE, "key")
        assert (info.kuuid, info.state) == (7, State.STARTED)
        again = await parts.keeps.create(STARTED, ALICE, "key")
        assert again == info


async def test_the_next_manager_waits_for_a_start_that_the_one_before_had_sent(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    loader = await made_before(units, policy, STARTED, "key")
    await loader.move(Event.START)
    async with manager_parts(units, str(place), policy) as parts:
        retried = asyncio.create_task(parts.keeps.create(STARTED, ALICE, "key"))
        await asyncio.sleep(0)
        await loader.move(Event.ENDPOINT_READY)
        assert (await retried).state is State.STARTED
        assert "keep-start" not in [command.type.value for command in loader.commands]


async def test_a_start_that_fails_at_the_next_manager_leaves_no_keep(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    request = NewKeep(start=ELSEWHERE)
    await made_before(units, policy, request, "key")
    async with manager_parts(units, str(place), policy) as parts:
        assert (await refusal(parts.keeps.create(request, ALICE, "key"))).kind is ErrorKind.PORT_UNAVAILABLE
        assert units.kuuids() == set()


async def test_a_keep_without_a_start_in_its_request_is_not_started_by_a_retry(
    units: FakeUnits, place: Path, policy: Policy
) -> None:
    await made_before(units, policy, NewKeep(), "key")
    async with manager_parts(units, str(place), policy) as parts:
        assert (await parts.keeps.create(NewKeep(), ALICE, "key")).state is State.LISTENING


def test_a_unit_s_digest_of_secret_words_says_nothing_without_the_key() -> None:
    secret = NewKeep(start=StartKeep(workload=parse_workload({"environment": {"PIN": "1234"}})))
    assert request_digest(secret, "k1") != request_digest(secret, "k2")
    assert request_digest(secret, "k1") == request_digest(secret, "k1")


def test_a_request_without_a_start_has_the_digest_of_the_version_before() -> None:
    digest = "7acaf2290fd4c599fe22e2c32ab8df4df2ef4286dc425586246b2f6474b3c755"
    assert request_digest(NewKeep(name="web"), "k1") == request_digest(NewKeep(name="web"), "k2") == digest


def test_a_start_in_a_creation_is_read_as_strictly_as_one_of_its_own() -> None:
    request = parse_v1_create(b'{"start": {"port": 3100, "workload": {"arguments": ["a"], "restart": "always"}}}')
    assert request.start is not None
    assert (request.start.port, request.start.kuuid) == (3100, 0)
    for body, why in ((b'{"start": {"kuuid": 7}}', "unknown field 'kuuid'"), (b'{"start": 1}', "'start' must be")):
        with pytest.raises(KeepfleetError, match=why):
            parse_v1_create(body)


def test_a_request_is_written_as_it_was_read() -> None:
    workload = {
        "arguments": ["a"],
        "environment": {"A": "b"},
        "export": "",
        "export_arguments": [],
        "stdin": {"file": "/srv/in", "stream": False},
        "directories": [
            {"host": "/srv/a", "guest": "/a", "writable": True},
            {"host": "/b", "guest": "/c", "writable": False},
        ],
        "secrets": [{"name": "one", "file": "/srv/one"}],
        "restart": None,
    }
    start: dict[str, object] = {
        "address": "127.0.0.1",
        "port": None,
        "names": [],
        "workload": workload,
        "uploaders": [],
    }
    assert parse_v1_create(strict_json.dumps({"start": start})).to_wire()["start"] == start


async def test_v1_answers_a_creation_with_its_start_with_201_and_the_listening_keep(manager: RunningManager) -> None:
    body = {"start": {"workload": {"arguments": ["x" * 100_000]}}}
    async with manager.client() as client, client.post("/v1/keeps", json=body) as response:
        info = await response.json()
        assert (response.status, response.headers["Location"]) == (201, f"/v1/keeps/{info['kuuid']}")
        assert (info["state"], info["fingerprint"]) == (2, FINGERPRINT)


@pytest.mark.parametrize(("headers", "warm"), [({"Workload-Follows": "yes"}, True), ({}, False)])
async def test_a_keep_whose_workload_follows_gets_its_runner_ready_when_it_listens(
    manager: RunningManager, headers: dict[str, str], warm: bool
) -> None:
    async with manager.client() as client, client.post("/v1/keeps", json={"start": {}}, headers=headers) as response:
        kuuid = (await response.json())["kuuid"]
    started = manager.units.loaders[kuuid].started
    assert started is not None
    assert started.warm is warm


async def test_what_follows_a_creation_is_said_in_one_way_alone(manager: RunningManager) -> None:
    headers = {"Workload-Follows": "1"}
    async with manager.client() as client, client.post("/v1/keeps", json={"start": {}}, headers=headers) as response:
        assert response.status == 400
        assert "must be yes" in (await response.json())["error"]["message"]
    assert manager.units.kuuids() == set()


async def test_v1_answers_a_start_that_cannot_be_with_the_start_s_own_status(manager: RunningManager) -> None:
    body = {"start": {"address": "192.0.2.9"}}
    async with manager.client() as client, client.post("/v1/keeps", json=body) as response:
        assert response.status == 503
        assert (await response.json())["error"]["kind"] == "port-unavailable"
    assert manager.units.kuuids() == set()
