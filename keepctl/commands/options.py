"""The options that describe a workload, shared by `run`, `create` and `start`, and the job they make."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import click

from keep_protocol.errors import KeepfleetError
from keep_protocol.spec import RestartPolicy
from keepctl.commands.shared import FILE
from keepctl.job import Grant, Job, parse_directory, parse_duration, parse_limit, parse_pair

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Value = TypeVar("_Value")


class Parsed(click.ParamType[_Value], Generic[_Value]):
    """A parameter read by one of `keepctl.job`; its refusal is wrong usage."""

    name = "text"

    def __init__(self, parse: Callable[[str], _Value]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _Value:
        try:
            return self._parse(str(value))
        except KeepfleetError as error:
            self.fail(error.message, param, ctx)


def _limit(text: str) -> tuple[str, int]:
    return parse_limit(*parse_pair(text))


def _named_limit(name: str) -> Parsed[tuple[str, int]]:
    return Parsed(lambda text: parse_limit(name, text))


_PAIR = Parsed(parse_pair)
_CREATION = (
    click.option("--name", default="", metavar="NAME", help="What to call the keep: a-z, 0-9 and -."),
    click.option("--replace", is_flag=True, help="End a living keep of that name, of yours, first."),
    click.option("--label", "labels", multiple=True, type=_PAIR, metavar="K=V", help="A label to find it by."),
    click.option("--memory", type=_named_limit("memory"), metavar="SIZE", help="The guest's memory: 64M."),
    click.option("--time", type=_named_limit("time"), metavar="TIME", help="How long it may run: 10s, 5m, 1h30m."),
    click.option("--cpu-time", type=_named_limit("cpu_time"), metavar="TIME", help="How much processor time."),
    click.option("--cpus", type=_named_limit("cpus"), metavar="N", help="How much of how many processors: 0.5."),
    click.option(
        "--limit", "limits", multiple=True, type=Parsed(_limit), metavar="NAME=VALUE", help="Any limit by its name."
    ),
    click.option("--idle", type=Parsed(parse_duration), metavar="TIME", help="End it when unstarted for so long."),
    click.option(
        "--await", "waits", type=Parsed(parse_duration), metavar="TIME", help="End it when without a workload so long."
    ),
)
_GUEST = (
    click.option("--env", "-e", multiple=True, type=_PAIR, metavar="K=V", help="A variable of its environment."),
    click.option(
        "--dir",
        "directories",
        multiple=True,
        type=Parsed(parse_directory),
        metavar="HOST:GUEST[:rw]",
        help="A directory of the manager's host; read-only unless :rw.",
    ),
    click.option("--stdin", metavar="FILE", type=FILE, help="A file of the manager's host as its standard input."),
    click.option(
        "--secret",
        "secrets",
        multiple=True,
        type=_PAIR,
        metavar="NAME=FILE",
        help="A file of the manager's host as /run/secrets/NAME.",
    ),
    click.option(
        "--restart", type=click.Choice([policy.value for policy in RestartPolicy]), help="When to run it again."
    ),
    click.option("--export", metavar="F", help="Call this function with ARGS instead of the program's own entry."),
)


def _added(options: tuple[Callable[[_Command], _Command], ...], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def creation_options(command: _Command) -> _Command:
    """--name, --replace, --label, the limits and the lease."""
    return _added(_CREATION, command)


def guest_options(command: _Command) -> _Command:
    """What the guest is given: --env, --dir, --stdin, --secret, --restart, --export."""
    return _added(_GUEST, command)


def endpoint_options(command: _Command) -> _Command:
    """--address and --port: where the keep is to receive its workload."""
    options = (
        click.option(
            "--address",
            default="",
            metavar="IP",
            help="Where it is to listen; otherwise the context's, or the address the manager is reached by.",
        ),
        click.option(
            "--port",
            type=click.IntRange(1, 65535),
            help="The port, otherwise the first free one; on 127.0.0.1 a taken one moves to the next.",
        ),
    )
    return _added(options, command)


@dataclass(frozen=True)
class JobOptions:
    """What the options said; a subset of them where a command has fewer."""

    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    memory: tuple[str, int] | None = None
    time: tuple[str, int] | None = None
    cpu_time: tuple[str, int] | None = None
    cpus: tuple[str, int] | None = None
    limits: tuple[tuple[str, int], ...] = ()
    idle: int | None = None
    waits: int | None = None
    env: tuple[tuple[str, str], ...] = ()
    directories: tuple[tuple[str, str, bool], ...] = ()
    stdin: str | None = None
    secrets: tuple[tuple[str, str], ...] = ()
    restart: str | None = None
    export: str | None = None
    arguments: tuple[str, ...] = field(default=())

    def on(self, job: Job) -> Job:
        """`job` with these options on top: what is named replaces, what is listed is added.

        Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) for what the manager would refuse by its contract.
        """
        friendly = [limit for limit in (self.memory, self.time, self.cpu_time, self.cpus) if limit is not None]
        lease = {"idle_seconds": self.idle, "await_seconds": self.waits}
        export = job.export if self.export is None else self.export
        arguments = self.arguments or (job.export_arguments if export else job.arguments)
        described = replace(
            job,
            name=self.name or job.name,
            labels=_over(job.labels, self.labels),
            limits={**job.limits, **dict(self.limits), **dict(friendly)},
            lease={**job.lease, **{name: seconds for name, seconds in lease.items() if seconds is not None}},
            environment=_over(job.environment, self.env),
            directories=job.directories + tuple(Grant(*directory) for directory in self.directories),
            stdin=os.path.abspath(self.stdin) if self.stdin else job.stdin,
            secrets=_over(job.secrets, tuple((name, os.path.abspath(file)) for name, file in self.secrets)),
            restart=self.restart or job.restart,
            export=export,
            arguments=() if export else arguments,
            export_arguments=arguments if export else (),
        )
        described.check()
        return described


def _over(under: Mapping[str, str], over: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {**under, **dict(over)}
