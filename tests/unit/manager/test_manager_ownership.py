"""Every keep has an owner: what each role may do over HTTPS, and that another's keep does not exist for it."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keep_manager.callers import CallerEntry, ConfiguredRole, Quotas
from keep_manager.http.app import ROUTES
from keep_manager.http.connection import Peer
from keep_manager.http.middleware import caller_at
from keep_manager.model import ClientIdentity
from keep_protocol.certificate import read_certificate
from keep_protocol.constants import V1_EVENTS_PATH, V1_KEEPS_PATH
from keep_protocol.identity import Identity, Role
from keep_protocol.ring import STDOUT
from keep_protocol.sse import EventType
from tests.fakes.fake_pki import FakeAuthority
from tests.fakes.running_manager import RunningManager, running_manager

NOWHERE = 4503599627370495
"""The ID of a keep that there is not."""


async def call(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with client.request(method, path, **options) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text


async def create(client: aiohttp.ClientSession, name: str = "") -> int:
    status, keep = await call(client, "POST", V1_KEEPS_PATH, json={"name": name})
    assert status == 201, keep
    return int(keep["kuuid"])


class People:
    """Clients of one manager: two users, a viewer and an operator, each with the identity in its certificate."""

    def __init__(self, manager: RunningManager, sessions: dict[str, aiohttp.ClientSession]) -> None:
        self.manager = manager
        self.ann, self.bob = sessions["ann"], sessions["bob"]
        self.vic, self.root = sessions["vic"], sessions["root"]


@pytest.fixture
async def people(manager: RunningManager) -> AsyncIterator[People]:
    roles = {"ann": Role.USER, "bob": Role.USER, "vic": Role.VIEWER, "root": Role.OPERATOR}
    issued = {name: manager.authority.issue(name, uri=Identity(role, name).uri()) for name, role in roles.items()}
    async with (
        manager.client(issued["ann"]) as ann,
        manager.client(issued["bob"]) as bob,
        manager.client(issued["vic"]) as vic,
        manager.client(issued["root"]) as root,
    ):
        yield People(manager, {"ann": ann, "bob": bob, "vic": vic, "root": root})


ON_A_KEEP = [(route.method, route.path.replace("{kuuid}", "{}")) for route in ROUTES if "{kuuid}" in route.path]


@pytest.mark.parametrize(("method", "path"), ON_A_KEEP)
async def test_another_s_keep_is_refused_as_one_that_there_is_not(people: People, method: str, path: str) -> None:
    kuuid = await create(people.ann)
    status, answer = await call(people.bob, method, path.format(kuuid))
    nowhere = await call(people.bob, method, path.format(NOWHERE))
    assert status == 404
    assert (status, json.dumps(answer).replace(str(kuuid), str(NOWHERE))) == (nowhere[0], json.dumps(nowhere[1]))
    assert (await call(people.ann, "GET", f"{V1_KEEPS_PATH}/{kuuid}"))[1]["state"] == 1


@pytest.mark.parametrize("command", ["start-keep", "stop-keep", "remove-keep"])
async def test_the_commands_of_2020_know_owners_too(people: People, command: str) -> None:
    kuuid = await create(people.ann)
    body = {"command": command, "kuuid": str(kuuid)}
    if command == "start-keep":
        body |= {"keep-addr": "127.0.0.1", "keep-port": "42000"}
    assert (await call(people.bob, "POST", "/keeps_post", json=body))[0] == 404
    _, listed = await call(people.bob, "POST", "/keeps_post", json={"command": "list-keeps"})
    assert listed == {"klvec": []}
    _, listed = await call(people.ann, "POST", "/keeps_post", json={"command": "list-keeps"})
    assert [keep["kuuid"] for keep in listed["klvec"]] == [kuuid]


async def test_lists_and_events_show_each_caller_what_it_may_read(people: People) -> None:
    own = {"ann": await create(people.ann, "web"), "bob": await create(people.bob, "web")}
    for client, expected in (
        (people.ann, {own["ann"]}),
        (people.bob, {own["bob"]}),
        (people.vic, set(own.values())),
        (people.root, set(own.values())),
    ):
        _, page = await call(client, "GET", V1_KEEPS_PATH)
        assert {keep["kuuid"] for keep in page["keeps"]} == expected
    for kuuid in own.values():
        await people.manager.events.until(EventType.CREATED, kuuid)
    _, text = await call(people.bob, "GET", V1_EVENTS_PATH)
    assert str(own["bob"]) in text
    assert str(own["ann"]) not in text


async def test_a_followed_stream_of_events_has_one_s_own_alone(people: People) -> None:
    async with people.bob.get(f"{V1_EVENTS_PATH}?follow=true") as response:
        hers, his = await create(people.ann), await create(people.bob)
        seen = b""
        async with asyncio.timeout(60):
            while str(his).encode() not in seen:
                seen += await response.content.readany()
    assert str(hers).encode() not in seen


async def test_a_viewer_reads_and_changes_nothing(people: People, caplog: pytest.LogCaptureFixture) -> None:
    kuuid = await create(people.ann)
    assert (await call(people.vic, "GET", f"{V1_KEEPS_PATH}/{kuuid}"))[0] == 200
    for method, path in (("POST", "/start"), ("POST", "/stop"), ("DELETE", "")):
        assert (await call(people.vic, method, f"{V1_KEEPS_PATH}/{kuuid}{path}"))[0] == 403
    status, answer = await call(people.vic, "POST", V1_KEEPS_PATH)
    assert (status, answer["error"]["kind"]) == (403, "forbidden")
    assert "the role viewer of vic does not allow it" in answer["error"]["message"]
    refused = [record for record in caplog.records if record.name == "keepfleet.security"]
    assert all("vic (serial " in record.getMessage() for record in refused)
    assert len(refused) == 4


async def test_an_uploader_sees_its_keep_and_can_do_nothing_else(people: People) -> None:
    kuuid, other = await create(people.ann), await create(people.ann)
    uri = Identity(Role.UPLOADER, "ci", kuuid).uri()
    ten_minutes = people.manager.authority.issue(
        "ci", uri=uri, began=datetime.timedelta(minutes=1), ends_in=datetime.timedelta(minutes=9)
    )
    async with people.manager.client(ten_minutes) as client:
        assert (await call(client, "GET", f"{V1_KEEPS_PATH}/{kuuid}"))[0] == 200
        assert (await call(client, "GET", f"{V1_KEEPS_PATH}/{other}"))[0] == 404
        assert (await call(client, "DELETE", f"{V1_KEEPS_PATH}/{kuuid}"))[0] == 403
        _, page = await call(client, "GET", V1_KEEPS_PATH)
        assert [keep["kuuid"] for keep in page["keeps"]] == [kuuid]


async def test_what_a_certificate_without_an_identity_may_do_is_configured(place: Path) -> None:
    callers = {"eve": CallerEntry(role=ConfiguredRole.VIEWER), "mel": CallerEntry(role=ConfiguredRole.USER)}
    async with running_manager(place, callers=callers) as manager:
        async with manager.client(manager.authority.issue("eve")) as eve:
            assert (await call(eve, "POST", V1_KEEPS_PATH))[0] == 403
        async with manager.client(manager.authority.issue("mel")) as mel, manager.client() as operator:
            kuuid = await create(mel)
            assert (await call(operator, "GET", f"{V1_KEEPS_PATH}/{kuuid}"))[1]["owner"] == "mel"


async def test_a_caller_whose_role_is_taken_away_gets_nothing_more_by_an_open_stream(manager: RunningManager) -> None:
    user = {"eve": CallerEntry(role=ConfiguredRole.USER)}
    async with manager.client(manager.authority.issue("eve")) as eve, manager.client() as operator:
        others = await create(operator)
        async with (
            eve.get(f"{V1_EVENTS_PATH}?follow=true") as events,
            eve.get(f"{V1_KEEPS_PATH}/{others}/logs?follow=true") as lines,
        ):
            await call(operator, "POST", f"{V1_KEEPS_PATH}/{others}/start")
            manager.quotas.apply(user)
            output = manager.units.loaders[others].output
            assert output is not None
            output.write(STDOUT, b"not for eve\n")
            late, own = await create(operator), await create(eve)
            seen = b""
            async with asyncio.timeout(60):
                assert b"not for eve" not in await lines.content.read()
                while str(own).encode() not in seen:
                    seen += await events.content.readany()
        assert str(late).encode() not in seen


async def test_clients_without_a_certificate_are_one_caller(place: Path) -> None:
    async with running_manager(place, require_client=False) as manager, manager.client() as operator:
        others = await create(operator)
        async with manager.client(anonymous=True) as client:
            kuuid = await create(client)
            assert (await call(client, "GET", f"{V1_KEEPS_PATH}/{others}"))[0] == 404
            _, page = await call(client, "GET", V1_KEEPS_PATH)
            assert [(keep["kuuid"], keep["owner"]) for keep in page["keeps"]] == [(kuuid, "anonymous")]


async def test_quotas_are_each_caller_s_own(place: Path) -> None:
    callers = {"ann": CallerEntry(quotas=Quotas(keeps=1, followers=1))}
    async with running_manager(place, callers=callers) as manager:
        issued = manager.authority.issue("ann", uri=Identity(Role.USER, "ann").uri())
        async with manager.client(issued) as ann, manager.client() as operator:
            await create(ann)
            status, answer = await call(ann, "POST", V1_KEEPS_PATH)
            assert (status, answer["error"]["kind"]) == (429, "too-many")
            assert "the quota keeps of ann is 1" in answer["error"]["message"]
            await create(operator)
            async with ann.get(f"{V1_EVENTS_PATH}?follow=true") as first:
                assert first.status == 200
                assert (await call(ann, "GET", f"{V1_EVENTS_PATH}?follow=true"))[0] == 429


async def test_names_are_unique_among_an_owner_s_living_keeps(people: People) -> None:
    first = await create(people.ann, "web")
    status, answer = await call(people.ann, "POST", V1_KEEPS_PATH, json={"name": "web"})
    assert (status, answer["error"]["kind"]) == (409, "conflict")
    assert str(first) in answer["error"]["message"]
    await create(people.bob, "web")
    status, second = await call(people.ann, "POST", V1_KEEPS_PATH, json={"name": "web", "replace": True})
    assert status == 201
    _, page = await call(people.ann, "GET", V1_KEEPS_PATH)
    assert second["kuuid"] in [keep["kuuid"] for keep in page["keeps"] if keep["name"] == "web" and keep["state"] == 1]


@pytest.mark.parametrize(
    ("uri", "common_name", "expected"),
    [
        ("spiffe://keepfleet/user/ann", "whatever", ("ann", Role.USER)),
        ("", "ann", ("ann", Role.OPERATOR)),
        ("", "Ann Example", ("cn-", Role.OPERATOR)),
        ("", "anonymous", ("cn-", Role.OPERATOR)),
        ("", "vic", ("vic", Role.VIEWER)),
    ],
)
def test_a_caller_is_who_its_certificate_says(
    tmp_path: Path, uri: str, common_name: str, expected: tuple[str, Role]
) -> None:
    issued = FakeAuthority(tmp_path / "pki").issue(common_name, uri=uri)
    certificate = read_certificate(issued.certificate.public_bytes(Encoding.DER))
    identity = Identity(Role.USER, "ann") if uri else None
    shown = ClientIdentity(certificate, identity)
    caller = caller_at(Peer("192.0.2.1", shown), {"vic": CallerEntry(role=ConfiguredRole.VIEWER)})
    assert caller.name.startswith(expected[0])
    assert (caller.role, caller.fingerprint) == (expected[1], certificate.fingerprint)


def test_a_caller_without_a_certificate_has_a_name_that_no_certificate_can_have() -> None:
    caller = caller_at(Peer("192.0.2.1", None), {})
    assert (caller.name, caller.role) == ("anonymous", Role.ANONYMOUS)
