"""What a browser sends for another site's page, and bodies that are no JSON, are refused."""

from __future__ import annotations

import pytest

from tests.fakes.running_manager import RunningManager

LIST, FORM = b'{"command":"list-keeps"}', "application/x-www-form-urlencoded"
FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize(("method", "path"), [("POST", "/keeps_post"), ("POST", "/v1/keeps"), ("GET", "/v1/keeps")])
async def test_a_request_for_another_site_s_page_is_refused(
    manager: RunningManager, caplog: pytest.LogCaptureFixture, method: str, path: str, headers: dict[str, str]
) -> None:
    async with manager.client() as client, client.request(method, path, headers=headers) as response:
        assert (response.status, (await response.json())["error"]["kind"]) == (403, "forbidden")
    assert manager.units.loaders == {}
    assert f"refused {method} '{path}' from operator (serial" in caplog.text


async def test_the_manager_s_own_page_is_no_other_site(manager: RunningManager) -> None:
    headers = {"Origin": manager.url, "Sec-Fetch-Site": "same-origin"}
    async with manager.client() as client, client.post("/v1/keeps", headers=headers) as response:
        assert response.status == 201


@pytest.mark.parametrize("kind", ["text/plain", FORM, "multipart/form-data; boundary=x", "application/jsonx", ""])
@pytest.mark.parametrize("path", ["/keeps_post", "/v1/keeps", "/v1/keeps/5/start", "/v1/keeps/5/stop"])
async def test_a_body_of_another_type_is_refused(manager: RunningManager, path: str, kind: str) -> None:
    async with manager.client() as client:
        if "/5/" in path:  # who may not see the keep is refused before its request is looked at
            async with client.post("/v1/keeps") as made:
                path = path.replace("5", str((await made.json())["kuuid"]))
        before = set(manager.units.loaders)
        for body in (LIST, b""):
            async with client.post(path, data=body, headers={"Content-Type": kind}) as response:
                assert (response.status, (await response.json())["error"]["kind"]) == (415, "unsupported-media")
    assert set(manager.units.loaders) == before


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON", None])
async def test_json_and_a_body_without_a_type_are_read_as_in_2020(manager: RunningManager, kind: str | None) -> None:
    async with manager.client() as client:
        headers = {} if kind is None else {"Content-Type": kind}
        skipped = ["Content-Type"] if kind is None else []
        async with client.post("/keeps_post", data=LIST, headers=headers, skip_auto_headers=skipped) as response:
            assert (response.status, await response.json()) == (200, {"klvec": []})


async def test_an_empty_body_may_have_the_type_that_aiohttp_gives_it(manager: RunningManager) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    async with manager.client() as client:
        async with client.post("/v1/keeps", headers=headers) as response:
            assert response.status == 201
        async with client.post("/v1/keeps", headers=headers, data=b"{}") as response:
            assert response.status == 415
