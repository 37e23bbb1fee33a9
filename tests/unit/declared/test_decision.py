"""The decision about declared keeps: for any state, its actions reach the wanted one, and then it has nothing to do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keep_manager.declared.decision import (
    ENDED,
    JITTER,
    LONGEST_PAUSE_SECONDS,
    STEADY_SECONDS,
    Action,
    Create,
    Failure,
    Life,
    Prove,
    Remove,
    RollBack,
    Seen,
    Wait,
    Wanted,
    decide,
    pause,
)
from keep_protocol.declared import DeclaredState
from keep_protocol.spec import RestartPolicy

NAMES, OWNERS, DIGESTS = ("a", "b", "c"), ("alice", "bob"), ("d1", "d2", "d3")
NOW = 10_000.0
LIVING = (Life.RUNNING, Life.UNKNOWN, Life.UNFINISHED)


def seen(kuuid: int = 1, life: Life = Life.RUNNING, digest: str = "d1", **members: float | str) -> Seen:
    """A keep of alice's `a`."""
    return Seen(kuuid, "a", "alice", digest, 0, life).replace(**members)


def want(restart: RestartPolicy = RestartPolicy.ALWAYS, digest: str = "d1", ready: float = 5.0) -> Wanted:
    """The specification of it."""
    return Wanted("a", "alice", 1, digest, restart, ready)


def do(wanted: Wanted, *keeps: Seen, now: float = NOW, failure: Failure | None = None) -> list[Action]:
    """What is decided for it."""
    return list(decide([wanted], keeps, now, {} if failure is None else {"a": failure}).actions)


def test_what_is_missing_is_made_and_what_runs_is_adopted() -> None:
    assert do(want()) == [Create("a")]
    assert do(want(), seen(since=NOW - 5)) == []


def test_the_new_one_is_ready_before_the_old_one_goes() -> None:
    old, new = seen(1, digest="d0"), seen(2, since=NOW - 1)
    assert do(want(), old) == [Create("a")]
    assert do(want(), old, new) == [Wait("a", NOW + 4)]
    assert do(want(), old, new, now=NOW + 4) == [Remove(1, "a", "it was replaced")]


def test_a_job_that_exited_0_is_ready() -> None:
    done = seen(2, Life.DONE, ran=0.1, ended=NOW)
    assert do(want(RestartPolicy.NO), seen(1, digest="d0"), done) == [Remove(1, "a", "it was replaced")]


def test_what_ends_before_it_is_ready_is_rolled_back() -> None:
    failed = seen(2, Life.FAILED, ran=4.9, ended=NOW, text="exited 3")
    assert do(want(), seen(1, digest="d0"), failed) == [RollBack("a", "d0", "it was not ready: exited 3")]


def test_what_cannot_be_made_is_rolled_back_where_it_is_to_blame_and_tried_again_where_the_host_is() -> None:
    old = seen(1, digest="d0")
    assert do(want(), old, failure=Failure("d1", "no module", NOW + 9, own=True)) == [RollBack("a", "d0", "no module")]
    assert do(want(), old, failure=Failure("d1", "full", NOW + 9)) == [Wait("a", NOW + 9)]
    assert do(want(), old, failure=Failure("d1", "full", NOW)) == [Create("a")]
    assert do(want(), failure=Failure("d0", "of another version", NOW + 9)) == [Create("a")]


@pytest.mark.parametrize(
    ("policy", "again"),
    [
        (RestartPolicy.NO, {Life.LOST}),
        (RestartPolicy.ON_FAILURE, {Life.LOST, Life.FAILED}),
        (RestartPolicy.ALWAYS, {Life.LOST, Life.FAILED, Life.DONE}),
    ],
)
def test_the_policy_says_what_runs_again(policy: RestartPolicy, again: set[Life]) -> None:
    for life in ENDED:
        actions = do(want(policy), seen(1, life, ended=0.0))
        assert [type(action) for action in actions] == ([Create] if life in again else []), life


