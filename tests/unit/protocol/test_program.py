"""A script as a file: it is read back as it was written, and what is none is refused."""

from __future__ import annotations

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import KeepfleetError
from keep_protocol.program import HEAD_BYTES, MAX_SCRIPT_BYTES, Program, is_program, unwrap, wrap

PROGRAM = Program("javascript", "hello.js", b"print('hello')\n")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_script_is_read_back_as_it_was_written(source: str) -> None:
    program = Program("javascript", "hello.js", source.encode())
    data = wrap(program)
    assert is_program(data[:HEAD_BYTES])
    assert unwrap(data) == unwrap(data + b"a seal") == program


def test_its_file_is_a_valid_module_with_nothing_in_it() -> None:
    module = wasmtime.Module(wasmtime.Engine(), wrap(PROGRAM))
    assert (list(module.imports), list(module.exports)) == ([], [])


def test_a_file_that_is_cut_is_refused() -> None:
    data = wrap(PROGRAM)
    for size in range(HEAD_BYTES, len(data)):
        with pytest.raises(KeepfleetError, match="cannot take the script"):
            unwrap(data[:size])
    assert not any(is_program(data[:size]) for size in range(HEAD_BYTES))


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("", b"1", "its name must have 1 to 255 printable characters"),
        ("a\nb", b"1", "its name must have"),
        ("a.js", b"a\0b", "it has a NUL"),
        ("a.js", b"ab\xff", "it is not UTF-8 at byte 2"),
        ("a.js", bytes(MAX_SCRIPT_BYTES + 1), "and may have 5242880"),
    ],
)
def test_what_no_engine_would_take_is_refused_with_the_reason(name: str, source: bytes, why: str) -> None:
    with pytest.raises(KeepfleetError, match=why):
        Program("javascript", name, source)
