"""The list of revoked certificates: one notation, read alike everywhere, and unreadable for all of them alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol import revocation
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.revocation import MAX_SERIAL, RevokedFile, append_revoked, parse_revoked, serial_text

SERIALS = st.integers(0, MAX_SERIAL)


def colons(serial: int) -> str:
    """As `openssl x509 -text` prints it."""
    return serial.to_bytes(max(1, (serial.bit_length() + 7) // 8), "big").hex(":")


NOTATIONS: dict[str, Callable[[int], str]] = {
    "ours": serial_text,
    "upper case": lambda serial: f"{serial:X}",
    "leading zeros": lambda serial: f"{serial:042x}",
    "0x": hex,
    "0X": lambda serial: f"0X{serial:X}",
    "colons": colons,
    "colons in upper case": lambda serial: colons(serial).upper(),
    "0x and colons": lambda serial: "0x" + colons(serial),
    "a comment behind it": lambda serial: f"  {serial:x}\t# alice left",
    "carriage return": lambda serial: f"{serial:x}\r",
}


@pytest.mark.parametrize("notation", NOTATIONS)
@given(serials=st.lists(SERIALS, max_size=4))
def test_every_notation_of_a_serial_number_means_that_number(notation: str, serials: list[int]) -> None:
    text = "# revoked\n\n" + "\n".join(NOTATIONS[notation](serial) for serial in serials)
    assert parse_revoked(text.encode()) == frozenset(serials)


@pytest.mark.parametrize(
    "line",
    [
        "not a serial",
        "12g4",
        "-1",
        "+1",
        "1_0",
        "0x",
        "0x0x1",
        ":1",
        "1:",
        "1::2",
        "123:45",
        "12:345",
        "12 34",
        "f" * 41,
        "f" * 43,
        ":".join(["ff"] * 21),
        "serial=01",
        "1\x00",
        "1\r2",
        "\u0661",
        "\xff",
    ],
)
def test_a_line_that_cannot_be_read_makes_the_whole_list_unreadable(line: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot accept any certificate: cannot read L: line 2 must be") as refused:
        parse_revoked(f"12\n{line}\n34\n".encode(), "L")
    assert refused.value.kind is ErrorKind.CERTIFICATE


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_of_serial_numbers_or_refused(data: bytes) -> None:
    try:
        serials = parse_revoked(data)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.CERTIFICATE
    else:
        assert all(0 <= serial <= MAX_SERIAL for serial in serials)


@given(st.lists(SERIALS, max_size=5), st.integers(0, 300))
def test_a_list_that_was_cut_short_names_no_other_serial_number_but_the_last(serials: list[int], cut: int) -> None:
    text = "".join(f"{serial:x}\n" for serial in serials)[:cut]
    complete = text.count("\n")
    assert parse_revoked(text.encode()) >= frozenset(serials[:complete])


def test_a_list_over_its_limit_is_refused_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "MAX_REVOKED_BYTES", 8)
    path = tmp_path / "revoked"
    path.write_bytes(b"1234\n")
    append_revoked(str(path), 0xAB)
    with pytest.raises(KeepfleetError, match="would be over 8 bytes") as refused:
        append_revoked(str(path), 1)
    assert refused.value.kind is ErrorKind.NO_SPACE
    assert RevokedFile(str(path)).serials() == {0x1234, 0xAB}
    path.write_bytes(b"1234\n5678\n")
    with pytest.raises(KeepfleetError, match="it is over 8 bytes"):
        RevokedFile(str(path)).serials()


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_a_list_is_read_again_when_it_has_changed(tmp_path: Path, by_descriptor: bool) -> None:
    path = tmp_path / "revoked"
    path.write_bytes(b"")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        revoked = RevokedFile(descriptor if by_descriptor else str(path))
        assert revoked.serials() == frozenset()
        append_revoked(str(path), 0xA1)
        assert revoked.serials() == {0xA1}
        with path.open("ab") as file:
            file.write(b"what is this")
        for _ in range(2):
            with pytest.raises(KeepfleetError, match="line 2 must be one serial number in hexadecimal"):
                revoked.serials()
        path.write_bytes(b"A1:00\n")
        assert revoked.serials() == {0xA100}
    finally:
        os.close(descriptor)


def test_a_list_that_another_file_replaced_admits_no_one_by_the_old_descriptor(tmp_path: Path) -> None:
    path, other = tmp_path / "revoked", tmp_path / "edited"
    path.write_bytes(b"1\n")
    other.write_bytes(b"1\n2\n")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        kept, named = RevokedFile(descriptor), RevokedFile(str(path))
        assert kept.serials() == named.serials() == {1}
        os.rename(other, path)
        assert named.serials() == {1, 2}
        with pytest.raises(KeepfleetError, match="it was replaced by another file; start the keep again"):
            kept.serials()
    finally:
        os.close(descriptor)


def test_a_list_that_is_not_there_or_no_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="missing: No such file or directory"):
        RevokedFile(str(tmp_path / "missing")).serials()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(KeepfleetError, match="it is not a regular file"):
        RevokedFile(str(tmp_path / "fifo")).serials()


def test_a_line_that_a_crash_cut_short_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_bytes(b"12")
    append_revoked(str(path), 0x34)
    append_revoked(str(path), 0x56)
    assert path.read_bytes() == b"12\n34\n56\n"
