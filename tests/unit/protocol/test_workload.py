"""What a guest is given: every refusal in words, and the way there and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.constants import MAX_CONTROL_FDS, START_DESCRIPTORS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import Compiler, Profile, RestartPolicy
from keep_protocol.workload import (
    MAX_DIRECTORIES,
    MAX_SECRETS,
    MAX_STRINGS,
    MAX_STRINGS_BYTES,
    MAX_WORKLOAD_JSON,
    SECRETS_GUEST,
    Directory,
    Workload,
    check_guest_path,
    workload_from_json,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
PART = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._ -]{0,10}", fullmatch=True)
GUESTS = st.just("/") | st.lists(PART, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
DIRECTORIES = st.lists(
    st.builds(Directory, GUESTS, st.booleans()), max_size=MAX_DIRECTORIES, unique_by=lambda directory: directory.guest
)
SECRETS = st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True), max_size=4, unique=True)
VARIABLES = st.dictionaries(TEXT.filter(lambda name: bool(name) and "=" not in name), TEXT, max_size=5)
WORKLOADS = st.builds(
    Workload,
    arguments=st.lists(TEXT, max_size=5).map(tuple),
    environment=VARIABLES.map(lambda variables: tuple(variables.items())),
    export=st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40),
    export_arguments=st.lists(TEXT, max_size=5).map(tuple),
    stdin=st.booleans(),
    directories=DIRECTORIES.map(tuple),
    secrets=SECRETS.map(tuple),
    restart=st.sampled_from(tuple(RestartPolicy)),
    profile=st.sampled_from(tuple(Profile)),
)
PLAIN = json.loads(Workload().to_json())


@given(WORKLOADS)
def test_a_workload_comes_back_as_it_was(workload: Workload) -> None:
    assert workload_from_json(workload.to_json()) == workload


def test_what_a_keep_of_an_older_version_does_not_know_is_written_only_where_it_says_something() -> None:
    assert not {"profile", "compiler"} & set(PLAIN)
    strict, fast = Workload(profile=Profile.STRICT), Workload(compiler=Compiler.FAST)
    assert json.loads(strict.to_json()) == {**PLAIN, "profile": "strict"}
    assert json.loads(fast.to_json()) == {**PLAIN, "compiler": "fast"}


def test_nothing_asked_for_is_a_plain_program() -> None:
    workload = Workload()
    assert (workload.arguments, workload.export, workload.stdin, workload.grant_names) == ((), "", False, ())
    assert workload.restart is RestartPolicy.NO


def test_descriptors_have_one_name_each_in_the_order_they_are_passed() -> None:
    workload = Workload(stdin=True, directories=(Directory("/a"), Directory("/b", True)), secrets=("token",))
    assert workload.grant_names == ("stdin", "directory-0", "directory-1", "secret-0")


def test_the_most_that_can_be_granted_fits_one_control_message() -> None:
    workload = Workload(
        stdin=True,
        directories=tuple(Directory(f"/{number}") for number in range(MAX_DIRECTORIES)),
        secrets=tuple(f"s{number}" for number in range(MAX_SECRETS)),
    )
    assert len(START_DESCRIPTORS) + 1 + len(workload.grant_names) <= MAX_CONTROL_FDS


def refused(kind: ErrorKind = ErrorKind.BAD_REQUEST, match: str = "cannot give the workload", **fields: object) -> None:
    with pytest.raises(KeepfleetError, match=match) as error:
        Workload(**fields)  # type: ignore[arg-type] # wrong on purpose
    assert error.value.kind is kind
    assert len(error.value.message) < 300 and error.value.message.isprintable()


@pytest.mark.parametrize("word", ["a\0b", "\0", "\ud800", "x\udfff"])
def test_words_that_no_argv_can_hold_are_refused(word: str) -> None:
    refused(match="arguments", arguments=(word,))
    refused(match="arguments", export_arguments=(word,))
    refused(match="environment", environment=(("NAME", word),))
    refused(match="environment", environment=((word, "x"),))


@pytest.mark.parametrize("environment", [(("", "x"),), (("A=B", "x"),), (("=", ""),), (("A", "1"), ("A", "2"))])
def test_variables_that_no_environment_can_hold_are_refused(environment: tuple[tuple[str, str], ...]) -> None:
    refused(environment=environment)


def test_words_up_to_the_kernels_limit_are_given_and_no_more() -> None:
    whole = ("x" * (MAX_STRINGS_BYTES - 1),)
    assert workload_from_json(Workload(arguments=whole).to_json()).arguments == whole
    refused(ErrorKind.TOO_LARGE, arguments=("x" * MAX_STRINGS_BYTES,))
    refused(ErrorKind.TOO_LARGE, arguments=("é" * (MAX_STRINGS_BYTES // 2),))
    refused(ErrorKind.TOO_LARGE, arguments=("",) * (MAX_STRINGS + 1))
    refused(ErrorKind.TOO_LARGE, environment=(("A", "x" * MAX_STRINGS_BYTES),))
    refused(ErrorKind.TOO_LARGE, export_arguments=("x" * MAX_STRINGS_BYTES,))


def test_a_description_over_its_limit_is_refused_where_it_is_written() -> None:
    escaped = ("\x01" * (MAX_STRINGS_BYTES // 2),)  # six bytes each in JSON
    with pytest.raises(KeepfleetError) as error:
        Workload(arguments=escaped).to_json()
    assert error.value.kind is ErrorKind.TOO_LARGE


@pytest.mark.parametrize("export", ["x" * 257, "a\nb", "\0", "\x1b[0m", "\x7f"])
def test_a_name_that_is_no_export_is_refused(export: str) -> None:
    refused(match="export", export=export)


@pytest.mark.parametrize("export", ["run", "wasi:cli/run@0.2.0#run", "名前", " "])
def test_any_printable_name_may_be_an_export(export: str) -> None:
    assert Workload(export=export).export == export


@pytest.mark.parametrize(
    "guest",
    [
        "",
        "a",
        "./a",
        "a/b",
        "//",
        "//a",
        "/a/",
        "/a//b",
        "/.",
        "/..",
        "/a/../b",
        "/a/./b",
        "/\0",
        "/a\0",
        "/" + "x" * 255,
        SECRETS_GUEST,
        SECRETS_GUEST + "/x",
    ],
)
def test_a_path_that_is_not_plain_is_no_place_in_a_guest(guest: str) -> None:
    with pytest.raises(KeepfleetError, match="absolute, plain path") as error:
        check_guest_path(guest)
    assert error.value.kind is ErrorKind.BAD_REQUEST
    refused(directories=(Directory(guest),))


@pytest.mark.parametrize("guest", ["/\ud800", "/a\udfff", "/a\nb", "/\x1b[0m", "/\x7f"])
def test_a_path_that_cannot_be_shown_is_no_place_in_a_guest(guest: str) -> None:
    refused(directories=(Directory(guest),))


@pytest.mark.parametrize("guest", ["/", "/a", "/a/b.c", "/...", "/a b", "/run/secrets2", "/" + "x" * 254])
def test_a_plain_path_is_a_place_in_a_guest(guest: str) -> None:
    assert check_guest_path(guest) == guest


def test_directories_and_secrets_have_names_of_their_own_and_are_bounded() -> None:
    refused(match="one name", directories=(Directory("/a"), Directory("/a", True)))
    refused(match="17 directories", directories=tuple(Directory(f"/{n}") for n in range(MAX_DIRECTORIES + 1)))
    refused(match="one name", secrets=("a", "a"))
    refused(match="17 secrets", secrets=tuple(f"s{n}" for n in range(MAX_SECRETS + 1)))


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a\0", "é", "x" * 64, "a\n"])
def test_a_name_that_is_no_file_name_is_no_secrets(name: str) -> None:
    refused(match="secret's name", secrets=(name,))


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": "x"},
        {"arguments": [1]},
        {"arguments": None},
        {"environment": {"A": "b"}},
        {"environment": [["A"]]},
        {"environment": [["A", "b", "c"]]},
        {"environment": [["A", 1]]},
        {"environment": ["Ab"]},
        {"environment": [[]]},
        {"export": None},
        {"export": 1},
        {"export_arguments": [None]},
        {"stdin": 1},
        {"stdin": None},
        {"directories": {}},
        {"directories": ["/a"]},
        {"directories": [{"guest": "/a", "writable": 1}]},
        {"directories": [{"guest": 1, "writable": True}]},
        {"directories": [{"guest": "/..", "writable": True}]},
        {"secrets": {"a": "b"}},
        {"secrets": ["../x"]},
        {"restart": "sometimes"},
        {"restart": None},
        {"restart": []},
        {"restart": {}},
        {"restart": True},
    ],
)
def test_a_description_of_another_shape_is_a_bad_request(change: dict[str, object]) -> None:
    with pytest.raises(KeepfleetError, match=r"^(cannot give the workload|invalid)") as error:
        workload_from_json(json.dumps({**PLAIN, **change}).encode())
    assert error.value.kind is ErrorKind.BAD_REQUEST


def test_a_description_with_a_member_too_many_is_a_bad_request() -> None:
    with pytest.raises(KeepfleetError, match="'network'"):
        workload_from_json(json.dumps({**PLAIN, "network": True}).encode())


def test_a_description_over_its_limit_is_not_parsed() -> None:
    with pytest.raises(KeepfleetError) as error:
        workload_from_json(b" " * (MAX_WORKLOAD_JSON + 1))
    assert error.value.kind is ErrorKind.TOO_LARGE


@given(
    st.dictionaries(
        st.sampled_from(list(PLAIN)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=10),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        ),
    )
)
def test_no_members_of_a_description_do_more_than_be_refused(members: dict[str, object]) -> None:
    try:
        workload_from_json(json.dumps({**PLAIN, **members}).encode())
    except KeepfleetError as error:
        assert error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.TOO_LARGE)


@given(st.binary(max_size=300))
def test_no_bytes_of_a_description_do_more_than_be_refused(data: bytes) -> None:
    try:
        assert workload_from_json(data) == Workload()  # `{}` and nothing else that comes up here
    except KeepfleetError as error:
        assert error.kind is ErrorKind.BAD_REQUEST
