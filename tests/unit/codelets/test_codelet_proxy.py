"""The reverse proxy over real TLS, in front of a real life-cycle socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codelets import proxy
from codelets.proxy import CHANGES_PER_MINUTE, CONCURRENT, Proxy, Rates, openapi, serve
from keep_protocol.errors import KeepfleetError
from keep_protocol.identity import Identity, Role
from keep_protocol.revocation import RevokedFile, serial_text
from keep_protocol.tls import server_context
from tests.fakes.pki import SERVER, Authority, load
from tests.unit.codelets.application import COUNTER, Application, codelet, one, packet

YAML = "application/yaml"


class Served:
    """A proxy on loopback, and clients of each role."""

    def __init__(self, directory: Path) -> None:
        self.application = Application(directory, in_c=False, lcm_socket=str(directory / "lcm.sock"))
        self.authority = Authority(directory)
        self.revoked = directory / "revoked"
        self.revoked.write_text("")
        certificate = self.authority.client("localhost", [SERVER])
        self.context = server_context(str(certificate), None, self.authority.pem.decode())
        proxy = Proxy(str(directory / "lcm.sock"), RevokedFile(str(self.revoked)))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(proxy, self.context))
        self._thread.start()
        assert self._ready.wait(30)

    def _run(self, proxy: Proxy, context: ssl.SSLContext) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            await serve(proxy, context, "127.0.0.1", 0, self._bound)

        asyncio.run(run())

    def _bound(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join()
        self.application.runtime.close()

    def _end(self) -> None:
        for task in asyncio.all_tasks():  # those that linger for a client, too
            task.cancel()

    def credentials(self, name: str, role: Role | None) -> Path:
        return self.authority.client(name, uri=Identity(role, name).uri() if role else "")

    def ask(
        self,
        method: str,
        path: str,
        body: str | bytes | None = None,
        role: Role | None = Role.OPERATOR,
        kind: str = YAML,
    ) -> tuple[int, Any]:
        """Status and JSON."""
        name = role.value if role else "no-role"
        return self.ask_with(self.credentials(name, role), method, path, body, kind)

    def connected(self, certificate: Path) -> http.client.HTTPSConnection:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self.authority.pem.decode())
        context.load_cert_chain(str(certificate))
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=60)

    def ask_with(
        self, certificate: Path, method: str, path: str, body: str | bytes | None = None, kind: str = YAML
    ) -> tuple[int, Any]:
        connection = self.connected(certificate)
        connection.request(method, path, body, {"Content-Type": kind} if body is not None else {})
        reply = connection.getresponse()
        found = json.loads(reply.read())
        connection.close()
        return reply.status, found


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(proxy, "LINGER_SECONDS", 60.0)  # a refused client may get no processor as it goes on sending
    made = Served(tmp_path)
    yield made
    made.close()


def test_an_operator_loads_looks_and_unloads(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    served.application.add("counter", COUNTER)
    assert served.ask("POST", "/codeletsets", one("counter", "choose")) == (201, {"codeletset_id": "counter"})
    assert served.application.choose(packet()) == 1
    status, found = served.ask("GET", "/codeletsets")
    assert (status, found["codeletsets"][0]["codelets"][0]["calls"]) == (200, 1)
    assert served.ask("GET", "/codeletsets/counter")[1]["codeletset_id"] == "counter"
    assert served.ask("GET", "/stats")[1]["hooks"][2]["calls"] == 1
    assert served.ask("GET", "/interface")[1]["hooks"][0]["name"] == "seen"
    assert served.ask("DELETE", "/codeletsets/counter") == (200, {"codeletset_id": "counter"})
    assert served.application.choose(packet()) == -1
    audit = [each.message for each in caplog.records if each.message.startswith("audit: ")]
    assert [line.split(" by ")[0] for line in audit] == [
        "audit: load of codelet set counter",
        "audit: unload of codelet set counter",
    ]
    assert "by operator, operator, certificate " in audit[0]


def test_a_descriptor_may_be_json(served: Served) -> None:
    served.application.add("counter", COUNTER)
    codelet_descriptor = [{"codelet_name": "a", "codelet_path": "counter:1", "hook_name": "choose"}]
    body = json.dumps({"codeletset_id": "a", "codelet_descriptor": codelet_descriptor})
    assert served.ask("POST", "/codeletsets", body, kind="application/json")[0] == 201


@pytest.mark.parametrize("role", [Role.USER, Role.VIEWER, Role.ANONYMOUS, None])
def test_only_operators_change_anything(served: Served, role: Role | None) -> None:
    for method, path, body in (("POST", "/codeletsets", one("a", "choose")), ("DELETE", "/codeletsets/a", None)):
        status, found = served.ask(method, path, body, role)
        assert status == 403
        assert "cannot" in found["error"]["message"]
    assert served.ask("GET", "/codeletsets", role=role)[0] == (200 if role is Role.VIEWER else 403)


def test_a_certificate_that_was_revoked_is_refused_immediately(served: Served) -> None:
    certificate = served.credentials("gone", Role.OPERATOR)
    assert served.ask_with(certificate, "GET", "/codeletsets")[0] == 200
    served.revoked.write_text(serial_text(load(certificate).serial_number) + "\n")
    status, found = served.ask_with(certificate, "GET", "/codeletsets")
    assert (status, "was revoked" in found["error"]["message"]) == (403, True)


def test_errors_have_a_status_their_evidence_and_jbpfs_number(served: Served) -> None:
    served.application.add("bad", codelet("(i64.const 0)", rest="(memory 1)"))
    status, found = served.ask("POST", "/codeletsets", one("bad", "choose"))
    assert (status, found["error"]["number"]) == (422, -3)
    assert any(line.startswith("memories:") for line in found["error"]["evidence"])
    assert served.ask("POST", "/codeletsets", one("bad", "nowhere"))[0] == 404
    assert served.ask("DELETE", "/codeletsets/missing")[0] == 404
    assert served.ask("GET", "/codeletsets/missing")[0] == 404
    assert served.ask("GET", "/nowhere")[0] == 404
    assert served.ask("PUT", "/codeletsets", "")[0] == 405
    assert served.ask("POST", "/codeletsets", "{", kind="text/plain")[0] == 415
    status, found = served.ask("POST", "/codeletsets", "codeletset_id: a\n  x: [")
    assert status == 400
    assert "line 2" in found["error"]["message"]


def test_no_request_writes_a_line_of_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    forged = "a%0Aaudit: load of codelet set b by admin: done".replace(" ", "%20")
    status, answer = served.ask("DELETE", f"/codeletsets/{forged}")
    assert (status, answer["error"]["kind"]) == (400, "bad-request")
    assert served.ask("DELETE", f"/codeletsets/{forged}", role=Role.VIEWER)[0] == 403
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert not [line for line in lines if line.startswith("audit: load")]
    assert any(line.startswith("refused DELETE /codeletsets/a audit: load") for line in lines)


def test_a_client_that_shows_no_certificate_in_time_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut_off() -> bytes:
        listening = asyncio.get_running_loop().create_future()
        served_again = serve(Proxy("none"), served.context, "127.0.0.1", 0, listening.set_result)
        serving = asyncio.create_task(served_again)
        reader, writer = await asyncio.open_connection("127.0.0.1", await listening)
        found = await reader.read()
        writer.close()
        serving.cancel()
        await serving
        return found

    with socket.create_connection(("127.0.0.1", served.port), timeout=60):
        assert served.ask("GET", "/codeletsets")[0] == 200, "a silent client holds no other up"
    monkeypatch.setattr(proxy, "HANDSHAKE_SECONDS", 0.1)  # of a proxy that no other client has
    assert asyncio.run(cut_off()) == b""


def test_requests_that_were_given_up_are_still_counted_until_the_application_answers(served: Served) -> None:
    """One that hangs, asked by clients that go away, has no more than its few requests to answer."""
    asked, answer = threading.Semaphore(0), threading.Event()
    inside: list[int] = []
    runtime = served.application.runtime
    states = runtime.sets

    def slow() -> Any:
        inside.append(1)
        asked.release()
        assert answer.wait(60)
        return states()

    runtime.sets = slow  # type: ignore[method-assign]
    certificate = served.credentials("operator", Role.OPERATOR)
    for _ in range(2 * CONCURRENT):
        connection = served.connected(certificate)
        connection.request("GET", "/codeletsets")
        connection.close()
    for _ in range(CONCURRENT):
        assert asked.acquire(timeout=60)
    assert served.ask("GET", "/openapi.json")[0] == 200
    assert len(inside) == CONCURRENT
    answer.set()
    assert served.ask("GET", "/codeletsets")[0] == 200


def test_a_descriptor_of_ten_megabytes_is_refused(served: Served) -> None:
    status, found = served.ask("POST", "/codeletsets", b"[" * 10_000_000)
    assert (status, found["error"]["kind"]) == (413, "too-large")


def test_without_the_application_it_says_so(served: Served) -> None:
    served.application.runtime.close()
    status, found = served.ask("GET", "/codeletsets")
    assert status == 503
    assert "cannot reach the application" in found["error"]["message"]


def test_a_caller_has_so_many_changes_a_minute() -> None:
    now = 0.0
    rates = Rates(lambda: now)
    for _ in range(CHANGES_PER_MINUTE):
        rates.admit("a")
    with pytest.raises(KeepfleetError, match="changes a minute"):
        rates.admit("a")
    rates.admit("b")
    now = 61.0
    rates.admit("a")


def test_openapi_names_every_path(served: Served) -> None:
    status, found = served.ask("GET", "/openapi.json")
    assert status == 200
    assert found == json.loads(json.dumps(openapi()))
    assert set(found["paths"]) == {"/codeletsets", "/codeletsets/{id}", "/stats", "/interface"}
