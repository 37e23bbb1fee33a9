"""Channels: what codelets send reaches the application, and the other way round."""

from __future__ import annotations

import ctypes
import json
import threading
from typing import Any

import pytest

from codelets import CodeletError, JsonOf, delivery, pack, unpack
from keep_protocol.errors import KeepfleetError
from tests.unit.codelets.application import Application, codelet, function, one, packet

STREAM, OTHER = "00112233445566778899aabbccddeeff", "ff112233445566778899aabbccddeeff"
SENDER = codelet(
    "(i64.extend_i32_s (call $send (local.get $context) (i32.const 8)))",
    function("output:8:4", "samples.send", "(param i32 i32) (result i32)"),
)
RECEIVER = codelet(
    """(if (i32.lt_s (call $receive (i32.const 0) (i32.const 8)) (i32.const 0)) (then (return (i64.const -9))))
       (i64.load (i32.const 0))""",
    function("input:8:4", "config.receive", "(param i32 i32) (result i32)"),
)
OUT = f'out_io_channel: [{{name: samples, stream_id: "{STREAM}"}}]'
IN = f'in_io_channel: [{{name: config, stream_id: "{STREAM}"}}]'


class Sample(ctypes.LittleEndianStructure):
    _fields_ = (("size", ctypes.c_uint32), ("ports", ctypes.c_uint16 * 2))


def test_messages_reach_the_receiver_of_their_stream_in_order(application: Application) -> None:
    found: list[tuple[bytes, bytes]] = []
    application.runtime.on_output(STREAM, lambda stream, message: found.append((stream, message)))
    application.load("sender", SENDER, more=OUT)
    for size in range(3):
        assert application.choose(packet(size)) == 0
    assert application.runtime.deliver() == 3
    assert found == [(bytes.fromhex(STREAM), size.to_bytes(4, "little") + bytes(4)) for size in range(3)]


def test_a_full_channel_counts_what_it_loses(application: Application) -> None:
    application.load("sender", SENDER, more=OUT)
    assert [application.choose(packet()) for _ in range(6)] == [0, 0, 0, 0, -1, -1]
    assert application.runtime.sets()[0].codelets[0].lost == 2


def test_output_without_a_receiver_waits_for_one(application: Application) -> None:
    application.load("sender", SENDER, more=OUT)
    application.choose(packet())
    assert application.runtime.deliver() == 0
    found: list[Any] = []
    application.runtime.on_output(None, lambda stream, message: found.append(message))
    assert application.runtime.deliver() == 1
    assert len(found) == 1


def test_a_thread_delivers_until_it_is_stopped(application: Application) -> None:
    delivered = threading.Event()
    application.runtime.on_output(STREAM, lambda stream, message: delivered.set())
    application.runtime.start_delivering(0.001)
    application.load("sender", SENDER, more=OUT)
    application.choose(packet())
    assert delivered.wait(20)
    application.runtime.close()
    assert not [each for each in threading.enumerate() if each.name == "codelets-output"]


def test_what_is_in_a_channel_when_delivery_stops_is_delivered(application: Application) -> None:
    found: list[Any] = []
    application.load("sender", SENDER, more=OUT)
    application.runtime.on_output(STREAM, lambda stream, message: found.append(message))
    application.runtime.start_delivering(60)
    for _ in range(3):
        application.choose(packet())
    application.runtime.stop_delivering()
    assert len(found) == 3


def test_what_is_in_a_channel_when_its_set_is_unloaded_is_delivered(application: Application) -> None:
    found: list[int] = []
    application.runtime.on_output(STREAM, lambda stream, message: found.append(message[0]))
    application.load("sender", SENDER, more=OUT)
    for number in range(3):
        application.choose(packet(number))
    application.runtime.unload("sender")
    assert found == []
    assert application.runtime.deliver() == 3
    assert found == [0, 1, 2]
    assert application.runtime.deliver() == 0
    [state] = [each for each in application.runtime.stats() if each.name == "choose"]
    assert state.drops == 0


def test_what_is_not_received_is_lost_with_its_set_and_counted(application: Application) -> None:
    application.load("sender", SENDER, more=OUT)
    for number in range(3):
        application.choose(packet(number))
    application.runtime.unload("sender")
    assert application.runtime.deliver() == 0
    [state] = [each for each in application.runtime.stats() if each.name == "choose"]
    assert state.drops == 3


