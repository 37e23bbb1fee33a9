"""Threads that call hooks while sets come and go, fail, and meet; and that sets which go leave nothing behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codelets import CodeletError, calling, fast
from tests.unit.codelets.application import Application, codelet, function, one, packet

ROOT = Path(__file__).resolve().parents[3]
STREAM, OTHER = "00112233445566778899aabbccddeeff", "ff112233445566778899aabbccddeeff"
MAP = "map:hashmap:4:4:64"
IN_MAP = function(MAP, "seen.lookup", "(param i32 i32) (result i32)") + function(
    MAP, "seen.update", "(param i32 i32) (result i32)"
)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*calls: Callable[[], object]) -> None:
    """Runs each in a thread of its own, to its end."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


MANY = pytest.mark.parametrize("times", [25, pytest.param(100, marks=pytest.mark.heavy)])
"""How often a set comes and goes: what other threads do meanwhile is what costs."""


@MANY
def test_threads_call_a_hook_while_sets_come_and_go(application: Application, times: int) -> None:
    application.add("one", codelet("(i64.const 1)"))
    results: set[int] = set()
    end = threading.Event()

    def call() -> None:
        while not end.is_set():
            results.add(application.choose(packet()))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for _ in range(times):
        application.runtime.load(one("one", "choose"))
        application.runtime.unload("one")
    end.set()
    for caller in callers:
        caller.join()
    assert results <= {-1, 1}
    assert application.choose(packet()) == -1


