"""The names and addresses this host goes by, for the manager's certificate."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from fcntl import ioctl

from keep_protocol.api import check_names
from keep_protocol.errors import ErrorKind, KeepfleetError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::")  # what a manager may listen on, and no name of it
_SIOCGIFADDR = 0x8915
"""ioctl: the IPv4 address of a named interface (man netdevice)."""
_IF_INET6 = "/proc/net/if_inet6"
_GLOBAL_SCOPE = "00"


def _ipv4_addresses() -> list[str]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = ioctl(sock, _SIOCGIFADDR, struct.pack("256s", os.fsencode(name)))
            except OSError:
                continue  # an interface without an IPv4 address
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _ipv6_addresses() -> list[str]:
    try:
        with open(_IF_INET6, encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return []  # a kernel without IPv6
    return [str(ipaddress.IPv6Address(bytes.fromhex(row[0]))) for row in rows if row[3] == _GLOBAL_SCOPE]


def own_addresses() -> list[str]:
    """Every address of this host that another one could reach it by: no loopback, no link-local ones."""
    addresses = [ipaddress.ip_address(text) for text in _ipv4_addresses() + _ipv6_addresses()]
    return [str(address) for address in addresses if not address.is_loopback and not address.is_link_local]


def own_names() -> list[str]:
    """The host's name, and its full one where the resolver knows it."""
    return [name.rstrip(".") for name in (socket.gethostname(), socket.getfqdn()) if name.rstrip(".")]


def _acceptable(names: list[str]) -> list[str]:
    good: list[str] = []
    for name in names:
        try:
            good.extend(check_names([name]))
        except KeepfleetError:
            continue  # the host calls itself something that cannot stand in a certificate ("my_host")
    return good


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot certify {text[:60]!r} as an address: it is neither IPv4 nor IPv6"
        ) from None


def server_names(names: tuple[str, ...], addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Loopback, the host's own names and addresses, and those given, each once.

    Raises KeepfleetError(BAD_REQUEST) for one that was given and is no DNS name, or no address.
    """
    given = [*(name for one in names for name in check_names([one])), *map(_address, addresses)]
    given = [name for name in given if name not in EVERY_ADDRESS]
    return tuple(dict.fromkeys([*LOOPBACK, *_acceptable(own_names() + own_addresses()), *given]))
