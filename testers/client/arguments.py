"""The options both testers have."""

from __future__ import annotations

import argparse
import os

from keep_client.credentials import DEFAULT_MANAGER, MANAGER_VARIABLE, Credentials, parse_manager
from keep_client.peer import Endpoint
from keep_protocol.api import check_address
from keep_protocol.constants import LAST_KEEP_PORT
from keep_protocol.errors import KeepfleetError
from keep_protocol.tls import parse_fingerprint


def port(text: str) -> int:
    """A port on the command line."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= LAST_KEEP_PORT):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no port: it must lie in 1 … {LAST_KEEP_PORT}")
    return int(text)


def address(text: str) -> str:
    """An address on the command line."""
    try:
        return check_address(text)
    except KeepfleetError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def fingerprint(text: str) -> str:
    """A fingerprint on the command line."""
    try:
        return parse_fingerprint(text)
    except KeepfleetError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def manager(text: str) -> Endpoint:
    """The manager's address on the command line."""
    try:
        return parse_manager(text)
    except KeepfleetError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def credentials(options: argparse.Namespace) -> Credentials:
    """The certificates that were named, and the default ones."""
    return Credentials.find(options.ca, options.cert, options.key)


def repeated(options: argparse.Namespace) -> list[str]:
    """The certificate options a person gave, to be given again to the next program."""
    given = (("--ca", options.ca), ("--cert", options.cert), ("--key", options.key))
    return [part for name, value in given if value is not None for part in (name, value)]


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the manager's address and our certificates."""
    made = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    made.add_argument(
        "--manager",
        metavar="HOST:PORT",
        type=manager,
        default=os.environ.get(MANAGER_VARIABLE, DEFAULT_MANAGER),
        help=f"(default: ${MANAGER_VARIABLE}, or {DEFAULT_MANAGER})",
    )
    made.add_argument("--ca", metavar="F", help="the CA of the manager (default: ca.crt of the PKI directory)")
    made.add_argument("--cert", metavar="F", help="our certificate (default: clients/admin.crt)")
    made.add_argument("--key", metavar="F", help="its key (default: the .key beside it)")
    return made