def test_threads_share_a_set_that_calls_helpers(application: Application) -> None:
    inside: list[int] = []
    most: list[int] = []

    def enter() -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    application.runtime.helper("enter", enter)
    application.load("calls", codelet("(call $enter) (i64.const 1)", function("helper", "enter", "")))
    callers = [threading.Thread(target=lambda: [application.choose(packet()) for _ in range(200)]) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(most) == 800
    assert set(most) == {1}


def test_each_thread_has_a_part_of_a_map_of_its_own(application: Application) -> None:
    kind = "map:per-thread-array:4:8:1"
    counts = codelet(
        """(drop (call $lookup (i32.const 0) (i32.const 8)))
           (i64.store (i32.const 8) (i64.add (i64.const 1) (i64.load (i32.const 8))))
           (drop (call $update (i32.const 0) (i32.const 8))) (i64.load (i32.const 8))""",
        function(kind, "count.lookup", "(param i32 i32) (result i32)")
        + function(kind, "count.update", "(param i32 i32) (result i32)"),
    )
    application.load("counts", counts)
    assert [application.choose(packet()) for _ in range(3)] == [1, 2, 3]
    results: list[int] = []
    other = threading.Thread(target=lambda: results.append(application.choose(packet())))
    other.start()
    other.join()
    assert results == [1]


PARTED = codelet(
    """
    (i32.store (i32.const 8) (i32.load (local.get $context)))
    (drop (call $lookup (i32.const 0) (i32.const 16)))
    (i32.store (i32.const 16) (i32.add (i32.const 1) (i32.load (i32.const 16))))
    (drop (call $update (i32.const 0) (i32.const 16)))
    (i64.load32_u (i32.const 8))""",
    function("map:per-thread-array:4:4:1", "count.lookup", "(param i32 i32) (result i32)")
    + function("map:per-thread-array:4:4:1", "count.update", "(param i32 i32) (result i32)"),
)
"""Counts its thread's calls, and gives its context's first number."""


@pytest.mark.parametrize("module", [codelet("(i64.load32_u (local.get $context))"), PARTED], ids=("plain", "parted"))
@pytest.mark.usefixtures("switching")
def test_each_of_many_threads_gets_the_result_of_its_own_context(application: Application, module: bytes) -> None:
    application.load("echo", module)
    wrong: list[int] = []

    def call(number: int) -> None:
        context = packet(number)
        wrong.extend(number for _ in range(10_000) if application.choose(context) != number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    if module is PARTED:
        counts = [
            int.from_bytes(value, "little") for _, value in application.runtime.map_items("echo", "echo", "count")
        ]
        assert sorted(counts)[-3:] == [10_000] * 3


@pytest.mark.usefixtures("switching")
def test_a_set_is_seen_at_all_of_its_hooks_or_at_none(application: Application) -> None:
    """Each set adds one codelet to both hooks: who has seen n at one sees at least n at the other."""
    names = ["first", *(f"h{number}" for number in range(200)), "second"]
    first, *_, second = (application.runtime.control_hook(name, 4, default=0) for name in names)
    backward: list[tuple[int, int]] = []
    end = threading.Event()

    def look(one_hook: Callable[[bytearray], int], other: Callable[[bytearray], int]) -> None:
        while not end.is_set():
            before, after = one_hook(bytearray(4)), other(bytearray(4))
            if after < before:
                backward.append((before, after))

    def load() -> None:
        try:
            for number in range(1, 31):
                application.add(f"n{number}", codelet(f"(i64.const {number})"))
                entries = [
                    f'- {{codelet_name: {h}, codelet_path: "n{number}:1", hook_name: {h}}}' for h in ("first", "second")
                ]
                application.runtime.load("\n".join([f"codeletset_id: s{number}", "codelet_descriptor:", *entries]))
        finally:
            end.set()

    together(load, lambda: look(first, second), lambda: look(second, first))
    assert backward == []
    assert first(bytearray(4)) == second(bytearray(4)) == 30


@pytest.mark.usefixtures("switching")
def test_no_thread_sees_a_set_that_is_being_repaired_after_a_fault(tmp_path: Path, in_c: bool) -> None:
    """Odd keys are counted, a thread a key; even ones run out of fuel, and the map that all share is repaired."""
    application = Application(tmp_path, in_c=in_c, max_faults=0)
    body = """
      (i32.store (i32.const 0) (i32.load (local.get $context)))
      (i32.store (i32.const 8) (i32.const 0))
      (drop (call $lookup (i32.const 0) (i32.const 8)))
      (i32.store (i32.const 8) (i32.add (i32.const 1) (i32.load (i32.const 8))))
      (drop (call $update (i32.const 0) (i32.const 8)))
      (if (i32.eqz (i32.and (i32.const 1) (i32.load (local.get $context)))) (then (loop $l (br $l))))
      (i64.load32_u (i32.const 8))"""
    application.load("counts", codelet(body, IN_MAP))
    found: dict[int, list[int]] = {key: [] for key in range(1, 6)}

    def call(key: int) -> None:
        context = packet(key)
        for _ in range(500 if key & 1 else 50):
            found[key].append(application.choose(context))

    together(*(lambda key=key: call(key) for key in found))
    assert found == {key: list(range(1, 501)) if key & 1 else [-1] * 50 for key in found}
    counts = application.runtime.map_items("counts", "counts", "seen")
    assert sorted(int.from_bytes(key, "little") for key, _ in counts) == [1, 2, 3, 4, 5]
    assert application.runtime.sets()[0].codelets[0].faults == 100


@pytest.mark.usefixtures("switching")
def test_each_thread_gets_its_own_context_back_where_each_call_takes_too_long(tmp_path: Path, in_c: bool) -> None:
    application = Application(tmp_path, in_c=in_c, max_faults=0)
    body = "(i32.store offset=8 (local.get $context) (i32.load (local.get $context))) (i64.const 0)"
    application.load("echo", codelet(body), hook="changed", more="runtime_threshold: 1")
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(500):
            context = packet(number)
            application.changed(context)
            if context[8] != number:
                wrong.append(number)

    together(*(lambda number=number: call(number) for number in range(1, 4)))
    assert wrong == []
    assert application.runtime.sets()[0].codelets[0].overruns == 1500


def test_threads_whose_helpers_call_each_others_sets_do_not_wait_for_ever(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "MEETING_SECONDS", 0.05)
    runtime, both = application.runtime, threading.Barrier(2)
    left, right = (runtime.control_hook(name, 4, default=-1) for name in ("left", "right"))
    found: list[int] = []

    def meet(other: Callable[[bytearray], int]) -> None:
        both.wait()  # each thread is in its own set now
        found.append(other(bytearray(4)))
        both.wait()

    runtime.helper("to_right", lambda: meet(right))
    runtime.helper("to_left", lambda: meet(left))
    application.load("l", codelet("(call $to_right) (i64.const 1)", function("helper", "to_right", "")), hook="left")
    application.load("r", codelet("(call $to_left) (i64.const 1)", function("helper", "to_left", "")), hook="right")
    together(lambda: found.append(left(bytearray(4))), lambda: found.append(right(bytearray(4))))
    assert sorted(found) == [-1, -1, 1, 1]
    assert [state.codelets[0].faults for state in runtime.sets()] == [1, 1]
    assert "another thread" in runtime.sets()[0].codelets[0].last_fault


def test_two_threads_that_load_one_set_load_it_once(application: Application) -> None:
    application.add("five", codelet("(i64.const 5)"))
    refused: list[str] = []

    def load() -> None:
        for _ in range(20):
            try:
                application.runtime.load(one("five", "choose"))
                application.runtime.unload("five")
            except CodeletError as error:
                refused.append(error.message)

    together(load, load, load)
    assert all("it is loaded" in each or "not loaded" in each for each in refused)
    assert application.runtime.sets() == ()
    assert application.choose(packet()) == -1


def test_a_runtime_that_is_closed_loads_nothing(application: Application) -> None:
    application.add("five", codelet("(i64.const 5)"))
    application.runtime.close()
    with pytest.raises(CodeletError, match="cannot load the codelet set five: the application ends"):
        application.runtime.load(one("five", "choose"))


# --- what is left of a set -------------------------------------------------------------------------------------------

WHOLE = codelet(
    """(call $note) (drop (call $update (i32.const 0) (i32.const 0)))
       (drop (call $send (i32.const 0) (i32.const 8)))
       (drop (call $receive (i32.const 0) (i32.const 8)))
       (i64.extend_i32_s (call $lookup (i32.const 0) (i32.const 8)))""",
    IN_MAP
    + function("helper", "note", "")
    + function("output:8:4", "out.send", "(param i32 i32) (result i32)")
    + function("input:8:4", "in.receive", "(param i32 i32) (result i32)"),
)
"""Uses a helper, a map, and a channel each way."""
CHANNELS = (
    f'in_io_channel: [{{name: in, stream_id: "{STREAM}"}}]\nout_io_channel: [{{name: out, stream_id: "{OTHER}"}}]'
)
CYCLES = """
import gc
import sys
from pathlib import Path
from codelets import fast
from tests.unit.codelets.application import Application, one, packet
from tests.unit.codelets.test_codelet_threads import CHANNELS, WHOLE

gc.disable()
fast.DIRECTORY = sys.argv[2]
application = Application(Path(sys.argv[1]), in_c=bool(sys.argv[2]))
application.add("whole", WHOLE)
application.runtime.helper("note", lambda: None)

def cycle(times):
    for _ in range(times):
        application.runtime.load(one("whole", "choose", CHANNELS))
        application.runtime.send_input("00112233445566778899aabbccddeeff", bytes(8))
        assert application.choose(packet()) == 1
        application.runtime.deliver()
        application.runtime.unload("whole")
    with open("/proc/self/statm") as statm, open("/proc/self/maps") as maps:
        return int(statm.read().split()[1]) * 4096, sum(1 for _ in maps)

(before, maps), (after, more) = cycle(100), cycle(int(sys.argv[3]))
print(after - before, more - maps)
"""


@pytest.mark.parametrize("times", [200, pytest.param(900, marks=pytest.mark.heavy)])
def test_hundreds_of_loads_and_unloads_leave_nothing_and_wait_for_no_garbage_collection(
    tmp_path: Path, in_c: bool, times: int
) -> None:
    command = [sys.executable, "-c", CYCLES, str(tmp_path), fast.DIRECTORY if in_c else "", str(times)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    memory, maps = map(int, done.stdout.split())
    assert memory < 4 * 1024 * 1024  # a set's memory alone has 64 KiB
    assert maps < 20


def mapped() -> int:
    """Mappings of this process: each memory has some of its own."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        return sum(1 for _ in maps)


def test_a_set_that_unloads_itself_out_of_a_helper_goes_when_its_call_has_ended(application: Application) -> None:
    application.runtime.helper("note", lambda: application.runtime.unload("whole"))
    application.add("whole", WHOLE)
    gc.collect()
    gc.disable()
    try:
        found = []
        for _ in range(40):
            application.runtime.load(one("whole", "choose", CHANNELS))
            assert application.choose(packet()) == 1
            found.append(mapped())
        assert found[-1] - found[9] < 20
    finally:
        gc.enable()
