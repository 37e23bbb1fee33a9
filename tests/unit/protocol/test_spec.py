"""What a keep is, as its unit's environment holds it."""

from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport, Module, merge
from keep_protocol.limits import DEFAULT_LIMITS, Limits
from keep_protocol.spec import (
    MAX_LABEL_VALUE,
    MAX_LABELS,
    MAX_SPEC_TEXT,
    Compiler,
    KeepSpec,
    Kind,
    Lease,
    Profile,
    RestartPolicy,
    check_labels,
    check_name,
    decode_spec,
    encode_spec,
)
from keep_protocol.states import State

FULL = KeepSpec(
    Kind.UPLOAD,
    "web-1",
    (("a", "É 1"), ("b", "")),
    "ann@example",
    ("name:ann", "sha256:" + "a" * 64),
    Limits(tasks=20),
    RestartPolicy.ALWAYS,
    Lease(60, 0),
    1.5,
    "",
    "0" * 64,
    "f" * 64,
    Profile.STRICT,
)


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("spec", [KeepSpec(), FULL, KeepSpec(compiler=Compiler.FAST)])
def test_a_spec_comes_back_as_it_was(spec: KeepSpec) -> None:
    assert decode_spec(encode_spec(spec)) == spec


@given(st.dictionaries(st.from_regex(r"[a-z]{1,63}", fullmatch=True), st.text(max_size=255), max_size=16))
def test_no_byte_of_a_client_s_is_in_it_as_it_was(labels: dict[str, str]) -> None:
    text = encode_spec(KeepSpec(labels=tuple(sorted(labels.items()))))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)


def test_the_longest_labels_fit() -> None:
    widest = "\U0001f600"  # twelve bytes in JSON
    labels = check_labels((f"{n:063}", widest * MAX_LABEL_VALUE) for n in range(MAX_LABELS))
    assert len(encode_spec(FULL.replace(labels=labels))) < MAX_SPEC_TEXT


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON in it|Expecting"),
        ("*", "no base64url"),
        ("a", "no base64url"),
        ("ab==", "no base64url"),
        (encoded([]), "must be a JSON object"),
        (encoded({}), "schema is not 1"),
        (encoded({"schema": 2}), "schema is not 1"),
        (encoded({"schema": 1, "kind": "odd"}), "field 'kind' must be one of upload"),
        (encoded({"schema": 1, "owner": "a\nb"}), "field 'owner' must be 1 to 64 of"),
        (encoded({"schema": 1, "uploaders": ["bob"]}), "field 'uploaders': item 1 must be"),
        (encoded({"schema": 1, "lease": {"idle_seconds": -1}}), "field 'idle_seconds' must be"),
    ],
)
def test_what_was_not_written_by_us_is_refused(text: str, why: str) -> None:
    with pytest.raises(KeepfleetError, match=why) as refused:
        decode_spec(text)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


@given(st.text(max_size=50))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(KeepfleetError):
        decode_spec(text)


def test_a_later_version_s_fields_are_passed_over() -> None:
    assert decode_spec(encoded({"schema": 1, "name": "a", "colour": "red"})) == KeepSpec(name="a")


@pytest.mark.parametrize("name", ["Web", "a b", "a\n", "x" * 64, "ü"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(KeepfleetError, match="1 to 63 of a-z, 0-9 and -"):
        check_name(name)


def test_a_strict_keep_has_no_fast_compiler() -> None:
    with pytest.raises(KeepfleetError, match=r"cannot have compiler fast with profile strict.*: leave one of them out"):
        decode_spec(encoded({"schema": 1, "profile": "strict", "compiler": "fast"}))


def test_what_a_keep_is_comes_from_its_spec_alone() -> None:
    module = Module("sha256:" + "a" * 64, "x.wasm", 5)
    info = merge(FULL, KeepReport(State.STARTED, 7, phase="running", module=module), "keep@7.service")
    assert (info.name, info.owner, info.labels, info.limits) == (FULL.name, FULL.owner, FULL.labels, FULL.limits)
    assert (info.profile, info.compiler) == (Profile.STRICT, Compiler.OPTIMIZING)
    assert (info.kuuid, info.phase, info.module, info.created_at) == (7, "running", module, 1.5)
    assert info.uploaders == FULL.uploaders
    assert merge(KeepSpec(), KeepReport(State.LISTENING, 8), "").limits == DEFAULT_LIMITS
