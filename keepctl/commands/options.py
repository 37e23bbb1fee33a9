"""The options that describe a workload, shared by `run`, `create` and `start`."""

from __future__ import annotations

from keep_protocol.enumeration import Enum
from keep_protocol.spec import Compiler, OutputPolicy, Profile, RestartPolicy
from keepctl.arguments import FILE, TEXT, Choice, Number, Option, Parsed
from keepctl.job import parse_directory, parse_duration, parse_limit, parse_pair


def _named_limit(name: str) -> Parsed:
    return Parsed(lambda text: parse_limit(name, text))


def _words(words: type[Enum]) -> tuple[str, ...]:
    return tuple(word.value for word in words)


PAIR = Parsed(parse_pair)
_LIMIT = Parsed(lambda text: parse_limit(*parse_pair(text)))
_DURATION = Parsed(parse_duration)
CREATION = (
    Option(("--name",), "name", "What to call the keep: a-z, 0-9 and -.", TEXT, "NAME", default=""),
    Option(("--replace",), "replace", "End a living keep of that name, of yours, first."),
    Option(("--label",), "labels", "A label to find it by.", PAIR, "K=V", many=True),
    Option(("--memory",), "memory", "The guest's memory: 64M.", _named_limit("memory"), "SIZE"),
    Option(("--time",), "time", "How long it may run: 10s, 5m, 1h30m.", _named_limit("time"), "TIME"),
    Option(("--cpu-time",), "cpu_time", "How much processor time.", _named_limit("cpu_time"), "TIME"),
    Option(("--cpus",), "cpus", "How much of how many processors: 0.5.", _named_limit("cpus"), "N"),
    Option(("--limit",), "limits", "Any limit by its name.", _LIMIT, "NAME=VALUE", many=True),
    Option(("--profile",), "profile", "strict: interpreted, without executable memory.", Choice(*_words(Profile))),
    Option(("--compiler",), "compiler", "fast: compiles in a fifth of the time.", Choice(*_words(Compiler))),
    Option(
        ("--output-policy",),
        "output_policy",
        "drop-oldest: it does not wait for those who read its output.",
        Choice(*_words(OutputPolicy)),
    ),
    Option(("--idle",), "idle", "End it when unstarted for so long.", _DURATION, "TIME"),
    Option(("--await",), "waits", "End it when without a workload so long.", _DURATION, "TIME"),
)
"""--name, --replace, --label, the limits, what runs it and the lease."""
GUEST = (
    Option(("--env", "-e"), "env", "A variable of its environment.", PAIR, "K=V", many=True),
    Option(
        ("--dir",),
        "directories",
        "A directory of the manager's host; read-only unless :rw.",
        Parsed(parse_directory),
        "HOST:GUEST[:rw]",
        many=True,
    ),
    Option(("--stdin",), "stdin", "A file of the manager's host as its standard input.", FILE, "FILE"),
    Option(
        ("--secret",),
        "secrets",
        "A file of the manager's host as /run/secrets/NAME.",
        PAIR,
        "NAME=FILE",
        many=True,
    ),
    Option(("--restart",), "restart", "When to run it again.", Choice(*_words(RestartPolicy))),
    Option(("--export",), "export", "Call this function with ARGS instead of the program's own entry.", TEXT, "F"),
)
"""What the guest is given."""
ENDPOINT = (
    Option(
        ("--address",),
        "address",
        "Where it is to listen; otherwise the context's, or the address the manager is reached by.",
        TEXT,
        "IP",
        default="",
    ),
    Option(
        ("--port",),
        "port",
        "The port, otherwise the first free one; on 127.0.0.1 a taken one moves to the next.",
        Number(1, 65535),
    ),
)
"""Where the keep is to receive its workload."""
