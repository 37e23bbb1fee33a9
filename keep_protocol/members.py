"""Typed access to a JSON object that another process sent.

Import rule: `errors` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError

_MAX_SECONDS = 1e12
"""JSON has numbers no clock shows: `1e999` reads as infinity, which could not be written again."""


class Members:
    """Typed access to a JSON object from another process; every miss is one clear BAD_REQUEST."""

    def __init__(self, value: dict[str, object], what: str) -> None:
        self._value, self._what = value, what

    def _refuse(self, name: str, must: str) -> KeepfleetError:
        return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {self._what}: {name!r} must be {must}")

    def text(self, name: str) -> str:
        value = self._value.get(name, "")
        if not isinstance(value, str):
            raise self._refuse(name, "a string")
        return value

    def number(self, name: str) -> int:
        value = self._value.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._refuse(name, "a whole number")
        return value

    def maybe_number(self, name: str) -> int | None:
        return None if self._value.get(name) is None else self.number(name)

    def maybe_seconds(self, name: str) -> float | None:
        value = self._value.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self._refuse(name, "a number of seconds")
        if value is not None and not 0 <= value <= _MAX_SECONDS:  # which no NaN and no infinity does
            raise self._refuse(name, "a number of seconds")
        return None if value is None else float(value)

    def lines(self, name: str) -> tuple[str, ...]:
        value = self._value.get(name, [])
        if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
            raise self._refuse(name, "a list of strings")
        return tuple(value)

    def labels(self, name: str) -> tuple[tuple[str, str], ...]:
        value = self._value.get(name, {})
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise self._refuse(name, "an object of strings")
        return tuple((str(label), str(text)) for label, text in value.items())

    def mapping(self, name: str) -> dict[str, object] | None:
        value = self._value.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._refuse(name, "an object")
        return value
