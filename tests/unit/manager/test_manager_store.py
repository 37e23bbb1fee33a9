"""The module store over the manager's API, by the client that `keepctl store` uses, and by clients that misbehave."""

from __future__ import annotations

import io
import os
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from keep_client.credentials import parse_manager
from keep_client.manager import ManagerClient
from keep_client.peer import ConnectionFailed
from keep_client.store import StoreClient
from keep_manager.callers import CallerEntry, Quotas
from keep_manager.http import transfer
from keep_manager.http.store import MAX_TRANSFERS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Identity, Role
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from keep_protocol.store import Collection, Named, Tagging
from module_store.archive import import_from
from module_store.keys import Keys
from module_store.place import Folder, Place
from module_store.store import Store
from module_store.trust import Trust
from tests.fakes.manager_thread import manager_thread
from tests.fakes.running_manager import RunningManager
from tests.unit.module_store.signers import Signer

WASM = b"\0asm\x01\0\0\0"
OTHER = WASM + b"\0\1\0"
RELEASE = Signer("release")


@pytest.fixture
def manager(place: Path) -> Iterator[RunningManager]:
    with manager_thread(place) as made:
        yield made


def client_of(manager: RunningManager, name: str = "", role: Role = Role.OPERATOR) -> StoreClient:
    """The operator's of the fakes, or one with that identity."""
    identity = manager.authority.issue(name, uri=Identity(role, name).uri()) if name else None
    return StoreClient(parse_manager(f"127.0.0.1:{manager.port}"), manager.context(identity or manager.operator))


@pytest.fixture
def client(manager: RunningManager) -> StoreClient:
    return client_of(manager)


@pytest.fixture
def store(manager: RunningManager) -> Iterator[Store]:
    """The same store, in place."""
    with Store.create(manager.parts.modules.directory) as made:
        yield made


def refusal(work: Callable[[], object]) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        work()
    return caught.value


def left(store: Store) -> tuple[list[str], ...]:
    """Every file there is."""
    folders = (Folder.OBJECTS, Folder.ATTACHMENTS, Folder.REFERENCES, Folder.NEW, Folder.QUARANTINE)
    return tuple(store.place.names(folder) for folder in folders)


NOTHING: tuple[list[str], ...] = ([], [], [], [], [])


def test_a_module_is_added_named_listed_moved_and_removed(
    client: StoreClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "keepfleet.security")
    added = client.add(io.BytesIO(WASM), "web:1.2")
    assert (added.size, client.listing().objects) == (8, (added,))
    assert client.listing().references == (Named("web:1.2", added.digest),)
    moved = client.tag("web:current", Tagging(added.digest))
    assert (moved.history[0].who, moved.digest) == ("operator", added.digest)
    shown = client.inspect(added.digest)
    assert (shown.attachments, shown.needed_by) == (("local.added",), ("web:1.2", "web:current"))
    error = refusal(lambda: client.remove(added.digest))
    assert (error.kind, "needed by web:1.2, web:current" in error.message) == (ErrorKind.CONFLICT, True)
    for name in ("web:1.2", "web:current"):
        client.untag(name)
    assert client.collect(Collection()).young == client.collect(Collection(grace=0, dry_run=True)).removed == (added,)
    assert client.collect(Collection(grace=0)).bytes == 8
    assert client.listing().objects == ()
    lines = [record.getMessage() for record in caplog.records if record.name == "keepfleet.security"]
    assert [line.partition(" by ")[0] for line in lines] == [
        f"added {added.digest}, 8 bytes, as 'web:1.2'",
        f"tagged {added.digest} as web:current",
        "removed the reference web:1.2",
        "removed the reference web:current",
        "collected 0 modules of 0 bytes as garbage",
        "collected 1 modules of 8 bytes as garbage",
    ]
    assert all("operator" in line.partition(" by ")[2] for line in lines)


