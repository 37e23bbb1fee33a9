"""`keepctl run`: a workload from its file to its exit code, in one command; and the options that describe a workload,
which `create` and `start` have, too."""

from __future__ import annotations

import sys

from keep_client.manager import ManagerClient
from keep_client.output import Output
from keep_client.peer import ConnectionFailed, one_line, printable
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.keep import KeepInfo
from keep_protocol.outcome import NOT_RUN, exit_code_of
from keep_protocol.spec import Compiler, OutputPolicy, Profile, RestartPolicy
from keepctl.access import CONNECTION, OUTPUT, RECONNECT, Access, connected
from keepctl.arguments import FILE, TEXT, Argument, Choice, Command, Number, Option, Parsed, WrongUsage
from keepctl.describe import (
    EXIT_CODES,
    INTERRUPTED,
    UNREAD,
    ending,
    exit_code_of_error,
    succeeded,
)
from keepctl.display import WaitingLine, discard_output, echo, has_input, json_line, json_text, say, show_error
from keepctl.job import Job, parse_directory, parse_duration, parse_limit, parse_pair
from keepctl.output import JsonLines, Streams
from keepctl.run import STANDARD_INPUT, EndingSignals, Fate, Left, begin, settle, until_the_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from keepctl.input import Feeding

HELP = f"""Runs FILE in a new keep: shows its output until it ends, says why it ended, and exits as it did.

\b
keepctl run hello.wasm
keepctl run --rm greet.js -- one two
keepctl run --rm --memory 64M --time 10s filter.wasm -- --verbose
keepctl run -d --name web --dir /srv/site:/site --restart on-failure server.wasm
keepctl run --rm sort.wasm < words > sorted
keepctl run -f workload.yaml
keepctl run web:1.2

Its standard output and error are this command's, byte for byte; a terminal is shown control characters as escapes. A
pipe or a file on this command's standard input is its own, too, to the end; -i gives it a terminal. Without, it has
none (in a shell's loop: < /dev/null). FILE may be a script, .js or .ts, or -, standard input, or a module
of the manager's store, of which nothing is sent: NAME:TAG, NAME:TAG@sha256:… or sha256:…. What has a / in it, or ends
in .wasm, .wat or as a script's name does, is a file.
With -f the file describes all of it, and options are added on top. HOST, --stdin and --secret files are of the
manager's host, and below what its configuration grants you. Ctrl-C stops the workload, a second one leaves it running;
a reader that goes away (`| head`), or output that cannot be written, stops it too. With --rm the keep is removed,
whatever ends this.

{EXIT_CODES}"""


class _How(Record):
    """What is done with the keep, apart from running the workload in it."""

    address: str
    port: int | None
    remove: bool
    detach: bool
    raw: bool
    json: bool
    take_over: bool
    feeds: bool


def _job(file: str | None, described: str | None, options: dict[str, Any]) -> Job:
    if file is not None and described is None and file.endswith((".yaml", ".yml")):
        raise WrongUsage(f"{file} is a manifest by its name; run it with: keepctl run -f {file}")
    job = (_described(described) if described is not None else Job()).on_top(**options)
    module = file or job.module
    if not module:
        raise WrongUsage("name the module to run: keepctl run FILE.wasm, or `module:` in the manifest")
    return job.replace(module=module)


def _described(path: str) -> Job:
    from keepctl.manifest.reading import read_job  # here: YAML costs 15 ms, and only a manifest needs it

    return read_job(path)


def _say_end(keep: KeepInfo) -> None:
    if succeeded(keep):
        return
    say(f"keepctl: keep {keep.kuuid}: {one_line(ending(keep))}")
    for frame in keep.outcome.backtrace if keep.outcome is not None else ():
        say(f"    {printable(frame)}")


def _watch(client: ManagerClient, kuuid: int, output: Output, how: _How) -> int:
    """Shows the output and the end of what runs in a keep; the exit code. Raises as `until_the_end`."""
    shown = JsonLines() if how.json else Streams(how.raw)
    if sys.stderr.isatty():
        client.waiting = WaitingLine(before=shown.break_line)
    feeding = _feed(client.another(), kuuid) if how.feeds else None

    def stopping() -> None:
        again = "removes it immediately" if how.remove else "leaves it running"
        say(f"keepctl: stopping keep {kuuid}; Ctrl-C again {again}")

    keep, interrupted = until_the_end(client, kuuid, output, shown.show, stopping)
    shown.end()
    if how.json:
        echo(json_line({"keep": keep.to_wire()}))
    if interrupted:
        return INTERRUPTED
    if feeding is not None and feeding.error is not None and not succeeded(keep):
        show_error(feeding.error)
        _say_end(keep)
        return NOT_RUN
    _say_end(keep)
    return exit_code_of(keep.outcome)


def _feed(client: ManagerClient, kuuid: int) -> Feeding:
    from keepctl.input import Feeding  # here: threads and temporary files are 10 ms, and few programs are fed

    return Feeding(client, kuuid)


