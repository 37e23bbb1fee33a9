"""The module store over the API of a manager that runs as it is installed: who signs decides what starts, and a manager
that is killed in the middle leaves nothing."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_client.peer import ConnectionFailed
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import Tagging
from tests.system import modules
from tests.system.fleet import Fleet
from tests.system.host import message_of
from tests.system.life import Life, example
from tests.system.test_typed_docs import blocks, typed_inside

STORE = "/var/lib/keepfleet/store"


@pytest.fixture(autouse=True)
def without_a_store(fleet: Fleet) -> Iterator[None]:
    fleet.host.run(["rm", "-rf", STORE])
    yield
    fleet.host.run(["rm", "-rf", STORE])


def test_the_page_on_running_only_what_was_signed_can_be_typed(fleet: Fleet) -> None:
    cursor = fleet.host.cursor()
    output = typed_inside(fleet, blocks("docs/how-to/signed.md", "sh"))
    assert output.count("Hello from C, inside a keep!") == 2, output
    for text in (
        "modules must be signed by release",
        "it may start: web 1.3.0, signed by release",
        "cannot start the module: it is not signed by release",
        "older than 1.3.0, the newest seen",
        "cannot take the module: it does not pass the policy jobs: imports, memory_initial",
        "memory_initial: 131,072 bytes at first; allowed: at most 65,536",
        "imports: wasi_snapshot_preview1 ",
        "release is revoked",
        "running, and could not start any more: keep ",
        "which was revoked: the laptop was stolen",
    ):
        assert text in output, f"signed.md promises {text!r}; it printed:\n{output}"
    assert fleet.client().keeps() == ()
    lines = "\n".join(message_of(each) for each in fleet.host.journal("keep-manager.service", cursor))
    assert "forced: it may start although a newer version was seen, by" in lines
    assert "revoked the key release, which 1 keeps need, by" in lines


def test_a_module_that_was_sent_to_the_store_runs(fleet: Fleet) -> None:
    store, contents = fleet.store(), example("hello-wat/hello")
    added = store.add(io.BytesIO(contents), "hello:1")
    assert added.digest == f"sha256:{hashlib.sha256(contents).hexdigest()}"
    path = f"{STORE}/objects/{added.digest.removeprefix('sha256:')}"
    assert fleet.host.run(["stat", "-c", "%a %u", path, f"{STORE}"]).stdout == "400 0\n700 0\n"
    info = fleet.client().create(module="hello:1", start={"workload": None})
    life = Life(fleet, info.kuuid)
    assert store.inspect(added.digest).needed_by[0] == "hello:1"
    life.remove()
    listed = json.loads(fleet.host.run(["keepctl", "store", "ls", "-o", "json", "--in-place"]).stdout)
    assert [each["name"] for each in listed["references"]] == ["hello:1"]


class _Halting:
    """A long module, of which half comes; the rest when `go` is set."""

    def __init__(self) -> None:
        self.half, self.go, self._left = threading.Event(), threading.Event(), 64

    def read(self, size: int, /) -> bytes:
        if self._left == 32:
            self.half.set()
            self.go.wait(60)
        self._left -= 1
        return bytes(1 << 18) if self._left >= 0 else b""


def test_a_manager_that_is_killed_in_the_middle_of_an_addition_leaves_nothing_that_is_used(fleet: Fleet) -> None:
    store, source = fleet.store(), _Halting()
    kept = store.add(io.BytesIO(modules.sleeps()), "kept:1")
    failures: list[KeepfleetError] = []

    def send() -> None:
        try:
            store.another().add(source, "half:1")
        except KeepfleetError as error:
            failures.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    assert source.half.wait(60)
    fleet.kill()
    source.go.set()
    thread.join()
    assert isinstance(failures[0], ConnectionFailed)
    listing = store.listing()
    assert [each.digest for each in listing.objects] == [kept.digest]
    assert [each.name for each in listing.references] == ["kept:1"]
    assert store.verify().findings == ()


def test_adding_a_long_module_costs_the_manager_no_memory(fleet: Fleet) -> None:
    store = fleet.store()
    store.add(io.BytesIO(modules.sleeps()), "small:1")
    before = _resident(fleet)
    with Path("/dev/zero").open("rb") as zeros:
        added = store.add(_First(zeros, 200 << 20), "large:1")
    assert added.size == 200 << 20
    assert _resident(fleet) - before < 16 << 20


class _First:
    """The first `size` bytes of a file without an end."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _resident(fleet: Fleet) -> int:
    """The most memory that the manager's process has had, without the cache of files."""
    for line in fleet.host.run(["cat", f"/proc/{fleet.manager_pid}/status"]).stdout.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel says nothing of its memory")


def test_a_full_disk_is_said_and_what_was_there_goes_on(fleet: Fleet) -> None:
    fleet.host.run(["mkdir", "-m", "700", STORE])
    with fleet.small_disk(STORE, "size=2M,mode=700") as sees:
        store = fleet.store()
        store.add(io.BytesIO(modules.sleeps()), "kept:1")
        there = fleet.host.run([*sees, "ls", f"{STORE}/references"]).stdout
        assert there == "kept:1\n", "it is on the small disk"
        with pytest.raises(KeepfleetError) as caught:
            store.add(io.BytesIO(bytes(4 << 20)), "large:1")
        assert caught.value.kind is ErrorKind.NO_SPACE
        assert fleet.host.run([*sees, "ls", f"{STORE}/new"]).stdout == ""
        assert [each.name for each in store.listing().references] == ["kept:1"]
        store.tag("kept:2", Tagging(store.reference("kept:1").digest))
