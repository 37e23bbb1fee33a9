"""Codelets at their limits: many hooks, floods in both directions, names that end alike, and what a set may have."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from codelets import CodeletError, fast
from codelets.descriptor import MAX_CODELETS
from codelets.faults import MAX_MESSAGE
from codelets.interface import MAX_HELPERS, MAX_HOOKS
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.unit.codelets.application import COUNTER, PACKET, Application, codelet, function, one, packet

STREAM, OTHER = "00112233445566778899aabbccddeeff", "ff112233445566778899aabbccddeeff"


def test_an_application_has_so_many_hooks_and_no_more(application: Application) -> None:
    there = len(application.runtime.interface.hooks)
    hooks = [application.runtime.control_hook(f"h{number}", PACKET, default=-1) for number in range(MAX_HOOKS - there)]
    with pytest.raises(KeepfleetError, match=f"there are {MAX_HOOKS}") as caught:
        application.runtime.hook("more", PACKET)
    assert caught.value.kind is ErrorKind.CONFLICT
    application.add("counter", COUNTER)
    application.runtime.load(one("last", hooks[-1].type.name, path="counter:1"))
    assert [hook(packet()) for hook in (hooks[-1], hooks[0])] == [1, -1]


def test_the_text_of_an_error_has_a_thousand_characters_at_most(application: Application) -> None:
    for number in range(20):
        application.runtime.hook(f"{'h' * 200}{number}", PACKET)
    application.add("five", codelet("(i64.const 5)"))
    with pytest.raises(CodeletError, match="cannot load the codelet set five: there is no hook nowhere") as caught:
        application.runtime.load(one("five", "nowhere"))
    assert len(caught.value.message) == MAX_MESSAGE == 1024
    assert caught.value.to_wire()["message"] == caught.value.message


def test_an_application_has_so_many_helpers_and_no_more(application: Application) -> None:
    there = len(application.runtime.interface.helpers)
    for number in range(MAX_HELPERS - there):
        application.runtime.helper(f"f{number}", int, (), "i32")
    with pytest.raises(KeepfleetError, match=f"there are {MAX_HELPERS}"):
        application.runtime.helper("more", int)


@pytest.mark.parametrize("name", ["seen", "seen2", "xseen"])
def test_names_that_end_or_begin_alike_are_distinguished(application: Application, name: str) -> None:
    hooks = {each: application.runtime.control_hook(each, PACKET, default=-1) for each in ("seen2", "xseen")}
    hooks["choose"] = application.choose
    application.add("five", codelet("(i64.const 5)"))
    wanted = name if name in hooks else "choose"
    for each in ("set", "set2", "xset"):
        application.runtime.load(one(each, wanted, path="five:1"))
    application.runtime.unload("set")
    assert {state.codeletset_id for state in application.runtime.sets()} == {"set2", "xset"}
    assert {each: hook(packet()) for each, hook in hooks.items()} == {
        each: 5 if each == wanted else -1 for each in hooks
    }


def test_a_name_is_declared_once(application: Application) -> None:
    with pytest.raises(KeepfleetError, match="cannot declare the hook seen: there is one"):
        application.runtime.hook("seen", PACKET)
    application.runtime.helper("now", int, (), "i32")
    with pytest.raises(KeepfleetError, match="cannot offer the helper now: there is one"):
        application.runtime.helper("now", int, (), "i32")


def test_a_hook_out_of_bounds_is_refused(application: Application) -> None:
    bad: list[dict[str, Any]] = [{"data_bytes": 1 << 30}, {"memory_bytes": 1}, {"fuel": 0}]
    for options in bad:
        with pytest.raises(KeepfleetError, match="invalid hook"):
            application.runtime.hook("bad", PACKET, **options)
    with pytest.raises(KeepfleetError, match="invalid hook"):
        application.runtime.hook("bad", 1 << 20)


def test_a_set_of_sixteen_codelets_loads_and_of_seventeen_does_not(application: Application) -> None:
    application.add("five", codelet("(i64.const 5)"))

    def descriptor(codelets: int) -> str:
        entries = [f'- {{codelet_name: c{n}, codelet_path: "five:1", hook_name: choose}}' for n in range(codelets)]
        return "\n".join(["codeletset_id: many", "codelet_descriptor:", *entries])

    with pytest.raises(CodeletError, match=f"a list of at most {MAX_CODELETS}"):
        application.runtime.load(descriptor(MAX_CODELETS + 1))
    application.runtime.load(descriptor(MAX_CODELETS))
    assert application.choose(packet()) == 5


def test_channels_flooded_in_both_directions_lose_and_count_and_go_on(application: Application) -> None:
    imports = function("input:8:4", "in.receive", "(param i32 i32) (result i32)")
    imports += function("output:8:4", "out.send", "(param i32 i32) (result i32)")
    echo = codelet(
        """(if (i32.ge_s (call $receive (i32.const 0) (i32.const 8)) (i32.const 0))
             (then (drop (call $send (i32.const 0) (i32.const 8)))))
           (i64.const 0)""",
        imports,
    )
    found: list[int] = []
    application.runtime.on_output(OTHER, lambda stream, message: found.append(struct.unpack("<Q", message)[0]))
    channels = f'in_io_channel: [{{name: in, stream_id: "{STREAM}"}}]\n'
    channels += f'out_io_channel: [{{name: out, stream_id: "{OTHER}"}}]'
    application.load("echo", echo, more=channels)
    accepted = [number for number in range(1000) if application.runtime.send_input(STREAM, struct.pack("<Q", number))]
    assert accepted == [0, 1, 2, 3]
    for _ in range(1000):
        application.choose(packet())
    application.runtime.deliver()
    assert found == accepted
    for number in range(1000):
        application.runtime.send_input(STREAM, struct.pack("<Q", number))
        application.choose(packet())
    application.runtime.deliver()
    assert found == [0, 1, 2, 3, 0, 1, 2, 3]
    assert application.runtime.sets()[0].codelets[0].lost == 996


def test_a_codelet_that_writes_beyond_its_context_changes_nothing_of_the_application(application: Application) -> None:
    beyond = codelet(
        """(memory.fill (i32.const 0) (i32.const 255) (i32.shl (memory.size) (i32.const 16)))
           (i64.const 1)"""
    )
    application.load("beyond", beyond)
    application.load("after", codelet("(i64.load32_u (local.get $context))"))
    context = packet(7)
    assert application.choose(context) == 7
    assert bytes(context) == bytes(packet(7))


def test_concurrent_maps_of_many_sets_are_their_own(application: Application) -> None:
    application.add("counter", COUNTER)
    for number in range(20):
        application.runtime.load(one(f"set{number}", "choose", path="counter:1"))
    for _ in range(10):
        application.choose(packet())
    for number in range(20):
        assert application.runtime.map_items(f"set{number}", f"set{number}", "count")[0][1] == struct.pack("<Q", 10)


def test_a_module_in_c_that_another_version_has_built_is_refused(built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast.load(built).INTERFACE == fast.INTERFACE
    monkeypatch.setattr(fast, "INTERFACE", fast.INTERFACE + 1)
    with pytest.raises(KeepfleetError, match="another version of keepfleet has built it; remove it, or run") as caught:
        fast.load(built)
    assert caught.value.kind is ErrorKind.CONFIGURATION
