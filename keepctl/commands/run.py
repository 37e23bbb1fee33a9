"""`keepctl run`: a workload from its file to its exit code, in one command."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import click

from keep_client.manager import ManagerClient
from keep_client.peer import ConnectionFailed
from keep_client.text import one_line, printable
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import JOURNAL_SOURCE, WORKLOAD_SOURCE, LogLine
from keepctl.commands.access import Access, connected, output_option
from keepctl.commands.options import JobOptions, creation_options, endpoint_options, guest_options
from keepctl.commands.shared import FILE, show_error
from keepctl.describe import (
    EXIT_CODES,
    INTERRUPTED,
    NOT_RUN,
    UNREAD,
    ending,
    exit_code_of,
    exit_code_of_error,
    succeeded,
)
from keepctl.display import discard_output, json_line, json_text, line_printer, say
from keepctl.job import Job
from keepctl.run import Fate, Left, begin, ending_signals, settle, until_the_end

_GUEST_WORDS = "keepctl.guest-words"
HELP = f"""Runs FILE in a new keep: shows its output until it ends, says why it ended, and exits as it did.

\b
keepctl run hello.wasm
keepctl run --rm --memory 64M --time 10s filter.wasm -- --verbose
keepctl run -d --name web --dir /srv/site:/site --restart on-failure server.wasm
keepctl run -f workload.yaml

With -f the file describes all of it, and options are added on top. HOST, --stdin and --secret files are of the
manager's host, and below what its configuration grants you. Ctrl-C stops the workload, a second one leaves it running;
a reader that goes away (`| head`), or output that cannot be written, stops it too. With --rm the keep is removed,
whatever ends this.

{EXIT_CODES}"""


@dataclass(frozen=True)
class _How:
    """What is done with the keep, apart from running the workload in it."""

    address: str
    port: int | None
    remove: bool
    detach: bool
    raw: bool
    json: bool
    replace: bool


def refuse_raw_terminal(raw: bool) -> None:
    """Raises UsageError where --raw would let a guest steer the terminal."""
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw is for a pipe or a file: what a guest prints could steer this terminal")


def _job(file: str | None, described: str | None, options: JobOptions) -> Job:
    if file is not None and described is None and file.endswith((".yaml", ".yml")):
        raise click.UsageError(f"{file} is a manifest by its name; run it with: keepctl run -f {file}")
    job = options.on(_described(described) if described is not None else Job())
    module = file or job.module
    if not module:
        raise click.UsageError("name the module to run: keepctl run FILE.wasm, or `module:` in the manifest")
    return replace(job, module=module)


def _described(path: str) -> Job:
    from keepctl.manifest.reading import read_job  # here: YAML costs 15 ms, and only a manifest needs it

    return read_job(path)


def _say_end(keep: KeepInfo) -> None:
    if succeeded(keep):
        return
    say(f"keepctl: keep {keep.kuuid}: {one_line(ending(keep))}")
    for frame in keep.outcome.backtrace if keep.outcome is not None else ():
        say(f"    {printable(frame)}")


def _watch(client: ManagerClient, kuuid: int, how: _How) -> int:
    """Shows the output and the end of what runs in a keep; the exit code. Raises as `until_the_end`."""
    printer = line_printer(how.raw, how.json)

    def show(line: LogLine) -> None:
        if line.source in (WORKLOAD_SOURCE, JOURNAL_SOURCE):
            printer(line)

    def stopping() -> None:
        again = "removes it immediately" if how.remove else "leaves it running"
        say(f"keepctl: stopping keep {kuuid}; Ctrl-C again {again}")

    keep, interrupted = until_the_end(client, kuuid, show, stopping)
    if how.json:
        click.echo(json_line({"keep": keep.to_wire()}))
    if not interrupted:
        _say_end(keep)
    return INTERRUPTED if interrupted else exit_code_of(keep.outcome)


def _finish(client: ManagerClient, kuuid: int, how: _How) -> int:
    """Watches what runs in a keep, and settles what becomes of the keep, whatever ends that; the exit code."""
    removing = Fate.REMOVE if how.remove else None
    try:
        code = _watch(client, kuuid, how)
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
    client = access.client()
    keep = begin(client, access.credentials, job, how.address or access.address, how.port, how.replace)
    if not how.detach:
        return _finish(client, keep.kuuid, how)
    try:
        click.echo(json_text(client.keep(keep.kuuid).to_wire()) if how.json else str(keep.kuuid))
    except (KeepfleetError, OSError) as error:
        discard_output()
        why = error.message if isinstance(error, KeepfleetError) else f"cannot write its ID: {error.strerror}"
        return _give_up(client, keep.kuuid, Fate.LEAVE, why)
    return 0


class _GuestCommand(click.Command):
    """A command whose words after `--` are the guest's, whatever comes before: a manifest may name the module."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with those words put aside first."""
        split = args.index("--") if "--" in args else len(args)
        ctx.meta[_GUEST_WORDS] = tuple(args[split + 1 :])
        return super().parse_args(ctx, args[:split])


@click.command("run", cls=_GuestCommand, help=HELP, short_help="Runs a file in a new keep, and exits as it did.")
@click.argument("file", metavar="[FILE.wasm]", required=False, type=FILE)
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1)
@click.option(
    "-f", "--file", "described", metavar="FILE.yaml", type=FILE, help="A manifest that describes the workload."
)
@click.option("--rm", "remove", is_flag=True, help="Remove the keep when the workload has ended.")
@click.option("-d", "--detach", is_flag=True, help="Print the keep's ID and leave it running.")
@click.option("--raw", is_flag=True, help="Its output as it is, control characters and all; into a pipe or a file.")
@creation_options
@guest_options
@endpoint_options
@connected
@output_option
def run(
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
    **options: Any,  # the options that describe the workload, as click passes them
) -> None:
    if remove and detach:
        raise click.UsageError("--rm and -d exclude each other: a detached keep is removed by keepctl rm")
    refuse_raw_terminal(raw)
    options["arguments"] = (*options["arguments"], *click.get_current_context().meta[_GUEST_WORDS])
    how = _How(address, port, remove, detach, raw, output == "json", replace)
    with ending_signals():
        try:
            code = _run(access, _job(file, described, JobOptions(**options)), how)
        except KeepfleetError as error:
            show_error(error)
            code = exit_code_of_error(error)
        except KeyboardInterrupt:
            code = INTERRUPTED
    raise SystemExit(code)
