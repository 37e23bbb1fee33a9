"""The clock is set while keeps run, back and forward, by an hour and by 400 days: reports stay true and whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keep_client import keep as endpoint
from keep_client.http import Body
from keep_client.peer import ConnectionFailed
from keep_protocol.errors import ErrorKind
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.states import State
from tests.system import modules
from tests.system.clock import DAY, HOUR, Clock, ClockedFleet, environment
from tests.system.fixtures import INSTALLED
from tests.system.fleet import MANAGER, free_port
from tests.system.host import Host, layout
from tests.system.life import Life
from tools.sandbox.sandbox import Sandbox

STEPS = [-HOUR, 400 * DAY, *(pytest.param(step, marks=pytest.mark.heavy) for step in (HOUR, -400 * DAY))]
"""Back and forward, within all periods and beyond them; the other two take the same path in one of these respects."""
AN_HOUR = [-HOUR, pytest.param(HOUR, marks=pytest.mark.heavy)]
LINES = 100
GIVEN_UP = 120
"""Seconds until a test gives a keep up, by removing it."""


@pytest.fixture(scope="module")
def installed_fleet(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClockedFleet]:
    """A manager on a host of its own: what other tests' host has journald write stays in order."""
    etc, shared = (tmp_path_factory.mktemp(name) for name in ("etc-clocked", "shared-clocked"))
    for directory in (etc, shared):
        directory.chmod(0o755)
    binds = ((str(prefix), INSTALLED, True), (str(etc), "/etc/keepfleet", False), (str(shared), str(shared), False))
    with Sandbox(f"clock-{os.getpid()}", layout(binds)) as sandbox, sandbox.network():
        fleet = ClockedFleet(Host(sandbox, shared), etc)
        fleet.install()
        with fleet.under_the_clock():
            yield fleet


@pytest.fixture
def fleet(installed_fleet: ClockedFleet) -> Iterator[ClockedFleet]:
    """That manager, the clock as it normally is, and no keeps."""
    yield installed_fleet
    installed_fleet.clock.set_by(0)
    installed_fleet.clear()


@pytest.fixture
def clock(fleet: ClockedFleet) -> Clock:
    """The clock of that host."""
    return fleet.clock


def running(fleet: ClockedFleet, module: bytes, restart: str = "no", **limits: int) -> Life:
    """A keep that has received `module`."""
    life = Life.create(fleet, **limits)
    life.info = fleet.client().start(life.kuuid, "127.0.0.1", free_port(), workload={"restart": restart})
    assert life.upload(module).status == 200
    return life


def ended(life: Life) -> tuple[KeepInfo, Outcome]:
    """The keep once it has ended, and how; its end is not before its start, and as much later as it ran."""
    info, outcome = life.end(GIVEN_UP)
    assert outcome.started_at is not None and outcome.ended_at is not None
    if outcome.wall_seconds is not None:
        assert outcome.ended_at - outcome.started_at == pytest.approx(outcome.wall_seconds, abs=0.002)
    assert outcome.ended_at >= outcome.started_at
    return info, outcome


@pytest.mark.parametrize("step", STEPS)
def test_a_workload_has_its_time_and_no_more_when_the_clock_is_set(
    fleet: ClockedFleet, clock: Clock, step: int
) -> None:
    life = running(fleet, modules.sleeps(), wall_seconds=2)
    life.line("asleep")
    clock.set_by(step)
    _, outcome = ended(life)
    assert (outcome.kind, outcome.text) == (OutcomeKind.LIMITED, "over its time limit of 2 s")
    assert outcome.wall_seconds is not None and 2 <= outcome.wall_seconds < GIVEN_UP
    assert outcome.started_at is not None and outcome.started_at > time.time() + HOUR  # its loader sees the clock


@pytest.mark.parametrize("step", STEPS)
def test_followers_get_every_line_once_and_an_end_when_the_clock_is_set(
    fleet: ClockedFleet, clock: Clock, step: int
) -> None:
    texts = [f"line {number}" for number in range(LINES)]
    life = Life.awaiting(fleet)
    with ThreadPoolExecutor(1) as pool:
        followed = pool.submit(lambda: list(fleet.client().lines(life.kuuid, follow=True)))
        assert life.upload(modules.says(*(f"{text}\n".encode() for text in texts), pause_ms=20)).status == 200
        life.line("line 10")
        clock.set_by(step)
        life.line("line 40")
        clock.set_by(0)
        lines = followed.result(GIVEN_UP)
    assert [line.text for line in lines if line.source == "stdout"] == texts
    again = fleet.client().lines(life.kuuid)
    assert [line.text for line in again if line.source == "stdout"] == texts
    assert ended(life)[1].exit_code == 0


