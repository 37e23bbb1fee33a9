"""Secrets of declared keeps: set whole, never read again, each its owner's, and given to a keep as credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from keep_manager.declared.requests import request_for
from keep_manager.declared.secrets import Secrets
from keep_manager.declared.specification import Specification
from keep_manager.model import Caller
from keep_manager.systemd.programs import Sealer
from keep_manager.systemd.properties import credential_properties
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.secrets import MAX_VALUE_BYTES
from tests.fakes.fake_sealer import FakeSealer
from tests.unit.declared.specs import specification

ALICE = Caller("alice", Role.USER, "127.0.0.1", "alice")
BOB = Caller("bob", Role.USER, "127.0.0.1", "bob")
USES = "module: web:1.2\nsecrets: [{name: token}, {name: file.txt, stored: db}]\n"


class Place:
    """Secrets in a folder, opened again as by the next manager; specifications: what is declared."""

    def __init__(self, path: Path) -> None:
        self.path, self.sealer = path / "secrets", FakeSealer()
        self.specifications: list[Specification] = []
        self.woken: list[str] = []

    async def opened(self) -> Secrets:
        found = Secrets(str(self.path), self.sealer, lambda: self.specifications, self.woken.append)
        await found.open()
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def refused(work: Callable[[], object], kind: ErrorKind) -> str:
    with pytest.raises(KeepfleetError) as error:
        result = work()
        if asyncio.iscoroutine(result):
            await result
    assert error.value.kind is kind
    return error.value.message


async def test_a_value_is_kept_encrypted_and_the_next_manager_knows_whose_it_is(place: Place) -> None:
    secrets = await place.opened()
    made = await secrets.set("token", b"value", ALICE, 10)
    assert (made.name, made.owner, made.encrypted) == ("token", "alice", True)
    assert (place.path / "token.cred").read_bytes() == b"token:eulav"
    again = await place.opened()
    assert (again.names(), again.owner("token")) == (["token"], "alice")
    assert again.credentials(["token"]) == {"token": (str(place.path / "token.cred"), True)}
    for file in place.path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600


async def test_where_a_host_encrypts_none_the_value_lies_as_it_is_until_it_does(place: Place) -> None:
    place.sealer.available = False
    secrets = await place.opened()
    assert not (await secrets.set("token", b"value", ALICE, 10)).encrypted
    assert secrets.credentials(["token"]) == {"token": (str(place.path / "token.plain"), False)}
    place.sealer.available = True
    assert (await secrets.set("token", b"value", ALICE, 10)).encrypted
    assert not (place.path / "token.plain").exists()


async def test_what_is_too_much_or_too_long_is_refused(place: Place) -> None:
    secrets = await place.opened()
    await refused(lambda: secrets.set("token", b"x" * (MAX_VALUE_BYTES + 1), ALICE, 10), ErrorKind.TOO_LARGE)
    await refused(lambda: secrets.set("token", b"", ALICE, 10), ErrorKind.BAD_REQUEST)
    for name in ("", "../x", ".x", "a" * 64, "a:b", "ä"):
        await refused(lambda name=name: secrets.set(name, b"x", ALICE, 10), ErrorKind.BAD_REQUEST)  # type: ignore[misc]
    await secrets.set("one", b"x", ALICE, 1)
    assert "quota `secrets`" in await refused(lambda: secrets.set("two", b"x", ALICE, 1), ErrorKind.TOO_MANY)
    await secrets.set("one", b"y", ALICE, 1)
    await secrets.set("two", b"x", BOB, 1)


async def test_one_that_is_named_is_not_removed_and_wakes_those_that_name_it(place: Place) -> None:
    secrets = await place.opened()
    place.specifications = [specification("web", USES), specification("other", USES, owner="bob")]
    assert (await secrets.set("db", b"x", ALICE, 10)).used_by == ("web",)
    assert place.woken == ["web"]
    assert "web names it" in await refused(lambda: secrets.remove("db"), ErrorKind.CONFLICT)
    place.specifications = []
    await secrets.remove("db")
    assert list(place.path.iterdir()) == []
    await refused(lambda: secrets.remove("db"), ErrorKind.NOT_FOUND)


async def test_a_keep_gets_its_owner_s_secrets_alone(place: Place) -> None:
    secrets = await place.opened()
    await secrets.set("token", b"x", ALICE, 10)
    await secrets.set("db", b"x", BOB, 10)
    assert "alice has none of that name" in await refused(
        lambda: secrets.check_use(specification("web", USES)), ErrorKind.NOT_FOUND
    )


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema":2,"owner":"alice"}', b'{"schema":1,"owner":"a b"}'])
async def test_one_whose_owner_cannot_be_read_has_none(place: Place, damage: bytes) -> None:
    await (await place.opened()).set("token", b"x", ALICE, 10)
    (place.path / "token.json").write_bytes(damage)
    secrets = await place.opened()
    assert secrets.owner("token") == ""
    await refused(lambda: secrets.check_use(specification("web", USES)), ErrorKind.NOT_FOUND)


async def test_a_value_that_others_could_read_or_that_is_a_link_is_given_to_no_keep(place: Place) -> None:
    secrets = await place.opened()
    await secrets.set("token", b"x", ALICE, 10)
    (place.path / "token.cred").chmod(0o640)
    await refused(lambda: secrets.credentials(["token"]), ErrorKind.FORBIDDEN)
    assert "cannot use the secret token.cred" in (await secrets.get("token")).detail
    (place.path / "token.cred").rename(place.path.parent / "elsewhere")
    (place.path / "token.cred").symlink_to(place.path.parent / "elsewhere")
    await refused(lambda: secrets.credentials(["token"]), ErrorKind.FORBIDDEN)


def test_a_keep_s_request_names_credentials_and_its_unit_their_paths_alone() -> None:
    start = request_for(specification("web", USES)).start
    assert start is not None
    assert start.workload is not None
    workload = start.workload.workload
    assert (workload.secrets, workload.credentials) == (("token", "file.txt"), ("token", "db"))
    assert workload.credential_names == {"secret-0": "token", "secret-1": "db"}
    assert start.workload.opened_names == ()
    assert start.workload.gives
    found = credential_properties({"token": ("/s/token.cred", True), "db": ("/s/db.plain", False)})
    assert found == (
        ("LoadCredential", "a(ss)", [["db", "/s/db.plain"]]),
        ("LoadCredentialEncrypted", "a(ss)", [["token", "/s/token.cred"]]),
    )


async def test_without_a_key_of_the_host_s_nothing_is_encrypted_and_the_way_to_one_is_said(tmp_path: Path) -> None:
    sealer = Sealer(system=True, program="true", host_key=str(tmp_path / "none"))
    assert sealer.available
    said = await refused(lambda: sealer.seal("token", b"x"), ErrorKind.CONFIGURATION)
    assert "run: systemd-creds setup" in said
    assert not Sealer(system=False).available


async def test_a_program_that_fails_leaves_no_secret_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    sealer = Sealer(system=True, program="false", host_key=str(tmp_path / "key"))
    assert "failed" in await refused(lambda: sealer.seal("token", b"x"), ErrorKind.CONFIGURATION)