def test_what_was_lost_with_its_host_is_there_again_without_a_pause() -> None:
    assert do(want(RestartPolicy.NO), seen(1, Life.LOST, ended=NOW, attempt=9)) == [Create("a")]


def test_pauses_grow_up_to_their_limit_and_never_give_up() -> None:
    pauses = [pause(attempt, 7) for attempt in range(1, 2000)]
    assert 1 <= pauses[0] <= 1 + JITTER
    assert pauses == sorted(pauses)
    assert LONGEST_PAUSE_SECONDS <= pauses[-1] <= LONGEST_PAUSE_SECONDS * (1 + JITTER)
    assert len({pause(3, kuuid) for kuuid in range(100)}) > 90
    last = seen(1, Life.FAILED, attempt=5, ended=NOW, ran=0.2)
    assert do(want(), last) == [Wait("a", NOW + pause(6, 1))]
    assert do(want(), last, now=NOW + pause(6, 1)) == [Create("a", 6)]


def test_a_long_run_is_forgiven_everything() -> None:
    last = seen(1, Life.FAILED, attempt=9, ended=NOW, ran=STEADY_SECONDS)
    assert do(want(), last, now=NOW + 2) == [Create("a", 1)]


def test_a_loader_that_does_not_answer_is_left_alone() -> None:
    decision = decide([want()], [seen(life=Life.UNKNOWN), seen(2, digest="d0")], NOW, {})
    assert (decision.actions, decision.standings["a"].state) == ((), DeclaredState.UNKNOWN)


def test_keeps_of_a_file_that_cannot_be_read_stay_and_those_of_none_go() -> None:
    assert decide([], [seen()], NOW, {}, unreadable=["a"]).actions == ()
    assert decide([], [seen()], NOW, {}).actions == (Remove(1, "a", "it is declared no more"),)


ALONE = want().replace(alone=True, ready_seconds=5.0)
PROBED = want(ready=0.0).replace(probe_seconds=30.0)


def test_where_one_has_a_volume_the_old_keep_ends_before_there_is_a_new_one() -> None:
    old = seen(1, digest="d0")
    assert do(ALONE, old) == [Remove(1, "a", "the volume is one keep's at a time"), Create("a")]
    assert do(ALONE.replace(pinned=False), old) == [Create("a")]  # which finds out the module, and makes no keep
    assert do(ALONE, seen(2, since=NOW - 5)) == [Prove("a", "d1")]
    assert do(ALONE.replace(proven=True), seen(2, since=NOW - 5)) == []


def test_where_the_old_keep_has_ended_what_was_ready_before_is_wanted_again() -> None:
    failed = seen(2, Life.FAILED, ran=4.9, ended=NOW, text="exited 3")
    back = ALONE.replace(back="d0")
    assert do(back, failed) == [RollBack("a", "d0", "it was not ready: exited 3")]
    assert do(back, failure=Failure("d1", "no such", NOW + 9, own=True)) == [RollBack("a", "d0", "no such")]
    for other in (ALONE, back.replace(proven=True), back.replace(goes_back=False)):
        assert do(other, failed) == [Wait("a", NOW + pause(1, 2))], other
    for life in (Life.LOST, Life.STOPPED):  # which says nothing of what it ran
        assert not any(isinstance(each, RollBack) for each in do(back, seen(2, life, ended=NOW))), life


def test_a_keep_with_a_probe_is_ready_when_its_output_says_so() -> None:
    old, new = seen(1, digest="d0"), seen(2, since=NOW - 1)
    assert do(PROBED, old, new) == [Wait("a", NOW + 29)]
    heard = new.replace(probed=True)
    assert do(PROBED, old, heard) == [Remove(1, "a", "it was replaced"), Prove("a", "d1")]
    assert do(PROBED.replace(proven=True), new) == []  # a later run of the same is not asked again


