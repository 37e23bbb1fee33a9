"""Clients whose certificates another CA has issued, in real handshakes with the manager's TLS and a keep's."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from keep_protocol import tls
from keep_protocol.certificate import check_client, read_certificate
from tests.fakes.certificates import KEY_KINDS, SERVER, ForeignAuthority, Issued
from tests.fakes.running_manager import RunningManager
from tests.fakes.tls_peer import TlsPeer

ROOTS = {kind: ForeignAuthority(f"{kind} root", kind) for kind in KEY_KINDS}
DEPARTMENT = ForeignAuthority("department", "p256", above=ROOTS["rsa"])
"""Trusted itself, while the root above it is not."""


@pytest.fixture
async def manager(place: Path) -> AsyncIterator[RunningManager]:
    made = RunningManager(place)
    trusted = [ROOTS["p256"], ROOTS["ed25519"], DEPARTMENT]
    bundle = read(made.files.ca) + "# the partner's\n" + "".join(authority.pem for authority in trusted)
    write(f"{made.files.path}/client-ca.crt", bundle)
    await made.open()
    yield made
    await made.close()


def write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


async def status_of(manager: RunningManager, issued: Issued) -> int | None:
    """The status a client with this certificate gets from the manager, None where the handshake fails."""
    file = Path(manager.files.path) / "client.pem"
    write(str(file), issued.pem.decode("ascii"))
    connector = aiohttp.TCPConnector(ssl=tls.client_context(manager.authority.file, str(file), str(file)))
    async with aiohttp.ClientSession(manager.url, connector=connector) as session:
        try:
            async with session.get("/v1/keeps") as response:
                return response.status
        except aiohttp.ClientError:
            return None


def taken_by_a_keep(manager: RunningManager, issued: Issued) -> bool | None:
    """Whether a keep's endpoint with the same bundle would take the certificate; None where the handshake fails."""
    file = Path(manager.files.path) / "client.pem"
    write(str(file), issued.pem.decode("ascii"))
    bundle = Path(manager.files.client_ca).read_text(encoding="ascii")
    context = tls.server_context(manager.files.certificate, manager.files.key, bundle)
    ders: list[bytes | None] = []

    def served(connection: ssl.SSLSocket) -> None:
        ders.append(connection.getpeercert(binary_form=True))
        connection.sendall(b"x")

    client = tls.pinned_client_context(str(file), str(file))
    with TlsPeer(context, served) as peer:
        try:
            with client.wrap_socket(socket.create_connection(("127.0.0.1", peer.port))) as connection:
                connection.recv(1)
        except OSError:
            return None
    if not ders or not ders[0]:
        return None
    fields = read_certificate(ders[0])
    check_client(fields, fields.not_before)
    return True


@pytest.mark.parametrize("kind", KEY_KINDS)
@pytest.mark.parametrize("root", ["p256", "ed25519"])
@pytest.mark.parametrize("below", [0, 1, 2])
async def test_a_client_of_a_trusted_ca_is_served_whatever_its_key_and_the_certificates_between(
    manager: RunningManager, kind: str, root: str, below: int
) -> None:
    authority = ROOTS[root]
    for number in range(below):
        authority = ForeignAuthority(f"below {number}", kind, above=authority)
    issued = authority.issue("alice", kind)
    assert len(issued.chain) == below
    assert await status_of(manager, issued) == 200
    assert await asyncio.to_thread(taken_by_a_keep, manager, issued)


async def test_a_ca_below_an_untrusted_one_is_trusted_itself_and_its_sisters_are_not(manager: RunningManager) -> None:
    ours = DEPARTMENT.issue("alice")
    sister = ForeignAuthority("other department", above=ROOTS["rsa"]).issue("bob")
    assert await status_of(manager, ours) == 200
    assert await status_of(manager, ROOTS["rsa"].issue("boss")) is None
    assert await status_of(manager, sister) is None
    assert await asyncio.to_thread(taken_by_a_keep, manager, ours)
    assert await asyncio.to_thread(taken_by_a_keep, manager, sister) is None


async def test_our_own_clients_are_served_as_well(manager: RunningManager) -> None:
    async with manager.client() as client, client.get("/v1/keeps") as response:
        assert response.status == 200


async def test_a_certificate_in_the_middle_that_was_not_sent_is_missed(manager: RunningManager) -> None:
    below = ForeignAuthority("below", above=ROOTS["p256"]).issue("alice")
    assert await status_of(manager, Issued(below.certificate, below.key)) is None


async def test_a_client_s_certificate_issues_no_others(manager: RunningManager) -> None:
    alice = ROOTS["p256"].issue("alice")
    forger = ForeignAuthority("alice", above=ROOTS["p256"])
    forger.key, forger.certificate = alice.key, alice.certificate
    forged = forger.issue("admin")
    assert await status_of(manager, Issued(forged.certificate, forged.key, (alice.certificate,))) is None


@pytest.mark.parametrize("fault", [{"usages": (SERVER,)}, {"usages": None}, {"ca": True}])
async def test_another_ca_s_certificates_meet_the_same_policy(
    manager: RunningManager, fault: dict[str, object]
) -> None:
    issued = ROOTS["p256"].issue("alice", **fault)  # type: ignore[arg-type] # one fault at a time
    assert await status_of(manager, issued) in (None, 403)


async def test_both_cas_are_trusted_during_a_rotation(place: Path) -> None:
    manager = RunningManager(place)
    new = ForeignAuthority("the next CA")
    write(manager.files.ca, new.pem + read(manager.files.ca))
    await manager.open()
    try:
        assert await status_of(manager, new.issue("alice")) == 200
        async with manager.client() as client, client.get("/v1/keeps") as response:
            assert response.status == 200
    finally:
        await manager.close()


async def test_a_list_with_an_unreadable_line_refuses_everybody_until_it_is_fixed(
    manager: RunningManager, caplog: pytest.LogCaptureFixture
) -> None:
    async with manager.client() as client:
        for text, status in (("", 200), ("12\nnot a serial\n", 500), ("12\n", 200)):
            write(manager.files.revoked, text)
            async with client.get("/v1/keeps") as response:
                assert response.status == status
        assert f"cannot read {manager.files.revoked}: line 2 must be one serial number" in caplog.text


async def test_a_serial_number_in_openssl_s_colon_form_is_revoked(manager: RunningManager) -> None:
    serial = manager.operator.certificate.serial_number
    write(manager.files.revoked, serial.to_bytes(2, "big").hex(":").upper() + "\n")
    async with manager.client() as client, client.get("/v1/keeps") as response:
        assert response.status == 403
        assert "revoked" in (await response.json())["error"]["message"]