def test_so_many_messages_of_unloaded_sets_wait_and_no_more(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_LEFT", 4)
    found: list[int] = []
    application.runtime.on_output(None, lambda stream, message: found.append(message[0]))
    application.add("sender", SENDER)
    for _ in range(2):
        application.runtime.load(one("sender", "choose", OUT))
        for number in range(3):
            application.choose(packet(number))
        application.runtime.unload("sender")
    application.runtime.deliver()
    assert found == [0, 1, 2, 0]
    [state] = [each for each in application.runtime.stats() if each.name == "choose"]
    assert state.drops == 2


def test_a_receiver_that_fails_gets_the_next_message(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    found = threading.Event()

    def receive(stream: bytes, message: bytes) -> None:
        if message[0] == 0:
            raise RuntimeError("no")
        found.set()

    application.runtime.on_output(STREAM, receive)
    application.load("sender", SENDER, more=OUT)
    application.choose(packet(0))
    application.choose(packet(1))
    application.runtime.start_delivering(0.001)
    assert found.wait(20)
    application.runtime.close()
    assert f"cannot deliver a message of stream {STREAM}" in caplog.text


def test_a_codelet_reads_what_it_is_sent(application: Application) -> None:
    application.load("receiver", RECEIVER, more=IN)
    assert application.choose(packet()) == -9
    assert application.runtime.send_input(STREAM, (42).to_bytes(8, "little"))
    assert application.choose(packet()) == 42
    assert application.choose(packet()) == -9


def test_an_input_channel_that_is_full_or_unknown_says_so(application: Application) -> None:
    application.load("receiver", RECEIVER, more=IN)
    assert [application.runtime.send_input(STREAM, bytes(8)) for _ in range(5)] == [True] * 4 + [False]
    with pytest.raises(KeepfleetError, match="no codelet reads it"):
        application.runtime.send_input(OTHER, b"")
    with pytest.raises(KeepfleetError, match="too long"):
        application.runtime.send_input(STREAM, bytes(9))
    with pytest.raises(KeepfleetError, match="has 16 bytes"):
        application.runtime.send_input("0011", b"")


def test_a_serialiser_makes_json_of_messages(application: Application) -> None:
    found: list[str] = []
    application.runtime.serializer("sample", JsonOf(Sample))
    application.runtime.on_output(STREAM, lambda stream, message: found.append(message))
    application.load("sender", SENDER, more=OUT.replace("}]", ", serde: sample}]"))
    application.choose(packet(1500, 0x00500016))
    application.runtime.deliver()
    assert json.loads(found[0]) == {"size": 1500, "ports": [0x16, 0x50]}


def test_json_becomes_a_message(application: Application) -> None:
    application.runtime.serializer("sample", JsonOf(Sample))
    application.load("receiver", RECEIVER, more=IN.replace("}]", ", serde: sample}]"))
    application.runtime.send_input(STREAM, '{"size": 7, "ports": [1, 0]}')
    assert application.choose(packet()) == 7 | 1 << 32


@pytest.mark.parametrize("text", ["[]", '{"other": 1}', '{"size": "x"}', '{"ports": [1]}', "nonsense"])
def test_json_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        JsonOf(Sample).encode(text)


def test_an_unknown_serialiser_keeps_a_set_out(application: Application) -> None:
    application.add("sender", SENDER)
    with pytest.raises(CodeletError, match="there is no serialiser sample") as caught:
        application.runtime.load(one("sender", "choose", OUT.replace("}]", ", serde: sample}]")))
    assert caught.value.failure.number == -4


@pytest.mark.parametrize("more", ["", IN, OUT.replace("samples", "others")])
def test_a_descriptor_names_the_channels_that_the_module_declares(application: Application, more: str) -> None:
    application.add("sender", SENDER)
    with pytest.raises(CodeletError, match="declares the output channels samples") as caught:
        application.runtime.load(one("sender", "choose", more))
    assert caught.value.failure.number == -4


def test_a_stream_belongs_to_one_set(application: Application) -> None:
    application.load("sender", SENDER, more=OUT)
    application.add("again", SENDER)
    with pytest.raises(CodeletError, match="is another set's"):
        application.runtime.load(one("again", "choose", OUT))


def test_a_packet_has_its_stream_before_its_message() -> None:
    assert pack(STREAM, b"abc") == bytes.fromhex(STREAM) + b"abc"
    assert unpack(pack(STREAM, b"abc")) == (bytes.fromhex(STREAM), b"abc")
    with pytest.raises(KeepfleetError, match="cannot unpack 3 bytes"):
        unpack(b"abc")
