"""What follows from what is known: no I/O, no fakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app_loader.receive.requests import STATUS_OF as STATUS_OF_A_KEEP
from keep_loader.settings import ENTRIES
from keep_manager.callers import CallerEntry, GrantRoot
from keep_manager.http.middleware import STATUS_OF, legacy_body
from keep_manager.keeps import decide
from keep_manager.keeps.decide import census
from keep_manager.keeps.policy import DEFAULT_CEILINGS, REGISTRY, Policy, limits_for, uploaders_for
from keep_manager.model import Allowance, Caller, LoaderGone, UnitEnd, UnitState
from keep_manager.systemd import replies
from keep_manager.systemd.properties import keep_properties, spec_in
from keep_manager.systemd.replies import Aim
from keep_protocol.constants import KUUID_BITS, slice_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo, KeepReport, Outcome, OutcomeKind
from keep_protocol.limits import DEFAULTS, MIB, Limits
from keep_protocol.spec import KeepSpec, Kind, Profile, encode_spec
from keep_protocol.states import State
from tests.fakes.callers import STRANGER

SILENT = KeepfleetError(ErrorKind.UNAVAILABLE, "cannot reach the loader of keep 5: no answer")
LYING = KeepfleetError(ErrorKind.KEEP_FAILED, "cannot trust the loader of keep 5: it says it is 6")
GONE = LoaderGone(ErrorKind.UNAVAILABLE, "cannot reach the loader of keep 5: Connection reset by peer")


def unit(active: str = "active", sub: str = "running", load: str = "loaded", job: str = "") -> UnitState:
    return UnitState(5, load, active, sub, job)


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (unit(), True),
        (unit("failed", "failed"), True),
        (unit("activating", "start"), True),
        (unit("deactivating", "stop-sigterm"), True),
        (unit("inactive", "dead"), False),
        (unit("inactive", "dead", job="start"), True),
        (unit("inactive", "dead", "not-found"), False),
        (unit("active", "running", "bad-setting"), False),
    ],
)
def test_a_unit_is_a_keep_unless_it_only_lingers(state: UnitState, kept: bool) -> None:
    assert decide.is_keep(state) is kept


@pytest.mark.parametrize(
    ("state", "reason", "error", "shown", "detail"),
    [
        (unit("activating", "start"), "success", None, State.UNDEFINED, "starting: the unit is activating (start)"),
        (unit("activating", "auto-restart"), "signal", None, State.UNDEFINED, "restarting: its loader has"),
        (unit("inactive", "dead", job="start"), "", None, State.UNDEFINED, "starting: the unit is inactive (dead)"),
        (unit("failed", "failed"), "exit-code", None, State.ERROR, "the unit is failed (failed, exit-code)"),
        (unit(), "success", SILENT, State.UNDEFINED, "no answer; the unit is active (running)"),
        (unit(), "success", LYING, State.ERROR, "it says it is 6; the unit is active (running)"),
        (unit(), "success", GONE, State.UNDEFINED, "restarting: its loader has just ended; the unit is"),
        (unit("failed", "failed"), "exit-code", GONE, State.ERROR, "the unit is failed (failed, exit-code)"),
        (unit("activating", "start"), "success", GONE, State.UNDEFINED, "starting: the unit is activating (start)"),
        (unit("deactivating", "stop-sigterm"), "", None, State.UNDEFINED, "restarting: its loader has just ended"),
        (unit("deactivating", "stop-sigterm", job="stop"), "", GONE, State.UNDEFINED, "stopping: the unit is"),
    ],
)
def test_a_silent_keep_is_shown_with_its_unit_s_state(
    state: UnitState, reason: str, error: KeepfleetError | None, shown: State, detail: str
) -> None:
    report = decide.silent(state, UnitEnd(reason), error, KeepSpec(), None)
    assert (report.kuuid, report.state) == (5, shown)
    assert detail in report.detail


def test_a_keep_whose_loader_is_slow_stays_as_it_was() -> None:
    last = KeepReport(State.STARTED, 5, 3031, "127.0.0.1", "awaiting-workload")
    assert decide.silent(unit(), UnitEnd("success"), SILENT, KeepSpec(), last) == last


RAN = Outcome(OutcomeKind.EXITED, "exited 3", exit_code=3, started_at=5.0, ended_at=6.0)
AUTO_RESTART = unit("activating", "auto-restart")


@pytest.mark.parametrize(
    ("last", "end", "state", "phase", "detail"),
    [
        # A workload that is run again and again, seen before and not seen before.
        (
            KeepReport(State.STARTED, 5, phase="restarting", outcome=RAN),
            UnitEnd("exit-code", 75, 3),
            State.STARTED,
            "restarting",
            "restarting: the workload exited 3; the unit is activating (auto-restart, exit-code), "
            "started again 3 times",
        ),
        (
            None,
            UnitEnd("exit-code", 75, 1),
            State.STARTED,
            "restarting",
            "restarting: the unit is activating (auto-restart, exit-code)",
        ),
        # A loader that fails: its keep is what it was, and the next loader takes over.
        (
            KeepReport(State.STARTED, 5, 3031, "127.0.0.1", "awaiting-workload"),
            UnitEnd("signal", 9, 2),
            State.STARTED,
            "",
            "restarting: its loader has just ended; the unit is activating (auto-restart, signal), "
            "started again 2 times",
        ),
        (
            None,
            UnitEnd("exit-code", 1),
            State.UNDEFINED,
            "",
            "restarting: its loader has just ended; the unit is activating (auto-restart, exit-code)",
        ),
    ],
)
def test_a_crash_loop_is_shown_as_what_it_is(
    last: KeepReport | None, end: UnitEnd, state: State, phase: str, detail: str
) -> None:
    report = decide.silent(AUTO_RESTART, end, None, KeepSpec(), last)
    assert (report.state, report.phase, report.detail) == (state, phase, detail)
    if last is not None:
        assert (report.address, report.outcome) == (last.address, last.outcome)


def test_what_a_unit_says_of_a_keep_counts_and_what_its_loader_claims_only_without_that() -> None:
    spec, claims = KeepSpec(name="mine", owner="alice"), KeepSpec(name="other")
    assert decide.adopted(spec, claims) is spec
    assert decide.adopted(None, claims) is claims


@pytest.mark.parametrize(
    ("address", "port", "ports"),
    [
        ("127.0.0.1", 3031, [3031, 3032, 3033]),
        ("127.0.0.1", 3032, [3032, 3033, 3031]),
        ("127.0.0.1", 80, [80, 3031, 3032, 3033]),
        ("127.0.0.1", 9000, [9000, 3031, 3032, 3033]),
        ("127.0.0.2", 3031, [3031]),
        ("::1", 3031, [3031]),
        ("0.0.0.0", 3031, [3031]),
        ("127.0.0.1", None, [3031, 3032, 3033]),
        ("192.0.2.7", None, [3031, 3032, 3033]),
    ],
)
def test_a_port_that_was_asked_for_moves_on_127_0_0_1_alone(address: str, port: int | None, ports: list[int]) -> None:
    assert list(decide.candidate_ports(address, port, 3031, 3033)) == ports


@pytest.mark.parametrize("state", [state for state in State if state is not State.LISTENING])
def test_only_a_listening_keep_may_be_started(state: State) -> None:
    with pytest.raises(KeepfleetError) as caught:
        decide.refuse_start(KeepInfo(5, state, "why"))
    assert caught.value.kind is ErrorKind.CONFLICT
    decide.refuse_start(KeepInfo(5, State.LISTENING))


def test_a_keep_whose_isolation_check_failed_is_not_started() -> None:
    with pytest.raises(KeepfleetError) as caught:
        decide.refuse_start(KeepInfo(5, State.LISTENING, isolation_failures=("the bus answers",)))
    assert caught.value.kind is ErrorKind.ISOLATION_FAILURE
    assert caught.value.evidence == ("the bus answers",)


@pytest.mark.parametrize(("kuuid", "free"), [(0, False), (1, True), (7, False), (2**53 - 1, True), (2**53, False)])
def test_an_id_is_whole_not_zero_and_not_taken(kuuid: int, free: bool) -> None:
    assert decide.check_kuuid_free(kuuid, {7}) is free


def test_a_census_counts_and_says_what_is_wrong() -> None:
    found = census(
        [
            KeepInfo(1, State.LISTENING),
            KeepInfo(2, State.STARTED),
            KeepInfo(3, State.ERROR, "no answer", unit="keep@3.service"),
        ]
    )
    assert str(found) == "3 keeps, 1 started, 1 in error"
    assert found.troubled == ("keep@3.service: no answer",)
    assert str(census([])) == "0 keeps, 0 started"


SPEC = KeepSpec(
    name="web", owner="alice", limits=Limits(tasks=40, cpu_percent=50), labels=(("a", "[Service] $HOME %n"),)
)


ROOT, GROUPS = "/var/lib/keepfleet/root-0123456789abcdef/tree", "/sys/fs/cgroup"
OWN_GROUP = f"{GROUPS}/keep.slice/keep-g01.slice/keep@33.service"


def test_a_unit_gets_its_name_slice_limits_spec_and_root_and_nothing_else() -> None:
    properties = {name: value for name, _, value in keep_properties(33, SPEC, ROOT, GROUPS)}
    assert properties == {
        "Description": "Keep web of alice",
        "Slice": "keep-g01.slice",
        "MemoryMax": (1536 + 256) * MIB,
        "TasksMax": 40,
        "CPUQuotaPerSecUSec": 500_000,
        "IOWeight": 100,
        "LogRateLimitBurst": 2064,
        "LogExtraFields": [b"KEEP_ID=33", b"KEEP_NAME=web", b"KEEP_OWNER=alice"],
        "Environment": [f"KEEPFLEET_SPEC={encode_spec(SPEC)}"],
        "RootDirectory": ROOT,
        "BindReadOnlyPaths": [[OWN_GROUP, "/keepfleet/cgroup", True, 0]],
    }


def test_a_unit_says_whether_a_start_follows() -> None:
    found = {name: value for name, _, value in keep_properties(33, SPEC, ROOT, GROUPS, start_follows=True)}
    assert found["Environment"] == [f"KEEPFLEET_SPEC={encode_spec(SPEC)}", "KEEPFLEET_START_FOLLOWS=1"]
    assert spec_in(found["Environment"], "keep@33.service") == SPEC


def test_a_unit_without_a_root_names_none() -> None:
    assert not {name for name, _, _ in keep_properties(33, SPEC, None, GROUPS)} & {"RootDirectory", "BindReadOnlyPaths"}


def test_a_strict_keep_s_unit_has_no_memory_that_becomes_executable_and_another_s_says_nothing_of_it() -> None:
    strict = {name: value for name, _, value in keep_properties(33, SPEC.replace(profile=Profile.STRICT), None, GROUPS)}
    assert strict["MemoryDenyWriteExecute"] is True
    assert "MemoryDenyWriteExecute" not in {name for name, _, _ in keep_properties(33, SPEC, None, GROUPS)}


def test_the_spec_is_read_back_and_what_cannot_be_read_is_none() -> None:
    environment = next(value for name, _, value in keep_properties(33, SPEC, ROOT, GROUPS) if name == "Environment")
    assert spec_in(environment, "keep@33.service") == SPEC
    for nothing in ([], None, ["LANG=C.UTF-8"], ["KEEPFLEET_SPEC=!"], ["KEEPFLEET_SPEC="], [5]):
        assert spec_in(nothing, "keep@33.service") is None


def test_a_keep_without_a_name_is_described_by_its_id() -> None:
    properties = {name: value for name, _, value in keep_properties(33, KeepSpec(owner="alice"), ROOT, GROUPS)}
    assert properties["Description"] == "Keep 33 of alice"
    assert properties["LogExtraFields"] == [b"KEEP_ID=33", b"KEEP_OWNER=alice"]


@pytest.mark.parametrize("text", ["a\n[Service]", "a b", "%n", "é", "$x", "a" * 65])
def test_no_word_that_is_not_safe_reaches_a_unit(text: str) -> None:
    for spec in (KeepSpec(name=text), KeepSpec(owner=text)):
        with pytest.raises(ValueError):
            keep_properties(33, spec, ROOT, GROUPS)


@pytest.mark.parametrize(("state", "why"), [("masked", "is masked; unmask it"), ("static", "remove that file")])
def test_a_template_that_is_masked_or_has_a_file_is_said(state: str, why: str) -> None:
    error = replies.not_pristine(state, "keep@.service", "start keep@5.service")
    assert error.kind is ErrorKind.CONFIGURATION
    assert why in error.message


def test_nothing_the_manager_sets_stands_in_an_installed_drop_in_which_would_win() -> None:
    names = {"MemoryDenyWriteExecute", "MemoryMax", "TasksMax", "CPUQuota", "IOWeight", "LogRateLimitBurst", "Slice"}
    names |= {"Description", "LogExtraFields"}
    root = Path(__file__).resolve().parents[3] / "units"
    files = list(root.glob("*/keep@.service.d/*.conf"))
    assert len(files) == 2
    for file in files:
        set_there = {line.partition("=")[0] for line in file.read_text().splitlines() if not line.startswith("#")}
        assert not set_there & names, file


def test_a_job_s_end_is_read_and_anything_else_is_not() -> None:
    end = replies.job_end([7, "/job/7", "keep@5.service", "done"])
    assert end == replies.JobEnd("/job/7", "keep@5.service", "done")
    assert replies.job_end([7, "/job/7", "keep@5.service"]) is None
    assert replies.job_end(["x", 1, 2, 3]) is None


def test_units_that_are_no_keeps_are_left_out() -> None:
    def row(name: object) -> list[object]:
        return [name, "d", "loaded", "active", "running", "", "/u", 3, "start", "/job"]

    rows = [row("keep@5.service"), row("keep@05.service"), row("keep@x.service"), row("keep@9007199254740992.service")]
    assert replies.unit_states([*rows, row(5), ["short"], 7]) == [UnitState(5, "loaded", "active", "running", "start")]
    assert replies.unit_states("nonsense") == []


@pytest.mark.parametrize(
    ("state", "start", "stop"),
    [
        (None, "failed", "done"),
        (unit("failed", "failed"), "failed", "done"),
        (unit("inactive", "dead"), "failed", "done"),
        (unit("inactive", "dead", job="start"), None, None),
        (unit("activating", "start", job="start"), None, None),
        (unit("deactivating", "stop-sigterm", job="stop"), "canceled", None),
        (unit("active", "running", job="stop"), "canceled", None),
        (unit("active", "running", "not-found"), "failed", "done"),
        (unit(), "done", None),
        (unit("reloading", "reload"), "done", None),
        (unit("activating", "start"), None, None),
        (unit("deactivating", "stop"), None, None),
    ],
)
def test_a_lost_job_is_judged_by_its_unit(state: UnitState | None, start: str | None, stop: str | None) -> None:
    assert replies.settled(state, Aim.START) == start
    assert replies.settled(state, Aim.STOP) == stop


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("org.freedesktop.systemd1.UnitExists", ErrorKind.CONFLICT),
        ("org.freedesktop.systemd1.NoSuchUnit", ErrorKind.NOT_FOUND),
        ("org.freedesktop.systemd1.BadUnitSetting", ErrorKind.CONFIGURATION),
        ("org.freedesktop.DBus.Error.AccessDenied", ErrorKind.SYSTEMD),
        ("org.example.Unheard", ErrorKind.SYSTEMD),
    ],
)
def test_systemd_s_errors_have_our_kinds(name: str, kind: ErrorKind) -> None:
    error = replies.translate(name, "text", "start keep@5.service")
    assert error.kind is kind
    assert error.message.startswith("cannot start keep@5.service: systemd says: text")
    assert ("run keepctl install" in error.message) is (kind is ErrorKind.CONFIGURATION)


@pytest.mark.parametrize("result", ["failed", "timeout", "canceled", "dependency", "skipped"])
def test_every_job_result_but_done_is_an_error_with_its_evidence(result: str) -> None:
    error = replies.failure(result, "start keep@5.service", ("line",))
    assert error.message.startswith("cannot start keep@5.service: ")
    assert error.evidence == ("line",)


def test_every_kind_of_error_has_its_status() -> None:
    assert set(STATUS_OF) == set(ErrorKind)
    assert all(status >= 400 for status in STATUS_OF.values())


def test_a_kind_of_error_has_one_status_in_the_manager_and_in_a_keep() -> None:
    assert {kind: int(STATUS_OF[kind]) for kind in STATUS_OF_A_KEEP} == STATUS_OF_A_KEEP


def test_the_original_s_answer_to_an_unknown_command_is_kept() -> None:
    assert legacy_body(KeepfleetError(ErrorKind.UNKNOWN_COMMAND, "cannot")) == {"text": "undefined"}
    assert legacy_body(KeepfleetError(ErrorKind.NOT_FOUND, "cannot"))["text"] == "cannot"


MALLORY = Caller("mallory", Role.USER, "192.0.2.1", "mallory")


def allowance(entries: dict[str, CallerEntry], caller: Caller) -> Allowance:
    return Policy("", "", 1, 2, callers=entries).allowance(caller)


def test_who_may_upload_is_who_starts_unless_it_is_said_otherwise() -> None:
    anyone = KeepSpec()
    assert uploaders_for((), anyone, MALLORY) == ("name:mallory",)
    assert uploaders_for(("name:bob",), anyone, MALLORY) == ("name:bob",)
    assert uploaders_for((), KeepSpec(uploaders=("name:ci",)), MALLORY) == ("name:ci",)
    assert uploaders_for((), anyone, STRANGER) == ("*",)
    with pytest.raises(KeepfleetError) as caught:
        uploaders_for(("*",), anyone, MALLORY)
    assert caught.value.kind is ErrorKind.FORBIDDEN


def test_an_entry_stands_over_everybody_s_which_stands_over_the_defaults() -> None:
    roots = (GrantRoot("/srv"),)
    entries = {
        "*": CallerEntry(grant_roots=roots, ceilings=(("tasks", 100), ("io_weight", 50))),
        "mallory": CallerEntry(grant_roots=None, ceilings=(("tasks", 20),)),
    }
    own = allowance(entries, MALLORY)
    assert (own.grant_roots, own.ceilings["tasks"], own.ceilings["io_weight"]) == (roots, 20, 50)
    assert own.ceilings["memory_bytes"] == DEFAULT_CEILINGS["memory_bytes"]
    assert allowance(entries, STRANGER).ceilings["tasks"] == 100
    none = {"*": CallerEntry(grant_roots=roots), "mallory": CallerEntry(grant_roots=())}
    assert allowance(none, MALLORY).grant_roots == ()
    assert allowance({}, MALLORY) == Allowance((), DEFAULT_CEILINGS)


def test_a_ceiling_below_a_default_lowers_it_unasked() -> None:
    low = Allowance((), {**DEFAULT_CEILINGS, "wall_seconds": 10})
    assert limits_for((), low, MALLORY) == Limits(wall_seconds=10)


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_limit_has_a_ceiling_that_is_named_when_it_is_passed(name: str) -> None:
    allowed = allowance({}, MALLORY)
    top = allowed.ceilings[name]
    assert limits_for(((name, top),), allowed, MALLORY).fields()[name] == top
    with pytest.raises(KeepfleetError, match=f"with {name} {top + 1}: the ceiling for mallory is {top}"):
        limits_for(((name, top + 1),), allowed, MALLORY)


@pytest.mark.parametrize(("keeps", "groups"), [(0, 1), (31, 1), (32, 2), (100, 4), (991, 31), (992, 32), (5000, 32)])
def test_keeps_have_as_many_slices_as_they_need(keeps: int, groups: int) -> None:
    assert decide.groups_for(keeps) == groups


def test_an_id_is_moved_to_its_group_and_stays_one() -> None:
    for drawn in (0, 31, 32, 12345, (1 << KUUID_BITS) - 1):
        for group in (0, 7, 31):
            kuuid = decide.in_group(drawn, group)
            assert 0 <= kuuid < 1 << KUUID_BITS
            assert kuuid == 0 or slice_name(kuuid) == f"keep-g{group:02d}.slice"


@pytest.mark.parametrize("kind", Kind)
def test_manager_and_loader_know_every_kind_and_agree_what_its_start_brings(kind: Kind) -> None:
    assert REGISTRY[kind].brings == ENTRIES[kind].brings
    assert REGISTRY[kind].listens == bool(ENTRIES[kind].endpoint)


def test_nothing_outside_the_registry_asks_which_kind_a_keep_is() -> None:
    checkout = Path(__file__).resolve().parents[3]
    sources = [path for package in ("keep_manager", "keep_loader") for path in (checkout / package).rglob("*.py")]
    asking = re.compile(r"(?:\bis|\bis not|==|!=|\bin) \(?Kind\.|\bcase Kind\.")
    assert [str(path) for path in sources if asking.search(path.read_text())] == []
