"""JSON read strictly: bounded before it is parsed, no NaN or Infinity, no duplicate keys, no deep nesting.

`json` itself is imported where this interpreter's accelerator is another one: it and its regular expressions would be
3 ms of every keep's start.
Import rule: `_json` and `errors` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _collections_abc import Callable
    from typing import Any

_SPACE = " \t\n\r"


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key in one object")
    return result


class _Reading:
    """How the accelerator reads, as `json.JSONDecoder` says it to it."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_unique)
    parse_float, parse_int, parse_constant = float, int, staticmethod(_refuse_constant)


def _accelerated() -> tuple[Callable[[str], object], Callable[[object], str]]:
    """What reads and what writes, by the accelerator.

    Raises ImportError, AttributeError or TypeError where that is not as we know it.
    """
    import _json

    how: Any = _Reading
    scan: Any = _json.make_scanner(how)
    make_encoder: Any = _json.make_encoder
    quote = _json.encode_basestring_ascii
    strictly = (False, False, False)  # nothing sorted, no key left out, no NaN

    def loads(text: str) -> object:
        start, end = len(text) - len(text.lstrip(_SPACE)), len(text.rstrip(_SPACE))
        try:
            value, at = scan(text, start)
        except StopIteration:
            raise ValueError("there is no JSON in it") from None
        except (SystemError, ImportError, OSError):
            # It asks for json.decoder.JSONDecodeError: Python 3.11 raises nothing where that is not imported, which
            # becomes a SystemError; a later one imports it, which a locked process cannot.
            raise ValueError("it is no JSON, or not whole") from None
        if at != end:
            raise ValueError(f"there is more behind it, from character {at} on")
        return value

    def dumps(value: object) -> str:
        return "".join(make_encoder({}, _refuse_type, quote, None, ":", ",", *strictly)(value, 0))

    if loads(' {"a": [1.5, null]} ') != {"a": [1.5, None]} or dumps({"a": ["\xe9", 1]}) != '{"a":["\\u00e9",1]}':
        raise TypeError
    return loads, dumps


def _plain() -> tuple[Callable[[str], object], Callable[[object], str]]:
    import json

    read = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique).decode
    return read, json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _refuse_type(value: object) -> object:
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


try:
    _loads, _dumps = _accelerated()
except (ImportError, TypeError, AttributeError):
    _loads, _dumps = _plain()


def loads_object(data: bytes, limit: int, what: str) -> dict[str, object]:
    """The JSON object in `data` (UTF-8, at most `limit` bytes); `what` names it in errors, as in "the request".

    Raises KeepfleetError: TOO_LARGE above the limit, BAD_REQUEST for anything that is not one strict JSON object.
    """
    if len(data) > limit:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read {what}: it is over {limit} bytes")
    try:
        value = _loads(data.decode("utf-8"))
    except RecursionError:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: it is nested too deeply") from None
    except ValueError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: {error}") from None
    if not isinstance(value, dict):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: it must be a JSON object")
    return value


def dumps(value: object) -> bytes:
    """`value` as compact JSON in ASCII, safe on one line of any log or socket."""
    return _dumps(value).encode("ascii")


def quoted(text: str) -> str:
    """One string as JSON has it, in ASCII."""
    return _dumps(text)
