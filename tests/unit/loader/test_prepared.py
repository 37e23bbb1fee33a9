"""What is forked before a start: the start uses it, or does without."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from keep_protocol.errors import KeepfleetError
from keep_protocol.reports import decode_begin, encode_begin
from keep_protocol.spec import SPEC_VARIABLE, START_VARIABLE, KeepSpec, encode_spec
from tests.fakes.loader_process import DEADLINE, Endpoint, LoaderProcess, opened

SPARE = {SPEC_VARIABLE: encode_spec(KeepSpec(spare=True))}


def children(loader: LoaderProcess) -> list[int]:
    assert loader.process is not None
    pid = loader.process.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def prepared(loader: LoaderProcess) -> list[int]:
    """The endpoint's and the runner's fork. A loader that answers has forked them."""
    loader.peer().claims()
    return children(loader)


def ended(pid: int, how: int | None = None) -> bool:
    """Waits until a process that is not ours has ended; first sends it a signal."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if how is not None:
            signal.pidfd_send_signal(watch, how)
        return bool(select.select([watch], [], [], DEADLINE)[0])
    finally:
        os.close(watch)


def test_a_start_of_a_spare_finds_its_endpoint_and_its_runner_forked(
    unstarted: LoaderProcess, passed: Endpoint
) -> None:
    unstarted.start(environment=SPARE)
    waiting = prepared(unstarted)
    _, endpoint = opened(unstarted, passed)
    runner = endpoint.connect()
    assert [endpoint.pid, runner.pid] == waiting
    assert endpoint.names == ["listener", "client-ca", "revoked", "checks"]
    assert [Path(f"/proc/{stub.pid}/comm").read_text().strip() for stub in (endpoint, runner)] == [
        "keep-endpoint",
        "keep-runner",
    ]


def test_it_is_given_what_a_fork_of_the_start_would_be_given(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment=SPARE)
    prepared(unstarted)
    _, endpoint = opened(unstarted, passed)
    first = endpoint.connect()
    endpoint.order("exit", code=1)  # which ends the runner, too: one that ended before it would be replaced
    again = unstarted.stub()
    again.listen()
    for one, other in ((endpoint, again), (first, again.connect())):
        ours, theirs = dict(one.environment), dict(other.environment)
        more = {*theirs.pop("KEEPFLEET_DESCRIPTORS").split(",")} - {*ours.pop("KEEPFLEET_DESCRIPTORS").split(",")}
        assert (one.role, ours) == (other.role, theirs)
        assert more == ({"identity"} if one is endpoint else set()), "its key was made, which the next one gets"
        assert len(one.descriptors) + len(more) == len(other.descriptors)


def test_where_a_start_follows_its_endpoint_is_forked_before_ready(unstarted: LoaderProcess, passed: Endpoint) -> None:
    unstarted.start(environment={START_VARIABLE: "1"})
    (waiting,) = children(unstarted)  # READY has been seen
    _, endpoint = opened(unstarted, passed)
    runner = endpoint.connect()
    assert endpoint.pid == waiting
    assert children(unstarted) == [waiting, runner.pid]


def test_a_keep_that_is_no_spare_forks_nothing_before_its_start(loader: LoaderProcess) -> None:
    assert prepared(loader) == []


@pytest.mark.parametrize("which", [0, 1], ids=["endpoint", "runner"])
def test_a_fork_that_has_died_is_done_without(unstarted: LoaderProcess, passed: Endpoint, which: int) -> None:
    unstarted.start(environment=SPARE)
    victim = prepared(unstarted)[which]
    assert ended(victim, signal.SIGKILL)
    peer, endpoint = opened(unstarted, passed)
    runner = endpoint.connect()
    assert victim not in (endpoint.pid, runner.pid)
    endpoint.accept()
    assert peer.claims()


def test_what_waits_ends_with_its_loader(unstarted: LoaderProcess) -> None:
    unstarted.start(environment=SPARE)
    waiting = prepared(unstarted)
    unstarted.end(signal.SIGKILL)
    assert all(map(ended, waiting))


def test_a_loader_that_is_ended_before_a_start_ends_well(unstarted: LoaderProcess) -> None:
    unstarted.start(environment=SPARE)
    waiting = prepared(unstarted)
    assert unstarted.end(signal.SIGTERM) == 0
    assert all(map(ended, waiting))


@pytest.mark.parametrize("packet", [b"", b"[]", b'{"name":"x","environment":{"A":1},"descriptors":[]}'])
def test_what_is_not_understood_begins_nothing(packet: bytes) -> None:
    with pytest.raises(KeepfleetError):
        decode_begin(packet)


def test_what_to_begin_with_is_read_as_it_was_written() -> None:
    written = "keep-runner", {"PATH": "/bin"}, ("checks", "workload")
    assert decode_begin(encode_begin(*written)) == written
