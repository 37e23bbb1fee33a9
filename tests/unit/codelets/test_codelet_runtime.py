"""Sets that are loaded into a running application: hooks, results, faults, and what is left of them."""

from __future__ import annotations

import ctypes
import io
import struct
import subprocess
from pathlib import Path

import pytest

from codelets import CodeletError, Failure, Runtime
from codelets.building import HELPER_FUEL
from codelets.interface import DEFAULT_FUEL
from module_store import collect
from module_store.keys import Keys
from module_store.trust import Trust
from tests.unit.codelets.application import COUNTER, PACKET, Application, codelet, function, one, packet
from tests.unit.module_store.signers import Signer

ROOT = Path(__file__).resolve().parents[3]


def test_a_control_hook_without_codelets_has_its_default(application: Application) -> None:
    assert application.choose(packet()) == -1
    assert application.seen(packet()) is None


def test_a_codelet_reads_its_context_and_its_result_reaches_the_caller(application: Application) -> None:
    application.load("port", codelet("(i64.load32_u offset=4 (local.get $context))"))
    assert application.choose(packet(port=443)) == 443


def test_results_have_a_sign(application: Application) -> None:
    application.load("minus", codelet("(i64.const -7)"))
    assert application.choose(packet()) == -7


def test_a_set_counts_in_its_map_from_call_to_call(application: Application) -> None:
    application.load("counter", COUNTER)
    assert [application.choose(packet()) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert application.runtime.map_items("counter", "counter", "count") == [(bytes(4), struct.pack("<Q", 5))]


def test_what_a_codelet_writes_comes_back_where_the_hook_is_writable(application: Application) -> None:
    writes = codelet("(i32.store offset=8 (local.get $context) (i32.const 9)) (i64.const 0)")
    application.load("writes", writes, "changed")
    context = packet(1, 2)
    application.changed(context)
    assert struct.unpack(PACKET, context) == (1, 2, 9, 0)


def test_what_a_codelet_writes_stays_away_where_the_hook_is_read_only(application: Application) -> None:
    application.load("writes", codelet("(i32.store (local.get $context) (i32.const 9)) (i64.const 0)"), "seen")
    context = packet(1, 2)
    application.seen(context)
    assert struct.unpack(PACKET, context) == (1, 2, 0, 0)


def test_a_codelet_sees_the_data_and_its_length(application: Application) -> None:
    increments = codelet(
        """(i32.store8 (local.get $data) (i32.add (i32.load8_u (local.get $data)) (local.get $length)))
           (i64.const 0)""",
        parameters="(param $context i32) (param $data i32) (param $length i32)",
    )
    application.load("increments", increments, "data")
    data = bytearray(b"\x01abc")
    application.data(bytearray(4), data)
    assert data == b"\x05abc"


def test_a_context_may_be_a_structure(application: Application) -> None:
    class Point(ctypes.Structure):
        _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_int32))

    hook = application.runtime.hook("point", Point, writable=True)
    swap = "(i64.store (local.get $context) (i64.rotl (i64.load (local.get $context)) (i64.const 32))) (i64.const 0)"
    application.load("swap", codelet(swap), "point")
    point = Point(3, 4)
    hook(point)
    assert (point.x, point.y) == (4, 3)


def test_a_context_of_another_size_is_refused(application: Application) -> None:
    application.load("port", codelet("(i64.const 1)"))
    with pytest.raises(ValueError, match=r"lvalue|the context has 3 bytes"):
        application.choose(bytearray(3))


def test_the_codelet_with_the_highest_priority_runs_first_and_the_last_decides(application: Application) -> None:
    application.load("first", codelet("(i64.const 1)"), more="priority: 9")
    application.load("last", codelet("(i64.const 2)"), more="priority: 1")
    application.load("middle", codelet("(i64.const 3)"), more="priority: 5")
    assert application.choose(packet()) == 2
    application.runtime.unload("last")
    assert application.choose(packet()) == 3


