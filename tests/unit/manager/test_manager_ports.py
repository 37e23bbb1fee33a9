"""Binding a keep's listener: a taken port is an error where it is bound, with its reason."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from keep_manager.keeps.starts import bind_listener
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.unit.manager.conftest import reserved_port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def test_a_free_port_listens() -> None:
    with bind_listener("127.0.0.1", [0]) as sock, socket.create_connection(sock.getsockname()):
        assert sock.getblocking()


def test_a_taken_port_moves_to_the_next_candidate(taken: int) -> None:
    with bind_listener("127.0.0.1", [taken, taken, 0]) as sock:
        assert sock.getsockname()[1] != taken


def test_a_taken_port_without_another_is_an_error_with_the_reason(taken: int) -> None:
    with pytest.raises(KeepfleetError, match=f"port {taken}: Address already in use") as caught:
        bind_listener("127.0.0.1", [taken])
    assert caught.value.kind is ErrorKind.PORT_UNAVAILABLE


def test_a_port_that_is_bound_and_not_yet_listening_counts_as_taken_once_it_listens() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with bind_listener("127.0.0.1", [port]), pytest.raises(OSError, match="in use"):
            other.listen()


def test_an_address_of_another_host_is_said_immediately() -> None:
    with pytest.raises(KeepfleetError, match="Cannot assign requested address") as caught:
        bind_listener("192.0.2.77", iter(range(3031, 60000)))
    assert caught.value.kind is ErrorKind.PORT_UNAVAILABLE
    assert "tried" not in caught.value.message


def test_a_port_left_by_closed_connections_is_free_again() -> None:
    with reserved_port() as port:
        with bind_listener("127.0.0.1", [port]) as first, socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = first.accept()
            accepted.close()
            client.recv(1)
        with bind_listener("127.0.0.1", [port]) as again:
            assert again.getsockname()[1] == port


def test_ipv6_is_its_own() -> None:
    with bind_listener("::1", [0]) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
