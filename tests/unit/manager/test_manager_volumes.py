"""Volumes over HTTPS: each role sees and removes what is its own to see and remove, and no one learns of another's."""

from __future__ import annotations

import asyncio

import pytest

from keep_protocol.declared import V1_DECLARED_PATH
from keep_protocol.volumes import V1_VOLUMES_PATH
from tests.unit.manager.test_manager_ownership import People, call, people

__all__ = ["people"]
SIZE = 16 << 20
MANIFEST = "module: web:1\nvolume: {name: data, size: 16M, guest: /data}\n"


@pytest.fixture
async def data(people: People) -> None:
    """Ann has the volume `data`."""
    volumes = people.manager.parts.volumes
    await asyncio.to_thread(volumes.open)
    await asyncio.to_thread(volumes.ensure, "data", "ann", SIZE, 1024)


async def names(client: object) -> list[str]:
    status, answer = await call(client, "GET", V1_VOLUMES_PATH)  # type: ignore[arg-type] # a session
    assert status == 200, answer
    return [each["name"] for each in answer["volumes"]]


async def test_a_user_sees_its_own_and_operators_and_viewers_see_all(people: People, data: None) -> None:
    assert [await names(one) for one in (people.ann, people.bob, people.vic, people.root)] == [
        ["data"],
        [],
        ["data"],
        ["data"],
    ]


async def test_another_s_is_as_one_that_there_is_not_and_a_viewer_removes_none(people: People, data: None) -> None:
    path = f"{V1_VOLUMES_PATH}/data"
    status, answer = await call(people.bob, "DELETE", path)
    nowhere = await call(people.bob, "DELETE", f"{V1_VOLUMES_PATH}/other")
    assert (status, answer["error"]["message"]) == (404, nowhere[1]["error"]["message"].replace("'other'", "'data'"))
    assert (await call(people.vic, "DELETE", path))[0] == 403
    assert (await call(people.ann, "DELETE", path))[0] == 204
    assert await names(people.ann) == []


async def test_who_names_another_s_volume_neither_keeps_it_from_being_removed_nor_is_named(
    people: People, data: None
) -> None:
    status, _ = await call(people.bob, "PUT", f"{V1_DECLARED_PATH}/thief", json={"manifest": MANIFEST})
    assert status == 200
    _, answer = await call(people.ann, "GET", V1_VOLUMES_PATH)
    assert answer["volumes"][0]["declared"] == []
    status, _ = await call(people.ann, "PUT", f"{V1_DECLARED_PATH}/web", json={"manifest": MANIFEST})
    refused = await call(people.root, "DELETE", f"{V1_VOLUMES_PATH}/data")
    assert (refused[0], "declared keep web has it" in refused[1]["error"]["message"]) == (409, True)
    assert (await call(people.ann, "DELETE", f"{V1_DECLARED_PATH}/web"))[0] == 204
    assert (await call(people.ann, "DELETE", f"{V1_VOLUMES_PATH}/data"))[0] == 204
