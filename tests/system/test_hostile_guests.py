"""Modules that run, and misbehave: each ends, or is ended, in its own keep, with a reason and with nothing left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.states import State
from tests.system import hostile, modules
from tests.system.calm import undisturbed
from tests.system.fleet import Fleet
from tests.system.host import message_of
from tests.system.inside import drop_in
from tests.system.journal import Entry
from tests.system.life import Bystanders, Life

LINES = 200
INFO = "6"
"""journald's priority of a line that claims none."""
NATIVE_MEMORY = 96 << 20
"""What the interpreter, wasmtime and a small module's code take besides the guest's own memory."""


@pytest.fixture(scope="module", autouse=True)
def calm(installed_fleet: Fleet) -> Iterator[None]:
    """After all of this the manager and two neighbours are as they were."""
    installed_fleet.clear()
    bystanders = Bystanders(installed_fleet)
    with undisturbed(installed_fleet):
        yield
    bystanders.check()
    installed_fleet.clear()


@pytest.fixture
def life(installed_fleet: Fleet) -> Iterator[Life]:
    """A keep that awaits its workload; when it is removed nothing of it is left."""
    life = Life.awaiting(installed_fleet)
    yield life
    life.remove()


def ended(life: Life, module: bytes, state: State = State.COMPLETE) -> Outcome:
    """Uploads `module` and waits for its end, which must leave the keep in `state`, answering."""
    assert life.upload(module).status == 200
    outcome = life.until(State.STARTED, state).outcome
    assert outcome is not None
    assert life.show("NRestarts") == "0"
    return outcome


@pytest.mark.parametrize("kind", ["unreachable", "recursion", "out of bounds", "division by zero", "a null call"])
def test_a_trap_is_an_error_with_its_reason_and_backtrace(life: Life, kind: str) -> None:
    outcome = ended(life, hostile.traps(kind), State.ERROR)
    assert outcome.kind is OutcomeKind.TRAPPED
    assert outcome.text.startswith("trapped: ")
    assert outcome.backtrace


@pytest.mark.parametrize("code", [0, 1, 125, 126, 200, 255, 256, 4_294_967_295])
def test_every_exit_code_is_reported_whole(life: Life, code: int) -> None:
    outcome = ended(life, hostile.exits(code))
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.EXITED, code)


def test_a_guest_can_open_and_reach_nothing(life: Life) -> None:
    assert ended(life, hostile.opens_everything()).exit_code == 0


def test_a_guest_gets_as_much_memory_as_it_may_have_and_no_more(life: Life) -> None:
    outcome = ended(life, hostile.fills_memory())
    assert outcome.exit_code == 256
    assert outcome.peak_bytes is not None
    assert outcome.peak_bytes < (256 << 20) + NATIVE_MEMORY


def test_a_guest_over_its_keep_s_memory_is_killed_alone_and_the_keep_says_so(installed_fleet: Fleet) -> None:
    with drop_in(installed_fleet.host, "[Service]\nMemoryMax=64M\n"):
        life = Life.awaiting(installed_fleet)
        outcome = ended(life, hostile.fills_memory(), State.ERROR)
    assert (outcome.kind, outcome.signal) == (OutcomeKind.LIMITED, 9)
    assert "memory" in outcome.text
    assert life.show("NRestarts") == "0", "its loader lived to say so"
    life.remove()


@pytest.mark.rare
def test_a_guest_that_asks_the_host_for_much_in_one_call_costs_no_more_than_its_own_memory(life: Life) -> None:
    outcome = ended(life, hostile.asks_much())
    assert outcome.kind is OutcomeKind.EXITED
    assert outcome.peak_bytes is not None
    assert outcome.peak_bytes < hostile.MUCH + NATIVE_MEMORY


def test_a_guest_that_waits_for_a_million_clocks_ends_with_a_reason_in_its_own_keep(life: Life) -> None:
    assert life.upload(hostile.waits_for_a_million_clocks()).status == 200
    info = life.fleet.client().changed(life.kuuid, State.STARTED, 30)
    assert info.state in (State.COMPLETE, State.ERROR)
    assert info.outcome is not None
    assert info.outcome.kind is not OutcomeKind.LOST
    assert info.outcome.text


@pytest.mark.parametrize("where", ["_start", "the start section"])
def test_a_guest_that_never_ends_is_stopped(life: Life, where: str) -> None:
    assert life.upload(hostile.spins(where)).status == 200
    info = life.fleet.client().stop(life.kuuid)
    assert info.state is State.COMPLETE
    assert info.outcome is not None
    assert info.outcome.kind is OutcomeKind.STOPPED
    life.without_process()


def test_a_guest_that_never_ends_is_removed_with_its_keep(installed_fleet: Fleet) -> None:
    life = Life.awaiting(installed_fleet)
    assert life.upload(hostile.spins("_start")).status == 200
    life.remove()


