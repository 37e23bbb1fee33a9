"""What a client may ask of the manager: the original's commands and the bodies of /v1."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol import api
from keep_protocol.constants import MAX_MANAGER_BODY
from keep_protocol.errors import ErrorKind, KeepfleetError


def legacy(**members: object) -> bytes:
    return json.dumps({name.replace("_", "-"): value for name, value in members.items()}).encode()


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        (legacy(command="new-keep", keep_arch="wasi", auth_token="a2c"), api.NewKeep("wasi")),
        (legacy(command="new-keep", keep_arch="AMD-SEV"), api.NewKeep("AMD-SEV")),
        (legacy(command="list-keeps"), api.ListKeeps()),
        (
            legacy(command="start-keep", kuuid="7", keep_addr="127.0.0.1", keep_port="3031"),
            api.StartKeep(7, "127.0.0.1", 3031),
        ),
        (
            legacy(command="start-keep", kuuid="7", keep_addr="0:0:0::1", keep_port="1"),
            api.StartKeep(7, "::1", 1),
        ),
        (legacy(command="stop-keep", kuuid="7"), api.StopKeep(7)),
        (legacy(command="remove-keep", kuuid="7"), api.RemoveKeep(7)),
    ],
)
def test_the_originals_commands_are_understood(body: bytes, request_: api.Request) -> None:
    assert api.parse_legacy(body) == request_


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", ErrorKind.BAD_REQUEST),
        (b"[]", ErrorKind.BAD_REQUEST),
        (b"{}", ErrorKind.BAD_REQUEST),
        (legacy(command=5), ErrorKind.BAD_REQUEST),
        (legacy(command="explode"), ErrorKind.UNKNOWN_COMMAND),
        (legacy(command="New-Keep", keep_arch="wasi"), ErrorKind.UNKNOWN_COMMAND),
        (legacy(command="new-keep"), ErrorKind.BAD_REQUEST),
        (legacy(command="new-keep", keep_arch="wasi", more="x"), ErrorKind.BAD_REQUEST),
        (legacy(command="new-keep", keep_arch=None), ErrorKind.BAD_REQUEST),
        (legacy(command="new-keep", keep_arch="wasi\n[Service]"), ErrorKind.BAD_REQUEST),
        (legacy(command="new-keep", keep_arch="wasi", auth_token="x" * 5000), ErrorKind.BAD_REQUEST),
        (legacy(command="new-keep", keep_arch="wasi", auth_token=5), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid=7, keep_addr="127.0.0.1", keep_port="1"), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid="../7", keep_addr="127.0.0.1", keep_port="1"), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid="7", keep_addr="localhost", keep_port="1"), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid="7", keep_addr="fe80::1%eth0", keep_port="1"), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid="7", keep_addr="224.0.0.1", keep_port="1"), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid="7", keep_addr="127.0.0.1", keep_port="0"), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid="7", keep_addr="127.0.0.1", keep_port="65536"), ErrorKind.BAD_REQUEST),
        (legacy(command="start-keep", kuuid="7", keep_addr="127.0.0.1", keep_port="٣"), ErrorKind.BAD_REQUEST),
        (b'{"command":"list-keeps","pad":"' + b"x" * MAX_MANAGER_BODY + b'"}', ErrorKind.TOO_LARGE),
        (b'{"command":' + b"[" * 60_000, ErrorKind.BAD_REQUEST),
    ],
)
def test_what_is_no_command_is_refused_by_its_kind(body: bytes, kind: ErrorKind) -> None:
    with pytest.raises(KeepfleetError, match=r"^(cannot|invalid) ") as refused:
        api.parse_legacy(body)
    assert refused.value.kind is kind
    assert "\n" not in refused.value.message


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    for parse in (api.parse_legacy, api.parse_v1_create, lambda data: api.parse_v1_start(7, data)):
        try:
            parse(body)
        except KeepfleetError as error:
            assert error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.UNKNOWN_COMMAND)


def test_a_v1_create_may_be_empty() -> None:
    assert api.parse_v1_create(b"") == api.parse_v1_create(b"{}") == api.NewKeep("wasi")
    assert api.parse_v1_create(b'{"arch":"Intel-SGX"}') == api.NewKeep("Intel-SGX")


@pytest.mark.parametrize("body", [b"[]", b'{"arch":5}', b'{"arch":"sparc"}', b'{"arch":"wasi","x":1}'])
def test_a_wrong_v1_create_is_refused(body: bytes) -> None:
    with pytest.raises(KeepfleetError) as refused:
        api.parse_v1_create(body)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


def test_a_v1_start_has_defaults_and_takes_names() -> None:
    assert api.parse_v1_start(7, b"") == api.StartKeep(7)
    body = b'{"address":"10.0.0.1","port":4000,"names":["Keep.Example","10.0.0.1","keep.example","::1"]}'
    assert api.parse_v1_start(7, body) == api.StartKeep(7, "10.0.0.1", 4000, ("keep.example", "10.0.0.1", "::1"))


@pytest.mark.parametrize(
    "body",
    [
        b'{"port":"3031"}',
        b'{"port":true}',
        b'{"port":3031.5}',
        b'{"port":0}',
        b'{"port":65536}',
        b'{"address":5}',
        b'{"address":"0x7f.1"}',
        b'{"names":"x"}',
        b'{"names":[5]}',
        b'{"names":["a b"]}',
        b'{"names":["a\\n"]}',
        b'{"names":["-a"]}',
        b'{"names":["a..b"]}',
        b'{"names":["a,b"]}',
        b'{"names":["*.example"]}',
        b'{"names":["caf\xc3\xa9.example"]}',
        b'{"prot":1}',
        json.dumps({"names": ["x" * 64 + ".example"]}).encode(),
        json.dumps({"names": [f"n{number}" for number in range(17)]}).encode(),
    ],
)
def test_a_wrong_v1_start_is_refused(body: bytes) -> None:
    with pytest.raises(KeepfleetError, match=r"^(cannot|invalid) ") as refused:
        api.parse_v1_start(7, body)
    assert refused.value.kind is ErrorKind.BAD_REQUEST