def test_a_signature_arrives_with_its_module_or_neither_does(client: StoreClient, store: Store) -> None:
    Keys(store.place.path).add("release", RELEASE.public)
    for bad in (RELEASE.sign(OTHER), Signer("another").sign(WASM), b"none"):
        error = refusal(lambda bad=bad: client.add(io.BytesIO(WASM), "web:1", signatures=(bad,)))  # type: ignore[misc]
        assert error.kind in (ErrorKind.FORBIDDEN, ErrorKind.BAD_REQUEST), error
        assert left(store) == NOTHING
    digest = client.add(io.BytesIO(WASM), "web:1", signatures=(RELEASE.sign(WASM),)).digest
    assert store.attached(digest, "signature.release") == RELEASE.sign(WASM)
    other = client.add(io.BytesIO(OTHER)).digest
    assert client.attach(other, (RELEASE.sign(OTHER),)).keys == ("release",)


def test_a_wrong_digest_a_bad_name_and_a_body_over_the_limit_leave_nothing(
    client: StoreClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = refusal(lambda: client.add(io.BytesIO(WASM), digest="sha256:" + "0" * 64))
    assert (wrong.kind, "and not sha256:00" in wrong.message) == (ErrorKind.BAD_REQUEST, True)
    assert refusal(lambda: client.add(io.BytesIO(WASM), "WEB")).kind is ErrorKind.BAD_REQUEST
    monkeypatch.setattr("module_store.operations.MAX_OBJECT_BYTES", 1 << 20)
    long = refusal(lambda: client.add(io.BytesIO(bytes((1 << 20) + 1)), "web:1"))
    assert (long.kind, "over 1048576 bytes" in long.message) == (ErrorKind.TOO_LARGE, True)
    assert left(store) == NOTHING
    assert client.add(io.BytesIO(WASM)).size == 8


def _begun(manager: RunningManager) -> ssl.SSLSocket:
    """A connection on which half of an addition was sent."""
    plain = socket.create_connection(("127.0.0.1", manager.port), 60)
    sock = manager.context(manager.operator).wrap_socket(plain, server_hostname="127.0.0.1")
    sock.sendall(
        b"POST /v1/store/objects?reference=web:1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: 200000\r\n\r\n" + bytes(100_000)
    )
    return sock


def test_a_client_that_stalls_is_given_up_and_leaves_nothing(
    manager: RunningManager, client: StoreClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(transfer, "SILENT_SECONDS", 0.2)
        with closing(_begun(manager)) as sock:
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert left(store) == NOTHING
    assert client.add(io.BytesIO(WASM)).size == 8


def test_an_upload_that_breaks_off_leaves_nothing(
    manager: RunningManager, client: StoreClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, discard, copy = threading.Event(), threading.Event(), Place.discard, Store.copy

    def copied(self: Store, source: transfer.Incoming, file: int, limit: int) -> str:
        begun.set()
        return copy(self, source, file, limit)

    def discarded(place: Place, name: str) -> None:
        discard(place, name)
        ended.set()

    monkeypatch.setattr(Store, "copy", copied)
    monkeypatch.setattr(Place, "discard", discarded)
    sock = _begun(manager)
    assert begun.wait(60)
    sock.close()
    assert ended.wait(60)
    assert left(store) == NOTHING
    assert client.add(io.BytesIO(WASM)).size == 8


def test_two_clients_at_the_same_time_both_have_their_names(manager: RunningManager, client: StoreClient) -> None:
    contents = WASM + bytes(3_000_000)
    others = [client_of(manager) for _ in range(3)]
    threads = [
        threading.Thread(target=each.add, args=(io.BytesIO(contents), f"web:{number}"))
        for number, each in enumerate(others)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listing = client.listing()
    assert [each.name for each in listing.references] == ["web:0", "web:1", "web:2"]
    assert len(listing.objects) == 1


def test_what_a_caller_may_add_is_bounded_in_number_and_bytes(manager: RunningManager, store: Store) -> None:
    manager.quotas.apply({"carl": CallerEntry(quotas=Quotas(store_objects=2, store_bytes=30))})
    carl, other = client_of(manager, "carl"), client_of(manager, "dora")
    first = carl.add(io.BytesIO(WASM), "web:1").digest
    long = refusal(lambda: carl.add(io.BytesIO(bytes(23)), "web:2"))
    assert (long.kind, "the quota store_bytes of carl is 30" in long.message) == (ErrorKind.TOO_MANY, True)
    carl.add(io.BytesIO(OTHER), "web:2")
    for again in (WASM + b"1", WASM + b"2"):
        many = refusal(lambda again=again: carl.add(io.BytesIO(again)))  # type: ignore[misc]
        assert "the quota store_objects of carl is 2" in many.message
    exported = io.BytesIO()
    other.add(io.BytesIO(WASM + b"3"), "dora:1")
    other.export(exported, ["dora:1"])
    carl.untag("web:1")
    carl.remove(first)
    other.untag("dora:1")
    other.collect(Collection(grace=0))
    exported.seek(0)
    assert carl.import_from(exported).objects == 1
    exported.seek(0)
    assert carl.import_from(exported).objects == 1, "what is there already is counted once"
    assert refusal(lambda: carl.add(io.BytesIO(WASM + b"4"))).kind is ErrorKind.TOO_MANY
    del store


@pytest.mark.parametrize("role", [Role.USER, Role.VIEWER])
def test_others_than_operators_see_the_store_and_change_nothing(manager: RunningManager, role: Role) -> None:
    digest = client_of(manager).add(io.BytesIO(WASM), "web:1").digest
    other = client_of(manager, "ann", role)
    assert other.listing().references == (Named("web:1", digest),)
    assert other.inspect(digest).size == 8
    assert other.reference("web:1").digest == digest
    assert other.requirements().keys == ()
    for work in (
        lambda: other.add(io.BytesIO(WASM)),
        lambda: other.tag("web:1", Tagging(digest)),
        lambda: other.untag("web:1"),
        lambda: other.remove(digest),
        lambda: other.collect(Collection()),
        other.verify,
        lambda: other.export(io.BytesIO()),
        lambda: other.import_from(io.BytesIO(b"x")),
        lambda: other.attach(digest, (b"x",)),
        lambda: other.revoke("release"),
    ):
        assert refusal(work).kind is ErrorKind.FORBIDDEN


def test_a_store_goes_from_one_host_to_another_and_a_damaged_export_is_refused_whole(
    client: StoreClient, store: Store
) -> None:
    Keys(store.place.path).add("release", RELEASE.public)
    contents = WASM + os.urandom(3_000_000)
    client.add(io.BytesIO(contents), "web:1", signatures=(RELEASE.sign(contents),))
    exported = io.BytesIO()
    client.export(exported)
    assert client.verify().findings == ()
    client.untag("web:1")
    client.collect(Collection(grace=0))
    damaged = bytearray(exported.getvalue())
    damaged[2_000_000] ^= 1
    error = refusal(lambda: client.import_from(io.BytesIO(damaged)))
    assert (error.kind, "is damaged; nothing was changed" in error.message) == (ErrorKind.BAD_REQUEST, True)
    short = refusal(lambda: client.import_from(io.BytesIO(exported.getvalue()[:1_000_000])))
    assert "the export ends early" in short.message
    assert left(store) == NOTHING
    moved = client.import_from(io.BytesIO(exported.getvalue()))
    assert (moved.objects, moved.attachments, moved.references) == (1, 1, 1)
    assert refusal(lambda: client.export(io.BytesIO(), ["web:2"])).kind is ErrorKind.NOT_FOUND


def test_an_export_that_finds_damage_half_way_breaks_off_and_is_never_taken_for_a_whole_one(
    client: StoreClient, store: Store
) -> None:
    digests = sorted(client.add(io.BytesIO(os.urandom(3_000_000)), f"web:{number}").digest for number in range(2))
    path = os.path.join(store.place.path, "objects", digests[1].removeprefix("sha256:"))
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.write(b"?")
    os.chmod(path, 0o400)
    output = io.BytesIO()
    assert isinstance(refusal(lambda: client.export(output)), ConnectionFailed)
    assert refusal(lambda: import_from(store, io.BytesIO(output.getvalue()))).kind is ErrorKind.BAD_REQUEST
    assert client.add(io.BytesIO(WASM)).size == 8


def test_a_key_that_is_revoked_is_listed_with_what_runs_under_it(
    manager: RunningManager, client: StoreClient, store: Store
) -> None:
    keys = Keys(store.place.path)
    keys.add("release", RELEASE.public)
    keys.require(Trust(require=("release",)))
    digest = client.add(io.BytesIO(WASM), "web:1", signatures=(RELEASE.sign(WASM),)).digest
    made = _run(manager, "web:1")
    assert made.state is State.STARTED
    assert client.requirements().affected == ()
    revoked = client.revoke("release", "the laptop was stolen")
    assert (revoked.key.name, revoked.key.reason) == ("release", "the laptop was stolen")
    (use,) = revoked.affected
    assert (use.user, use.digest, use.keys) == (f"keep {made.kuuid} web", digest, ("release",))
    assert client.requirements().affected == revoked.affected
    assert refusal(lambda: _run(manager, "web:1", "again")).kind is ErrorKind.FORBIDDEN
    assert refusal(lambda: client.revoke("none")).kind is ErrorKind.NOT_FOUND


def _run(manager: RunningManager, module: str, name: str = "web") -> KeepInfo:
    client = ManagerClient(parse_manager(f"127.0.0.1:{manager.port}"), manager.context(manager.operator))
    return client.create(name=name, module=module, start={"workload": None})


def test_a_full_disk_is_said_and_leaves_nothing(
    client: StoreClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("module_store.disk.Disk.write", full)
        assert refusal(lambda: client.add(io.BytesIO(WASM), "web:1")).kind is ErrorKind.NO_SPACE
    assert left(store) == NOTHING
    assert client.add(io.BytesIO(WASM), "web:1").size == 8


def test_a_thousand_objects_are_listed_and_one_more_is_added(client: StoreClient, store: Store) -> None:
    for number in range(1000):
        contents = WASM + number.to_bytes(2, "big")
        path = os.path.join(store.place.path, "objects", sha256(contents).hexdigest())
        with open(path, "xb") as file:
            file.write(contents)
        os.chmod(path, 0o400)
    client.add(io.BytesIO(OTHER), "web:1")
    assert len(client.listing().objects) == 1001
    assert client.verify().findings == ()


class _Zeros:
    """A long module that is nowhere in memory."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int, /) -> bytes:
        data = bytes(min(size, self._left))
        self._left -= len(data)
        return data


def test_a_long_module_costs_constant_memory_on_both_sides(client: StoreClient) -> None:
    client.add(io.BytesIO(WASM))  # what is imported on the way is
    tracemalloc.start()
    try:
        added = client.add(_Zeros(48 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert added.size == 48 << 20
    assert peak < 12 << 20


def test_more_transfers_than_there_are_places_are_refused(
    manager: RunningManager, client: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, copy = threading.Semaphore(0), Store.copy

    def copied(self: Store, source: transfer.Incoming, file: int, limit: int) -> str:
        served.release()
        return copy(self, source, file, limit)

    monkeypatch.setattr(Store, "copy", copied)
    begun = [_begun(manager) for _ in range(MAX_TRANSFERS)]
    try:
        for _ in begun:
            assert served.acquire(timeout=60)
        assert refusal(lambda: client.add(io.BytesIO(WASM))).kind is ErrorKind.TOO_MANY
    finally:
        for each in begun:
            each.close()
