"""Clients whose certificate or TLS is wrong, at the manager's endpoint and at a keep's."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from keep_protocol.states import State
from keepctl import authority
from tests.system import certificates
from tests.system.calm import undisturbed
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet
from tests.system.life import Life, example
from tests.system.silent import rolling
from tests.system.wire import Answer, NoAnswer, ask, connect, read_answer, request

ENDPOINTS = ("manager", "keep")
BANNER = request("GET", "/")
YEAR = datetime.timedelta(days=365)


@pytest.fixture(scope="module", autouse=True)
def calm(installed_fleet: Fleet) -> Iterator[None]:
    """After all of this the manager is the same process, holds no more than before and has logged no defect."""
    installed_fleet.clear()
    with undisturbed(installed_fleet):
        yield


fleet = pytest.fixture(scope="module")(module_s_fleet)


@pytest.fixture(scope="module")
def awaiting(fleet: Fleet) -> Life:
    """One keep for all tests that only knock at its endpoint."""
    return Life.awaiting(fleet)


@dataclass(frozen=True)
class Place:
    """One server with mutual TLS: the manager, or a keep that awaits its workload."""

    name: str
    fleet: Fleet
    life: Life

    @property
    def port(self) -> int:
        return self.fleet.port if self.name == "manager" else self.life.info.port

    def context(self, file: Path | None) -> ssl.SSLContext:
        """A client that trusts this server, and shows the certificate in `file`."""
        if self.name == "manager":
            context = self.fleet.tls(None)
        else:
            context = ssl.create_default_context(cadata=self.life.info.certificate)
        if file is not None:
            context.load_cert_chain(file)
        return context

    def good(self) -> ssl.SSLContext:
        """The administrator's."""
        files, context = self.fleet.credentials(), self.context(None)
        context.load_cert_chain(files.certificate, files.key)
        return context

    def ask(self, context: ssl.SSLContext) -> Answer:
        return ask(self.port, context, BANNER)

    def check(self) -> None:
        """A good client is served all the same."""
        assert self.ask(self.good()).status == 200


@pytest.fixture(params=ENDPOINTS)
def place(request: pytest.FixtureRequest, fleet: Fleet, awaiting: Life) -> Place:
    return Place(request.param, fleet, awaiting)


def test_without_a_certificate_not_a_byte_of_http_is_answered(place: Place) -> None:
    with pytest.raises(NoAnswer):
        place.ask(place.context(None))
    place.check()


WRONG = {
    "another CA's": {},
    "expired": {"begins": -2 * YEAR, "ends": -certificates.HOUR},
    "not yet valid": {"begins": certificates.HOUR, "ends": YEAR},
    "a server's": {"usages": (certificates.SERVER,)},
}


@pytest.mark.parametrize("how", WRONG)
def test_a_certificate_that_tls_can_refuse_gets_no_answer(place: Place, tmp_path: Path, how: str) -> None:
    ca = certificates.foreign_ca() if how == "another CA's" else certificates.installed_ca(place.fleet)
    file = certificates.issue(ca, tmp_path / "client.pem", **WRONG[how])  # type: ignore[arg-type] # one of each kind
    with pytest.raises(NoAnswer):
        place.ask(place.context(file))
    place.check()


def test_a_certificate_another_client_has_signed_gets_no_answer(place: Place, tmp_path: Path) -> None:
    file = certificates.chained(certificates.installed_ca(place.fleet), tmp_path)
    with pytest.raises(NoAnswer):
        place.ask(place.context(file))
    place.check()


def test_a_certificate_without_any_usage_is_forbidden(place: Place, tmp_path: Path) -> None:
    file = certificates.issue(certificates.installed_ca(place.fleet), tmp_path / "client.pem", usages=None)
    answer = place.ask(place.context(file))
    assert (answer.status, answer.kind) == (403, "forbidden")
    assert "extended key usage" in answer.object["error"]["message"]
    place.check()


def test_a_ca_s_certificate_is_not_a_client_s_although_it_is_for_clients(place: Place, tmp_path: Path) -> None:
    file = certificates.issue(certificates.installed_ca(place.fleet), tmp_path / "client.pem", is_ca=True)
    answer = place.ask(place.context(file))
    assert (answer.status, answer.kind) == (403, "forbidden")
    assert "it is a certificate authority's" in answer.object["error"]["message"]
    place.check()


