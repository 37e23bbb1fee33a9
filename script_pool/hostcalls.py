"""Host functions: what a script may ask of the application, how often, how much, and how long it waits. The pool stands
between: a script's process may have been taken over, and an application may never answer, answer twice, or answer
10 MB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

MAX_FUNCTIONS = 100
"""That one script may call."""
MAX_CALLS, MAX_BYTES, MAX_SECONDS = 100_000, 5 * 1024 * 1024, 30 * 24 * 3600.0
"""The most that an allowance may be: a month is for what a person decides."""
PLAIN_CALLS = frozenset(("python", "micropython"))
"""The languages whose host calls are plain ones: such a run stays in its child until it is answered."""
PLAIN_SECONDS = 60.0
"""What such a call may wait: a child is a process that nothing else can use meanwhile, so that what a person decides,
in minutes or hours, is for the other languages, whose runs leave theirs."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Of one function, for each run: calls, bytes of JSON each way in each, and seconds to each answer."""

    calls: int = 100
    bytes: int = 256 * 1024
    seconds: float = 10.0

    @classmethod
    def read(cls, given: object, language: str = "js") -> Mapping[str, Allowance]:
        """What AddCode says: a list of names, or an object of them with what differs. Raises ValueError."""
        found = cls._read(given)
        for name, allowance in found.items():
            if language in PLAIN_CALLS and allowance.seconds > PLAIN_SECONDS:
                raise ValueError(
                    f"host function {name} may take {allowance.seconds:g} s, and a run in {language} keeps a process "
                    f"while it waits: {PLAIN_SECONDS:g} s at most; let a script in js wait for what takes longer"
                )
        return found

    @classmethod
    def _read(cls, given: object) -> Mapping[str, Allowance]:
        if isinstance(given, list):
            given = {name if isinstance(name, str) else "": {} for name in given}
        if not isinstance(given, dict) or len(given) > MAX_FUNCTIONS:
            raise ValueError(f"its hostFunctions are no list or object of at most {MAX_FUNCTIONS} names")
        return {name: cls._of(name, wanted) for name, wanted in given.items()}

    @classmethod
    def _of(cls, name: str, wanted: object) -> Allowance:
        if not name.isidentifier() or not name.isascii() or len(name) > 64:
            raise ValueError("a host function's name is no identifier of at most 64 ASCII characters")
        if not isinstance(wanted, dict) or not wanted.keys() <= {"calls", "bytes", "seconds"}:
            raise ValueError(f"host function {name} has other members than calls, bytes and seconds")
        for key, most, kinds in (
            ("calls", MAX_CALLS, int),
            ("bytes", MAX_BYTES, int),
            ("seconds", MAX_SECONDS, (int, float)),
        ):
            value = wanted.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= most:
                raise ValueError(f"host function {name} has {key} that are not in 0 … {most:g}")
        return cls(**wanted)


class HostCall:
    """One call, for the application: the name, the arguments as a JSON array. `answer` or `fail` settles it, the first
    time; later, or once its run has ended, they do nothing and return False."""

    def __init__(self, number: int, name: str, arguments: str, settle: Callable[[int, bool, str], bool]) -> None:
        self.number, self.name, self.arguments, self._settle = number, name, arguments, settle

    def __repr__(self) -> str:
        return f"HostCall({self.number}, {self.name})"

    def answer(self, value: str) -> bool:
        """`value`: its JSON, without control characters."""
        return self._settle(self.number, True, value)

    def fail(self, message: str, refused: bool = False) -> bool:
        """The script sees an error thrown."""
        return self._settle(self.number, False, failure(message, refused))


Caller = Callable[[HostCall], None]
"""Who is asked: the client of the run."""


def failure(message: str, refused: bool = True) -> str:
    """The JSON of a call that has no value."""
    return json.dumps({"message": message[:4096], "refused": refused})


class Timer(Protocol):
    """What ends a call that is not answered: asyncio.TimerHandle."""

    def cancel(self) -> None: ...


@dataclass(slots=True)
class _Open:
    inside: int
    name: str
    timer: Timer


class Calls:
    """The host calls of one run: those that are open, and the answers that its guest has not had."""

    def __init__(
        self,
        allowed: Mapping[str, Allowance],
        caller: Caller | None,
        later: Callable[[float, Callable[[], None]], Timer],
        answered: Callable[[], None],
    ) -> None:
        """`later`: calls something after seconds; `answered`: there are answers now."""
        self._allowed, self._caller, self._later, self._answered = allowed, caller, later, answered
        self._made: dict[str, int] = {}
        self._open: dict[int, _Open] = {}
        self._answers: list[str] = []

    def __repr__(self) -> str:
        return f"Calls({len(self._open)} open, {len(self._answers)} answered)"

    @property
    def answers(self) -> bool:
        """Whether there are any that the guest has not had."""
        return bool(self._answers)

    def take(self) -> str:
        """The answers, as JSON for the guest; each is given once."""
        answers, self._answers = self._answers, []
        return f"[{','.join(answers)}]"

    def make(self, asked: Iterable[tuple[int, str, str]], number: Callable[[], int]) -> None:
        """Passes on what a guest asks for: its own number of the call, the name and the arguments. `number`: the pool's
        next one; a client cannot answer what it was not asked by guessing."""
        for inside, name, arguments in asked:
            allowance = self._allowed.get(name)
            made = self._made[name] = self._made.get(name, 0) + 1
            why = self._refusal(name, allowance, made, arguments)
            if why or allowance is None or self._caller is None:
                self._answers.append(f"[{inside},false,{failure(why)}]")
                continue
            call = number()
            late = f"{name} has not answered within {allowance.seconds:g} s"
            timer = self._later(allowance.seconds, lambda call=call, late=late: self._late(call, late))  # type: ignore[misc]
            self._open[call] = _Open(inside, name, timer)
            self._caller(HostCall(call, name, arguments, self._settle))

    def _refusal(self, name: str, allowance: Allowance | None, made: int, arguments: str) -> str:
        if allowance is None:
            return f"the script may not call {name}"
        if self._caller is None:
            return f"{name} cannot be answered: the request has no id"
        if made > allowance.calls:
            return f"a run may call {name} {allowance.calls} times"
        if len(arguments) > allowance.bytes:
            return f"the arguments of {name} have {len(arguments)} bytes; at most {allowance.bytes} are allowed"
        return ""

    def _late(self, call: int, why: str) -> None:
        self._settle(call, False, failure(why))

    def _settle(self, call: int, done: bool, value: str) -> bool:
        known = self._open.pop(call, None)
        if known is None:
            return False
        known.timer.cancel()
        most = self._allowed[known.name].bytes
        if len(value) > most and done:
            done, value = (
                False,
                failure(f"the value of {known.name} has {len(value)} bytes; at most {most} are allowed"),
            )
        self._answers.append(f"[{known.inside},{'true' if done else 'false'},{value}]")
        self._answered()
        return True

    def close(self) -> None:
        """The run has ended: what is open will be answered by no one."""
        for known in self._open.values():
            known.timer.cancel()
        self._open.clear()
        self._answers.clear()
