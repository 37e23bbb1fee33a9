"""Plain patterns match what `re` says they match."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keep_protocol import patterns

PLAIN = (
    r"([a-z0-9-]{1,63})?",
    r"[a-z0-9./-]{1,63}",
    r"([A-Za-z0-9._@-]{1,64})?",
    r"sha256:[0-9a-f]{64}",
    r"\*|name:[A-Za-z0-9._@-]{1,64}|sha256:[0-9a-f]{64}",
    r"(sha256:[0-9a-f]{64})?",
    r"[A-Za-z0-9_-]*",
    r"[1-9][0-9]{0,15}",
    r"cn-[0-9a-f]{16}",
    r"[a-z]{2,}",
    r"a?",
    r"x+",
)
NOT_PLAIN = (r"(a|b)c", r"[^a]", r"a.b", r"[a-z]*x", r"\d+", r"a{1,2}?", r"[a-z]{1,2}+", r"(?:ab)?", r"[\w]", r"a{,3}")
TEXTS = st.text(st.sampled_from(string.ascii_letters + string.digits + "*:._@-/ \né"), max_size=80)


def _by_re(pattern: str, text: str) -> bool:
    return re.compile(pattern, re.ASCII).fullmatch(text) is not None


@given(st.sampled_from(PLAIN), TEXTS)
@example("x+", "")
@example("[a-z]{2,}", "a")
@example("[1-9][0-9]{0,15}", "")
def test_a_plain_pattern_matches_what_re_matches(pattern: str, text: str) -> None:
    assert patterns.matches(pattern, text) == _by_re(pattern, text)


@given(st.sampled_from(PLAIN), st.data())
def test_a_text_made_by_a_plain_pattern_matches_it(pattern: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True))
    assert patterns.matches(pattern, text)
    shorter = text[:-1]
    assert patterns.matches(pattern, shorter) == _by_re(pattern, shorter)


@pytest.mark.parametrize("pattern", PLAIN)
def test_what_is_plain_needs_no_re(pattern: str) -> None:
    patterns.matches(pattern, "x")
    assert isinstance(patterns._known[pattern], tuple)


@pytest.mark.parametrize("pattern", [p for p in NOT_PLAIN if p != r"[a-z]{1,2}+"])
@pytest.mark.parametrize("text", ["", "ac", "b", "axb", "abx", "12", "aa", "ab", "a{,3}", "x"])
def test_what_is_not_plain_is_left_to_re(pattern: str, text: str) -> None:
    assert patterns.matches(pattern, text) == _by_re(pattern, text)
    assert not isinstance(patterns._known[pattern], tuple)
