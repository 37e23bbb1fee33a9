"""The table of a time zone, for a guest that has none: when its distance from UTC changes, and to what."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

_FROM, _TO = 0, 4102444800
"""1970 to 2100, in seconds."""
_STEP = 20 * 24 * 3600
"""No zone changes twice within less."""
_FIXED = re.compile(r"([+-])(\d\d):?(\d\d)")


@lru_cache(64)
def table(name: str) -> str:
    """JSON of `[[seconds since 1970, minutes east of UTC], …]` for a zone of the IANA's or a distance as `+02:00`.
    Raises ValueError."""
    fixed = _FIXED.fullmatch(name)
    if fixed is not None:
        minutes = int(fixed[2]) * 60 + int(fixed[3])
        return json.dumps([[0, -minutes if fixed[1] == "-" else minutes]])
    if not re.fullmatch(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,2}", name):
        raise ValueError(f"{name[:64]!r} is no time zone")
    try:
        zone = ZoneInfo(name)
    except (OSError, KeyError, ValueError):
        raise ValueError(f"{name[:64]!r} is no time zone that this host knows") from None

    def minutes_at(seconds: int) -> int:
        distance = datetime.fromtimestamp(seconds, UTC).astimezone(zone).utcoffset()
        return round(distance.total_seconds() / 60) if distance is not None else 0

    found = [[_FROM, minutes_at(_FROM)]]
    for begin in range(_FROM, _TO, _STEP):
        if minutes_at(begin + _STEP) != found[-1][1]:
            low, high = begin, begin + _STEP
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if minutes_at(middle) != found[-1][1] else (middle, high)
            found.append([high, minutes_at(high)])
    return json.dumps(found, separators=(",", ":"))
