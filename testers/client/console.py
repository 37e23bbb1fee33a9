"""Speaking with the person at the terminal, and ending with a sentence and an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from keep_client.http import Reply
from keep_client.peer import ConnectionFailed
from keep_client.text import one_line, printable
from keep_protocol.errors import ErrorKind, KeepfleetError

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
    """Prints steps, requests and replies; waits for <Enter> between steps unless told not to."""

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