def test_codelets_of_one_priority_run_in_the_order_of_loading(application: Application) -> None:
    for number in (1, 2, 3):
        application.load(f"set{number}", codelet(f"(i64.const {number})"))
    assert application.choose(packet()) == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("unreachable", "unreachable"),
        ("(loop $l (br $l)) (i64.const 0)", "fuel"),
        ("(call $again)", "fuel|call stack exhausted"),
        ("(i64.load (i32.const -8))", "out of bounds"),
        ("(i64.store (i32.const -8) (i64.const 1)) (i64.const 0)", "out of bounds"),
        ("(i64.div_u (i64.const 1) (i64.const 0))", "divide by zero"),
        (
            """(if (i32.ne (table.grow (ref.null func) (i32.const 1000)) (i32.const -1))
                 (then (return (i64.const 7)))) unreachable""",
            "unre",
        ),
        ("(call_indirect (result i64) (i32.const 1))", "uninitialized element"),
        ("(call_indirect (result i64) (i32.const 5000))", "out of bounds"),
        ("(call_indirect (result i32) (i32.const 0)) drop (i64.const 7)", "indirect call type mismatch"),
        ("(memory.fill (i32.const 0) (i32.const 1) (i32.const -1)) (i64.const 7)", "out of bounds"),
        ("(if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then (return (i64.const 7)))) unreachable", "unre"),
    ],
)
def test_a_fault_gives_the_default_and_is_counted(application: Application, body: str, words: str) -> None:
    rest = (
        "(func $again (result i64) (i64.add (i64.const 1) (call $again))) (table 2 funcref) (elem (i32.const 0) $again)"
    )
    application.load("faulty", codelet(body, rest=rest))
    assert application.choose(packet()) == -1
    [state] = application.runtime.sets()
    assert state.codelets[0].faults == 1
    assert any(word in state.codelets[0].last_fault for word in words.split("|"))


def test_after_a_fault_memory_begins_again_and_maps_stay(application: Application) -> None:
    traps_at_three = codelet(
        """(drop (call $lookup (i32.const 0) (i32.const 8)))
           (i64.store (i32.const 8) (i64.add (i64.const 1) (i64.load (i32.const 8))))
           (drop (call $update (i32.const 0) (i32.const 8)))
           (i32.store (i32.const 16) (i32.add (i32.const 1) (i32.load (i32.const 16))))
           (if (i64.eq (i64.load (i32.const 8)) (i64.const 3)) (then unreachable))
           (i64.add (i64.mul (i64.const 10) (i64.load (i32.const 8))) (i64.load32_u (i32.const 16)))""",
        function("map:array:4:8:1", "count.lookup", "(param i32 i32) (result i32)")
        + function("map:array:4:8:1", "count.update", "(param i32 i32) (result i32)"),
    )
    application.load("traps", traps_at_three)
    assert [application.choose(packet()) for _ in range(5)] == [11, 22, -1, 41, 52]


def test_a_set_with_too_many_faults_is_unloaded_and_says_why(tmp_path: Path, in_c: bool) -> None:
    application = Application(tmp_path, in_c=in_c, max_faults=3)
    application.load("good", codelet("(i64.const 5)"), more="priority: 2")
    application.load("faulty", codelet("unreachable"))
    assert [application.choose(packet()) for _ in range(4)] == [-1, -1, -1, 5]
    states = {state.codeletset_id: state for state in application.runtime.sets()}
    assert states["good"].loaded
    assert not states["faulty"].loaded
    assert "3 faults, the last: codelet faulty: wasm `unreachable`" in states["faulty"].why
    with pytest.raises(CodeletError, match="it was unloaded: 3 faults"):
        application.runtime.unload("faulty")


def test_a_threshold_counts_calls_that_take_longer(tmp_path: Path, in_c: bool) -> None:
    application = Application(tmp_path, in_c=in_c, max_faults=0)
    application.load("slow", codelet("(i64.const 5)"), more="runtime_threshold: 1")
    assert [application.choose(packet()) for _ in range(3)] == [5, 5, 5]
    [state] = application.runtime.sets()
    assert (state.codelets[0].overruns, state.codelets[0].faults) == (3, 0)


def test_a_set_is_loaded_once(application: Application) -> None:
    application.load("counter", COUNTER)
    with pytest.raises(CodeletError, match="cannot load the codelet set counter: it is loaded") as caught:
        application.runtime.load(one("counter", "choose"))
    assert caught.value.failure is Failure.CREATION_FAILED
    assert caught.value.failure.number == -2


def test_an_unknown_set_cannot_be_unloaded(application: Application) -> None:
    with pytest.raises(CodeletError, match="there are: none") as caught:
        application.runtime.unload("nothing")
    assert caught.value.to_wire()["number"] == -1


def test_a_hook_that_is_not_there_has_jbpfs_number(application: Application) -> None:
    application.add("counter", COUNTER)
    with pytest.raises(CodeletError, match="there are: seen, changed, choose, data") as caught:
        application.runtime.load(one("counter", "nowhere"))
    assert caught.value.failure.number == -1


