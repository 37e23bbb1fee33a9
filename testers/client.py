"""What the two testers share: their options, their console, and how they end with a sentence and an exit code.

Import rule: keep_protocol and keep_client.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable

from keep_client.credentials import DEFAULT_MANAGER, MANAGER_VARIABLE, Credentials, parse_manager
from keep_client.http import Reply
from keep_client.peer import ConnectionFailed, Endpoint, one_line, printable
from keep_protocol.api import check_address
from keep_protocol.constants import LAST_KEEP_PORT
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.tls import parse_fingerprint

FAILED = 1
NO_ANSWER = 3
"""No answer came: not reached, or one side does not trust the other (2 is wrong usage, by argparse)."""
INTERRUPTED = 130
"""As a shell reports SIGINT."""
_SHOWN = 2000
"""How many characters of one answer are worth showing; a list of many keeps is cut there."""


class Surprise(KeepfleetError):
    """The other side answered, but not what the protocol says."""

    def __init__(self, message: str, evidence: tuple[str, ...] = ()) -> None:
        super().__init__(ErrorKind.INTERNAL, message, evidence)


def expect(condition: bool, otherwise: str) -> None:
    """Raises Surprise with `otherwise` unless `condition` holds."""
    if not condition:
        raise Surprise(otherwise)


class Console:
    """Prints steps, requests and replies; waits for <Enter> between steps unless asked not to."""

    def __init__(self, *, pauses: bool) -> None:
        self._pauses = pauses
        self._steps = 0

    def step(self, title: str, explanation: str) -> None:
        """Announces the next step and lets the person decide when it happens."""
        self._steps += 1
        print(f"\n{self._steps}. {title}")
        for line in explanation.splitlines():
            print(f"   {line}")
        if self._pauses:
            try:
                input("   Press <Enter>: ")
            except EOFError:
                raise Surprise("cannot wait for <Enter>: there is no more input; use --yes") from None

    def say(self, text: str) -> None:
        """One fact."""
        for line in printable(text).splitlines():
            print(f"   {line}")

    def request(self, text: str) -> None:
        """What is being sent."""
        print(f"   > {one_line(text)}")

    def reply(self, reply: Reply) -> None:
        """What came back."""
        try:
            shown = json.dumps(reply.object())
        except KeepfleetError:
            shown = reply.text.strip()
        cut = "" if len(shown) <= _SHOWN else f" … ({len(shown) - _SHOWN} more characters)"
        for line in [f"< {reply.status}", *printable(shown[:_SHOWN] + cut).splitlines()]:
            print(f"   {line if line[0:1] == '<' else '  ' + line}")


def run(program: str, action: Callable[[], None]) -> int:
    """Does `action`; the exit code, after saying on standard error what went wrong, if anything did."""
    try:
        action()
        sys.stdout.flush()
    except KeepfleetError as error:
        sys.stdout.flush()
        print(f"{program}: {one_line(error.message)}", file=sys.stderr)
        for line in error.evidence:
            print(f"    {printable(line)}", file=sys.stderr)
        return NO_ANSWER if isinstance(error, ConnectionFailed) else FAILED
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"{program}: cannot go on: {error.filename or ''} {error.strerror or error}", file=sys.stderr)
        return FAILED
    return 0


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
    made.add_argument("--key", metavar="F", help="its key (default: the .key next to it)")
    return made
