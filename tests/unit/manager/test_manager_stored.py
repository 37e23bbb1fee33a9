"""Keeps that run a module of the store: which one it is, what their start brings, and what the store keeps for them."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.callers import CallerEntry, Quotas
from keep_manager.keeps.creation import request_digest
from keep_manager.keeps.manager import Keeps
from keep_manager.modules import TEND_SECONDS, USER, Modules
from keep_protocol.api import NewKeep, StartKeep, parse_v1_create
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Module
from keep_protocol.spec import Kind, RestartPolicy
from keep_protocol.states import Phase, State
from keep_protocol.store import Tagging
from module_store.collect import collect, declared
from module_store.keys import Keys
from module_store.store import Store
from module_store.trust import Trust
from tests.fakes.callers import ALICE
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_parts import ManagerParts
from tests.unit.module_store.signers import Signer

WASM = b"\0asm\x01\0\0\0"
RUN = NewKeep(module="web:1.2", start=StartKeep())


@pytest.fixture
def store(parts: ManagerParts) -> Iterator[Store]:
    with Store.create(parts.modules.directory) as made:
        yield made


@pytest.fixture
def digest(store: Store) -> str:
    return store.add(io.BytesIO(WASM), reference="web:1.2").digest


@pytest.fixture
def keeps(parts: ManagerParts) -> Keeps:
    return parts.keeps


async def test_a_keep_of_the_store_runs_from_its_creation_on(keeps: Keeps, units: FakeUnits, digest: str) -> None:
    info = await keeps.create(RUN.replace(name="web", restart=RestartPolicy.ALWAYS), ALICE)
    assert (info.kind, info.state, info.phase) == (Kind.STORED, State.STARTED, Phase.RUNNING.value)
    assert (info.address, info.port, info.fingerprint, info.uploaders) == ("", 0, "", ())
    assert info.module == Module(digest, "web:1.2", len(WASM))
    loader = units.loaders[info.kuuid]
    assert loader.started is not None
    assert loader.started.descriptors == ("module", "output", "record", "journal")
    assert loader.brought == {"module": WASM}
    assert (loader.spec.kind, loader.spec.digest, loader.spec.module) == (Kind.STORED, digest, "web:1.2")


async def test_what_is_compiled_goes_with_it(parts: ManagerParts, units: FakeUnits, digest: str, place: Path) -> None:
    (place / "compiled").write_bytes(b"machine code")
    parts.artifacts.files[digest] = str(place / "compiled")
    info = await parts.keeps.create(RUN, ALICE)
    assert units.loaders[info.kuuid].brought == {"module": WASM, "compiled": b"machine code"}


async def test_a_digest_decides_wherever_the_reference_points_by_now(keeps: Keeps, store: Store, digest: str) -> None:
    other = store.add(io.BytesIO(WASM + b"\0\1\0"), reference="web:1.2").digest
    for wanted, found in ((f"web:1.2@{digest}", digest), ("web:1.2", other), (digest, digest)):
        info = await keeps.create(RUN.replace(module=wanted), ALICE)
        assert info.module is not None
        assert (info.module.digest, info.module.name) == (found, "" if wanted == digest else "web:1.2")


async def test_a_reference_that_moves_before_the_start_does_not_matter(
    keeps: Keeps, units: FakeUnits, store: Store, digest: str
) -> None:
    made = await keeps.create(NewKeep(module="web:1.2"), ALICE)
    assert (made.state, made.module) == (State.LISTENING, Module(digest, "web:1.2"))
    store.add(io.BytesIO(WASM + b"\0\1\0"), reference="web:1.2")
    info = await keeps.start(StartKeep(made.kuuid), ALICE)
    assert info.module == Module(digest, "web:1.2", len(WASM))
    assert units.loaders[made.kuuid].brought == {"module": WASM}


async def test_a_damaged_object_runs_nowhere_and_leaves_no_keep(
    keeps: Keeps, units: FakeUnits, store: Store, digest: str
) -> None:
    path = Path(store.place.path) / "objects" / digest.removeprefix("sha256:")
    path.chmod(0o600)
    path.write_bytes(WASM + b"!")
    path.chmod(0o400)
    with pytest.raises(KeepfleetError, match="its contents are not those of its digest; it was moved to"):
        await keeps.create(RUN, ALICE)
    assert not units.loaders
    assert not list((await keeps.list()).keeps)


@pytest.mark.parametrize(
    ("wanted", "kind", "why"),
    [
        ("web:2", ErrorKind.NOT_FOUND, "cannot find the reference web:2"),
        ("sha256:" + "0" * 64, ErrorKind.NOT_FOUND, "cannot find sha256:00"),
        ("web", ErrorKind.BAD_REQUEST, "it must be NAME:TAG"),
        ("../web:1", ErrorKind.BAD_REQUEST, "it must be NAME:TAG"),
    ],
)
async def test_what_is_not_there_is_refused_before_a_unit_is_made(
    keeps: Keeps, units: FakeUnits, digest: str, wanted: str, kind: ErrorKind, why: str
) -> None:
    with pytest.raises(KeepfleetError, match=why) as refused:
        await keeps.create(NewKeep(module=wanted), ALICE)
    assert refused.value.kind is kind
    assert not units.loaders


async def test_without_a_store_the_refusal_says_how_to_add_a_module(keeps: Keeps) -> None:
    with pytest.raises(KeepfleetError, match=r"no module store yet; add a module: keepctl store add FILE NAME:TAG"):
        await keeps.create(RUN, ALICE)


@pytest.mark.parametrize("name", ["port", "names", "uploaders"])
async def test_a_start_says_nothing_of_an_endpoint_that_there_is_not(keeps: Keeps, digest: str, name: str) -> None:
    asked: object = {"port": 3000, "names": ("a.example",), "uploaders": ("name:bob",)}[name]
    made = await keeps.create(NewKeep(module="web:1.2"), ALICE)
    with pytest.raises(KeepfleetError, match=f"with {name}: it has no upload endpoint"):
        await keeps.start(StartKeep(made.kuuid).replace(**{name: asked}), ALICE)
    with pytest.raises(KeepfleetError, match=f"with {name}: it has no upload endpoint"):
        parse_v1_create(
            b'{"module": "web:1.2", "start": {"%s": %s}}'
            % (name.encode(), b"3000" if name == "port" else b'["a.example"]' if name == "names" else b'["name:bob"]')
        )


async def test_quotas_of_addresses_do_not_concern_a_keep_that_does_not_listen(
    units: FakeUnits, parts: ManagerParts, digest: str
) -> None:
    own = QuotaKeeper({"alice": CallerEntry(quotas=Quotas(addresses=("192.0.2.9",)))}, lambda: parts.view)
    own.check_start(ALICE, 0, "", None)
    with pytest.raises(KeepfleetError):
        own.check_start(ALICE, 0, "127.0.0.1", None)


async def test_readers_that_are_there_before_the_start_are_waited_for_from_the_first_byte_on(
    parts: ManagerParts, units: FakeUnits, digest: str
) -> None:
    made = await parts.keeps.create(NewKeep(module="web:1.2"), ALICE)
    async with parts.readers.reading(made.kuuid, holds=True, follows=True) as reading:
        await parts.keeps.start(StartKeep(made.kuuid), ALICE)
        loader = units.loaders[made.kuuid]
        assert loader.started is not None
        assert "follow" in loader.started.descriptors
        assert not [command for command in loader.commands if command.type.value == "keep-follow"]
        assert reading.output is not None
        assert reading.output.attached
    assert parts.readers.followed == 0


async def test_the_same_key_names_the_same_keep_though_the_reference_has_moved(
    keeps: Keeps, store: Store, digest: str
) -> None:
    first = await keeps.create(RUN, ALICE, "key")
    store.add(io.BytesIO(WASM + b"\0\1\0"), reference="web:1.2")
    assert (await keeps.create(RUN, ALICE, "key")).kuuid == first.kuuid


def test_a_request_without_a_module_has_the_digest_that_the_version_before_made_of_it() -> None:
    assert request_digest(NewKeep(), "key") == request_digest(NewKeep(module=""), "key")
    assert request_digest(NewKeep(module="web:1.2"), "key") != request_digest(NewKeep(), "key")


async def test_what_living_keeps_need_is_not_collected(keeps: Keeps, store: Store, digest: str) -> None:
    await keeps.create(NewKeep(module="web:1.2"), ALICE)
    store.untag("web:1.2")
    assert declared(store) == {USER: (digest,)}
    assert not collect(store, grace=0.0).removed


def test_what_no_keep_needs_any_more_is_given_up(place: Path) -> None:
    now = [0.0]
    modules = Modules(str(place / "store"), lambda: now[0])
    with Store.create(modules.directory) as store:
        digest = store.add(io.BytesIO(WASM), reference="web:1.2").digest
        assert modules.take("web:1.2").digest == digest
        modules.needs(())
        assert declared(store) == {USER: (digest,)}, "its keep may be on its way"
        now[0] = TEND_SECONDS + 1
        modules.needs((digest,))
        assert declared(store) == {USER: (digest,)}
        now[0] *= 3
        modules.needs(())
        assert not declared(store)


def test_the_next_manager_gives_up_what_one_before_it_has_declared(place: Path) -> None:
    with Store.create(str(place / "store")) as store:
        digest = store.add(io.BytesIO(WASM), reference="web:1.2").digest
        Modules(str(place / "store")).take("web:1.2")
        later = Modules(str(place / "store"))
        later.needs((digest,))
        assert declared(store) == {USER: (digest,)}
        Modules(str(place / "store")).needs(())
        assert not declared(store)


def test_a_store_that_cannot_be_written_is_used_all_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KeepfleetError(ErrorKind.NO_SPACE, "cannot declare what keep-manager uses: the disk is full")

    modules = Modules(str(place / "store"))
    with Store.create(modules.directory) as store:
        digest = store.add(io.BytesIO(WASM), reference="web:1.2").digest
    monkeypatch.setattr("module_store.collect.declare", refuse)
    assert modules.take("web:1.2").digest == digest
    os.close(modules.open(digest))


async def test_a_module_starts_where_it_is_signed_as_the_store_requires_and_nowhere_else(
    keeps: Keeps, parts: ManagerParts, units: FakeUnits, store: Store, digest: str
) -> None:
    signer, keys = Signer("release"), Keys(store.place.path)
    keys.add("release", signer.public)
    keys.require(Trust(require=("release",)))
    assert parts.modules.trust() == "modules must be signed by release"
    with pytest.raises(KeepfleetError, match="not signed by release") as caught:
        await keeps.create(RUN, ALICE)
    assert (caught.value.kind, units.loaders) == (ErrorKind.FORBIDDEN, {})

    store.attach(digest, "signature.release", signer.sign(WASM))
    info = await keeps.create(RUN, ALICE)
    assert units.loaders[info.kuuid].brought == {"module": WASM}
    assert keys.newest()["web"].version == "1.2.0"

    older = store.add(io.BytesIO(WASM + b"\0\1\0"), reference="web:1.1").digest
    store.attach(older, "signature.release", signer.sign(WASM + b"\0\1\0", "keepfleet name=web version=1.1.0"))
    with pytest.raises(KeepfleetError, match="older than"):
        await keeps.create(RUN.replace(module="web:1.1"), ALICE)

    made = await keeps.create(NewKeep(module="web:1.2"), ALICE)  # a start decides, and not the creation
    keys.revoke("release", 1.0, "the laptop was stolen")
    with pytest.raises(KeepfleetError) as caught:
        await keeps.start(StartKeep(made.kuuid), ALICE)
    assert "which was revoked: the laptop was stolen" in str(caught.value.evidence)


async def test_a_module_starts_where_it_passes_the_store_s_policy_and_is_verified_once(
    keeps: Keeps, parts: ManagerParts, units: FakeUnits, store: Store, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, bare = Keys(store.place.path), subprocess.run
    asked: list[object] = []

    def counted(*words: Any, **named: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(words)
        return bare(*words, **named)

    monkeypatch.setattr(subprocess, "run", counted)
    keys.set_policy(b"name: edge\nkinds: [component]\n")
    assert parts.modules.trust() == "no signature is required; modules must pass the store's policy"
    for _ in range(2):
        with pytest.raises(KeepfleetError, match="it does not pass the policy edge: kind") as caught:
            await keeps.create(RUN, ALICE)
        assert (caught.value.kind, units.loaders) == (ErrorKind.INVALID_MODULE, {})
        assert caught.value.evidence == ("kinds: module; allowed: component",)
    assert len(asked) == 1

    keys.set_policy(b"name: edge\nkinds: [module]\n")
    for _ in range(2):
        info = await keeps.create(RUN, ALICE)
        assert units.loaders[info.kuuid].brought == {"module": WASM}
    assert len(asked) == 2
    assert "local.verified" in store.attachments(digest)


async def test_a_policy_that_cannot_be_read_starts_nothing(keeps: Keeps, store: Store, digest: str) -> None:
    Keys(store.place.path).set_policy(b"name: [\n")
    with pytest.raises(KeepfleetError, match="cannot use the policy") as caught:
        await keeps.create(RUN, ALICE)
    assert caught.value.kind is ErrorKind.CONFIGURATION


async def test_a_module_whose_verification_does_not_end_does_not_start(
    keeps: Keeps, store: Store, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Keys(store.place.path).set_policy(b"name: edge\n")
    monkeypatch.setattr("module_store.verified._PROGRAM", "import signal; signal.pause()")
    monkeypatch.setattr("module_store.verified.VERIFY_SECONDS", 0.1)
    with pytest.raises(KeepfleetError, match="it takes over"):
        await keeps.create(RUN, ALICE)
    monkeypatch.setattr("module_store.verified._PROGRAM", "import os; os.abort()")
    monkeypatch.setattr("module_store.verified.VERIFY_SECONDS", 20)
    with pytest.raises(KeepfleetError, match="its process was ended by signal 6"):
        await keeps.create(RUN, ALICE)
    assert "local.verified" not in store.attachments(digest)


async def test_an_older_version_starts_once_that_is_forced_until_a_newer_one_does(
    keeps: Keeps, parts: ManagerParts, store: Store
) -> None:
    signer, keys, digests = Signer("release"), Keys(store.place.path), {}
    keys.add("release", signer.public)
    keys.require(Trust(require=("release",)))
    for number in range(1, 4):
        contents = WASM + b"\0\1" + bytes([number])
        digests[number] = store.add(io.BytesIO(contents), reference=f"web:{number}").digest
        said = f"keepfleet name=web version={number}"
        store.attach(digests[number], "signature.release", signer.sign(contents, said))
    await keeps.create(RUN.replace(module="web:2"), ALICE)
    with pytest.raises(KeepfleetError, match="older than 2"):
        await keeps.create(RUN.replace(module="web:1"), ALICE)
    operations = parts.modules.operations("root", "root", 10, 1000, ())
    operations.tag("web:current", Tagging(digests[1], force=True))
    for module in ("web:current", "web:2", "web:1"):
        await keeps.create(RUN.replace(module=module), ALICE)
    await keeps.create(RUN.replace(module="web:3"), ALICE)
    with pytest.raises(KeepfleetError, match="older than 3"):
        await keeps.create(RUN.replace(module="web:current"), ALICE)
    unsigned = store.add(io.BytesIO(WASM), reference="web:0").digest
    with pytest.raises(KeepfleetError, match="not signed by release"):
        operations.tag("web:current", Tagging(unsigned, force=True))


async def test_a_store_whose_requirement_cannot_be_read_starts_nothing(
    keeps: Keeps, units: FakeUnits, store: Store, digest: str
) -> None:
    keys = Keys(store.place.path)
    keys.add("release", Signer("release").public)
    keys.require(Trust(require=("release",)))
    (Path(keys.path) / "trust.json").write_bytes(b"{}x")
    with pytest.raises(KeepfleetError, match="trust"):
        await keeps.create(RUN, ALICE)
    assert units.loaders == {}


async def test_a_module_that_is_still_compiled_makes_no_keep_and_counts_no_start(
    parts: ManagerParts, units: FakeUnits, digest: str
) -> None:
    parts.artifacts.refusal = KeepfleetError(ErrorKind.COMPILING, "cannot run the module yet: compiling it; ask again")
    with pytest.raises(KeepfleetError, match="ask again"):
        await parts.keeps.create(RUN, ALICE, patience=2.0)
    assert not units.loaders
    assert not list((await parts.keeps.list()).keeps)
    made = await parts.keeps.create(NewKeep(module="web:1.2"), ALICE, patience=2.0)
    with pytest.raises(KeepfleetError, match="ask again"):
        await parts.keeps.start(StartKeep(made.kuuid), ALICE, patience=3.0)
    assert parts.view.find(made.kuuid).state is State.LISTENING
    assert parts.artifacts.asked == [2.0, 3.0]
    parts.artifacts.refusal = None
    assert (await parts.keeps.start(StartKeep(made.kuuid), ALICE)).state is State.STARTED


async def test_a_start_of_a_keep_that_is_made_waits_for_its_compilation_before_there_is_a_unit(
    parts: ManagerParts, units: FakeUnits, digest: str, place: Path
) -> None:
    await parts.keeps.create(RUN, ALICE, "a key", patience=5.0)
    assert parts.artifacts.asked == [5.0, None], "the second is the start's own, of what is open already"