def test_the_manager_s_own_certificate_is_not_a_client_s(place: Place) -> None:
    context = place.context(None)
    context.load_cert_chain(place.fleet.pki / "manager.crt", place.fleet.pki / "manager.key")
    with pytest.raises(NoAnswer):
        place.ask(context)
    place.check()


def test_a_revoked_certificate_is_refused_and_its_open_connection_closed(place: Place) -> None:
    name = f"soon-gone-{place.name}"
    files, context = place.fleet.issue(name), place.context(None)
    context.load_cert_chain(files.certificate, files.key)
    with connect(place.port, context) as opened:
        if place.name == "manager":  # which closes it by itself, within a second
            opened.sendall(BANNER)
            assert read_answer(opened).status == 200
        place.fleet.keepctl("pki", "revoke", name)
        if place.name == "keep":  # whose endpoint answers once a connection
            opened.sendall(BANNER)
            answer = read_answer(opened)
            assert (answer.status, answer.kind) == (403, "forbidden")
            assert "revoked" in answer.object["error"]["message"]
        assert opened.recv(1) == b""
    again = place.ask(context)
    assert (again.status, again.kind) == (403, "forbidden")
    assert "revoked" in again.object["error"]["message"]
    place.check()


def test_a_revoked_client_s_stream_of_events_ends_while_nothing_happens(fleet: Fleet) -> None:
    files, context = fleet.issue("listener"), fleet.tls(None)
    context.load_cert_chain(files.certificate, files.key)
    with connect(fleet.port, context) as opened:
        opened.sendall(request("GET", "/v1/events?follow=true"))
        assert opened.recv(12) == b"HTTP/1.1 200"
        cursor = fleet.host.cursor()
        serial = fleet.keepctl("pki", "revoke", "listener").stdout.split()[1]
        while opened.recv(65536):
            pass
    line = str(fleet.host.wait_journal("cut off 1 connections", since_cursor=cursor)["MESSAGE"])
    assert f"listener (serial {serial})" in line


@pytest.mark.rare
def test_two_hundred_rolling_silent_connections_fail_no_request_of_a_client_of_their_address(fleet: Fleet) -> None:
    """The case an operator saw: 128 of them made 6 of 6 requests fail."""
    with rolling(fleet.port, 200, [f"127.0.0.{number}" for number in (1, 1, 2, 3)]), rolling(fleet.port, 200):
        context = fleet.tls()
        assert [ask(fleet.port, context, BANNER).status for _ in range(100)] == [200] * 100


@pytest.fixture
def revoked(fleet: Fleet) -> Iterator[Path]:
    """The list of revoked certificates, put back in the end; always one file, since keeps hold it open."""
    path = fleet.pki / "revoked"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.mark.parametrize("notation", ["colons", "0x", "upper case"])
def test_a_serial_number_is_revoked_however_it_is_written(place: Place, revoked: Path, notation: str) -> None:
    name = f"written-{notation.replace(' ', '-')}-{place.name}"
    files, context = place.fleet.issue(name), place.context(None)
    context.load_cert_chain(files.certificate, files.key)
    serial = authority.load_certificate(Path(files.certificate).read_bytes(), name).serial_number
    colons = serial.to_bytes(20, "big").hex(":").upper()
    with revoked.open("a") as file:
        file.write({"colons": colons, "0x": f"0x{serial:x}", "upper case": f"{serial:X}"}[notation] + "\n")
    answer = place.ask(context)
    assert (answer.status, answer.kind) == (403, "forbidden")
    assert "revoked" in answer.object["error"]["message"]
    place.check()
    listed = place.fleet.keepctl("pki", "list").stdout.splitlines()
    assert [line.split()[2] for line in listed if line.startswith(name)] == ["revoked"]


