"""Whether a whole text matches a plain pattern: literal characters, and classes of them that repeat.

The pattern is a regular expression, and stands in JSON Schema as one; what is not plain is left to `re`. That module,
and each pattern that it compiles, would cost a keep and a command more than all that is matched here: 3 ms, 0.3 ms.
Import rule: none but `re`, where a pattern needs it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from re import Pattern

    Item = tuple[frozenset[str], int, int]
    """The characters that may stand here, and how many at least and at most."""
    Plain = tuple[tuple[Item, ...], ...]
    """Alternatives, each a sequence of which only the last item varies in length."""

_SPECIAL = frozenset(".^$*+?{}[]()|\\")
_MANY = 1 << 62
_REPEATS = {"*": (0, _MANY), "+": (1, _MANY), "?": (0, 1)}
_known: dict[str, Plain | Pattern[str]] = {}


class _NotPlain(Exception):
    """A pattern that is left to `re`."""


def matches(pattern: str, text: str) -> bool:
    """Whether all of `text` matches `pattern`, whose classes are those of ASCII."""
    known = _known.get(pattern)
    if known is None:
        try:
            known = _plain(pattern)
        except _NotPlain:
            import re

            known = re.compile(pattern, re.ASCII)
        _known[pattern] = known
    if isinstance(known, tuple):
        return any(_fits(items, text) for items in known)
    return known.fullmatch(text) is not None


def _fits(items: tuple[Item, ...], text: str) -> bool:
    at = 0
    for allowed, low, _ in items[:-1]:
        if not allowed.issuperset(text[at : at + low]) or len(text) < at + low:
            return False
        at += low
    if not items:
        return not text
    allowed, low, high = items[-1]
    return low <= len(text) - at <= high and allowed.issuperset(text[at:])


def _plain(pattern: str) -> Plain:
    empty: Plain = ()
    if pattern.startswith("(") and pattern.endswith(")?"):
        pattern, empty = pattern[1:-2], ((),)
    found = tuple(_sequence(alternative) for alternative in pattern.split("|"))
    return (*found, *empty)


def _sequence(pattern: str) -> tuple[Item, ...]:
    items: list[Item] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "[":
            end = pattern.find("]", at + 2)
            allowed = _class(pattern[at + 1 : end]) if end > 0 else None
            at = end + 1
        elif character == "\\" and at + 1 < len(pattern) and pattern[at + 1] in _SPECIAL:
            allowed, at = frozenset(pattern[at + 1]), at + 2
        else:
            allowed, at = None if character in _SPECIAL else frozenset(character), at + 1
        if allowed is None:
            raise _NotPlain
        low, high, at = _repeat(pattern, at)
        items.append((allowed, low, high))
    if any(low != high for _, low, high in items[:-1]):
        raise _NotPlain  # what is left for the next item would have to be searched for
    return tuple(items)


def _class(text: str) -> frozenset[str]:
    if not text or text[0] == "^" or "\\" in text or "[" in text:
        raise _NotPlain
    found, at = set(text[-1:]), 0
    while at < len(text):
        if text[at + 1 : at + 2] == "-" and at + 2 < len(text):
            found.update(map(chr, range(ord(text[at]), ord(text[at + 2]) + 1)))
            at += 3
        else:
            found.add(text[at])
            at += 1
    return frozenset(found)


def _repeat(pattern: str, at: int) -> tuple[int, int, int]:
    """How often, at least and at most, what ends before `at` stands there; and where the pattern goes on."""
    following = pattern[at : at + 1]
    if following in _REPEATS:
        low, high = _REPEATS[following]
        end = at + 1
    elif following == "{":
        end = pattern.find("}", at) + 1
        first, comma, last = pattern[at + 1 : end - 1].partition(",")
        if not end or not first.isdecimal() or not (last or first).isdecimal():
            raise _NotPlain
        low, high = int(first), int(last or first) if last or not comma else _MANY
    else:
        return 1, 1, at
    if pattern[end : end + 1] in ("?", "+", "*"):
        raise _NotPlain  # a repeat of another kind
    return low, high, end