def _finish(client: ManagerClient, kuuid: int, output: Output, how: _How) -> int:
    """Watches what runs in a keep, and settles what becomes of the keep, whatever ends that; the exit code."""
    removing = Fate.REMOVE if how.remove else None
    try:
        code = _watch(client, kuuid, output, how)
        if removing:
            settle(client, kuuid, removing)
    except BrokenPipeError:
        discard_output()
        settle(client, kuuid, removing or Fate.STOP)
        return UNREAD
    except OSError as error:
        discard_output()
        return _give_up(client, kuuid, removing or Fate.STOP, f"cannot write the output: {error.strerror or error}")
    except Left:
        _give_up(client, kuuid, removing or Fate.LEAVE, "")
        return INTERRUPTED
    except KeyboardInterrupt:
        settle(client, kuuid, removing or Fate.STOP)
        return INTERRUPTED
    except KeepfleetError as error:
        if error.kind is ErrorKind.NOT_FOUND:
            raise _removed(kuuid) from error
        show_error(error)
        # A manager that was waited for in vain is asked once more, and not waited for again.
        return _give_up(client, kuuid, removing or Fate.LEAVE, "", patient=not isinstance(error, ConnectionFailed))
    except BaseException:
        _give_up(client, kuuid, removing or Fate.LEAVE, "")
        raise
    return code


def _give_up(client: ManagerClient, kuuid: int, fate: Fate, why: str, patient: bool = True) -> int:
    """Does with a keep that is watched no longer what `fate` says, and says so; the exit code."""
    if why:
        say(one_line(f"keepctl: keep {kuuid}: {why}"))
    if settle(client, kuuid, fate, patient):
        hint = f"; see: keepctl logs {kuuid}" if fate is Fate.STOP else ""
        hint = f"; see: keepctl logs -f {kuuid}; stop it: keepctl stop {kuuid}" if fate is Fate.LEAVE else hint
        say(f"keepctl: keep {kuuid}: {fate.value}{hint}")
    return NOT_RUN


def _removed(kuuid: int) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.NOT_FOUND,
        f"cannot say how keep {kuuid} ended: it was removed meanwhile; its lines: journalctl -u keep@{kuuid}",
    )


def _run(access: Access, job: Job, how: _How) -> int:
    with access.client() as client:
        address = how.address or access.address
        keep, output = begin(client, access.credentials, job, address, how.port, how.take_over, watched=not how.detach)
        try:
            return _detach(client, keep, how) if how.detach else _finish(client, keep.kuuid, output, how)
        finally:
            output.close()


def _detach(client: ManagerClient, keep: KeepInfo, how: _How) -> int:
    """Names the keep that goes on by itself."""
    try:
        echo(json_text(client.keep(keep.kuuid).to_wire()) if how.json else str(keep.kuuid))
    except (KeepfleetError, OSError) as error:
        discard_output()
        why = error.message if isinstance(error, KeepfleetError) else f"cannot write its ID: {error.strerror}"
        return _give_up(client, keep.kuuid, Fate.LEAVE, why)
    return 0


@connected
def _work(
    file: str | None,
    described: str | None,
    remove: bool,
    detach: bool,
    raw: bool,
    replace: bool,
    output: str,
    address: str,
    port: int | None,
    access: Access,
    **options: Any,  # the options that describe the workload, by their names in the table
) -> int:
    if remove and detach:
        raise WrongUsage("--rm and -d exclude each other: a detached keep is removed by keepctl rm")
    with EndingSignals():
        try:
            job = _job(file, described, options)
            if not detach and job.module != STANDARD_INPUT and job.takes_stream and has_input():
                job = job.replace(streams=True)
            if job.streams and detach:
                raise WrongUsage("-i and -d exclude each other: who leaves does not go on sending")
            if job.streams and job.module == STANDARD_INPUT:
                raise WrongUsage("standard input is the module (-) or the guest's (-i), not both")
            how = _How(address, port, remove, detach, raw, output == "json", replace, job.streams)
            return _run(access, job, how)
        except KeepfleetError as error:
            show_error(error)
            return exit_code_of_error(error)
        except KeyboardInterrupt:
            return INTERRUPTED


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
RUN = Command(
    "run",
    _work,
    "Runs a file in a new keep, and exits as it did.",
    HELP,
    (
        Option(("-f", "--file"), "described", "A manifest that describes the workload.", FILE, "FILE.yaml"),
        Option(("--rm",), "remove", "Remove the keep when the workload has ended."),
        Option(("-d", "--detach"), "detach", "Print the keep's ID and leave it running."),
        Option(("-i", "--interactive"), "interactive", "Send it what is typed; a pipe or a file is sent without."),
        Option(("--raw",), "raw", "Control characters of its output steer this terminal, too."),
        *CREATION,
        *GUEST,
        *ENDPOINT,
        *CONNECTION,
        RECONNECT,
        OUTPUT,
    ),
    (
        Argument("file", "[FILE.wasm]", FILE, required=False),
        Argument("arguments", "[-- ARGS]...", required=False, many=True),
    ),
    guest_words=True,
)