def test_a_line_that_cannot_be_read_refuses_every_client_until_it_is_fixed(place: Place, revoked: Path) -> None:
    before, cursor = revoked.read_bytes(), place.fleet.host.cursor()
    with revoked.open("a") as file:
        file.write("not a serial\n")
    line = f"line {before.count(10) + 1} must be one serial number"
    answer = place.ask(place.good())
    assert answer.status == (500 if place.name == "manager" else 403)
    assert line in answer.object["error"]["message"]
    said = place.fleet.keepctl("pki", "list", check=False)
    assert said.returncode == 1 and line in said.stderr
    if place.name == "manager":
        assert place.fleet.host.wait_journal(line, since_cursor=cursor)
    revoked.write_bytes(before)
    place.check()


def test_a_certificate_revoked_while_its_client_uploads_ends_the_upload(fleet: Fleet) -> None:
    life, module = Life.awaiting(fleet), example("hello-wat/hello")
    files = fleet.issue("half-way")
    context = ssl.create_default_context(cadata=life.info.certificate)
    context.load_cert_chain(files.certificate, files.key)
    with connect(life.info.port, context) as opened:
        opened.sendall(request("PUT", "/workload", module[:20], "Content-Type: application/wasm", length=len(module)))
        fleet.keepctl("pki", "revoke", "half-way")
        assert read_answer(opened).status == 403
    assert life.look().state is State.STARTED
    assert life.upload(module).status == 200
    life.until(State.STARTED, State.COMPLETE)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_older_tls_is_refused(place: Place, version: ssl.TLSVersion) -> None:
    context = place.good()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(NoAnswer):
        place.ask(context)
    place.check()


def test_no_session_is_resumed(place: Place) -> None:
    context = place.good()
    with connect(place.port, context) as first:
        first.sendall(BANNER)
        read_answer(first)
        assert first.session is None or not first.session.has_ticket
    with connect(place.port, context) as second:
        assert not second.session_reused


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"",
        bytes(100),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        b"\x15\x03\x03\0\x02\x02\x28",
    ],
    ids=["plain HTTP", "nothing", "zeros", "a record too long", "an alert"],
)
def test_what_is_no_tls_gets_no_http_back(place: Place, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", place.port), 30) as plain:
        heard = b""
        try:
            plain.sendall(said)
            plain.shutdown(socket.SHUT_WR)
            while more := plain.recv(4096):
                heard += more
        except OSError:
            pass
    assert b"HTTP" not in heard
    place.check()


@pytest.mark.parametrize("name", ENDPOINTS)
def test_among_fifty_silent_and_fifty_strange_connections_a_good_client_is_served(fleet: Fleet, name: str) -> None:
    held: list[socket.socket] = []
    place = Place(name, fleet, Life.awaiting(fleet))
    try:
        for _ in range(50):
            held.append(socket.create_connection(("127.0.0.1", place.port), 30))
            held.append(socket.create_connection(("127.0.0.1", place.port), 30))
            held[-1].sendall(b"\x16\x03\x01\x02\x00")
        place.check()
        if place.name == "keep":
            assert place.life.upload(example("hello-wat/hello")).status == 200
            place.life.until(State.STARTED, State.COMPLETE)
    finally:
        for connection in held:
            connection.close()


def test_a_refusal_is_one_line_in_the_security_log_with_the_serial(fleet: Fleet) -> None:
    files, context = fleet.issue("reported"), fleet.tls(None)
    context.load_cert_chain(files.certificate, files.key)
    revoked = fleet.keepctl("pki", "revoke", "reported").stdout.split()
    cursor = fleet.host.cursor()
    assert ask(fleet.port, context, BANNER).status == 403
    assert revoked[1] in str(fleet.host.wait_journal("refused GET", since_cursor=cursor)["MESSAGE"])


def test_a_list_that_was_replaced_lets_no_client_into_the_keeps_that_hold_the_old_one(fleet: Fleet) -> None:
    """Last, because the keep that the other tests share lets no client in from then on."""
    held, revoked = Place("keep", fleet, Life.awaiting(fleet)), fleet.pki / "revoked"
    copy = fleet.pki / "revoked.edited"
    copy.write_bytes(revoked.read_bytes())
    copy.rename(revoked)
    answer = held.ask(held.good())
    assert answer.status == 403
    assert "it was replaced by another file; start the keep again" in answer.object["error"]["message"]
    Place("manager", fleet, held.life).check()
    Place("keep", fleet, Life.awaiting(fleet)).check()
