"""Maps and channels: storage.wat against plain Python, by any sequence of calls."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codelets.engine import CALL, SET_FUEL, Trap, World, end_of, raw_function, shared_engine
from codelets.storage import Data, Declaration, Unfit, declared, function_of

KEY_AT, VALUE_AT = 0, 256


class Storage:
    """One map or channel, called as a codelet calls it."""

    def __init__(self, declaration: Declaration) -> None:
        engine = shared_engine()
        self.world = World(engine, 1 << 24)
        memory, _, self.guest = self.world.memory(1)
        stored, _, view = self.world.memory(declaration.pages)
        self.data = Data(declaration, view, self.world)
        constants = [self.world.constant(number) for number in declaration.numbers]
        names = [*declaration.functions, *(["repair"] if declaration.repair else [])]
        exports = [f"{declaration.prefix}.{name}" for name in names]
        made = self.world.instantiate(engine.storage, [memory, stored, *constants], exports)
        self._functions = {name: raw_function(each) for name, each in zip(names, made, strict=True)}

    def call(self, name: str, *arguments: int, fuel: int = 1_000_000) -> int:
        """Its result. Raises Trap."""
        raw = (ctypes.c_uint64 * 8)()
        for number, value in enumerate(arguments):
            raw[2 * number] = value & 0xFFFFFFFF
        trap = ctypes.c_void_p()
        SET_FUEL(self.world.context, ctypes.c_uint64(fuel))
        function, count = ctypes.byref(self._functions[name]), ctypes.c_size_t(max(1, len(arguments)))
        error = CALL(self.world.context, function, raw, count, ctypes.byref(trap))
        if error or trap.value:
            raise end_of(error, trap.value)
        return ctypes.c_int32.from_buffer(raw).value

    def repair(self) -> None:
        """What is done after a call that did not end by itself."""
        self.call("repair")

    def write(self, at: int, data: bytes) -> int:
        """Puts data into the codelet's memory; where."""
        self.guest[at : at + len(data)] = data
        return at


def declaration(text: str) -> Declaration:
    found = declared(text)
    assert found is not None
    return found


KEYS = st.integers(0, 40).map(lambda n: n.to_bytes(5, "little"))
VALUES = st.binary(min_size=7, max_size=7)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), KEYS, VALUES),
        st.tuples(st.just("delete"), KEYS, st.just(b"")),
        st.tuples(st.just("lookup"), KEYS, st.just(b"")),
        st.tuples(st.just("clear"), st.just(b""), st.just(b"")),
        st.tuples(st.just("repair"), st.just(b""), st.just(b"")),
    ),
    max_size=120,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_a_hash_map_does_what_a_dictionary_does(steps: list[tuple[str, bytes, bytes]]) -> None:
    entries = 16
    storage, model = Storage(declaration(f"map:hashmap:5:7:{entries}")), dict[bytes, bytes]()
    for step, key, value in steps:
        storage.write(KEY_AT, key)
        if step == "update":
            fits = key in model or len(model) < entries
            storage.write(VALUE_AT, value)
            assert storage.call("update", KEY_AT, VALUE_AT) == (0 if fits else -1)
            model |= {key: value} if fits else {}
        elif step == "delete":
            assert storage.call("delete", KEY_AT) == (0 if model.pop(key, None) is not None else -1)
        elif step == "lookup":
            assert storage.call("lookup", KEY_AT, VALUE_AT) == (key in model)
            if key in model:
                assert bytes(storage.guest[VALUE_AT : VALUE_AT + 7]) == model[key]
        elif step == "clear":
            storage.call("clear")
            model.clear()
        else:
            storage.repair()
        assert dict(storage.data.items()) == model