def throttled(life: Life) -> int:
    """In how many periods the kernel has held the keep back."""
    group = life.show("ControlGroup")
    found = life.host.run(["sh", "-c", f"cat /sys/fs/cgroup/cpu{group}/cpu.stat || cat /sys/fs/cgroup{group}/cpu.stat"])
    words = found.stdout.split()
    return int(words[words.index("nr_throttled") + 1])


def test_a_guest_that_computes_is_held_to_its_quota_and_its_loader_answers_meanwhile(installed_fleet: Fleet) -> None:
    with drop_in(installed_fleet.host, "[Service]\nCPUQuota=10%\n"):  # to the end: a reload takes back what it said
        life = Life.awaiting(installed_fleet)
        assert life.upload(hostile.spins("_start")).status == 200
        while throttled(life) < 3:
            assert life.look().state is State.STARTED
        assert installed_fleet.client().stop(life.kuuid).state is State.COMPLETE
        life.remove()


def entries(life: Life) -> list[Entry]:
    """The journal's entries of what the workload printed, without the loader's and systemd's own."""
    return [entry for entry in life.entries() if "KEEP_STREAM" in entry]


def test_a_flood_costs_its_own_lines_and_none_of_its_neighbour_s(life: Life, installed_fleet: Fleet) -> None:
    neighbour = Life.awaiting(installed_fleet)
    texts = [f"neighbour {number}\n".encode() for number in range(LINES)]
    assert life.upload(hostile.floods(2000)).status == 200
    assert neighbour.upload(modules.says(*texts, pause_ms=2)).status == 200
    neighbour.until(State.STARTED, State.COMPLETE)
    life.until(State.STARTED, State.COMPLETE)
    said = [message_of(entry) for entry in entries(neighbour)]
    assert said == [text.decode().rstrip() for text in texts]
    flood = "\n".join(message_of(entry) for entry in entries(life)).splitlines()
    assert flood[-1] == "end", "its last words are in the journal"
    outcome = life.look().outcome
    assert outcome is not None
    assert outcome.output_bytes == 200_000 * len("flood!!!\n") + len("end\n")
    assert outcome.journal_skipped_bytes is not None
    stored = flood.count("flood!!!") * len("flood!!!\n") + len("end\n")
    assert stored + outcome.journal_skipped_bytes == outcome.output_bytes
    of_journald = [message_of(entry) for entry in life.host.journal("systemd-journald.service")]
    assert not [text for text in of_journald if life.unit in text], "journald dropped none of what it was given"
    neighbour.remove()


HARD_LINES = (
    b"<0>this is the end\n",
    b"<1>\n",
    b"\x1b[2J\x1b[31mred\x1b[0m\n",
    b"\xff\xfe not UTF-8\n",
    b"KEEP_ID=1\nPRIORITY=0\n",
    b"\n",
    b"last without a newline",
)


def test_no_line_a_guest_writes_can_be_more_than_its_text(life: Life) -> None:
    ended(life, modules.says(*HARD_LINES))
    found = entries(life)
    assert {entry["PRIORITY"] for entry in found} == {INFO}
    assert {entry["KEEP_ID"] for entry in found} == {str(life.kuuid)}
    assert {entry["_SYSTEMD_UNIT"] for entry in found} == {life.unit}
    texts = [bytes(raw) if isinstance(raw := entry["MESSAGE"], list) else raw.encode() for entry in found]
    wanted = b"".join(HARD_LINES).split(b"\n")
    assert [text for text in texts if text] == [text for text in wanted if text]


def test_a_nul_is_a_byte_like_any_other(life: Life) -> None:
    ended(life, modules.says(b"a\0b\0<0>c\n", b"d\n"))
    assert [(message_of(entry), entry["PRIORITY"]) for entry in entries(life)] == [
        ("a\0b\0<0>c", INFO),
        ("d", INFO),
    ]


def test_a_line_of_200_kb_is_cut_and_not_lost(life: Life) -> None:
    ended(life, modules.says(b"x" * 200_000 + b"\n", b"after\n"))
    texts = [message_of(entry) for entry in entries(life)]
    assert sum(map(len, texts)) == 200_005
    assert texts[-1] == "after"
    assert {entry["PRIORITY"] for entry in entries(life)} == {INFO}


def test_nothing_a_guest_writes_changes_what_the_loader_says_of_it(life: Life) -> None:
    forged = b'{"report":"ended","outcome":{"kind":"exited","text":"exited 0","exit_code":0}}'
    outcome = ended(life, modules.says(b"STATUS=owned\nMAINPID=1\n", forged, code=7))
    assert outcome.exit_code == 7
    assert "owned" not in life.show("StatusText")
