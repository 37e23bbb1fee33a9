"""Reading a property of many objects from a bus that answers, refuses, is cut off, hangs up or talks nonsense."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from keep_manager.systemd import bulk, bus, message
from keep_manager.systemd.bulk import PropertyReader
from keep_manager.systemd.units import SystemdUnits
from keep_manager.tasks import Group

SERVICE, NAME = "org.freedesktop.systemd1.Service", "Environment"
Answer = Callable[[Message], Message]


def value_of(text: str, signature: str = "as") -> Answer:
    """A reply with a variant."""
    value = [text, "ä=" + text] if signature == "as" else text
    return lambda call: Message.new_method_return(call, "v", [Variant(signature, value)])


def error(call: Message) -> Message:
    return Message.new_error(call, "org.freedesktop.DBus.Error.UnknownObject", "there is none")


class FakeBus(threading.Thread):
    """One connection's bus, by dbus-next; `answers` are for the calls after Hello, the last one for all that follow.

    most: how many calls had come before any was answered.
    """

    def __init__(self, sock: socket.socket, answers: list[Answer], greeting: bytes = b"OK 1234\r\n") -> None:
        super().__init__()
        self._sock, self._answers, self._greeting = sock, answers, greeting
        self.calls: list[Message] = []

    def run(self) -> None:
        with self._sock, self._sock.makefile("rb") as stream:
            line = stream.readline()
            assert line.startswith(b"\0AUTH EXTERNAL ")
            self._sock.sendall(self._greeting)
            if stream.readline() != b"BEGIN\r\n":
                return
            number = 0
            while (call := self._next(stream)) is not None:
                number += 1
                if call.member == "Hello":
                    signal = Message(
                        path="/", interface="a.b", member="NameAcquired", message_type=MessageType.SIGNAL, serial=9
                    )
                    self._send(signal)
                    self._send(Message.new_method_return(call, "s", [":1.1"]))
                    continue
                self.calls.append(call)
                self._send((self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])(call))

    def _next(self, stream: object) -> Message | None:
        try:
            message: Message | None = Unmarshaller(stream).unmarshall()  # type: ignore[no-untyped-call] # dbus-next is typed in part
        except (EOFError, OSError):
            return None
        return message

    def _send(self, message: Message) -> None:
        message.serial = message.serial or 77
        self._sock.sendall(message._marshall(negotiate_unix_fd=False))  # type: ignore[no-untyped-call] # the same


@contextmanager
def reading(*answers: Answer, greeting: bytes = b"OK 1234\r\n") -> Iterator[tuple[PropertyReader, FakeBus]]:
    ours, theirs = socket.socketpair()
    made = FakeBus(theirs, list(answers), greeting)
    made.start()
    with ours:
        yield PropertyReader(ours, bus.SYSTEMD, 5.0), made
        ours.shutdown(socket.SHUT_RDWR)
        made.join()


def test_the_values_of_many_objects_are_read_each_by_one_call_of_its_own() -> None:
    paths = [f"/unit/keep_40{'1' * (number % 17 + 1)}_{number}" for number in range(300)]
    with reading(lambda call: value_of(call.path)(call)) as (reader, made):
        reader.open()
        found = reader.string_lists(paths, SERVICE, NAME)
    assert found == {path: [path, "ä=" + path] for path in paths}
    assert [call.path for call in made.calls] == paths
    first = made.calls[0]
    assert (first.destination, first.interface, first.member) == (
        "org.freedesktop.systemd1",
        "org.freedesktop.DBus.Properties",
        "Get",
    )
    assert (first.signature, first.body) == ("ss", [SERVICE, NAME])


def test_what_is_refused_or_of_another_type_is_left_out() -> None:
    with reading(error, value_of("text", "s"), value_of("x")) as (reader, _):
        reader.open()
        assert reader.string_lists(["/a", "/b", "/c"], SERVICE, NAME) == {"/c": ["x", "ä=x"]}


def test_an_empty_list_and_no_objects_at_all_are_read_too() -> None:
    empty: Answer = lambda call: Message.new_method_return(call, "v", [Variant("as", [])])  # noqa: E731 - as the others
    with reading(empty) as (reader, _):
        reader.open()
        assert reader.string_lists([], SERVICE, NAME) == {}
        assert reader.string_lists(["/a"], SERVICE, NAME) == {"/a": []}


def test_no_more_calls_are_under_way_than_the_bus_lets_one_connection_have() -> None:
    paths = [f"/unit/{number}" for number in range(3 * bulk.IN_FLIGHT)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = PropertyReader(ours, bus.SYSTEMD, 0.2)
        theirs.setblocking(False)
        with pytest.raises(TimeoutError):
            reader.string_lists(paths, SERVICE, NAME)
        sent = theirs.recv(1 << 20)
    assert sent.count(b"/unit/") == bulk.IN_FLIGHT


def test_a_bus_that_does_not_let_us_in_is_an_error() -> None:
    with (
        reading(error, greeting=b"REJECTED EXTERNAL\r\n") as (reader, _),
        pytest.raises(ConnectionRefusedError, match="REJECTED"),
    ):
        reader.open()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(message.ORDER + "cBBBIII", message.ENDIAN, 2, 0, 1, 1 << 31, 1, 0),
        struct.pack(message.ORDER + "cBBBIII", message.ENDIAN, 2, 0, 1, 0, 1, 8) + b"\6\1s\0\xff\xff\xff\x7f",
        struct.pack(message.ORDER + "cBBBIII", message.ENDIAN, 2, 0, 1, 8, 1, 8)
        + b"\5\1u\0" + struct.pack(message.ORDER + "I", 2) + b"\2as\0" + struct.pack(message.ORDER + "I", 99),
    ],
    ids=["no D-Bus", "too long", "a field that is cut off", "a list that is cut off"],
)  # fmt: skip
def test_nonsense_from_the_bus_is_an_error(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises((ValueError, OSError)):
            PropertyReader(ours, bus.SYSTEMD, 5.0).string_lists(["/a"], SERVICE, NAME)


async def test_units_that_cannot_be_read_together_are_read_one_by_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def spec(_: SystemdUnits, kuuid: int) -> None:
        asked.append(kuuid)

    monkeypatch.setattr(SystemdUnits, "spec", spec)
    async with Group() as tasks:
        units = SystemdUnits(tasks, f"unix:path={place}/none", "system", str(place))
        assert await units.specs([1, 2]) == {1: None, 2: None}
    assert asked == [1, 2]
