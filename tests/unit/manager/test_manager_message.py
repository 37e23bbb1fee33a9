"""D-Bus messages, held against dbus-next, which writes and reads all of D-Bus."""

from __future__ import annotations

import io

import pytest
from dbus_next import signature as oracle
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from keep_manager.systemd.message import CALL, SIGNAL, Variant, decode, encode_call, size_of, types_of

WORDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9)
PLAIN = {
    "y": st.integers(0, 255), "b": st.booleans(), "n": st.integers(-(2**15), 2**15 - 1), "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1), "u": st.integers(0, 2**32 - 1), "x": st.integers(-(2**63), 2**63 - 1),
    "t": st.integers(0, 2**64 - 1), "d": st.floats(allow_nan=False), "s": WORDS, "o": st.just("/a/b_2"),
    "g": st.sampled_from(["", "as", "a{sv}", "(ssbt)"]), "ay": st.binary(max_size=9),
}  # fmt: skip
Values = tuple[str, st.SearchStrategy[object]]


def _variant(values: Values) -> Values:
    kind, inner = values
    return "v", inner.map(lambda value: Variant(kind, value))


def _array(values: Values) -> Values:
    kind, inner = values
    return "a" + kind, st.lists(inner, max_size=3) if kind != "y" else PLAIN["ay"]


def _structure(parts: list[Values]) -> Values:
    return f"({''.join(kind for kind, _ in parts)})", st.tuples(*(inner for _, inner in parts)).map(list)


TYPES = st.recursive(
    st.sampled_from(sorted(PLAIN.items())),
    lambda inner: st.one_of(
        inner.map(_variant), inner.map(_array), st.lists(inner, min_size=1, max_size=3).map(_structure)
    ),
    max_leaves=6,
)


@st.composite
def arguments(draw: st.DrawFn) -> tuple[str, list[object]]:
    kinds = draw(st.lists(TYPES, max_size=4))
    return "".join(kind for kind, _ in kinds), [draw(values) for _, values in kinds]


def to_oracle(value: object) -> object:
    if isinstance(value, Variant):
        return oracle.Variant(value.signature, to_oracle(value.value))
    return [to_oracle(each) for each in value] if isinstance(value, list) else value


def of_oracle(value: object) -> object:
    if isinstance(value, oracle.Variant):
        return Variant(value.signature, of_oracle(value.value))
    return [of_oracle(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(arguments())
def test_a_call_is_written_as_the_library_writes_and_reads_it(given_: tuple[str, list[object]]) -> None:
    signature, body = given_
    ours = encode_call(7, "a.b", "/c", "d.e", "F", signature, body)
    theirs = Message(
        destination="a.b", path="/c", interface="d.e", member="F", signature=signature,
        body=[to_oracle(value) for value in body], serial=7, flags=MessageFlag.NO_AUTOSTART,
    )  # fmt: skip
    read = Unmarshaller(io.BytesIO(ours)).unmarshall()  # type: ignore[no-untyped-call] # dbus-next is typed in part
    assert (read.message_type, read.serial, read.flags) == (MessageType.METHOD_CALL, 7, MessageFlag.NO_AUTOSTART)
    assert (read.path, read.destination, read.interface, read.member) == ("/c", "a.b", "d.e", "F")
    assert [of_oracle(value) for value in read.body] == body
    written = bytes(theirs._marshall(False))  # type: ignore[no-untyped-call] # as above
    assert len(written) == len(ours) == size_of(ours)
    for data in (ours, written):
        found = decode(data)
        assert (found.type, found.member, found.interface, found.body()) == (CALL, "F", "d.e", body)


@settings(max_examples=60, deadline=None)
@given(arguments(), st.data())
def test_a_message_that_was_changed_is_read_or_refused_and_nothing_else(
    given_: tuple[str, list[object]], data: st.DataObject
) -> None:
    changed = bytearray(encode_call(7, "a.b", "/c", "d.e", "F", *given_))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(16, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(changed)).body()
    except ValueError:
        return


@pytest.mark.parametrize("signature", ["(", "()", "a", "a()", "{}", "z", "(s", "a" * 300 + "y", "(" * 4000, "s\0"])
def test_what_is_no_signature_is_refused(signature: str) -> None:
    with pytest.raises(ValueError, match="no signature"):
        for kind in types_of(signature):
            types_of(kind)


@pytest.mark.parametrize(
    ("signature", "body"),
    [("s", (5,)), ("s", ()), ("u", (-1,)), ("u", ("1",)), ("as", (5,)), ("v", ("s",)), ("(su)", (["a"],))],
)
def test_arguments_of_another_signature_are_an_error(signature: str, body: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        encode_call(1, "a.b", "/c", "d.e", "F", signature, body)


def test_a_signal_s_body_is_read_when_it_is_asked_for_and_is_whole() -> None:
    message = Message.new_signal("/c", "d.e", "Removed", "us", [5, "done"])
    message.serial = 9
    whole = bytes(message._marshall(False))  # type: ignore[no-untyped-call] # as above
    found = decode(whole)
    assert (found.type, found.member, found.body()) == (SIGNAL, "Removed", [5, "done"])
    with pytest.raises(ValueError, match=r"cut off|malformed"):
        decode(whole[:-2]).body()
    with pytest.raises(ValueError, match="cut off"):
        decode(whole + b"\0").body()