@pytest.mark.parametrize("step", AN_HOUR)
def test_keepctl_run_shows_every_line_and_ends_when_the_clock_is_set(
    fleet: ClockedFleet, clock: Clock, step: int
) -> None:
    texts = [f"line {number}\n" for number in range(LINES)]
    module = fleet.host.path / "talks.wasm"
    module.write_bytes(modules.says(*map(str.encode, texts), pause_ms=20, code=7))
    variables = {**environment(), "KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}
    cursor = fleet.host.cursor()
    with fleet.host.popen(["keepctl", "run", "--rm", str(module)], env=variables) as process:
        fleet.host.wait_journal("line 10", since_cursor=cursor)
        clock.set_by(step)
        output, _ = process.communicate(timeout=GIVEN_UP)
    assert output.splitlines(keepends=True)[:LINES] == texts
    assert process.returncode == 7
    assert not fleet.client().keeps()


@pytest.mark.parametrize("step", STEPS)
def test_an_ended_keep_is_removed_after_its_retention_and_not_before_when_the_clock_is_set(
    fleet: ClockedFleet, clock: Clock, step: int
) -> None:
    life = running(fleet, modules.says(code=0))
    ended(life)
    clock.set_by(step)
    fleet.restart()  # it looks immediately
    Life.create(fleet).remove()
    assert life.look().state is State.COMPLETE
    cursor = fleet.host.cursor()
    with fleet.configured(retention_seconds=1):
        fleet.host.wait_journal(f"{life.unit}: removed by the manager", MANAGER, cursor)


@pytest.mark.parametrize("step", STEPS)
def test_starting_again_counts_the_same_when_the_clock_is_set(fleet: ClockedFleet, clock: Clock, step: int) -> None:
    life = running(fleet, modules.says(b"once more\n", pause_ms=100, code=3), "on-failure")
    life.line("once more")
    clock.set_by(step)
    info, outcome = ended(life)
    assert (info.state, info.restarts, outcome.exit_code) == (State.ERROR, 4, 3)
    assert info.detail.startswith("gave it up after starting it again 4 times within 60 s")


@pytest.mark.parametrize("step", STEPS)
def test_a_loader_killed_after_the_clock_was_set_reports_no_end_before_its_start(
    fleet: ClockedFleet, clock: Clock, step: int
) -> None:
    life = Life.running(fleet)
    clock.set_by(step)
    life.kill_loader()
    assert ended(life)[1].kind is OutcomeKind.LOST


@pytest.mark.parametrize("step", STEPS)
def test_a_creation_asked_for_again_names_the_same_keep_when_the_clock_is_set(
    fleet: ClockedFleet, clock: Clock, step: int
) -> None:
    key = f"once{step}"
    first = fleet.client().create(idempotency_key=key)
    clock.set_by(step)
    assert fleet.client().create(idempotency_key=key).kuuid == first.kuuid


@pytest.mark.parametrize("step", STEPS)
def test_a_manager_killed_after_the_clock_was_set_goes_on_with_every_keep(
    fleet: ClockedFleet, clock: Clock, step: int
) -> None:
    lives = [Life.create(fleet), Life.awaiting(fleet), Life.running(fleet), Life.ended(fleet)]
    before = [life.look() for life in lives]
    clock.set_by(step)
    fleet.kill()
    assert sorted(info.kuuid for info in fleet.client().keeps()) == sorted(life.kuuid for life in lives)
    assert [life.look() for life in lives] == before
    late = Life.awaiting(fleet)
    for life in (lives[1], late):
        assert life.upload(modules.says(b"said\n", code=5)).status == 200
        assert ended(life)[1].exit_code == 5
        assert "said" in life.output()
    for life in (*lives, late):
        life.remove()


def refusal(call: Callable[[], object]) -> str:
    """What is said where a certificate is out of its time."""
    with pytest.raises(ConnectionFailed) as caught:
        call()
    assert caught.value.kind is ErrorKind.CERTIFICATE
    return caught.value.message


def test_a_certificate_made_before_the_clock_was_set_back_is_refused_for_its_time(
    fleet: ClockedFleet, clock: Clock
) -> None:
    fleet.host.run(["keepctl", "pki", "issue", "early"], env=environment())
    early = fleet.client("early")
    life = Life(fleet, early.create().kuuid)  # its own: another's keep would not take its upload
    life.info = early.start(life.kuuid, "127.0.0.1", free_port())
    clock.set_by(-HOUR)
    cursor = fleet.host.cursor()
    assert "clock" in refusal(fleet.client("early").keeps)
    fleet.host.wait_journal("refused the certificate of a client at 127.0.0.1: certificate is not", MANAGER, cursor)
    context, module = fleet.credentials("early").keep_context(), modules.says(code=0)
    body = Body("application/wasm", len(module), (module,))
    assert "clock" in refusal(lambda: endpoint.upload(life.endpoint, context, "PUT", endpoint.WORKLOAD_PATH, body))
    clock.set_by(0)
    fleet.client("early").keeps()
    assert endpoint.upload(life.endpoint, context, "PUT", endpoint.WORKLOAD_PATH, body).status == 200


def test_a_certificate_allows_for_clocks_that_differ_by_minutes(fleet: ClockedFleet, clock: Clock) -> None:
    fleet.host.run(["keepctl", "pki", "issue", "ahead"], env=environment())
    clock.set_by(-4 * 60)
    fleet.client("ahead").keeps()


@pytest.mark.parametrize(("step", "words"), [(-400 * DAY, "not yet valid"), (400 * DAY, "expired")])
def test_a_client_whose_clock_is_wrong_gets_the_reason(
    fleet: ClockedFleet, clock: Clock, step: int, words: str
) -> None:
    clock.set_by(step)
    variables = {**environment(), "KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}
    said = fleet.host.run(["keepctl", "ps"], env=variables, check=False).stderr
    assert words in said
    assert "this machine's clock shows" in said
