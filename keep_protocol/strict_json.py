"""JSON read strictly: bounded before it is parsed, no NaN or Infinity, no duplicate keys, no deep nesting.

Import rule: `json` and `errors` alone (the light part of keep_protocol).
"""

from __future__ import annotations

import json

from keep_protocol.errors import ErrorKind, KeepfleetError


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def loads_object(data: bytes, limit: int, what: str) -> dict[str, object]:
    """The JSON object in `data` (UTF-8, at most `limit` bytes); `what` names it in errors, as in "the request".

    Raises KeepfleetError: TOO_LARGE above the limit, BAD_REQUEST for anything that is not one strict JSON object.
    """
    if len(data) > limit:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read {what}: it is over {limit} bytes")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: it is nested too deeply") from None
    except ValueError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: {error}") from None
    if not isinstance(value, dict):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: it must be a JSON object")
    return value


def dumps(value: object) -> bytes:
    """`value` as compact JSON in ASCII, safe on one line of any log or socket."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
