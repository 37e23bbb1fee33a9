"""`keepctl init`: what it makes, with which modes, and that it never makes half of it or overwrites anything."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from keep_manager.config import load
from keepctl import access, authority, files
from tests.unit.keepctl.conftest import Run


def tree(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_pki_has_a_ca_a_manager_a_first_client_and_an_empty_revocation_list(run: Run, directory: Path) -> None:
    result = run("init")
    assert result.exit_code == 0, result.output
    names = {name for name in tree(directory) if not name.startswith("issued/")}
    assert names == {
        "ca.crt", "ca.key", "manager.crt", "manager.key", "clients", "clients/admin.crt", "clients/admin.key",
        "issued", "revoked",
    }  # fmt: skip
    assert (directory / "revoked").read_bytes() == b""
    assert len(list((directory / "issued").iterdir())) == 2


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_keys_are_for_their_owner_alone_whatever_the_umask(run: Run, directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert run("init").exit_code == 0
        assert run("pki", "issue", "alice").exit_code == 0
    finally:
        os.umask(before)
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir():
            assert mode(path) == 0o700, path
        elif path.suffix == ".key":
            assert mode(path) == 0o600, path
        else:
            assert mode(path) & ~0o644 == 0, path
    assert mode(directory.parent / "manager.yaml") == 0o600, "it names callers and their grants"


def test_a_key_never_exists_with_a_wider_mode_not_even_while_it_is_written(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del directory
    seen: list[int] = []
    written = files._write_and_flush

    def look(descriptor: int, data: bytes) -> None:
        if b"PRIVATE KEY" in data:
            seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        written(descriptor, data)

    monkeypatch.setattr(files, "_write_and_flush", look)
    before = os.umask(0)
    try:
        assert run("init").exit_code == 0
    finally:
        os.umask(before)
    assert seen == [0o600] * 3


def test_the_managers_certificate_names_this_host_and_what_was_given(run: Run, directory: Path) -> None:
    run("init", "--name", "Edge.Example", "--address", "192.0.2.7", "--address", "2001:DB8::7")
    names = authority.alternative_names(certificate(directory / "manager.crt"))
    assert {"localhost", "127.0.0.1", "::1", "edge.example", "192.0.2.7", "2001:db8::7"} <= set(names)
    assert len(names) == len(set(names))


def test_every_certificate_says_what_it_is_for_and_no_more(run: Run, directory: Path) -> None:
    run("init")
    ca = certificate(directory / "ca.crt")
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    for name, purpose in (
        ("manager", ExtendedKeyUsageOID.SERVER_AUTH),
        ("clients/admin", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        issued = certificate(directory / f"{name}.crt")
        assert authority.purposes(issued) == {purpose}
        assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        issued.verify_directly_issued_by(ca)
        assert issued.not_valid_after_utc < ca.not_valid_after_utc


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A handshake in memory. Raises ssl.SSLError when either side refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [one, other]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not pending


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "edge.example"])
def test_openssl_accepts_both_certificates_under_its_strict_rules(run: Run, directory: Path, name: str) -> None:
    run("init", "--name", "edge.example")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(directory / "manager.crt", directory / "manager.key")
    client.load_cert_chain(directory / "clients/admin.crt", directory / "clients/admin.key")
    server.verify_mode = ssl.CERT_REQUIRED
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(directory / "ca.crt")
    handshake(server, client, name)


def test_a_clients_certificate_cannot_stand_for_the_manager(run: Run, directory: Path) -> None:
    run("init", "--client", "localhost")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(directory / "clients/localhost.crt", directory / "clients/localhost.key")
    client.check_hostname = False
    client.load_verify_locations(directory / "ca.crt")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, client, "localhost")


def test_an_existing_pki_is_never_overwritten(run: Run, directory: Path) -> None:
    run("init")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    result = run("init")
    assert result.exit_code == 1
    assert "something is there already; add clients with `keepctl pki issue`" in result.stderr
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_nothing_is_put_behind_a_symbolic_link(run: Run, directory: Path) -> None:
    elsewhere = directory.parent.parent / "elsewhere"
    elsewhere.mkdir()
    directory.parent.mkdir()
    directory.symlink_to(elsewhere)
    assert run("init").exit_code == 1
    assert list(elsewhere.iterdir()) == []


def test_a_failure_half_way_leaves_nothing(run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    written = files.write_new

    def full(path: str, data: bytes, mode: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(28, "No space left on device", path)
        written(path, data, mode)

    monkeypatch.setattr(files, "write_new", full)
    result = run("init")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert tree(directory.parent) == set()
    monkeypatch.undo()


def test_an_empty_directory_is_used_and_made_private(run: Run, directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o755)
    assert run("init").exit_code == 0
    assert mode(directory) == 0o700


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name", "a b"),
        ("--name", "*.example"),
        ("--address", "1.2.3"),
        ("--client", "../a"),
        ("--client", "anonymous"),
    ],
)
def test_a_name_that_cannot_be_certified_is_refused_and_nothing_is_made(
    run: Run, directory: Path, arguments: tuple[str, str]
) -> None:
    assert run("init", *arguments).exit_code == 1
    assert not directory.exists()
    assert not (directory.parent / "manager.yaml").exists()


def test_the_managers_configuration_is_written_once_and_then_left_alone(run: Run, directory: Path) -> None:
    run("init")
    path = directory.parent / "manager.yaml"
    assert f"pki: '{directory}'" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "who may do what is for the manager alone to read"
    path.write_text("port: 4030\n")
    other = directory.parent / "second"
    assert run("init", "--pki", str(other)).exit_code == 0
    assert path.read_text() == "port: 4030\n"


@pytest.mark.parametrize(
    ("addresses", "listens"),
    [
        ((), "127.0.0.1"),
        (("192.0.2.7",), "192.0.2.7"),
        (("2001:db8::7",), "2001:db8::7"),
        (("0.0.0.0",), "0.0.0.0"),
        (("192.0.2.7", "198.51.100.7"), "0.0.0.0"),
        (("2001:db8::7", "2001:db8::8"), "::"),
        (("2001:db8::7", "192.0.2.7"), "0.0.0.0"),
    ],
)
def test_the_manager_takes_its_configuration_and_listens_where_it_is_to_be_reached(
    run: Run, directory: Path, addresses: tuple[str, ...], listens: str
) -> None:
    result = run("init", *(word for address in addresses for word in ("--address", address)))
    path = directory.parent / "manager.yaml"
    configuration = load(str(path), {})
    assert (configuration.pki, configuration.address, configuration.port) == (str(directory), listens, 3030)
    assert f"listens on {listens}" in result.output
    assert mode(path) == 0o600
    names = authority.alternative_names(certificate(directory / "manager.crt"))
    assert set(addresses) - {"0.0.0.0"} <= set(names) and "0.0.0.0" not in names


def test_a_configuration_that_is_there_is_said_to_lack_the_address(run: Run, directory: Path) -> None:
    run("init")
    result = run("init", "--pki", str(directory.parent / "second"), "--address", "192.0.2.7")
    assert "is unchanged; to listen there it needs: address: 192.0.2.7" in result.output


@pytest.mark.parametrize(
    ("text", "manager"),
    [
        ("", "127.0.0.1:3030"),
        ("port: 4040\n", "127.0.0.1:4040"),
        ("address: 192.0.2.7\nport: 4040  # ours\n", "192.0.2.7:4040"),
        ("address: 0.0.0.0\n", "127.0.0.1:3030"),
        ('address: "::"\nport: 1\n', "[::1]:1"),
        ("address: 2001:db8::7\n", "[2001:db8::7]:3030"),
        ("{address: 192.0.2.7, port: 4040}\n", "192.0.2.7:4040"),
        ('"port": 4040\n', "127.0.0.1:4040"),
        ("# port: 4040\nkeep_ports: {first: 1}\n", "127.0.0.1:3030"),
        ("callers:\n  a:\n    port: 5\n", "127.0.0.1:3030"),
    ],
)
def test_this_hosts_manager_is_where_its_configuration_says(directory: Path, text: str, manager: str) -> None:
    directory.parent.mkdir()
    (directory.parent / "real.yaml").write_text(text)
    (directory.parent / "manager.yaml").symlink_to("real.yaml")
    assert access.local_manager(str(directory)) == manager


@pytest.mark.parametrize("text", ["port: 70000\n", "port: x\n", "address: edge.example\n", "port: [1\n"])
def test_a_configuration_that_does_not_say_where_is_named_with_the_next_step(
    run: Run, directory: Path, text: str
) -> None:
    directory.parent.mkdir()
    (directory.parent / "manager.yaml").write_text(text)
    result = run("ps")
    assert result.exit_code == 1
    assert f"{directory.parent}/manager.yaml" in result.stderr and "--manager HOST:PORT" in result.stderr


def test_without_a_configuration_it_is_at_the_default(directory: Path) -> None:
    assert access.local_manager(str(directory)) == "127.0.0.1:3030"


def test_two_concurrent_ones_do_not_share_a_pki(run: Run, directory: Path) -> None:
    run("init")
    with files.locked(str(directory)):
        result = run("pki", "issue", "alice")
    assert result.exit_code == 1
    assert "another keepctl is at work there" in result.stderr
    assert not (directory / "clients/alice.crt").exists()
