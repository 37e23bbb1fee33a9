"""Whatever a guest does, or waits for, it ends by its limit, and no other keep notices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.limits import MIB
from keep_protocol.states import State
from tests.system import hostile, modules
from tests.system.calm import undisturbed as calm
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import Fleet
from tests.system.life import Life, example

SECONDS = 2
OVER = f"over its time limit of {SECONDS} s"
LATE_SECONDS = 20
"""What its loader may be late on a busy host; a guest that it did not end would go on for an hour."""
GIVEN_UP = 60
GROWS = hostile.wat("""(module (memory (export "memory") 1) (func (export "_start")
  (loop $more (drop (memory.grow (i32.const 1000))) (br $more))))""")
"""Asks for 64 MiB more again and again, also when it has been refused."""
WAITS = hostile.module(
    "(i32.store8 (i32.const 72) (i32.const 1)) (i32.store (i32.const 80) (i32.const 0))"
    "(loop $l (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8))) (br $l))"
)
"""Waits for its standard input to have something, again and again."""
READS = hostile.module(
    "(i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 1000))"
    "(loop $l (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))) (br $l))"
)
"""Reads its standard input, which has nothing for it, again and again."""
ENDLESS = {
    "a tight loop": hostile.spins("_start"),
    "a start function that never ends": hostile.spins("the start section"),
    "a host call that waits for an hour": modules.sleeps(),
    "a host call that waits for input": WAITS,
    "reading where nothing comes": READS,
    "an endless allocation": GROWS,
    "a flood of output": example("flood-wat/flood"),
}


fleet = pytest.fixture(scope="module")(module_s_fleet)
pytestmark = pytest.mark.usefixtures("undisturbed")


def end(life: Life, module: bytes) -> Outcome:
    """How `module` ends; a keep that does not end is given up by removing it."""
    assert life.upload(module).status == 200
    return life.end(GIVEN_UP)[1]


def test_what_never_ends_ends_by_its_time_limit_also_among_all_others(fleet: Fleet) -> None:
    lives = [Life.awaiting(fleet, wall_seconds=SECONDS, log_lines_per_second=100) for _ in ENDLESS]
    with calm(fleet), ThreadPoolExecutor(len(lives)) as pool:
        outcomes = list(pool.map(end, lives, ENDLESS.values()))
    ends = {kind: (one.kind, one.text) for kind, one in zip(ENDLESS, outcomes, strict=True)}
    assert ends == dict.fromkeys(ENDLESS, (OutcomeKind.LIMITED, OVER))
    took = {kind: one.wall_seconds or 0 for kind, one in zip(ENDLESS, outcomes, strict=True)}
    assert {kind: seconds for kind, seconds in took.items() if not SECONDS <= seconds < SECONDS + LATE_SECONDS} == {}
    for life in lives:
        life.without_process()
        life.remove()


def over_memory(kind: str, limit: int) -> bytes:
    """A module that needs more memory than it may have: immediately when it starts, by growing, or by a table."""
    pages = 2 * limit // hostile.PAGE
    return hostile.wat(
        {
            "at its start": f'(module (memory {pages}) (func (export "_start")))',
            "all there can be": '(module (memory 65536) (func (export "_start")))',
            "by growing": f"""(module (memory 1) (func (export "_start")
                (if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable))))""",
            "in a table": '(module (table 4000000000 funcref) (func (export "_start")))',
        }[kind]
    )


@pytest.mark.parametrize("kind", ["at its start", "all there can be", "by growing", "in a table"])
def test_a_catastrophic_allocation_ends_with_its_reason_and_takes_nothing(fleet: Fleet, kind: str) -> None:
    limit = 16 * MIB
    life = Life.awaiting(fleet, memory_bytes=limit)
    with calm(fleet):
        outcome = end(life, over_memory(kind, limit))
    words = {"by growing": "trapped: wasm `unreachable` instruction executed", "in a table": "over its limit of "}
    assert outcome.text.startswith(words.get(kind, "over its memory limit of 16 MiB")), outcome.text
    assert outcome.peak_bytes is None or outcome.peak_bytes < 128 * MIB
    assert life.look().state is State.ERROR
    life.remove()
