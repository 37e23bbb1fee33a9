"""What is shown of hooks and sets: records that are JSON on the socket.

Import rule: keep_protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from keep_protocol.fields import Flag, Items, Nested, Record, Text, Whole, field

_COUNT, _TEXT = Whole(0, (1 << 63) - 1), Text(4000)


class CodeletState(Record):
    """One codelet of a loaded set. Times are of the calls that were timed, rounded up to a power of two."""

    codelet_name: str = field(_TEXT, about="its name in the set")
    hook_name: str = field(_TEXT, about="the hook that it is on")
    priority: int = field(_COUNT, about="the highest of a hook runs first")
    digest: str = field(_TEXT, about="of its module")
    calls: int = field(_COUNT, about="how often it was called")
    faults: int = field(_COUNT, about="calls that a trap, its fuel or a helper ended")
    overruns: int = field(_COUNT, about="calls that took longer than its threshold")
    lost: int = field(_COUNT, about="messages that its full output channels did not take")
    median_ns: int = field(_COUNT, about="half of its calls took less, in nanoseconds")
    p99_ns: int = field(_COUNT, about="99 of 100 took less")
    bound: str = field(_TEXT, about="what bounds its run time")
    last_fault: str = field(_TEXT, default="", about="in words")


class SetState(Record):
    """One codelet set."""

    codeletset_id: str = field(_TEXT, about="its ID")
    loaded: bool = field(Flag(), about="whether it runs; false for one that was unloaded for its faults")
    why: str = field(_TEXT, default="", about="why it was unloaded")
    codelets: tuple[CodeletState, ...] = field(
        Items(Nested(CodeletState, "codelet"), 16), default=(), about="its codelets"
    )


class HookState(Record):
    """One hook, since it was declared."""

    name: str = field(_TEXT, about="its name")
    calls: int = field(_COUNT, about="with codelets loaded")
    faults: int = field(_COUNT, about="of its codelets' calls, also of those that were unloaded")
    overruns: int = field(_COUNT, about="of its codelets' calls, also of those that were unloaded")
    times: tuple[int, ...] = field(
        Items(_COUNT, 64), default=(), about="timed calls of a codelet: number n took less than 2ⁿ nanoseconds"
    )
    codelets: tuple[str, ...] = field(Items(_TEXT, 1024), default=(), about="those that are loaded on it")
    drops: int = field(
        _COUNT,
        default=0,
        about="messages that its codelets' full output channels did not take, or that were unread when a set went",
    )


class CollectorState(Record):
    """The data collector of an application."""

    attached: bool = field(Flag(), about="whether there is one")
    sent: int = field(_COUNT, about="messages that were written for this one and those before")
    lost: int = field(_COUNT, about="messages that found no room in its ring, or were in it when it went")


def one_line(text: str) -> str:
    """What an application, a client or a module says, as part of a line of a terminal or a log: it cannot end the line,
    or have the terminal do anything."""
    return "".join(each if each.isprintable() else " " for each in text)


def changed(before: Mapping[str, SetState], now: Iterable[SetState]) -> list[SetState]:
    """The sets that are not as they were; one that has gone is one that is not loaded."""
    there = {each.codeletset_id: each for each in now}
    gone = [SetState(name, False) for name, each in before.items() if each.loaded and name not in there]
    return [*gone, *(each for name, each in there.items() if before.get(name) != each)]


def sentences(before: SetState | None, now: SetState) -> list[str]:
    """What has become of a set, a line each: that it was loaded or unloaded, and what its codelets did meanwhile."""
    name, running = now.codeletset_id, before is not None and before.loaded
    if not now.loaded:
        return [f"{name}: unloaded: {now.why}" if now.why else f"{name}: unloaded"]
    were = {each.codelet_name: each for each in before.codelets} if before is not None else {}
    lines = [] if running else [f"{name}: loaded"]
    for each in now.codelets:
        earlier = were.get(each.codelet_name)
        if each != earlier:
            calls = each.calls - (earlier.calls if earlier else 0)
            words = [f"{name}.{each.codelet_name}: {calls} calls more", f"{each.faults} faults"]
            words += [f"{each.overruns} overruns"] * bool(each.overruns) + [f"{each.lost} messages lost"] * bool(
                each.lost
            )
            lines.append(", ".join(words))
    return lines
