"""Jefe's protocol, byte for byte, and what goes beyond it; the stream cut and joined anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from script_pool import protocol
from script_pool.engine.interface import Fault, Reason
from script_pool.protocol import DONE, AddCode, Answer, ExecCode, Lines, Refused, RemoveCode, parse

LIMIT = 1000
JEFE = (
    b'{"cmd":"AddCode","name":"a","code":"sandbox.x = 1"}\r\n'
    b'{"cmd":"ExecCode","name":"a","inputSandbox":{"x": 1.0, "__proto__":[-0]}}\r\n'
    b'{"cmd":"RemoveCode","name":"a"}\r\n'
    b"hello\r\n"
)


def read(data: bytes) -> list[protocol.Request]:
    return [parse(line, LIMIT) for line in Lines(LIMIT).feed(data)]


def test_jefes_requests_are_read_and_an_input_is_kept_as_it_was_written() -> None:
    add, run, remove, nothing = read(JEFE)
    assert add == AddCode(None, "a", "sandbox.x = 1", "js")
    assert run == ExecCode(None, "a", b'{"x": 1.0, "__proto__":[-0]}')
    assert remove == RemoveCode(None, "a")
    assert isinstance(nothing, Refused)


def test_jefes_answers_are_his_bytes() -> None:
    assert protocol.encode(None, DONE) == b'{"ok":true}\r\n'
    ran = Answer(None, b'{"y":[1.0]}', ("logged",), 0.5)
    assert protocol.encode(None, ran) == b'{"ok":true,"outputSandbox":{"y":[1.0]}}\r\n'
    for reason in ("no such script", "malformed request"):
        said = Answer(reason, message="more")
        assert protocol.encode(None, said) == b'{"ok":false,"reason":"%s"}\r\n' % reason.encode()


def test_an_answer_with_an_id_says_more_and_begins_with_it() -> None:
    ran = Answer(None, b'{"y":1}', ("logged",), 0.0005)
    line = protocol.encode('"é\\u0000"'.replace("é", "e"), ran)
    assert line == b'{"id":"e\\u0000","ok":true,"console":["logged"],"timeTaken":0.500,"outputSandbox":{"y":1}}\r\n'


def test_a_fault_is_answered_with_its_evidence() -> None:
    fault = Fault(Reason.EXCEPTION, "TypeError", "a\r\nb", ("f:3",))
    answer = json.loads(protocol.encode("7", Answer.of(fault)))
    assert answer == {
        "id": 7, "ok": False, "reason": "exception", "name": "TypeError", "message": "a\r\nb", "stack": ["f:3"]
    }  # fmt: skip
    assert protocol.encode(None, Answer.of(fault)).count(b"\r\n") == 1


@given(st.lists(st.integers(0, len(JEFE)), max_size=8))
def test_the_stream_may_be_cut_and_joined_at_every_byte(cuts: list[int]) -> None:
    lines, at = Lines(LIMIT), 0
    found: list[bytes | None] = []
    for cut in [*sorted(cuts), len(JEFE)]:
        found += lines.feed(JEFE[at:cut])
        at = cut
    assert [parse(line, LIMIT) for line in found] == read(JEFE)
    assert not lines.partial


def test_the_stream_may_come_byte_by_byte() -> None:
    lines = Lines(LIMIT)
    found = [line for at in range(len(JEFE)) for line in lines.feed(JEFE[at : at + 1])]
    assert found == JEFE.split(b"\r\n")[:-1]


@given(st.integers(1, 40), st.integers(0, 3))
def test_a_line_without_an_end_is_refused_once_and_not_held(step: int, more: int) -> None:
    lines, data = Lines(20), b"x" * 200 + b"\r\n" + b"y" * (19 + more) + b"\r\nz\r\n"
    found: list[bytes | None] = []
    for at in range(0, len(data), step):
        found += lines.feed(data[at : at + step])
        assert len(lines._buffer) <= 22
    assert found == [None, b"y" * (19 + more) if more < 2 else None, b"z"]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b'{"cmd":"ExecCode","name":"a"}', b'{"cmd":"ExecCode","name":"a",}',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":[]}', b'{"cmd":"ExecCode","name":"a","inputSandbox":{}}x',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":{"a":NaN}}', b'{"cmd":"ExecCode","name":1,"inputSandbox":{}}',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":{},"name":"b"}', b'{"cmd":"AddCode","name":"a","code":1}',
        b'{"cmd":"AddCode","name":"a","code":"","language":"cobol"}', b'{"cmd":"RemoveCode","name":"a","more":1}',
        b'{"cmd":"Stop","name":"a"}', b'{"cmd":"RemoveCode","name":"' + b"a" * 300 + b'"}',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":{"a":"\x01"}}', b'{"cmd":"ExecCode" "name":"a"}',
        b'{"id":{},"cmd":"RemoveCode","name":"a"}', b'{"id":"' + b"i" * 80 + b'","cmd":"RemoveCode","name":"a"}',
    ],
)  # fmt: skip
def test_anything_else_is_malformed(line: bytes) -> None:
    request = parse(line, LIMIT)
    assert isinstance(request, Refused)
    assert request.reason == "malformed request"
    assert protocol.encode(None, Answer(request.reason, message=request.message)).endswith(b'"malformed request"}\r\n')


def test_what_is_too_large_or_nested_too_deeply_is_said_to_be() -> None:
    assert parse(None, LIMIT).reason == "input too large"  # type: ignore[union-attr]
    large = b'{"id":3,"cmd":"ExecCode","name":"a","inputSandbox":{"a":"' + b"x" * LIMIT + b'"}}'
    assert parse(large, LIMIT) == Refused("3", "input too large", "the input sandbox is over 1000 bytes")
    deep = b'{"cmd":"ExecCode","name":"a","inputSandbox":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    assert parse(deep, 1 << 20).reason == "nested too deeply"  # type: ignore[union-attr]


@given(st.text(max_size=20), st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
       | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
       max_size=3), max_leaves=8), st.booleans())  # fmt: skip
def test_members_may_stand_in_any_order_with_white_space(name: str, value: object, last: bool) -> None:
    members = {"inputSandbox": {"v": value}, "cmd": "ExecCode", "name": name}
    if last:
        members = dict(reversed(list(members.items())))
    request = parse(json.dumps(members, indent=1).encode(), LIMIT)
    assert isinstance(request, ExecCode)
    assert (request.name, json.loads(request.input_text)) == (name, {"v": value})


@given(
    st.text(max_size=8),
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5), max_size=3),
    st.permutations(["id", "cmd", "name", "inputSandbox"]),
    st.none() | st.integers(-(10**19), 10**19),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_a_request_that_is_read_the_short_way_is_what_the_long_way_makes_of_it(
    name: str, sandbox: dict[str, object], order: list[str], id: int | None, between: tuple[str, str]
) -> None:
    members = {"id": id, "cmd": "ExecCode", "name": name, "inputSandbox": sandbox}
    written = {key: members[key] for key in order if members[key] is not None}
    short = json.dumps(written, separators=between)
    text = json.dumps(sandbox, separators=between)
    assert parse(short.encode(), LIMIT) == parse(short.replace("{", "{\t", 1).encode(), LIMIT)
    request = parse(short.encode(), LIMIT)
    assert isinstance(request, ExecCode)
    assert (request.id, request.name, request.input_text) == (None if id is None else str(id), name, text.encode())


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":1,"cmd":"ExecCode","name":"a","inputSandbox":{},"id":2}',
        b'{"id":01,"cmd":"ExecCode","name":"a","inputSandbox":{}}',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":{}}{}',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":{}',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":{"a":}}',
        b'{"cmd":"ExecCode","name":"a","inputSandbox":{},"inputSandbox":{}}',
    ],
)
def test_a_request_that_only_begins_like_a_run_is_malformed(line: bytes) -> None:
    request = parse(line, LIMIT)
    assert isinstance(request, Refused)
    assert request.reason == "malformed request"


@given(st.binary(max_size=60))
def test_no_line_raises(line: bytes) -> None:
    assert isinstance(parse(line, LIMIT), Refused)


@pytest.mark.parametrize(
    "forged",
    [
        b'{}\r\n{"id":2}',
        b'{},"id":2',
        b"{} ",
        b'{"a":"\x00"}',
        b'{"a":"\x7f\xff"}',
        b"[1]",
        b"",
        b'{"a":' + b"[" * 99999,
    ],
)
def test_an_output_that_could_be_more_than_one_value_is_none(forged: bytes) -> None:
    assert not protocol.check_output(forged)


def test_an_output_of_any_object_is_one() -> None:
    assert protocol.check_output('{"a":[1,{"b":"é\\r\\n"}]}'.encode())