def test_a_keep_that_does_not_say_so_in_time_is_rolled_back_or_left_and_called_unready() -> None:
    old, new = seen(1, digest="d0"), seen(2, since=NOW - 30)
    why = "its output had no line that says it is ready within 30 s"
    assert do(PROBED, old, new) == [RollBack("a", "d0", f"it was not ready: {why}")]
    decision = decide([PROBED], [new], NOW, {})
    assert (decision.actions, decision.standings["a"].state) == ((), DeclaredState.UNREADY)
    assert decision.standings["a"].text == why
    alone = PROBED.replace(alone=True, back="d0")
    assert do(alone, new) == [RollBack("a", "d0", f"it was not ready: {why}")]
    ended = seen(2, Life.FAILED, ran=9.0, ended=NOW, text="exited 3")
    assert do(PROBED, old, ended) == [RollBack("a", "d0", "it was not ready: exited 3")]


def test_of_two_that_never_were_ready_the_manager_does_not_go_to_and_fro() -> None:
    one, other = seen(1, digest="d0"), seen(2, since=NOW - 30)
    assert [type(each) for each in do(PROBED, one, other)] == [RollBack]
    before = PROBED.replace(digest="d0", went_back=True)
    assert do(before, one, other) == [Remove(2, "a", "it was not ready")]
    assert decide([before], [one], NOW, {}).standings["a"].state is DeclaredState.UNREADY


def test_a_job_with_a_probe_that_exited_0_is_ready() -> None:
    done = seen(2, Life.DONE, ran=0.1, ended=NOW)
    assert do(PROBED.replace(restart=RestartPolicy.NO), done) == [Prove("a", "d1")]


_WANTED = st.builds(
    Wanted,
    st.sampled_from(NAMES),
    st.sampled_from(OWNERS),
    st.just(1),
    st.sampled_from(DIGESTS),
    st.sampled_from(tuple(RestartPolicy)),
    st.sampled_from([0.0, 5.0]),
    pinned=st.just(True),
    alone=st.booleans(),
    probe_seconds=st.sampled_from([None, 30.0]),
    proven=st.booleans(),
    back=st.sampled_from(["", *DIGESTS]),
).map(lambda one: one.replace(back="" if one.back == one.digest else one.back))
_TIME = st.sampled_from([0.0, 1.0, NOW - 400, NOW - 3, NOW])
_SEEN = st.builds(
    Seen,
    st.integers(1, 50),
    st.sampled_from(NAMES),
    st.sampled_from(OWNERS),
    st.sampled_from(DIGESTS),
    st.integers(0, 12),
    st.sampled_from(tuple(Life)),
    _TIME,
    st.sampled_from([0.0, 1.0, 5.0, 700.0]),
    _TIME,
    probed=st.booleans(),
)
_FAILURE = st.builds(Failure, st.sampled_from(DIGESTS), st.just("why"), st.sampled_from([0.0, NOW + 3]), st.booleans())