@given(STEPS, st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_hash_map_is_whole_again_after_a_call_that_ran_out_of_fuel(
    steps: list[tuple[str, bytes, bytes]], fuel: int
) -> None:
    storage = Storage(declaration("map:hashmap:5:7:16"))
    model = dict[bytes, bytes]()
    for step, key, value in steps:
        if step not in ("update", "delete"):
            continue
        storage.write(KEY_AT, key)
        storage.write(VALUE_AT, value)
        arguments = (KEY_AT, VALUE_AT) if step == "update" else (KEY_AT,)
        try:
            result: int | None = storage.call(step, *arguments, fuel=fuel)
        except Trap:
            result = None
            storage.repair()
        if step == "update" and result == 0:
            model[key] = value
        if step == "delete" and result == 0:
            del model[key]
        found = dict(storage.data.items())
        if result is None:  # it was done, or it was not
            without = {name: each for name, each in model.items() if name != key}
            assert {name: each for name, each in found.items() if name != key} == without
            model = found
        assert found == model
        assert len(storage.data.items()) == len(model)


def test_a_fault_costs_no_more_with_a_large_map() -> None:
    """What repairs a map goes to the hole that was left, and not through all of it."""
    storage = Storage(declaration("map:hashmap:4:4:20000"))
    for number in range(200):
        storage.write(KEY_AT, number.to_bytes(4, "little"))
        storage.call("update", KEY_AT, VALUE_AT)
    interrupted = 0
    for fuel in range(20, 400, 5):
        storage.write(KEY_AT, (fuel % 200).to_bytes(4, "little"))
        try:
            storage.call("delete", KEY_AT, fuel=fuel)
        except Trap:
            interrupted += 1
            storage.call("repair", fuel=5_000)
    assert interrupted
    keys = [key for key, _ in storage.data.items()]
    assert len(keys) == len(set(keys)) > 100


def test_an_array_takes_the_keys_that_it_has() -> None:
    storage = Storage(declaration("map:array:4:8:3"))
    for index, fits in ((0, True), (2, True), (3, False), (0xFFFFFFFF, False)):
        storage.write(KEY_AT, index.to_bytes(4, "little"))
        storage.write(VALUE_AT, bytes([index & 0xFF] * 8))
        assert storage.call("update", KEY_AT, VALUE_AT) == (0 if fits else -1)
        assert storage.call("lookup", KEY_AT, VALUE_AT) == int(fits)
    assert [value[0] for _, value in storage.data.items()] == [0, 0, 2]


@given(st.lists(st.one_of(st.binary(max_size=16), st.integers(0, 9)), max_size=80))
@settings(max_examples=60, deadline=None)
def test_an_output_channel_keeps_order_and_counts_what_it_loses(steps: list[bytes | int]) -> None:
    storage, queue, lost = Storage(declaration("output:12:5")), deque[bytes](), 0
    for step in steps:
        if isinstance(step, int):
            taken = [queue.popleft() for _ in range(min(step, len(queue)))]
            assert storage.data.receive(step) == taken
            continue
        result = storage.call("send", storage.write(KEY_AT, step), len(step))
        if len(step) > 12:
            assert result == -2
        elif len(queue) == 5:
            assert result == -1
            lost += 1
        else:
            assert result == 0
            queue.append(step)
        assert storage.data.lost == lost


def test_an_input_channel_gives_messages_in_order_and_says_when_there_is_none() -> None:
    storage = Storage(declaration("input:12:2"))
    assert [storage.data.send(message) for message in (b"one", b"three", b"more")] == [True, True, False]
    assert storage.data.lost == 1
    assert storage.call("receive", VALUE_AT, 2) == -2
    assert storage.call("receive", VALUE_AT, 12) == 3
    assert bytes(storage.guest[VALUE_AT : VALUE_AT + 3]) == b"one"
    assert storage.call("receive", VALUE_AT, 12) == 5
    assert storage.call("receive", VALUE_AT, 12) == -1
    with pytest.raises(ValueError, match="too long"):
        storage.data.send(bytes(13))


def test_channels_go_on_when_their_counts_begin_again() -> None:
    storage = Storage(declaration("output:4:3"))
    part: Any = storage.data._memory
    for at in (64, 68):
        part[at : at + 4] = (0xFFFFFFFE).to_bytes(4, "little")
    for number in range(3):
        assert storage.call("send", storage.write(KEY_AT, bytes([number])), 1) == 0
    assert storage.call("send", KEY_AT, 1) == -1
    assert storage.data.receive(9) == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize(
    "text",
    [
        "map:hashmap:4:8",
        "map:tree:4:8:1",
        "map:array:8:8:1",
        "map:hashmap:0:8:1",
        "map:hashmap:4:0:1",
        "map:hashmap:4:8:0",
        "map:hashmap:4:65537:1",
        "map:hashmap:4:60000:1048576",
        "output:8",
        "input:0:1",
        "output:8:99999999",
    ],
)
def test_a_declaration_that_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(Unfit):
        declared(text)


def test_another_module_declares_nothing() -> None:
    assert declared("wasi_snapshot_preview1") is None
    assert declared("helper") is None


@pytest.mark.parametrize("name", ["lookup", ".lookup", "a.", "a.b.c", "1a.lookup", "a" * 256 + ".lookup", "a.Lookup"])
def test_a_function_that_names_no_map_is_refused(name: str) -> None:
    with pytest.raises(Unfit):
        function_of(name)


def test_a_declaration_is_written_as_it_was_read() -> None:
    for text in ("map:per-thread-hashmap:4:8:16", "map:array:4:1:1", "output:64:1024", "input:8:1"):
        assert str(declaration(text)) == text
