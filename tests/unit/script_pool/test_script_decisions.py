"""Which child runs, starts, ends or is killed, and which request is refused: for every pool that there can be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from script_pool.decisions import (
    HOLD_SECONDS,
    NEVER,
    Action,
    Assign,
    Child,
    Expire,
    Kill,
    Park,
    Phase,
    Refuse,
    Retire,
    Settings,
    Spawn,
    Waiting,
    decide,
    may_rest,
    may_wait,
    must_act_by,
    wake,
)

NOW = 1000.0
TIMES = st.sampled_from((NOW - 100, NOW - 5, NOW, NOW + 0.1, NOW + 50))


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Child], list[Waiting], Settings]:
    settings = Settings(
        minimum=(minimum := draw(st.integers(0, 3))),
        maximum=draw(st.integers(max(1, minimum), 4)),
        recycle_after=draw(st.integers(1, 5)),
        queue=draw(st.integers(0, 4)),
    )
    children = [
        Child(
            number,
            draw(st.sampled_from(Phase)),
            draw(TIMES.filter(lambda at: at <= NOW)),
            draw(st.none() | TIMES),
            draw(st.integers(0, 6)),
        )
        for number in range(draw(st.integers(0, settings.maximum)))
    ]
    for child in children:
        if child.phase is Phase.STARTING:
            child.until, child.runs = None, 0
        if child.phase is Phase.READY and child.until is None and draw(st.booleans()):
            child.held = draw(TIMES.filter(lambda at: at <= NOW))
    return (
        children,
        [Waiting(100 + n, draw(TIMES), draw(st.booleans())) for n in range(draw(st.integers(0, 8)))],
        settings,
    )


def apply(children: list[Child], queue: list[Waiting], actions: list[Action]) -> tuple[list[Child], list[Waiting]]:
    """What the pool does about them, with children that end immediately."""
    by_number, waiting = {child.number: child for child in children}, {item.ticket: item for item in queue}
    for action in actions:
        match action:
            case Assign(ticket, child):
                del waiting[ticket]
                by_number[child].until = NOW + 10
                by_number[child].runs += 1
            case Expire(ticket) | Refuse(ticket):
                del waiting[ticket]
            case Retire(child) | Kill(child):
                del by_number[child]
            case Park(child):
                by_number[child].held, by_number[child].until = None, NOW + 1
            case Spawn():
                number = max(by_number, default=0) + 1
                by_number[number] = Child(number, since=NOW)
    return list(by_number.values()), list(waiting.values())


@given(pools())
def test_nothing_is_decided_twice_and_nothing_is_left_to_decide(
    pool: tuple[list[Child], list[Waiting], Settings],
) -> None:
    children, queue, settings = pool
    for _ in range(10):  # what ends may be replaced
        actions = decide(children, queue, settings, NOW)
        tickets = [action.ticket for action in actions if isinstance(action, (Assign, Expire, Refuse))]
        numbers = [action.child for action in actions if isinstance(action, (Assign, Retire, Park, Kill))]
        assert max([*Counter(tickets).values(), *Counter(numbers).values()], default=1) == 1
        children, queue = apply(children, queue, actions)
        if not actions:
            break
    assert decide(children, queue, settings, NOW) == []
    assert wake(children, queue, settings, NOW) > NOW


class _Timer:
    def __init__(self, when: float) -> None:
        self._when = when

    def when(self) -> float:
        return self._when

    def cancelled(self) -> bool:
        return False


@given(pools(), st.data())
def test_where_a_child_may_rest_nothing_is_to_be_decided(
    pool: tuple[list[Child], list[Waiting], Settings], data: st.DataObject
) -> None:
    children, queue, settings = pool
    for _ in range(10):
        children, queue = apply(children, queue, decide(children, queue, settings, NOW))
    timer = _Timer(wake(children, queue, settings, NOW))
    busy = [child for child in children if child.until is not None]
    if not busy:
        return
    child = data.draw(st.sampled_from(busy))
    child.until, child.held, child.since = None, None, NOW
    if may_rest(child, queue, settings, timer):
        assert decide(children, queue, settings, NOW) == []
        assert wake(children, queue, settings, NOW) >= timer.when()
    for held, until in ((NOW, None), (None, NOW + 1)):
        child.held, child.until = held, until
        if may_wait(must_act_by(child) if held is None else held + HOLD_SECONDS, queue, timer):
            assert decide(children, queue, settings, NOW) == []
            assert wake(children, queue, settings, NOW) >= timer.when()


@given(pools())
def test_every_bound_holds(pool: tuple[list[Child], list[Waiting], Settings]) -> None:
    children, queue, settings = pool
    actions = decide(children, queue, settings, NOW)
    ending = {action.child for action in actions if isinstance(action, (Retire, Kill))}
    alive = [child for child in children if child.phase is not Phase.ENDING and child.number not in ending]
    assert len([action for action in actions if action == Spawn()]) <= max(0, settings.maximum - len(alive))
    assert len(queue) - sum(isinstance(action, (Assign, Expire, Refuse)) for action in actions) <= settings.queue
    by_number = {child.number: child for child in children}
    for action in actions:
        if isinstance(action, Assign):
            child = by_number[action.child]
            assert child.phase is Phase.READY
            assert child.until is None
            assert child.held is None
            assert child.runs < settings.recycle_after
        if isinstance(action, Retire):
            assert by_number[action.child].until is None


@given(pools())
def test_requests_run_in_their_order_and_the_last_are_refused(
    pool: tuple[list[Child], list[Waiting], Settings],
) -> None:
    children, queue, settings = pool
    actions = decide(children, queue, settings, NOW)
    alive = [item for item in queue if item.deadline > NOW]
    ready = [item.ticket for item in alive if item.ready]
    assigned = [action.ticket for action in actions if isinstance(action, Assign)]
    assert assigned == ready[: len(assigned)]
    assert {action.ticket for action in actions if isinstance(action, Expire)} == {
        item.ticket for item in queue if item.deadline <= NOW
    }
    left = [item.ticket for item in alive if item.ticket not in assigned]
    assert [action.ticket for action in actions if isinstance(action, Refuse)] == left[settings.queue :]


@pytest.mark.parametrize(
    ("child", "killed"),
    [
        (Child(1, Phase.READY, until=NOW - 0.2), False),
        (Child(1, Phase.READY, until=NOW - 0.25), True),
        (Child(1, Phase.STARTING, since=NOW - 9), False),
        (Child(1, Phase.STARTING, since=NOW - 10), True),
        (Child(1, Phase.ENDING, since=NOW - 1), True),
        (Child(1, Phase.ENDING, since=NOW - 100, killed=True), False),
    ],
)
def test_a_child_is_killed_that_does_not_do_its_part_in_time(child: Child, killed: bool) -> None:
    assert (Kill(1) in decide([child], [], Settings(), NOW)) is killed


def test_a_child_is_started_for_each_request_up_to_the_maximum() -> None:
    queue = [Waiting(n, NEVER) for n in range(5)]
    assert decide([], queue, Settings(1, 3), NOW) == [Spawn()] * 3
    assert decide([Child(1, since=NOW)], queue, Settings(1, 3), NOW) == [Spawn()] * 2
    assert decide([], queue, Settings(1, 3), NOW, spawn_from=NOW + 1) == []
    assert wake([], queue, Settings(1, 3), NOW, NOW + 1) == NOW + 1


def test_a_request_whose_code_is_being_prepared_keeps_its_place_and_holds_up_no_other() -> None:
    queue = [Waiting(1, NEVER, ready=False), Waiting(2, NEVER)]
    assert decide([Child(7, Phase.READY, NOW)], queue, Settings(), NOW) == [Assign(2, 7)]


def test_idle_children_above_the_minimum_end_and_the_minimum_stays() -> None:
    idle = [Child(n, Phase.READY, NOW - 60 - n) for n in range(3)]
    assert [type(action) for action in decide(idle, [], Settings(1, 3), NOW)] == [Retire, Retire]
    assert decide([], [], Settings(2, 3), NOW, draining=True) == []


def test_a_child_that_has_run_its_number_is_replaced() -> None:
    assert decide([Child(4, Phase.READY, NOW, runs=1000)], [], Settings(), NOW) == [Retire(4), Spawn()]


@pytest.mark.parametrize("wrong", [{"minimum": 3}, {"maximum": 0}, {"queue": -1}, {"deadline_seconds": float("nan")}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cannot make a pool: "):
        Settings(**wrong)  # type: ignore[arg-type]


def test_a_run_that_waits_is_parked_when_another_needs_its_child_or_after_a_while() -> None:
    holding = Child(1, Phase.READY, held=NOW - 0.01)
    assert decide([holding], [], Settings(1, 1), NOW) == []
    assert wake([holding], [], Settings(1, 1), NOW) == NOW - 0.01 + HOLD_SECONDS
    assert decide([holding], [Waiting(1, NOW + 1)], Settings(1, 1), NOW) == [Park(1)]
    assert decide([Child(1, Phase.READY, held=NOW - 1)], [], Settings(1, 1), NOW) == [Park(1)]
