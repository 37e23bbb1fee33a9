"""A host's journal, read by this process with systemd's own library, which is what journalctl does: no command runs
for it. A command costs twenty milliseconds of processor time, and a test reads or waits a dozen times."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeAlias

Entry: TypeAlias = dict[str, Any]
"""One journal entry: field → text (or a list of numbers where it is not text, or of both where a field is repeated)."""
DIRECTORY = "/run/log/journal"
_NOTHING = 0
"""What a wait returns when nothing has changed."""
_WAIT_MICROSECONDS = 500_000
"""After so long a wait looks again: a follower of the library's was seen not to wake for an entry that was there."""


class Broken(Exception):
    """The library cannot read the journal."""


class _Library:
    """The functions of libsystemd that are used (man sd_journal_open, …), which raise Broken."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("systemd") or "libsystemd.so.0")
        self.free = ctypes.CDLL(None).free

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = self._library[f"sd_journal_{name}"]

        def call(*arguments: object) -> int:
            result: int = function(*arguments)
            if result < 0:
                raise Broken(f"{name}: {os.strerror(-result)}")
            return result

        setattr(self, name, call)
        return call


_DO = _Library()


class Journal:
    """The entries of a host whose root directory is seen at `root`, the oldest first, that have all FIELD=VALUE of one
    of these groups; without a group, all. A context manager."""

    def __init__(self, root: str, groups: Sequence[Sequence[str]] = ()) -> None:
        self._journal = ctypes.c_void_p()
        _DO.open_directory(ctypes.byref(self._journal), f"{root}{DIRECTORY}".encode(), 0)
        _DO.set_data_threshold(self._journal, ctypes.c_size_t(0))
        for group in groups:
            for match in map(os.fsencode, group):
                _DO.add_match(self._journal, match, ctypes.c_size_t(len(match)))
            _DO.add_disjunction(self._journal)

    def __repr__(self) -> str:
        return f"Journal({self._journal.value})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _DO.close(self._journal)

    def last(self, count: int) -> list[Entry]:
        """The last entries, at most `count`."""
        _DO.seek_tail(self._journal)
        there = _DO.previous_skip(self._journal, ctypes.c_uint64(count))
        return [self._entry(), *self._following(None)] if there else []

    def after(self, cursor: str | None) -> list[Entry]:
        """The entries behind the one at `cursor`, or all."""
        self._seek(cursor)
        return list(self._following(cursor))

    def wait(self, wanted: Callable[[Entry], bool], cursor: str | None, deadline: float) -> tuple[bool, list[Entry]]:
        """Whether one behind `cursor` that is wanted came before `deadline`; the entries up to it, or those that
        came."""
        seen: list[Entry] = []
        self._seek(cursor)
        while True:
            for entry in self._following(cursor):
                seen.append(entry)
                if wanted(entry):
                    return True, seen
            if time.monotonic() > deadline:
                return False, seen
            if _DO.wait(self._journal, ctypes.c_uint64(_WAIT_MICROSECONDS)) == _NOTHING:
                cursor = str(seen[-1]["__CURSOR"]) if seen else cursor
                self._seek(cursor)

    def _seek(self, cursor: str | None) -> None:
        if cursor:
            _DO.seek_cursor(self._journal, cursor.encode())
        else:
            _DO.seek_head(self._journal)

    def _following(self, cursor: str | None) -> Iterator[Entry]:
        while _DO.next(self._journal):
            entry = self._entry()
            if entry["__CURSOR"] != cursor:
                yield entry

    def _entry(self) -> Entry:
        data, length = ctypes.c_void_p(), ctypes.c_size_t()
        fields: dict[str, list[object]] = {}
        while _DO.enumerate_available_data(self._journal, ctypes.byref(data), ctypes.byref(length)):
            name, _, value = ctypes.string_at(data.value or 0, length.value).partition(b"=")
            fields.setdefault(name.decode(), []).append(_text(value))
        text, microseconds = ctypes.c_void_p(), ctypes.c_uint64()
        _DO.get_realtime_usec(self._journal, ctypes.byref(microseconds))
        _DO.get_cursor(self._journal, ctypes.byref(text))
        cursor = ctypes.string_at(text.value or 0).decode()
        _DO.free(text)
        return {
            "__CURSOR": cursor,
            "__REALTIME_TIMESTAMP": str(microseconds.value),
            **{name: values[0] if len(values) == 1 else values for name, values in fields.items()},
        }


def _text(value: bytes) -> str | list[int]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return list(value)