def test_a_set_loads_whole_or_not_at_all(application: Application) -> None:
    application.add("counter", COUNTER)
    descriptor = one("both", "choose", path="counter:1") + "\n- codelet_name: other\n  codelet_path: missing:1\n"
    with pytest.raises(CodeletError, match="missing:1"):
        application.runtime.load(descriptor + "  hook_name: seen")
    assert application.choose(packet()) == -1
    assert application.runtime.sets() == ()


def test_a_module_that_is_refused_comes_with_its_report(application: Application) -> None:
    application.add("wasi", codelet("(i64.const 0)", function("wasi_snapshot_preview1", "fd_write", "(param i32)")))
    with pytest.raises(CodeletError) as caught:
        application.runtime.load(one("wasi", "choose"))
    assert caught.value.failure is Failure.LOAD_FAILED
    assert any("wasi_snapshot_preview1 fd_write" in line for line in caught.value.evidence)


def test_codelets_of_a_set_share_linked_maps(application: Application) -> None:
    application.add("counter", COUNTER)
    descriptor = """
codeletset_id: pair
codelet_descriptor:
- {codelet_name: a, codelet_path: "counter:1", hook_name: choose}
- codelet_name: b
  codelet_path: counter:1
  hook_name: choose
  linked_maps: [{map_name: count, linked_codelet_name: a, linked_map_name: count}]
"""
    application.runtime.load(descriptor)
    assert [application.choose(packet()) for _ in range(3)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("map:array:4:8:1", "map:array:4:8:2", "linked maps differ: a.m is map:array:4:8:1 and b.m is map:array:4:8:2"),
        ("map:array:4:8:1", "map:array:4:8:1", "linked maps form a cycle: a.m → b.m → a.m"),
    ],
)
def test_linked_maps_that_differ_or_form_a_cycle_are_refused(
    application: Application, first: str, second: str, words: str
) -> None:
    for name, kind in (("a", first), ("b", second)):
        lookup = function(kind, "m.lookup", "(param i32 i32) (result i32)")
        application.add(name, codelet("(i64.const 0)", lookup))
    descriptor = "codeletset_id: linked\ncodelet_descriptor:\n"
    for name, other in (("a", "b"), ("b", "a")):
        link = f"linked_maps: [{{map_name: m, linked_codelet_name: {other}, linked_map_name: m}}]"
        descriptor += f'- {{codelet_name: {name}, codelet_path: "{name}:1", hook_name: choose, {link}}}\n'
    with pytest.raises(CodeletError, match="codelet set linked: ") as caught:
        application.runtime.load(descriptor)
    assert words in caught.value.message
    assert caught.value.failure is Failure.INVALID_PARAMETER


def test_a_helper_takes_numbers_and_bytes(application: Application) -> None:
    seen: list[tuple[int, bytes]] = []

    def note(number: int, data: bytes) -> int:
        seen.append((number, data))
        return 7

    application.runtime.helper("note", note, ("i64", "bytes"), "i32")
    body = "(i64.extend_i32_s (call $note (i64.const -1) (i32.const 0) (i32.const 3)))"
    imported = function("helper", "note", "(param i64 i32 i32) (result i32)")
    application.load("notes", codelet(body, imported, '(data (i32.const 0) "abc")'))
    assert application.choose(packet()) == 7
    assert seen == [(-1, b"abc")]


@pytest.mark.parametrize(("at", "size"), [("65535", "0x7fffffff"), ("-1", "1"), ("0", "-1")])
def test_a_helper_never_reads_beyond_a_codelets_memory(application: Application, at: str, size: str) -> None:
    application.runtime.helper("take", len, ("bytes",), "i32")
    body = f"(i64.extend_i32_s (call $take (i32.const {at}) (i32.const {size})))"
    application.load("wild", codelet(body, function("helper", "take", "(param i32 i32) (result i32)")))
    assert application.choose(packet()) == -1
    assert "are not in the codelet's memory" in application.runtime.sets()[0].codelets[0].last_fault