class Model:
    """A host that does what was decided. `starts_well`: whether new keeps run, or fail immediately."""

    def __init__(self, wanted: list[Wanted], keeps: list[Seen], failures: dict[str, Failure], works: bool) -> None:
        self.wanted = {one.name: one for one in wanted}
        self.keeps = {keep.kuuid: keep for keep in keeps}
        self.failures, self.works, self.now = dict(failures), works, NOW
        self.made = 100

    def living(self, name: str) -> list[Seen]:
        """The living keeps of the declared name's owner."""
        owner = self.wanted[name].owner
        return [
            each for each in self.keeps.values() if (each.name, each.owner) == (name, owner) and each.life in LIVING
        ]

    def step(self) -> list[Action]:
        """One round."""
        actions = list(decide(self.wanted.values(), self.keeps.values(), self.now, self.failures).actions)
        for action in actions:
            self._do(action)
        for kuuid, keep in list(self.keeps.items()):
            if keep.life is Life.UNKNOWN:  # it answers in the end
                self.keeps[kuuid] = keep.replace(life=Life.RUNNING, since=self.now)
        waits = [action.until for action in actions if isinstance(action, Wait)]
        self.now = max(self.now, min(waits)) if waits else self.now
        return actions

    def _do(self, action: Action) -> None:
        if isinstance(action, Create):
            one = self.wanted[action.name]
            before = self.living(action.name)
            assert len(before) <= 1 or all(each.digest != one.digest for each in before)
            assert all(each.digest != one.digest for each in before)
            assert not one.alone or not before
            self.made += 1
            life = Life.RUNNING if self.works else Life.FAILED
            self.keeps[self.made] = Seen(
                self.made, one.name, one.owner, one.digest, action.attempt, life, self.now, 0.0, self.now, probed=True
            )
        elif isinstance(action, Remove):
            del self.keeps[action.kuuid]  # KeyError: never twice
        elif isinstance(action, RollBack):
            one = self.wanted[action.name]
            back = one.back if one.alone else ""
            assert back == action.to or any(each.digest == action.to for each in self.living(action.name))
            self.wanted[action.name] = one.replace(digest=action.to, back="", proven=back == action.to, went_back=True)
        elif isinstance(action, Prove):
            one = self.wanted[action.name]
            assert (one.digest, one.proven) == (action.digest, False)
            self.wanted[action.name] = one.replace(proven=True)


def _unique(keeps: list[Seen]) -> list[Seen]:
    return list({keep.kuuid: keep for keep in keeps}.values())


@settings(deadline=None)  # thirty rounds on a busy host
@given(
    st.lists(_WANTED, unique_by=lambda one: one.name),
    st.lists(_SEEN).map(_unique),
    st.dictionaries(st.sampled_from(NAMES), _FAILURE),
)
def test_any_state_becomes_the_wanted_one_and_then_nothing_is_left_to_do(
    wanted: list[Wanted], keeps: list[Seen], failures: dict[str, Failure]
) -> None:
    model = Model(wanted, keeps, failures, works=True)
    for _ in range(30):
        if not [action for action in model.step() if not isinstance(action, Wait)] and not model.step():
            break
    assert model.step() == []
    decision = decide(model.wanted.values(), model.keeps.values(), model.now, model.failures)
    for name, one in model.wanted.items():
        living = model.living(name)
        finished = decision.standings[name].state in (DeclaredState.DONE, DeclaredState.FAILED, DeclaredState.STOPPED)
        assert len(living) == (0 if finished else 1)
        assert all(keep.digest == one.digest and keep.life is Life.RUNNING for keep in living)
    declared = {(one.name, one.owner) for one in model.wanted.values()}
    assert all((keep.name, keep.owner) in declared for keep in model.keeps.values())
    assert len(model.keeps) <= 2 * len(declared)  # one that lives, one that has ended


@settings(deadline=None)
@given(st.lists(_WANTED, unique_by=lambda one: one.name), st.lists(_SEEN).map(_unique), st.booleans())
def test_no_round_removes_the_only_one_that_runs_before_another_is_ready(
    wanted: list[Wanted], keeps: list[Seen], works: bool
) -> None:
    model = Model(wanted, keeps, {}, works)
    for _ in range(12):
        runs = {name: any(keep.life is Life.RUNNING for keep in model.living(name)) for name in model.wanted}
        model.step()
        for name, before in runs.items():
            done = any(keep.life in ENDED and keep.name == name for keep in model.keeps.values())
            assert not before or done or model.living(name) or model.wanted[name].alone


@given(st.lists(_WANTED, unique_by=lambda one: one.name), st.lists(_SEEN).map(_unique))
def test_the_same_state_decides_the_same(wanted: list[Wanted], keeps: list[Seen]) -> None:
    assert decide(wanted, keeps, NOW, {}) == decide(wanted, reversed(keeps), NOW, {})
