"""What a keep is called and what it may use: shown in keep-info, kept over a crash, checked again here."""

from __future__ import annotations

import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.control import CommandType, decode_description
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import DEFAULT_LIMITS, Limits
from keep_protocol.spec import SPEC_VARIABLE, KeepSpec, RestartPolicy, encode_spec
from keep_protocol.states import State
from tests.fakes.loader_process import Endpoint, LoaderProcess, Peer, opened

CALLED = {"name": "web-1", "labels": {"team/role": "a b", "env": "prüf"}, "owner": "alice"}


def called(peer: Peer) -> dict[str, object]:
    claim = peer.claims()
    return {"name": claim.name, "labels": dict(claim.labels), "owner": claim.owner}


def test_a_keep_has_the_limits_of_its_unit_and_passes_them_on(unstarted: LoaderProcess, passed: Endpoint) -> None:
    limits = Limits(wall_seconds=10, memory_bytes=1 << 20)
    unstarted.start(environment={"KEEPFLEET_LIMITS": limits.to_text()})
    assert unstarted.peer().claims().limits == limits
    _, stub = opened(unstarted, passed)
    assert stub.environment["KEEPFLEET_LIMITS"] == limits.to_text()


def test_a_keep_without_limits_has_the_default_ones(loader: LoaderProcess) -> None:
    assert loader.peer().claims().limits == DEFAULT_LIMITS


def test_a_description_is_shown_and_can_be_given_again(loader: LoaderProcess) -> None:
    peer = loader.peer()
    peer.ask(CommandType.DESCRIBE, json.dumps(CALLED))
    assert called(peer) == CALLED
    peer.ask(CommandType.DESCRIBE, "{}")
    assert called(peer) == {"name": "", "labels": {}, "owner": ""}


def test_a_description_survives_the_loader_in_every_phase(loader: LoaderProcess, passed: Endpoint) -> None:
    loader.peer().ask(CommandType.DESCRIBE, json.dumps(CALLED))
    for _ in range(2):
        loader.end(signal.SIGKILL)
        loader.systemd.drain()
        loader.start()
        peer = loader.peer()
        assert (peer.ask(CommandType.INFO).state, called(peer)) == (State.LISTENING, CALLED)
    peer, _ = opened(loader, passed)
    peer.ask(CommandType.STOP, "bob")
    loader.end()
    record = passed.recorded
    assert (record.report.state, record.private.description) == (State.COMPLETE, decode_description(json.dumps(CALLED)))


def test_a_failed_start_leaves_the_description(loader: LoaderProcess, passed: Endpoint) -> None:
    peer = loader.peer()
    peer.ask(CommandType.DESCRIBE, json.dumps(CALLED))
    peer.send(CommandType.START, "", passed.descriptors)
    loader.stub().order("exit", code=1)
    with pytest.raises(KeepfleetError):
        peer.answer()
    assert called(peer) == CALLED


def test_a_started_keep_keeps_its_description(loader: LoaderProcess, passed: Endpoint) -> None:
    peer, _ = opened(loader, passed)
    with pytest.raises(KeepfleetError) as refused:
        peer.ask(CommandType.DESCRIBE, json.dumps(CALLED))
    assert refused.value.kind is ErrorKind.CONFLICT


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "[]",
        '{"name": "UPPER"}',
        '{"name": 5}',
        '{"name": null}',
        '{"name": "a\\n[Service]"}',
        '{"labels": []}',
        '{"labels": {"KEY": "x"}}',
        '{"labels": {"a": 1}}',
        '{"labels": {"a": "\\u001b[0m"}}',
        '{"labels": {"a": "\\ud800"}}',
        json.dumps({"labels": {str(number): "" for number in range(17)}}),
        json.dumps({"labels": {"a": "x" * 256}}),
        '{"owner": 1}',
        '{"owner": "a\\nb"}',
        json.dumps({"owner": "x" * 129}),
        '{"colour": "red"}',
    ],
)
def test_what_is_no_description_is_refused_and_changes_nothing(loader: LoaderProcess, contents: str) -> None:
    peer = loader.peer()
    with pytest.raises(KeepfleetError, match=r"cannot |invalid ") as refused:
        peer.ask(CommandType.DESCRIBE, contents)
    assert refused.value.kind is ErrorKind.BAD_REQUEST
    assert called(peer) == {"name": "", "labels": {}, "owner": ""}


@given(st.text(max_size=200))
def test_no_contents_do_more_than_be_refused(contents: str) -> None:
    with pytest.raises(KeepfleetError):
        decode_description(contents + "\x00")


SPARE = {SPEC_VARIABLE: encode_spec(KeepSpec(spare=True))}
CLAIMED = KeepSpec(
    name="web",
    owner="alice",
    labels=(("a", "b"),),
    limits=Limits(wall_seconds=9),
    restart=RestartPolicy.ALWAYS,
    spare=True,
)


def claim_refused(peer: Peer, spec: KeepSpec) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        peer.ask(CommandType.CLAIM, encode_spec(spec))
    return caught.value


def test_a_spare_becomes_the_keep_it_is_claimed_as_once_and_permanently(
    unstarted: LoaderProcess, passed: Endpoint
) -> None:
    unstarted.start(environment=SPARE)
    peer = unstarted.peer()
    assert called(peer) == {"name": "", "labels": {}, "owner": ""}
    for _ in range(2):
        peer.ask(CommandType.CLAIM, encode_spec(CLAIMED))
    assert called(peer) == {"name": "web", "labels": {"a": "b"}, "owner": "alice"}
    assert peer.ask(CommandType.INFO).restart is RestartPolicy.ALWAYS
    assert claim_refused(peer, CLAIMED.replace(owner="bob")).kind is ErrorKind.CONFLICT
    peer, stub = opened(unstarted, passed)
    assert stub.environment["KEEPFLEET_LIMITS"] == CLAIMED.limits.to_text()
    assert claim_refused(peer, CLAIMED).kind is ErrorKind.CONFLICT


def test_a_claim_survives_the_loader_in_every_phase(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment=SPARE)
    unstarted.peer().ask(CommandType.CLAIM, encode_spec(CLAIMED))
    unstarted.end(signal.SIGKILL)
    unstarted.systemd.drain()
    unstarted.start(environment=SPARE)
    peer = unstarted.peer()
    assert (peer.ask(CommandType.INFO).state, called(peer)["owner"]) == (State.LISTENING, "alice")
    _, stub = opened(unstarted, passed)
    assert stub.environment["KEEPFLEET_LIMITS"] == CLAIMED.limits.to_text()


def test_a_keep_that_is_no_spare_cannot_be_claimed(loader: LoaderProcess) -> None:
    assert claim_refused(loader.peer(), CLAIMED).kind is ErrorKind.CONFLICT
    with pytest.raises(KeepfleetError):
        loader.peer().ask(CommandType.CLAIM, "???")
