"""The member `workload` of a start request: what it may hold, and what is refused."""

from __future__ import annotations

import pytest

from keep_protocol.api_workload import Grant, GrantKind, WorkloadRequest, parse_workload
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import RestartPolicy
from keep_protocol.workload import Directory, Workload


def test_an_empty_workload_gives_nothing() -> None:
    assert parse_workload({}) == WorkloadRequest(Workload())
    assert parse_workload({"stdin": None}) == WorkloadRequest(Workload())


def test_everything_a_guest_can_be_given_is_taken() -> None:
    request = parse_workload(
        {
            "arguments": ["-v", ""],
            "environment": {"A": "1"},
            "export": "add",
            "export_arguments": ["1", "2"],
            "stdin": {"file": "/srv/in"},
            "directories": [{"host": "/srv/a", "guest": "/a", "writable": True}, {"host": "/srv", "guest": "/"}],
            "secrets": [{"name": "key", "file": "/srv/key"}],
            "restart": "on-failure",
        }
    )
    assert request.workload == Workload(
        ("-v", ""),
        (("A", "1"),),
        "add",
        ("1", "2"),
        True,
        (Directory("/a", True), Directory("/", False)),
        ("key",),
        RestartPolicy.ON_FAILURE,
    )
    assert request.grants == (
        Grant(GrantKind.STDIN, "/srv/in"),
        Grant(GrantKind.DIRECTORY, "/srv/a", True),
        Grant(GrantKind.DIRECTORY, "/srv"),
        Grant(GrantKind.SECRET, "/srv/key"),
    )
    assert len(request.grants) == len(request.workload.grant_names)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ([], "invalid workload: it must be an object"),
        ({"args": []}, "unknown field 'args'"),
        ({"arguments": "x"}, "'arguments' must be a list"),
        ({"arguments": [1]}, "'arguments': item 1 must be a string"),
        ({"arguments": ["a\0b"]}, "NUL"),
        ({"environment": []}, "'environment' must be an object of at most"),
        ({"environment": {"A": 1}}, "'environment': the value of 'A' must be a string"),
        ({"environment": {"A=B": "1"}}, "no name of a variable"),
        ({"export": 5}, "'export' must be a name"),
        ({"stdin": "/x"}, "'stdin' must be null or an object"),
        ({"stdin": {"file": "/x", "path": "/x"}}, "it takes file"),
        ({"stdin": {}}, "either a file or a stream"),
        ({"directories": [{"guest": "/a"}]}, "'host' is missing"),
        ({"directories": [{"host": "a", "guest": "/a"}]}, "absolute, plain path"),
        ({"directories": [{"host": "/a"}]}, "'guest' is missing"),
        ({"directories": [{"host": "/a", "guest": "/a", "writable": 1}]}, "true or false"),
        ({"directories": [{"host": "/a", "guest": "/run/secrets"}]}, "cannot be a directory's name"),
        ({"directories": [{"host": "/a", "guest": "/a"}] * 2}, "one name"),
        ({"directories": [{"host": "/a", "guest": f"/{n}"} for n in range(17)]}, "at most 16"),
        ({"secrets": [{"name": "../x", "file": "/a"}]}, "cannot be a secret's name"),
        ({"secrets": [{"name": "x"}]}, "'file' is missing"),
        ({"secrets": ["x"]}, "'secrets': item 1 must be an object"),
        ({"restart": "sometimes"}, "no, on-failure, always"),
    ],
)
def test_a_workload_that_cannot_be_given_is_refused_with_the_reason(asked: object, why: str) -> None:
    with pytest.raises(KeepfleetError, match=why) as caught:
        parse_workload(asked)
    assert caught.value.kind is ErrorKind.BAD_REQUEST
