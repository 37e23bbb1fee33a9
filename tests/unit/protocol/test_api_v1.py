"""What /v1 takes at a keep's creation and in a list, and what it refuses."""

from __future__ import annotations

import json

import pytest

from keep_protocol import api
from keep_protocol.errors import ErrorKind, KeepfleetError


def test_a_creation_may_name_label_and_limit_the_keep() -> None:
    body = {"name": "web-1", "labels": {"b": "", "a.example/x": "É 1"}, "limits": {"tasks": 20, "wall_seconds": 5}}
    assert api.parse_v1_create(json.dumps(body).encode()) == api.NewKeep(
        "wasi", "web-1", (("a.example/x", "É 1"), ("b", "")), (("tasks", 20), ("wall_seconds", 5))
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"name": "Web"}, "a-z"),
        ({"name": "x" * 64}, "1 to 63"),
        ({"name": "a\n"}, "a-z"),
        ({"name": "ü"}, "a-z"),
        ({"name": 5}, "'name' must be 1 to 63"),
        ({"labels": []}, "'labels' must be an object"),
        ({"labels": {"": "x"}}, "a name must be 1 to 63"),
        ({"labels": {"A": "x"}}, "a name must be 1 to 63"),
        ({"labels": {"a": 5}}, "printable"),
        ({"labels": {"a": "x" * 256}}, "255"),
        ({"labels": {"a": "\x1b[2J"}}, "printable"),
        ({"labels": {"a": "\ud800"}}, "printable"),
        ({"labels": {f"k{n}": "" for n in range(17)}}, "at most 16"),
        ({"limits": {"tasks": "20"}}, "whole number"),
        ({"limits": {"tasks": True}}, "whole number"),
        ({"limits": {"tasks": 15}}, "16 … 512"),
        ({"limits": {"MemoryMax": 1}}, "it takes memory_bytes"),
        ({"owner": "x"}, "unknown field 'owner'"),
    ],
)
def test_a_creation_that_asks_for_what_cannot_be_is_refused(body: dict[str, object], why: str) -> None:
    with pytest.raises(KeepfleetError, match=why) as caught:
        api.parse_v1_create(json.dumps(body).encode())
    assert caught.value.kind is ErrorKind.BAD_REQUEST


def test_a_list_takes_a_page_and_labels() -> None:
    assert api.parse_v1_list([]) == api.ListKeeps()
    query = [("limit", "5"), ("label", "b=x=y"), ("after", "7"), ("label", "a=")]
    assert api.parse_v1_list(query) == api.ListKeeps(5, 7, (("a", ""), ("b", "x=y")))


@pytest.mark.parametrize(
    "query",
    [
        [("limit", "0")],
        [("limit", "1001")],
        [("limit", "-1")],
        [("limit", "٣")],
        [("limit", "1"), ("limit", "1")],
        [("after", "0")],
        [("after", "9007199254740992")],
        [("label", "a")],
        [("label", "A=b")],
        [("label", "a=b"), ("label", "a=c")],
        [("colour", "red")],
    ],
)
def test_a_list_that_asks_for_what_cannot_be_is_refused(query: list[tuple[str, str]]) -> None:
    with pytest.raises(KeepfleetError) as caught:
        api.parse_v1_list(query)
    assert caught.value.kind is ErrorKind.BAD_REQUEST