def test_helpers_run_on_the_fuel_of_their_codelet(application: Application) -> None:
    calls: list[int] = []
    application.runtime.helper("note", lambda data: calls.append(len(data)), ("bytes",))
    imported = function("helper", "note", "(param i32 i32)")
    for name, size, most in (("few", 0, DEFAULT_FUEL // HELPER_FUEL), ("long", 65536, 5)):
        application.load(
            name, codelet(f"(loop $l (call $note (i32.const 0) (i32.const {size})) (br $l)) unreachable", imported)
        )
        calls.clear()
        assert application.choose(packet()) == -1
        assert 0.9 * most - 1 < len(calls) <= most
        assert "fuel" in application.runtime.sets()[0].codelets[0].last_fault
        application.runtime.unload(name)


def test_what_a_helper_raises_ends_the_codelets_call_alone(application: Application) -> None:
    def fails() -> None:
        raise RuntimeError("no")

    application.runtime.helper("fails", fails)
    application.load("calls", codelet("(call $fails) (i64.const 1)", function("helper", "fails", "")))
    assert application.choose(packet()) == -1
    assert application.runtime.sets()[0].codelets[0].last_fault == "RuntimeError: no"


def test_an_interrupt_in_a_helper_reaches_the_caller(application: Application) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    application.runtime.helper("interrupted", interrupted)
    application.load("calls", codelet("(call $interrupted) (i64.const 1)", function("helper", "interrupted", "")))
    with pytest.raises(KeyboardInterrupt):
        application.choose(packet())


def test_a_helper_that_calls_its_own_hook_is_refused_there(application: Application) -> None:
    results: list[int] = []
    application.runtime.helper("again", lambda: results.append(application.choose(packet())))
    application.load("calls", codelet("(call $again) (i64.const 1)", function("helper", "again", "")))
    assert application.choose(packet()) == 1
    assert results == [-1]
    assert "a helper called a hook" in application.runtime.sets()[0].codelets[0].last_fault


def test_sixty_four_sets_and_256_codelets_run(application: Application) -> None:
    application.add("counter", COUNTER)
    for number in range(64):
        lines = [f"codeletset_id: s{number}", "codelet_descriptor:"]
        for each in range(4):
            lines.append(f'- {{codelet_name: c{each}, codelet_path: "counter:1", hook_name: choose}}')
        application.runtime.load("\n".join(lines))
    assert application.choose(packet()) == 1
    [state] = [each for each in application.runtime.stats() if each.name == "choose"]
    assert len(state.codelets) == 256
    with pytest.raises(CodeletError, match="there are 64"):
        application.runtime.load(one("more", "choose", path="counter:1"))


def test_what_a_set_uses_is_not_collected(application: Application) -> None:
    digest = application.store.resolve(application.add("counter", COUNTER))
    application.load("counter", COUNTER)
    application.store.untag("counter:1")
    assert collect.collect(application.store, grace=0).removed == ()
    application.runtime.unload("counter")
    application.load("other", codelet("(i64.const 1)"))
    assert [each.digest for each in collect.collect(application.store, grace=0).removed] == [digest]
    application.store.untag("other:1")
    application.runtime.close()
    assert len(collect.collect(application.store, grace=0).removed) == 1


def test_an_application_that_was_killed_uses_nothing(tmp_path: Path) -> None:
    application = Application(tmp_path, in_c=False)
    digest = application.store.resolve(application.add("counter", COUNTER))
    ended = subprocess.Popen(["true"])
    ended.wait()
    collect.declare(application.store, f"codelets-{ended.pid}", [digest])
    Runtime(str(tmp_path / "store"), in_c=False).close()
    assert collect.declared(application.store) == {}


def test_a_module_that_was_damaged_in_the_store_is_never_loaded(application: Application, tmp_path: Path) -> None:
    application.add("counter", COUNTER)
    [path] = (tmp_path / "store/objects").iterdir()
    path.chmod(0o600)
    path.write_bytes(COUNTER[:-1] + b"\x0c")
    path.chmod(0o400)
    with pytest.raises(CodeletError, match="its contents are not those of its digest"):
        application.runtime.load(one("counter", "choose"))


def test_a_module_that_is_replaced_under_a_running_set_changes_nothing(application: Application) -> None:
    application.load("counter", COUNTER)
    application.store.add(io.BytesIO(codelet("(i64.const 99)")), reference="counter:1")
    assert application.choose(packet()) == 1


def test_a_store_that_requires_a_signature_gives_no_unsigned_codelet(application: Application, tmp_path: Path) -> None:
    application.add("counter", COUNTER)
    keys = Keys(str(tmp_path / "store"))
    keys.add("alice", Signer("alice").public)
    keys.require(Trust(require=("alice",)))
    with pytest.raises(CodeletError, match="not signed"):
        application.runtime.load(one("counter", "choose"))
