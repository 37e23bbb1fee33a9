"""`codelets`: verifies a codelet for a hook, describes interfaces, and builds the calls in C.

Import rule: the standard library, click, keep_protocol, codelets.
"""

from __future__ import annotations

import json
import math
import sys
from typing import BinaryIO

import click

from codelets import fast
from codelets.collector import Collector
from codelets.engine import EngineFault, shared_engine
from codelets.interface import Interface
from codelets.lcm import Client
from codelets.states import one_line
from codelets.verification import MAX_BYTES, examine
from keep_protocol import strict_json
from keep_protocol.errors import KeepfleetError
from keep_protocol.fields import parse

MAX_INTERFACE_BYTES = 1024 * 1024


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Codelets: verified code that is loaded into a running application at its hooks.

    Example: codelets verify counter.wasm --hook ingress --interface forwarder.json
    """


@main.command()
@click.argument("file", type=click.File("rb"))
@click.option("--hook", required=True, help="The hook that it would be loaded on.")
@click.option("--interface", "interface_file", type=click.File("rb"), help="What the application offers, as JSON.")
@click.option("--address", help="The application's life-cycle socket, which says what it offers.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def verify(file: BinaryIO, hook: str, interface_file: BinaryIO | None, address: str | None, as_json: bool) -> None:
    """Says whether FILE may be a codelet of a hook, and what bounds its run time. Exits 1 where it may not.

    Example: codelets verify counter.wasm --hook ingress --address /run/forwarder/lcm.sock
    """
    if (interface_file is None) == (address is None):
        raise click.UsageError("give --interface FILE or --address SOCKET: a codelet is verified for an application")
    try:
        interface = _interface(interface_file, address)
        kind = interface.hook(hook)
    except KeepfleetError as error:
        raise click.ClickException(error.message) from None
    data = file.read(MAX_BYTES + 1)
    examined = examine(data, kind, interface)
    passed, refusal = examined.report.passed, ""
    if passed:
        try:
            shared_engine().compile(data)
        except EngineFault as fault:
            passed, refusal = False, str(fault)
    if as_json:
        bound = {"instructions": examined.instructions, "words": examined.bound}
        report = {**examined.report.to_wire(), "passed": passed, "run_time": bound, "engine": refusal}
        click.echo(json.dumps(report, indent=2))
    else:
        for line in (*examined.report.lines(), *([f"the engine refuses it: {refusal}"] if refusal else [])):
            click.echo(one_line(line))
        if passed:
            click.echo(examined.bound)
    sys.exit(0 if passed else 1)


def _interface(file: BinaryIO | None, address: str | None) -> Interface:
    if address is not None:
        with Client(address) as client:
            return client.interface
    data = file.read(MAX_INTERFACE_BYTES + 1) if file is not None else b""
    return parse(Interface, strict_json.loads_object(data, MAX_INTERFACE_BYTES, "the interface"), "interface")


@main.command()
@click.option("--address", required=True, help="The application's life-cycle socket.")
def interface(address: str) -> None:
    """Prints what an application offers to codelets, for `codelets verify --interface`.

    Example: codelets interface --address /run/forwarder/lcm.sock > forwarder.json
    """
    try:
        with Client(address) as client:
            click.echo(json.dumps(client.interface.to_wire(), indent=2))
    except KeepfleetError as error:
        raise click.ClickException(error.message) from None


@main.command()
@click.option("--address", required=True, help="The application's socket for a data collector.")
@click.option("--json", "as_json", is_flag=True, help="Each message as a line of JSON.")
@click.option("--messages", default=0, help="How many; 0: until it is interrupted.")
@click.option("--wait", "wait_seconds", default=math.inf, help="Seconds to wait for an application that is not there.")
def collect(address: str, as_json: bool, messages: int, wait_seconds: float) -> None:
    """Prints what an application's codelets send: a stream's ID and a message, in hexadecimal digits, a line each.

    It is the application's data collector, of which there is one at a time, and goes on when that is started again.

    Example: codelets collect --address /run/forwarder/collector.sock --json
    """
    try:
        with Collector(address, wait_seconds) as collector:
            for number, (stream, message) in enumerate(collector, 1):
                line = {"stream": stream.hex(), "message": message.hex()}
                click.echo(json.dumps(line) if as_json else f"{stream.hex()} {message.hex()}")
                if number == messages:
                    break
            lost = collector.lost
    except KeepfleetError as error:
        raise click.ClickException(error.message) from None
    if lost:
        click.echo(f"{lost} messages were lost: the collector was too slow", err=True)


@main.command()
def build() -> None:
    """Builds the calls of codelets in C, with the C compiler of this machine: one codelet's takes a tenth then.

    Example: codelets build
    """
    try:
        click.echo(f"built {fast.build()}")
    except KeepfleetError as error:
        for line in error.evidence:
            click.echo(line, err=True)
        raise click.ClickException(error.message) from None


if __name__ == "__main__":
    main(prog_name="codelets")
