"""Keeps whose module comes with their start: no endpoint, a runner that has it checked, and a next run without that."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_protocol.constants import OUTPUT_DESCRIPTORS
from keep_protocol.control import CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport, Module
from keep_protocol.outcome import OutcomeKind
from keep_protocol.spec import SPEC_VARIABLE, KeepSpec, Kind, RestartPolicy, encode_spec
from keep_protocol.states import State
from tests.fakes.loader_process import Endpoint, LoaderProcess, Peer, Stub

DIGEST = "sha256:" + "34" * 32
STORED = KeepSpec(kind=Kind.STORED, module="web:1.2", digest=DIGEST)


@pytest.fixture
def module(place: Path) -> Iterator[int]:
    (place.parent / "module").write_text("the module")
    number = os.open(place.parent / "module", os.O_RDONLY)
    yield number
    os.close(number)


def begin(loader: LoaderProcess, spec: KeepSpec = STORED) -> None:
    loader.start(environment={SPEC_VARIABLE: encode_spec(spec)})


def brings(passed: Endpoint, module: int, **more: int) -> dict[str, int]:
    return {"module": module, **{name: passed.named[name] for name in OUTPUT_DESCRIPTORS}, **more}


def run(
    loader: LoaderProcess, passed: Endpoint, module: int, spec: KeepSpec = STORED, **more: int
) -> tuple[Peer, Stub, KeepReport]:
    begin(loader, spec)
    peer = loader.peer()
    peer.start(brings(passed, module, **more))
    return peer, loader.stub(), peer.answer()


def test_a_stored_keep_runs_from_its_start_on_without_an_endpoint(
    unstarted: LoaderProcess, passed: Endpoint, module: int
) -> None:
    _, runner, info = run(unstarted, passed, module)
    assert runner.role == "runner"
    assert (info.state, info.phase, info.detail) == (State.STARTED, "running", "checking the module")
    assert (info.address, info.port, info.fingerprint, info.certificate, info.uploaders) == ("", 0, "", "", ())
    assert info.module == Module(DIGEST, "web:1.2", len("the module"))
    assert json.loads(runner.do("run-text")) == {"module": "the module"}
    runner.report("ended", outcome={"kind": "exited", "text": "exited 0", "exit_code": 0})
    runner.order("exit", code=0)
    assert unstarted.ended(passed).phase == "ended"


def test_a_compiled_module_is_passed_on_with_it(
    unstarted: LoaderProcess, passed: Endpoint, module: int, place: Path
) -> None:
    (place.parent / "compiled").write_text("machine code")
    compiled = os.open(place.parent / "compiled", os.O_RDONLY)
    try:
        _, runner, info = run(unstarted, passed, module, compiled=compiled)
    finally:
        os.close(compiled)
    assert info.detail == "running a workload"
    assert json.loads(runner.do("run-text")) == {"compiled": "machine code", "module": "the module"}


def test_output_is_announced_from_the_first_byte_on(unstarted: LoaderProcess, passed: Endpoint, module: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        _, runner, _ = run(unstarted, passed, module, follow=theirs.fileno())
        ours.settimeout(15.0)
        assert ours.recv(4096)
        runner.do("run")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("output", "record", "journal"), "its descriptor module is missing"),
        (("module", "output", "record", "journal", "listener"), "listener is nothing that its workload is granted"),
    ],
)
def test_a_start_that_brings_too_little_or_too_much_is_refused(
    unstarted: LoaderProcess, passed: Endpoint, module: int, names: tuple[str, ...], why: str
) -> None:
    begin(unstarted)
    peer = unstarted.peer()
    all_of_them = {**passed.named, "module": module}
    peer.start({name: all_of_them[name] for name in names})
    with pytest.raises(KeepfleetError, match=why) as refused:
        peer.answer()
    assert refused.value.kind is ErrorKind.BAD_REQUEST
    assert unstarted.peer().ask(CommandType.INFO).phase == "idle"


def test_a_module_that_the_keep_could_write_is_refused(unstarted: LoaderProcess, passed: Endpoint, place: Path) -> None:
    begin(unstarted)
    peer = unstarted.peer()
    writable = os.open(place.parent / "module", os.O_RDWR | os.O_CREAT, 0o600)
    peer.start(brings(passed, writable))
    os.close(writable)
    with pytest.raises(KeepfleetError, match="its descriptor module must be read-only"):
        peer.answer()


def test_an_upload_s_keep_takes_no_module_with_its_start(loader: LoaderProcess, passed: Endpoint, module: int) -> None:
    peer = loader.peer()
    peer.start({**passed.named, "module": module})
    with pytest.raises(KeepfleetError, match="module is nothing that its workload is granted"):
        peer.answer()


def test_a_refused_module_is_the_keep_s_outcome_and_is_not_tried_again(
    unstarted: LoaderProcess, passed: Endpoint, module: int
) -> None:
    _, runner, _ = run(unstarted, passed, module, STORED.replace(restart=RestartPolicy.ALWAYS))
    runner.report("ended", outcome={"kind": "refused", "text": "refused: cannot take the module: it is empty"})
    runner.order("exit", code=1)
    report = unstarted.ended(passed)
    assert report.phase == "failed"
    assert report.outcome is not None
    assert (report.outcome.kind, report.outcome.text) == (
        OutcomeKind.REFUSED,
        "refused: cannot take the module: it is empty",
    )


def test_what_was_compiled_in_the_keep_serves_the_next_run(
    unstarted: LoaderProcess, passed: Endpoint, module: int
) -> None:
    always = STORED.replace(restart=RestartPolicy.ALWAYS)
    _, runner, _ = run(unstarted, passed, module, always)
    runner.report("checked", {"compiled": "machine code", "module": "another module"})
    assert json.loads(runner.do("run-text")) == {"module": "the module"}
    runner.order("exit", code=1)
    assert unstarted.process is not None
    assert unstarted.process.wait(15) == 75
    unstarted.systemd.drain()
    begin(unstarted, always)
    assert json.loads(unstarted.stub().do("run-text")) == {"compiled": "machine code", "module": "the module"}


def test_a_runner_that_runs_foreign_code_says_nothing_of_what_was_compiled(
    unstarted: LoaderProcess, passed: Endpoint, module: int
) -> None:
    always = STORED.replace(restart=RestartPolicy.ALWAYS)
    _, runner, _ = run(unstarted, passed, module, always)
    runner.do("run")
    runner.report("checked", {"compiled": "a stranger's", "module": "a stranger's"})
    runner.order("exit", code=1)
    assert unstarted.process is not None
    assert unstarted.process.wait(15) == 75
    unstarted.systemd.drain()
    assert "compiled" not in unstarted.systemd.stored


def test_a_loader_that_is_killed_while_a_module_is_checked_has_it_run_by_the_next(
    unstarted: LoaderProcess, passed: Endpoint, module: int
) -> None:
    always = STORED.replace(restart=RestartPolicy.ALWAYS)
    run(unstarted, passed, module, always)
    unstarted.end()
    unstarted.systemd.drain()
    begin(unstarted, always)
    assert json.loads(unstarted.stub().do("run-text")) == {"module": "the module"}
