"""The manager's HTTPS, end to end over TLS: the original's protocol, /v1, who is let in, and what is refused."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keep_manager.http import connection, middleware
from keep_manager.http.middleware import WRITTEN_AT_ONCE, list_response
from keep_protocol.api import BANNER
from keep_protocol.keep import KeepInfo
from keep_protocol.states import Event, State
from tests.fakes.fake_pki import DAY, SERVER, FakeAuthority
from tests.fakes.fake_units import FAIL, NEVER
from tests.fakes.running_manager import RunningManager, running_manager

HEADERS = {"Content-Type": "application/json"}


async def call(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    if "data" in options:
        options["headers"] = HEADERS | options.get("headers", {})
    async with client.request(method, path, **options) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text


async def legacy(client: aiohttp.ClientSession, path: str = "/keeps_post", **command: str) -> tuple[int, Any]:
    return await call(client, "POST", path, json={key.replace("_", "-"): value for key, value in command.items()})


async def test_the_banner_is_the_original_s(manager: RunningManager) -> None:
    async with manager.client() as client:
        assert await call(client, "GET", "/") == (200, BANNER)


@pytest.mark.parametrize("path", ["/keeps_post", "/keeps_post/"])
async def test_the_original_s_steps_work(manager: RunningManager, path: str) -> None:
    async with manager.client() as client:
        status, keep = await legacy(client, path, command="new-keep", keep_arch="wasi", auth_token="")
        assert status == 200
        assert (keep["state"], keep["app_loader_bind_port"], keep["bindaddress"]) == (1, 0, "")
        kuuid = str(keep["kuuid"])
        status, found = await legacy(client, path, command="list-keeps")
        assert [member["kuuid"] for member in found["klvec"]] == [keep["kuuid"]]
        start = {"command": "start-keep", "kuuid": kuuid, "keep_addr": "127.0.0.1", "keep_port": "42000"}
        status, started = await legacy(client, path, **start)
        assert (status, started["state"], started["bindaddress"]) == (200, 2, "127.0.0.1")
        assert (await legacy(client, path, **start))[0] == 409
        assert (await legacy(client, path, command="stop-keep", kuuid=kuuid))[1]["state"] == 3
        assert await legacy(client, path, command="remove-keep", kuuid=kuuid) == (200, {"text": "removed"})
        assert (await legacy(client, path, command="remove-keep", kuuid=kuuid))[0] == 404


async def test_an_unknown_command_is_undefined(manager: RunningManager) -> None:
    async with manager.client() as client:
        assert await legacy(client, command="dance") == (400, {"text": "undefined"})


@pytest.mark.parametrize("arch", ["AMD-SEV", "Intel-SGX"])
async def test_known_hardware_that_is_not_there_is_a_keep_in_state_15(manager: RunningManager, arch: str) -> None:
    async with manager.client() as client:
        status, keep = await legacy(client, command="new-keep", keep_arch=arch)
        assert (status, keep["state"], keep["kuuid"]) == (200, 15, 0)
        assert arch in keep["detail"]
        status, body = await call(client, "POST", "/v1/keeps", json={"arch": arch})
        assert (status, body["error"]["kind"]) == (501, "unsupported")


async def test_v1_creates_gets_starts_stops_and_deletes(manager: RunningManager) -> None:
    async with manager.client() as client:
        async with client.post("/v1/keeps") as response:
            assert response.status == 201
            keep = await response.json()
            path = response.headers["Location"]
        assert path == f"/v1/keeps/{keep['kuuid']}"
        assert (await call(client, "GET", path))[1] == keep
        assert (await call(client, "GET", "/v1/keeps"))[1] == {"keeps": [keep], "next": None}
        status, started = await call(client, "POST", f"{path}/start", json={"port": 42100, "names": ["A.example"]})
        assert (status, started["state"]) == (200, 2)
        assert (await call(client, "POST", f"{path}/start"))[0] == 409
        assert (await call(client, "POST", f"{path}/stop"))[1]["outcome"]["kind"] == "stopped"
        assert await call(client, "DELETE", path) == (204, "")
        assert (await call(client, "GET", path))[0] == 404


async def test_v1_takes_a_name_labels_and_limits_and_finds_keeps_by_label(manager: RunningManager) -> None:
    async with manager.client() as client:
        body = {"name": "web", "labels": {"tier": "front=1"}, "limits": {"memory_bytes": 1 << 30}}
        made = (await call(client, "POST", "/v1/keeps", json=body))[1]
        assert (made["name"], made["labels"], made["owner"]) == ("web", {"tier": "front=1"}, "operator")
        assert made["limits"]["memory_bytes"] == 1 << 30
        await call(client, "POST", "/v1/keeps")
        found = (await call(client, "GET", "/v1/keeps?limit=1&label=tier%3Dfront%3D1"))[1]
        assert found == {"keeps": [made], "next": None}


async def test_v1_starts_a_keep_with_arguments_as_long_as_the_kernel_takes_them(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid = (await call(client, "POST", "/v1/keeps"))[1]["kuuid"]
        body = {"workload": {"arguments": ["x" * 1000] * 2000, "environment": {"A": "b"}}}
        long = io.BytesIO(json.dumps(body).encode())
        assert (await call(client, "POST", f"/v1/keeps/{kuuid}/start", data=long))[0] == 200
        workload = manager.units.loaders[kuuid].workload
        assert workload is not None
        assert (len(workload.arguments), workload.environment) == (2000, (("A", "b"),))
        start = {"workload": {"arguments": ["x" * 1000] * 2100}}
        for path, asked in ((f"/v1/keeps/{kuuid}/start", start), ("/v1/keeps", {"start": start})):
            longer = io.BytesIO(json.dumps(asked).encode())
            assert (await call(client, "POST", path, data=longer))[0] == 413


async def test_v1_waits_for_a_change(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid = (await call(client, "POST", "/v1/keeps"))[1]["kuuid"]
        loader = manager.units.loaders[kuuid]
        loader.heard.clear()
        waiting = asyncio.create_task(call(client, "GET", f"/v1/keeps/{kuuid}?changed-from=1&timeout=30"))
        await loader.heard.wait()
        await loader.move(Event.FAIL)
        assert (await waiting)[1]["state"] == 15
        assert (await call(client, "GET", f"/v1/keeps/{kuuid}?changed-from=15&timeout=0.01"))[1]["state"] == 15


BAD_BODIES: list[bytes] = [
    b"",
    b"[]",
    b"null",
    b"{",
    b"\xff",
    b'{"command":NaN}',
    b'{"command":"list-keeps","command":"new-keep"}',
    b'{"command":5}',
    b'{"command":"new-keep"}',
    b'{"command":"new-keep","keep-arch":1}',
    b'{"command":"new-keep","keep-arch":"vax"}',
    b'{"command":"new-keep","keep-arch":"wasi","x":"y"}',
    b'{"command":"start-keep","kuuid":"1","keep-addr":"127.0.0.1"}',
    b'{"command":"start-keep","kuuid":1,"keep-addr":"127.0.0.1","keep-port":"1"}',
    b'{"command":"start-keep","kuuid":"-1","keep-addr":"127.0.0.1","keep-port":"1"}',
    b'{"command":"start-keep","kuuid":"1\\n[Service]\\nExecStart=/bin/x","keep-addr":"127.0.0.1","keep-port":"1"}',
    b'{"command":"start-keep","kuuid":"1.service","keep-addr":"127.0.0.1","keep-port":"1"}',
    b'{"command":"start-keep","kuuid":"1","keep-addr":"127.0.0.1; rm","keep-port":"1"}',
    b'{"command":"start-keep","kuuid":"1","keep-addr":"127.0.0.1","keep-port":"99999"}',
    b'{"command":"start-keep","kuuid":"9007199254740992","keep-addr":"127.0.0.1","keep-port":"1"}',
    b"[" * 60_000,
    b'{"a":' * 10_000,
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: repr(body[:50]))
async def test_a_bad_request_is_a_400_and_changes_nothing(manager: RunningManager, body: bytes) -> None:
    async with manager.client() as client:
        status, answer = await call(client, "POST", "/keeps_post", data=body, headers=HEADERS)
        assert status == 400
        assert isinstance(answer["text"], str)
        assert not manager.units.kuuids()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/keeps", b'{"arch":"wasi","x":1}', 400),
        ("POST", "/v1/keeps", b'{"arch":5}', 400),
        ("POST", "/v1/keeps", b'{"limits":{"tasks":65}}', 403),
        ("POST", "/v1/keeps", b'{"limits":{"tasks":1}}', 400),
        ("POST", "/v1/keeps", b'{"limits":{"speed":1}}', 400),
        ("POST", "/v1/keeps", b'{"limits":[]}', 400),
        ("POST", "/v1/keeps", b'{"name":"\\n"}', 400),
        ("POST", "/v1/keeps", b'{"labels":{"A":"x"}}', 400),
        ("GET", "/v1/keeps?limit=0", b"", 400),
        ("GET", "/v1/keeps?label=x", b"", 400),
        ("POST", "/v1/keeps/5/start", b'{"port":"80"}', 400),
        ("POST", "/v1/keeps/5/start", b'{"port":true}', 400),
        ("POST", "/v1/keeps/5/start", b'{"names":["a b"]}', 400),
        ("POST", "/v1/keeps/5/start", b'{"names":"a"}', 400),
        ("POST", "/v1/keeps/5/start", b'{"address":"fe80::1%eth0"}', 400),
        ("POST", "/v1/keeps/5/start", b"{}", 404),
        ("POST", "/v1/keeps/5/stop", b"", 404),
        ("GET", "/v1/keeps/5", b"", 404),
        ("GET", "/v1/keeps/05", b"", 400),
        ("GET", "/v1/keeps/5.service", b"", 400),
        ("GET", "/v1/keeps/%2e%2e", b"", 404),
        ("GET", "/v1/keeps/5%00", b"", 400),
        ("GET", "/v1/keeps/5%0A", b"", 400),
        ("GET", "/v1/keeps/" + "9" * 4000, b"", 400),
        ("GET", "/v1/keeps/5?changed-from=4", b"", 400),
        ("GET", "/v1/keeps/5?changed-from=1&timeout=61", b"", 400),
        ("GET", "/v1/keeps/5?changed-from=1&timeout=-1", b"", 400),
        ("GET", "/v1/keeps/5?changed-from=1&timeout=nan", b"", 400),
        ("GET", "/v1/keeps/5?colour=red", b"", 400),
        ("GET", "/v2/keeps", b"", 404),
        ("PUT", "/v1/keeps", b"", 405),
        ("GET", "/keeps_post", b"", 405),
    ],
)
async def test_v1_refuses_in_one_shape(
    manager: RunningManager, method: str, path: str, body: bytes, status: int
) -> None:
    async with manager.client() as client:
        if status == 400:  # who may not see the keep is refused before its request is looked at
            path = path.replace("/keeps/5", f"/keeps/{(await call(client, 'POST', '/v1/keeps'))[1]['kuuid']}")
        got, answer = await call(client, method, path, data=body or None)
        assert got == status, answer
        error = answer["error"]
        assert set(error) == {"kind", "message", "evidence"}
        assert error["message"].startswith(("cannot ", "invalid "))


async def test_a_failed_creation_is_a_502_with_evidence_and_nothing_left(manager: RunningManager) -> None:
    manager.units.behaviour = FAIL
    async with manager.client() as client:
        status, answer = await call(client, "POST", "/v1/keeps")
        assert (status, answer["error"]["kind"]) == (502, "keep-failed")
        assert answer["error"]["evidence"] == ["exit code 7"]
        assert not manager.units.kuuids()


async def test_a_client_that_hangs_up_during_a_creation_leaves_nothing(manager: RunningManager) -> None:
    manager.units.behaviour = NEVER
    async with manager.client() as client:
        creation = asyncio.create_task(call(client, "POST", "/v1/keeps"))
        await manager.units.begun.wait()
        creation.cancel()
        await asyncio.wait({creation})
        await asyncio.wait_for(manager.units.gone.wait(), 60)
        await manager.keeps.settle()
        assert not manager.units.kuuids()


async def test_a_defect_is_a_500_with_a_reference_and_no_traceback(
    manager: RunningManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(manager.keeps, "list", broken)
    async with manager.client() as client:
        status, answer = await call(client, "GET", "/v1/keeps")
        assert (status, answer["error"]["kind"]) == (500, "internal")
        assert "secret" not in json.dumps(answer)
        reference = answer["error"]["message"].split()[-1]
        assert f"defect {reference}" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert (await call(client, "GET", "/"))[0] == 200


async def test_a_client_without_a_certificate_gets_no_answer(manager: RunningManager) -> None:
    async with manager.client(anonymous=True) as client:
        with pytest.raises(aiohttp.ClientError):
            await call(client, "GET", "/")


@pytest.mark.parametrize("fault", ["foreign", "expired", "future", "server"])
async def test_a_certificate_openssl_refuses_gets_no_answer(manager: RunningManager, place: Path, fault: str) -> None:
    identity = {
        "foreign": lambda: FakeAuthority(place / "other", "other CA").issue("x"),
        "expired": lambda: manager.authority.issue("x", ends_in=-DAY / 2),
        "future": lambda: manager.authority.issue("x", began=-DAY / 2),
        "server": lambda: manager.authority.issue("x", usages=(SERVER,)),
    }[fault]()
    async with manager.client(identity) as client:
        with pytest.raises(aiohttp.ClientError):
            await call(client, "GET", "/")


@pytest.mark.parametrize("path", ["/", "/v1/keeps", "/nowhere"])
async def test_a_certificate_that_is_no_client_s_is_a_403_and_a_line_in_the_log(
    manager: RunningManager, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    identity = manager.authority.issue("sneaky", usages=None)
    async with manager.client(identity) as client:
        status, answer = await call(client, "GET", path)
        assert (status, answer["error"]["kind"]) == (403, "forbidden")
    lines = [r for r in caplog.records if r.name == "keepfleet.security"]
    assert len(lines) == 1
    assert f"serial {identity.certificate.serial_number:x}" in lines[0].getMessage()


async def test_a_revoked_certificate_is_refused_on_the_open_connection_which_is_closed(manager: RunningManager) -> None:
    async with manager.client() as client:
        assert (await call(client, "GET", "/"))[0] == 200
        manager.revoke(manager.operator)
        async with client.get("/") as response:
            assert response.status == 403
            assert response.headers["Connection"] == "close"
        async with client.post("/keeps_post", json={"command": "list-keeps"}) as response:
            assert response.status == 403
            assert "revoked" in (await response.json())["text"]


async def test_a_certificate_revoked_during_a_wait_gets_no_answer_from_it(manager: RunningManager) -> None:
    async with manager.client() as client:
        kuuid = (await call(client, "POST", "/v1/keeps"))[1]["kuuid"]
        loader = manager.units.loaders[kuuid]
        loader.heard.clear()
        waiting = asyncio.create_task(call(client, "GET", f"/v1/keeps/{kuuid}?changed-from=1"))
        await loader.heard.wait()
        manager.revoke(manager.operator)
        await loader.move(Event.FAIL)
        assert (await waiting)[0] == 403


async def test_with_optional_certificates_the_clients_of_2020_work_and_bad_ones_do_not(place: Path) -> None:
    async with running_manager(place, require_client=False) as manager:
        async with manager.client(anonymous=True) as client:
            assert (await legacy(client, "/keeps_post/", command="new-keep", keep_arch="wasi"))[0] == 200
            assert (await call(client, "GET", "/v1/keeps"))[0] == 200
        async with manager.client(manager.authority.issue("bad", usages=None)) as client:
            assert (await call(client, "GET", "/"))[0] == 403
        async with manager.client(FakeAuthority(place / "other").issue("x")) as client:
            with pytest.raises(aiohttp.ClientError):
                await call(client, "GET", "/")


async def test_a_body_that_announces_a_gigabyte_is_refused_immediately(manager: RunningManager) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=manager.context(manager.operator))
    writer.write(b"POST /keeps_post HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n" + b"x" * 1000)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)
    assert b"413" in answer
    writer.transport.abort()


async def test_a_body_in_chunks_is_counted(manager: RunningManager) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 8192

    async with manager.client() as client:
        assert (await call(client, "POST", "/keeps_post", data=chunks()))[0] == 413


async def test_an_expected_continue_is_not_given_for_a_body_that_is_too_long(manager: RunningManager) -> None:
    async with manager.client() as client:
        status, answer = await call(client, "POST", "/keeps_post", data=b"x" * 100_000, expect100=True)
        assert (status, answer["error"]["kind"]) == (413, "too-large")
        status, _ = await call(client, "POST", "/keeps_post", data=b'{"command":"list-keeps"}', expect100=True)
        assert status == 200


async def test_another_expectation_is_a_417(manager: RunningManager) -> None:
    async with manager.client() as client:
        status, answer = await call(client, "POST", "/keeps_post", data=b"{}", headers={"Expect": "cake"})
        assert (status, answer["error"]["kind"]) == (417, "bad-request")


async def test_an_encoded_body_is_refused_unread(manager: RunningManager) -> None:
    async with manager.client() as client:
        headers = {"Content-Encoding": "gzip"}
        status, answer = await call(client, "POST", "/keeps_post", data=b"\x1f\x8b", headers=headers)
        assert (status, answer["error"]["kind"]) == (415, "unsupported-media")


async def test_a_body_that_stops_half_way_is_a_408(manager: RunningManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=manager.context(manager.operator))
    writer.write(b'POST /keeps_post HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"comm')
    answer = await asyncio.wait_for(reader.read(), 60)
    assert b" 408 " in answer
    writer.transport.abort()


@pytest.mark.parametrize("sent", [b"", b"POST /keeps_post HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
async def test_a_client_without_a_whole_header_is_closed(
    manager: RunningManager, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=manager.context(manager.operator))
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.transport.abort()


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G\0T / HTTP/1.1\r\n\r\n"])
async def test_what_is_not_http_is_a_400_and_one_line_without_a_traceback(
    manager: RunningManager, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=manager.context(manager.operator))
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 60)
    assert b" 400 " in answer.splitlines()[0]
    assert b'"kind":"bad-request"' in answer
    assert "Traceback" not in caplog.text
    writer.transport.abort()


async def test_many_headers_and_long_lines_are_refused(manager: RunningManager) -> None:
    async with manager.client() as client:
        assert (await call(client, "GET", "/", headers={f"x-{i}": "y" for i in range(200)}))[0] == 400
        assert (await call(client, "GET", "/", headers={"x": "y" * 20_000}))[0] == 400


async def test_pipelined_requests_are_answered_in_order(manager: RunningManager) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port, ssl=manager.context(manager.operator))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20 + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 60)
    assert answer.count(b"200 OK") == 21
    writer.transport.abort()


async def test_writing_a_long_list_lets_others_have_their_turn() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    keeps = [KeepInfo(kuuid, State.LISTENING) for kuuid in range(1, 501)]
    counting = asyncio.create_task(count())
    answer = await list_response("keeps", keeps, next=7)
    counting.cancel()
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body) == {"keeps": [keep.to_wire() for keep in keeps], "next": 7}
    assert turns >= 500 // WRITTEN_AT_ONCE
