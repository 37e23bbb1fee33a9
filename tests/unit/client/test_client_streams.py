"""Server-sent events: parsed whole from any pieces, bounded, and resumed where a connection broke off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from keep_client.connection import ALIVE, RETRY_SECONDS, EventParser, Patience, ServerEvent, resumed
from keep_client.manager import ManagerClient
from keep_client.peer import ConnectionFailed
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.sse import MAX_EVENT_BYTES, EventType, KeepEvent, LogLine
from keep_protocol.states import State
from tests.fakes.manager_in_memory import ManagerInMemory

STREAM = b': alive\r\n\r\nid: 1\nevent: line\ndata: {"a":\ndata: 1}\n\nevent: end\ndata: {}\n\nretry: 3\nid:2\n\n'
LOST = ConnectionFailed(ErrorKind.UNAVAILABLE, "lost")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_the_same_in_whatever_pieces_they_come(size: int) -> None:
    parser = EventParser("the manager")
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert events == [ServerEvent("line", {"a": 1}, "1"), ServerEvent("end", {}, "")]


@pytest.mark.parametrize("data", [b"data: " + b"x" * MAX_EVENT_BYTES, b"data: 1\n" * MAX_EVENT_BYTES])
def test_an_event_without_end_is_given_up(data: bytes) -> None:
    with pytest.raises(KeepfleetError) as raised:
        list(EventParser("the manager").feed(data))
    assert raised.value.kind is ErrorKind.TOO_LARGE


def test_an_event_that_is_no_json_object_is_refused() -> None:
    with pytest.raises(KeepfleetError, match="cannot read the stream of the manager"):
        list(EventParser("the manager").feed(b"data: [1]\n\n"))


def test_a_lost_stream_goes_on_after_the_last_id() -> None:
    asked: list[str] = []

    def connect(after: str) -> Iterator[ServerEvent]:
        asked.append(after)
        yield ServerEvent("line", {}, str(len(asked)))
        if len(asked) < 3:
            raise LOST

    assert len(list(resumed(connect, Patience(60, lambda seconds: None), "0"))) == 3
    assert asked == ["0", "1", "2"]


def test_a_stream_that_cannot_be_made_again_is_given_up_after_the_time_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    tried: list[str] = []

    def connect(after: str) -> Iterator[ServerEvent]:
        tried.append(after)
        if len(tried) == 1:
            yield ServerEvent("line", {}, "7")
        raise LOST

    def pause(seconds: float) -> None:
        """Time passes for those alone who look at the clock."""
        paused.append(seconds)
        now[0] += seconds

    now = [1000.0]
    monkeypatch.setattr("keep_client.connection.time.monotonic", lambda: now[0])
    with pytest.raises(ConnectionFailed, match="; it was waited for for 9 seconds"):
        list(resumed(connect, Patience(9, pause)))
    assert tuple(paused[:-1]) == (*RETRY_SECONDS, RETRY_SECONDS[-1], RETRY_SECONDS[-1])
    assert sum(paused) == pytest.approx(9.0)
    assert set(tried[1:]) == {"7"}


def test_the_first_connection_is_not_tried_twice() -> None:
    def connect(after: str) -> Iterator[ServerEvent]:
        raise LOST
        yield

    with pytest.raises(ConnectionFailed):
        list(resumed(connect, Patience(60, lambda seconds: pytest.fail("it paused"))))


def test_the_first_connection_is_tried_again_by_the_patient_and_signs_of_life_renew_the_tries() -> None:
    tried: list[str] = []

    def connect(after: str) -> Iterator[ServerEvent]:
        tried.append(after)
        if len(tried) < 3 * len(RETRY_SECONDS):
            if len(tried) % len(RETRY_SECONDS) == 0:
                yield ALIVE
            raise LOST
        yield ServerEvent("line", {}, "1")

    assert list(resumed(connect, Patience(60, lambda seconds: None), patient=True)) == [ServerEvent("line", {}, "1")]


def test_a_followed_stream_that_ends_before_its_end_is_made_again(
    client: ManagerClient, fake: ManagerInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kuuid = client.create().kuuid
    fake.lines[kuuid] = [LogLine(float(n), "stdout", f"line {n}") for n in range(3)]
    fake.break_off_after, fake.break_off_politely = [1, 1], True
    assert [line.text for line in client.lines(kuuid, follow=True)] == ["line 0", "line 1", "line 2"]


def test_a_keeps_lines_come_once_each_and_in_order_over_two_broken_connections(
    client: ManagerClient, fake: ManagerInMemory
) -> None:
    kuuid = client.create().kuuid
    fake.lines[kuuid] = [LogLine(float(n), "stdout", f"line {n}") for n in range(9)]
    fake.break_off_after = [4, 3]
    lines = list(client.lines(kuuid, follow=True))
    assert [line.text for line in lines] == [f"line {n}" for n in range(9)]
    assert [headers.get("last-event-id") for headers in fake.headers[1:]] == [None, "c=4", "c=7"]


def test_the_last_lines_alone_can_be_asked_for(client: ManagerClient, fake: ManagerInMemory) -> None:
    kuuid = client.create().kuuid
    fake.lines[kuuid] = [LogLine(float(n), "stdout", f"line {n}") for n in range(9)]
    assert [line.text for line in client.lines(kuuid, last=2)] == ["line 7", "line 8"]
    assert fake.requests[-1] == f"GET /v1/keeps/{kuuid}/logs?lines=2"


def test_the_lines_of_no_keep_are_the_managers_refusal(client: ManagerClient) -> None:
    with pytest.raises(KeepfleetError) as raised:
        list(client.lines(12))
    assert raised.value.kind is ErrorKind.NOT_FOUND


def test_what_happens_to_keeps_is_said_and_taken_up_where_it_broke_off(
    client: ManagerClient, fake: ManagerInMemory
) -> None:
    keep = client.create()
    fake.happened = [KeepEvent(1.0, EventType.CREATED, keep), KeepEvent(2.0, EventType.REMOVED, keep, "alice")]
    fake.break_off_after = [1]
    with closing(client.events(keep.kuuid, 2)) as events:
        seen = [next(events), next(events)]
    assert [(event.at, event.type, event.by, event.cursor) for event in seen] == [
        (1.0, EventType.CREATED, "", "c=1"),
        (2.0, EventType.REMOVED, "alice", "c=2"),
    ]
    assert fake.requests[-2:] == [f"GET /v1/events?keep={keep.kuuid}&lines=2&follow=true"] * 2
    assert fake.headers[-1]["last-event-id"] == "c=1"
    assert len(list(client.events(follow=False))) == 2


def test_keeps_come_page_by_page_and_by_label(
    client: ManagerClient, fake: ManagerInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keep_client.manager.PAGE", 2)
    made = [client.create(name=f"n-{n}", labels={"odd": str(n % 2)}) for n in range(5)]
    assert client.keeps() == tuple(made)
    assert client.keeps({"odd": "1"}) == (made[1], made[3])


@pytest.mark.parametrize("following", ["7", 0, [1]])
def test_a_next_page_that_does_not_lead_on_is_refused(
    client: ManagerClient, fake: ManagerInMemory, monkeypatch: pytest.MonkeyPatch, following: object
) -> None:
    monkeypatch.setattr(fake, "_answer", lambda *_: (200, {"keeps": [], "next": following}))
    with pytest.raises(KeepfleetError, match="'next' must be a later ID"):
        client.keeps()


def test_a_creation_names_its_members_and_its_key(client: ManagerClient, fake: ManagerInMemory) -> None:
    keep = client.create(name="n", labels={"a": "b"}, limits={"tasks": 20}, idempotency_key="k1")
    assert (keep.name, keep.labels, keep.limits.tasks) == ("n", (("a", "b"),), 20)
    assert fake.headers[-1]["idempotency-key"] == "k1"
    with pytest.raises(KeepfleetError, match="printable text"):
        client.create(idempotency_key="a\r\nb: c")


def test_a_start_says_what_its_guest_is_given(client: ManagerClient, fake: ManagerInMemory) -> None:
    kuuid = client.create().kuuid
    client.start(kuuid, "127.0.0.1", None, workload={"arguments": ["a"]})
    assert fake.workloads[kuuid] == {"arguments": ["a"]}


def test_the_end_is_waited_for_and_a_manager_away_for_a_moment_asked_again(
    client: ManagerClient, fake: ManagerInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kuuid = client.create().kuuid
    paused: list[float] = []
    outcome = Outcome(OutcomeKind.EXITED, "exited 0", exit_code=0)

    def away(*_: object) -> object:
        fake.change(kuuid, state=State.COMPLETE, outcome=outcome)
        monkeypatch.undo()
        raise LOST

    monkeypatch.setattr("keep_client.connection.time.sleep", paused.append)
    monkeypatch.setattr(client, "changed", away)
    assert client.ended(kuuid).outcome == outcome


def test_a_long_wait_is_said_with_its_reason_and_its_end_and_a_short_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    now = [1000.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("keep_client.connection.time.monotonic", lambda: now[0])
    patience = Patience(60, pause, said.append)
    for away in (3, 6):
        for _ in range(away):
            patience.wait(LOST)
        patience.renew()
    patience.renew()
    assert said == [
        "waiting, 2 of at most 60 s: lost",
        "waiting, 4 of at most 60 s: lost",
        "",
    ]


def test_a_wait_that_is_interrupted_or_in_vain_leaves_nothing_of_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = [1000.0]

    def pause(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 1005:
            raise KeyboardInterrupt

    monkeypatch.setattr("keep_client.connection.time.monotonic", lambda: now[0])
    for most, error in ((4, ConnectionFailed), (60, KeyboardInterrupt)):
        patience = Patience(most, pause, said.append)
        with pytest.raises(error):
            for _ in range(10):
                patience.wait(LOST)
        assert said[-2].startswith("waiting, ") and said[-1] == ""
