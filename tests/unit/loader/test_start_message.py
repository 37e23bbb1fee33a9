"""The control protocol's version 2: hello, and a start in one message with descriptors by name; and the secrets that
come as credentials of the unit, which are copied into the keep's own memory."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from keep_loader.start import open_credential
from keep_protocol.constants import OUTPUT_DESCRIPTORS, START_DESCRIPTORS
from keep_protocol.control import CONTROL_VERSION, CommandType, hello
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Module, ShownDirectory, Uploader, WorkloadSummary
from keep_protocol.limits import Limits
from keep_protocol.spec import KeepSpec, RestartPolicy, encode_spec
from keep_protocol.states import State
from keep_protocol.workload import MAX_SECRET_BYTES, Directory, Workload
from tests.fakes.loader_process import FINGERPRINT, MODULE, UPLOAD, Endpoint, LoaderProcess, Peer, Stub, opened

SPEC = KeepSpec(
    name="web", owner="alice", labels=(("team", "a b"),), limits=Limits(wall_seconds=77), restart=RestartPolicy.ALWAYS
)
GIVEN = Workload(
    arguments=("-v", "x" * 5000, "unseen"),
    environment=(("TOKEN", "hidden"),),
    export="main",
    directories=(Directory("/data"), Directory("/out", True)),
    secrets=("token",),
    restart=RestartPolicy.ON_FAILURE,
)


@pytest.fixture
def described(place: Path) -> Iterator[dict[str, int]]:
    """What GIVEN takes, by name."""
    with ExitStack() as stack:

        def kept(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        (place.parent / "workload.json").write_bytes(GIVEN.to_json())
        (place.parent / "token").write_bytes(b"secret")
        yield {
            "workload": kept(os.open(place.parent / "workload.json", os.O_RDONLY)),
            "directory-0": kept(os.open(place, os.O_RDONLY)),
            "directory-1": kept(os.open(place.parent, os.O_RDONLY)),
            "secret-0": kept(os.open(place.parent / "token", os.O_RDONLY)),
        }


def with_spec(loader: LoaderProcess, spec: KeepSpec) -> Peer:
    loader.start(environment={"KEEPFLEET_SPEC": encode_spec(spec)})
    return loader.peer()


def started(loader: LoaderProcess, peer: Peer, passed: dict[str, int], **message: Any) -> Stub:
    peer.start(passed, **message)
    stub = loader.stub()
    stub.listen()
    assert peer.answer().state is State.STARTED
    return stub


def test_a_hello_is_answered_with_the_keep_and_the_loaders_version(loader: LoaderProcess) -> None:
    peer = loader.peer()
    peer.give(hello())
    assert peer.answer().control_version == CONTROL_VERSION
    assert peer.ask(CommandType.HELLO, '{"version":9}').control_version == CONTROL_VERSION


@pytest.mark.parametrize("contents", ["", "{}", "[]", '{"version":"2"}', '{"version":0}', '{"version":true}'])
def test_what_is_no_hello_is_refused(loader: LoaderProcess, contents: str) -> None:
    with pytest.raises(KeepfleetError, match="hello") as refused:
        loader.peer().ask(CommandType.HELLO, contents)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_one_message_starts_a_keep(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    message = {"address": "::1", "names": ("a.example", "10.0.0.1"), "uploaders": ("name:bob", FINGERPRINT)}
    stub = started(loader, peer, passed.named, **message)
    report = peer.ask(CommandType.INFO)
    assert (report.address, report.port, report.uploaders) == ("::1", passed.port, ("name:bob", FINGERPRINT))
    assert report.workload is None
    assert stub.environment["KEEPFLEET_ADDRESS"] == "::1"
    assert stub.environment["KEEPFLEET_NAMES"] == "a.example,10.0.0.1"
    assert stub.environment["KEEPFLEET_UPLOADERS"] == f"name:bob,{FINGERPRINT}"


def test_descriptors_go_by_name_in_any_order(
    loader: LoaderProcess, passed: Endpoint, described: dict[str, int]
) -> None:
    together = {**described, **passed.named}
    stub = started(loader, loader.peer(), dict(reversed(together.items())))
    links = {name: os.readlink(f"/proc/self/fd/{number}") for name, number in together.items()}
    endpoint = stub.passed
    del endpoint["checks"]
    assert endpoint == {name: links[name] for name in START_DESCRIPTORS}
    stub.accept()
    assert {name: stub.given[name] for name in described} == {name: links[name] for name in described}


def test_what_a_workload_was_given_is_reported_and_no_more(
    loader: LoaderProcess, passed: Endpoint, described: dict[str, int]
) -> None:
    peer = loader.peer()
    started(loader, peer, {**passed.named, **described})
    report = peer.ask(CommandType.INFO)
    assert report.workload == WorkloadSummary(
        arguments=("-v", "x" * 4092),
        export="main",
        directories=(ShownDirectory("/data"), ShownDirectory("/out", True)),
        secrets=("token",),
    )
    assert report.restart is RestartPolicy.ON_FAILURE
    assert b"hidden" not in peer.frame


def refusals(passed: Endpoint, described: dict[str, int]) -> Iterator[tuple[dict[str, object], list[int], str]]:
    """A message, its descriptors, and a word of the refusal."""
    names, numbers = list(passed.named), list(passed.descriptors)
    yield {"descriptors": names, "colour": "red"}, numbers, "unknown field 'colour'"
    yield {"descriptors": [*names[:2], "revoked-list"]}, numbers, "field 'descriptors'"
    yield {"descriptors": [*names[:2], "identity"]}, numbers, "field 'descriptors'"
    yield {"descriptors": [*names, "listener"]}, [*numbers, numbers[0]], "duplicate name of a descriptor"
    yield {"descriptors": names[:2]}, numbers[:2], "its descriptor revoked is missing"
    for name in OUTPUT_DESCRIPTORS:
        less = {known: number for known, number in passed.named.items() if known != name}
        yield {"descriptors": list(less)}, list(less.values()), f"its descriptor {name} is missing"
    for name in ("output", "record"):
        yield (
            {"descriptors": names},
            list({**passed.named, name: passed.authority}.values()),
            f"{name} must be a regular",
        )
    yield {"descriptors": names}, list({**passed.named, "output": passed.record}.values()), "its ring is cut off"
    other = list({**passed.named, "journal": passed.listener.fileno()}.values())
    yield {"descriptors": names}, other, "journal: cannot take over what is no Unix socket"
    yield {"descriptors": []}, [], "its descriptor listener is missing"
    yield {"descriptors": names}, numbers[:2], "names 6 descriptors and brings 2"
    yield {"descriptors": names[:2]}, numbers, "names 2 descriptors and brings 6"
    yield {"descriptors": [*names, "stdin"]}, [*numbers, numbers[1]], "stdin is nothing that its workload is granted"
    granted = {**passed.named, **described}
    for name in described:
        if name != "workload":
            less = {known: number for known, number in granted.items() if known != name}
            yield {"descriptors": list(less)}, list(less.values()), f"{name} is missing"
    more = {**granted, "directory-2": granted["directory-0"]}
    yield {"descriptors": list(more)}, list(more.values()), "directory-2 is nothing"
    yield {"descriptors": names, "address": "localhost"}, numbers, "no IPv4 or IPv6 address"
    yield {"descriptors": names, "names": ["a b"]}, numbers, "field 'names'"
    yield {"descriptors": names, "uploaders": ["anyone"]}, numbers, "field 'uploaders'"
    swapped = dict(zip(names, (numbers[1], numbers[0], *numbers[2:]), strict=True))
    yield {"descriptors": list(swapped)}, list(swapped.values()), "listener must be a listening TCP socket"


def test_what_is_no_whole_start_is_refused_and_leaves_nothing(
    loader: LoaderProcess, passed: Endpoint, described: dict[str, int]
) -> None:
    peer = loader.peer()
    peer.ask(CommandType.INFO)
    before = loader.open_descriptors()
    for message, descriptors, why in refusals(passed, described):
        with pytest.raises(KeepfleetError, match=why) as refused:
            peer.ask(CommandType.KEEP_START, json.dumps(message), tuple(descriptors))
        assert refused.value.kind is ErrorKind.BAD_REQUEST
    report = peer.ask(CommandType.INFO)
    assert (report.state, report.port, report.uploaders, report.workload) == (State.LISTENING, 0, (), None)
    assert loader.open_descriptors() == before
    loader.systemd.drain()
    assert loader.systemd.stored == {}


@pytest.mark.parametrize(
    ("spec", "named", "in_force"),
    [
        (KeepSpec(owner="alice"), (), ("name:alice",)),
        (KeepSpec(owner="alice", uploaders=("name:bob",)), (), ("name:bob",)),
        (KeepSpec(owner="alice", uploaders=("name:bob",)), (FINGERPRINT,), (FINGERPRINT,)),
        (KeepSpec(owner="anonymous"), (), ("*",)),
        (KeepSpec(), (), ("*",)),
    ],
)
def test_who_may_upload_is_what_the_start_says_else_the_spec_else_the_owner(
    unstarted: LoaderProcess, passed: Endpoint, spec: KeepSpec, named: tuple[str, ...], in_force: tuple[str, ...]
) -> None:
    peer = with_spec(unstarted, spec)
    assert peer.ask(CommandType.INFO).uploaders == spec.uploaders
    stub = started(unstarted, peer, passed.named, uploaders=named)
    assert stub.environment["KEEPFLEET_UPLOADERS"] == ",".join(in_force)
    assert peer.ask(CommandType.INFO).uploaders == in_force


def test_what_the_spec_says_holds_and_no_description_changes_it(unstarted: LoaderProcess, passed: Endpoint) -> None:
    peer = with_spec(unstarted, SPEC)
    peer.ask(CommandType.DESCRIBE, json.dumps({"name": "other", "owner": "mallory"}))
    claim = peer.claims()
    assert (claim.name, claim.owner, claim.labels, claim.limits) == (SPEC.name, SPEC.owner, SPEC.labels, SPEC.limits)
    stub = started(unstarted, peer, passed.named)
    assert stub.environment["KEEPFLEET_LIMITS"] == SPEC.limits.to_text()
    assert peer.ask(CommandType.INFO).restart is RestartPolicy.ALWAYS


def test_a_start_that_failed_leaves_what_the_spec_says(
    unstarted: LoaderProcess, passed: Endpoint, described: dict[str, int]
) -> None:
    peer = with_spec(unstarted, SPEC)
    peer.start({**passed.named, **described}, uploaders=("name:bob",))
    unstarted.stub().order("exit", code=1)
    with pytest.raises(KeepfleetError):
        peer.answer()
    report = peer.ask(CommandType.INFO)
    assert (report.restart, report.uploaders, report.workload) == (RestartPolicy.ALWAYS, (), None)


def test_an_upload_is_reported_and_one_line_of_the_log(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    stub.accept()
    loader.systemd.wait_for("STATUS", "started: running")
    report = peer.ask(CommandType.INFO)
    assert report.uploaded_by == Uploader(UPLOAD["fingerprint"], "alice", "ab12")
    assert report.module == Module(str(MODULE["digest"]), "hello.wasm", 1234)
    (line,) = (line for line in loader.log_text().splitlines() if "upload" in line and "->" not in line)
    assert line == f"upload accepted of alice, certificate ab12: {MODULE['digest']}, 1234 bytes"


def test_an_uploads_names_cannot_forge_a_line(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    upload = {**UPLOAD, "name": "alice\nupload accepted of root", "serial": "1\x1b[2J"}
    stub.accept(upload=upload, module={**MODULE, "name": "a\nb"})
    loader.systemd.wait_for("STATUS", "started: running")
    report = peer.ask(CommandType.INFO)
    assert report.uploaded_by is not None and report.module is not None
    assert (report.uploaded_by.name, report.module.name) == ("alice upload accepted of root", "a b")
    assert "\nupload accepted of root" not in loader.log_text()
    assert "\x1b" not in loader.log_text()


def test_who_uploaded_what_outlives_the_loader(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, stub = opened(loader, passed)
    stub.accept()
    stub.report("ended", outcome={"kind": "exited", "text": "exited 0", "exit_code": 0})
    stub.order("exit", code=0)
    before = peer.ask(CommandType.WAIT, "2")
    assert loader.ended(passed) == before
    assert before.module is not None


def test_a_credential_is_a_file_for_reading_alone_that_no_name_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, own = tmp_path / "given", tmp_path / "own"
    given.mkdir()
    own.mkdir()
    (given / "token").write_bytes(b"value")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    descriptor = open_credential("token", str(own))
    (given / "token").unlink()
    try:
        assert os.pread(descriptor, 100, 0) == b"value"
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert list(own.iterdir()) == []
    finally:
        os.close(descriptor)


def test_one_that_is_not_there_or_too_long_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeepfleetError, match="its secret token: systemd has given this unit no credentials"):
        open_credential("token", str(tmp_path))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(KeepfleetError, match="its secret token: No such file"):
        open_credential("token", str(tmp_path))
    (tmp_path / "token").write_bytes(bytes(MAX_SECRET_BYTES + 1))
    with pytest.raises(KeepfleetError, match="it is over"):
        open_credential("token", str(tmp_path))
