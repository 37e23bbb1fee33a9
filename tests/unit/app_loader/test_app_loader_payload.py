"""The payload parser against the JSON reader of the standard library."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_loader.receive.payload import PayloadParser
from keep_protocol.errors import KeepfleetError

SPACE = st.text(" \t\r\n", max_size=3)
CUTS = st.lists(st.integers(1, 40), max_size=40)


def parse(text: bytes, cuts: list[int]) -> bytes:
    """What the parser makes of `text`, fed in pieces of these sizes and then whole."""
    parser, out = PayloadParser(), b""
    for size in [*cuts, len(text) + 1]:
        piece, text = text[:size], text[size:]
        out += b"".join(parser.feed(piece))
    parser.finish()
    return out


def reference(text: bytes) -> bytes | None:
    """What the standard library makes of it; None when it is not a payload."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    try:
        value = json.loads(text.decode("ascii"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"encoding", "contents"} or value["encoding"] != "wasm":
        return None
    contents = value["contents"]
    if not isinstance(contents, list) or not all(type(n) is int and 0 <= n <= 255 for n in contents):
        return None
    return bytes(contents)


@st.composite
def payloads(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A module, and a payload that carries it in some order and spacing."""
    module = draw(st.binary(max_size=300))
    numbers = f"{draw(SPACE)},{draw(SPACE)}".join(map(str, module))
    contents = f'"contents"{draw(SPACE)}:{draw(SPACE)}[{draw(SPACE)}{numbers}{draw(SPACE)}]'
    encoding = f'"encoding"{draw(SPACE)}:{draw(SPACE)}"wasm"'
    members = draw(st.permutations([contents, encoding]))
    text = (
        f"{draw(SPACE)}{{{draw(SPACE)}{members[0]}{draw(SPACE)},{draw(SPACE)}{members[1]}{draw(SPACE)}}}{draw(SPACE)}"
    )
    return module, text.encode()


@given(payloads(), CUTS)
def test_every_payload_gives_its_module_back_however_it_is_cut(payload: tuple[bytes, bytes], cuts: list[int]) -> None:
    module, text = payload
    assert parse(text, cuts) == module


@given(payloads(), st.data(), CUTS)
def test_a_damaged_payload_is_taken_only_where_json_takes_it(
    payload: tuple[bytes, bytes], data: st.DataObject, cuts: list[int]
) -> None:
    text = payload[1]
    at = data.draw(st.integers(0, len(text)))
    inserted = data.draw(st.text('0123456789 ,[]{}":wasm-+._eE\\u\n', max_size=3)).encode()
    damaged = text[:at] + inserted + text[at + data.draw(st.integers(0, 3)) :]
    try:
        taken: bytes | None = parse(damaged, cuts)
    except KeepfleetError:
        taken = None
    assert taken == reference(damaged)


@given(st.text('{}[],:"wasmencodingcontents0123456789 ', max_size=80), CUTS)
def test_any_other_text_is_taken_only_where_json_takes_it(text: str, cuts: list[int]) -> None:
    try:
        taken: bytes | None = parse(text.encode(), cuts)
    except KeepfleetError:
        taken = None
    assert taken == reference(text.encode())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"encoding":"wat","contents":[0]}', "its encoding 'wat' is not 'wasm'"),
        ('{"encoding":"wasm","encoding":"wasm","contents":[0]}', "'encoding' is given twice"),
        ('{"encoding":"wasm"}', "'contents' is missing"),
        ('{"contents":[]}', "'encoding' is missing"),
        ('{"encoding":"wasm","contents":[256]}', "b'256' in 'contents' is no number"),
        ('{"encoding":"wasm","contents":[007]}', "b'007' in 'contents' is no number"),
        ('{"encoding":"wasm","contents":[1 2]}', "b'1 2' in 'contents' is no number"),
        ('{"encoding":"wasm","contents":[1,]}', "b'' in 'contents' is no number"),
        ('{"encoding":"wasm","contents":[1]', "it ends too early"),
        ('{"encoding":"wasm","contents":[1]}x', "something follows its end"),
        ('{"encoding":"wasm","contents":[1],"name":"x"}', "'name' is no member"),
        ('{"encoding":' + " " * 5000, "there are over 4096 bytes besides its numbers"),
        ('{"encoding":"wasm","contents":[' + "1" * 5000, "is no number"),
        ("[" * 100_000, "is where { must be"),
    ],
)
def test_a_wrong_payload_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot read the payload") as caught:
        parse(text.encode(), [])
    assert words in caught.value.message


def test_a_large_module_leaves_nothing_in_the_parser() -> None:
    parser, total = PayloadParser(), 0
    pieces = [b'{"encoding":"wasm","contents":[', *[b"0,97,115,109," * 5000] * 40, b"1]}"]
    for piece in pieces:
        total += sum(map(len, parser.feed(piece)))
        assert int(repr(parser).split(", ")[1].split()[0]) < 10
    parser.finish()
    assert total == 40 * 5000 * 4 + 1
