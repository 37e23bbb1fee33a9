"""`lcm-cli`: jbpf's command, for an application's life-cycle socket.

Import rule: the standard library, click, keep_protocol, codelets.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from codelets.descriptor import MAX_BYTES, read_descriptor
from codelets.lcm import EVERY_MS, Client
from codelets.states import CodeletState, SetState, changed, one_line, sentences
from keep_protocol.errors import KeepfleetError

SOCKET = "/run/codelets/lcm.sock"


def read_file(path: str) -> bytes:
    """A descriptor's bytes, at most one more than it may have. Raises click.ClickException."""
    try:
        with click.open_file(path, "rb") as file:
            found: bytes = file.read(MAX_BYTES + 1)
            return found
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from error


def variables_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` as pairs."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} must be NAME=VALUE", param_hint="--variable")
        found[name] = value
    return found


def say(text: str, *, err: bool = False) -> None:
    """Prints a line, whatever an application has put into it."""
    click.echo(one_line(text), err=err)


def explained(error: KeepfleetError) -> int:
    """Prints an error with its evidence; the exit status: jbpf's number, positive, or 1."""
    say(f"lcm-cli: {error.message}", err=True)
    for line in error.evidence[:50]:
        say(f"  {line}", err=True)
    return -int(error.to_wire().get("number", -1))  # type: ignore[call-overload,no-any-return]


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("-a", "--address", default=SOCKET, show_default=True, help="The application's life-cycle socket.")
@click.option("-l", "--load", "load_file", metavar="FILE", help="Load the set of a descriptor.")
@click.option("-u", "--unload", "unload_what", metavar="FILE|ID", help="Unload a set, by its descriptor or its ID.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="What ${NAME} stands for.")
@click.pass_context
def main(
    context: click.Context, address: str, load_file: str | None, unload_what: str | None, variables: tuple[str, ...]
) -> None:
    """Loads, unloads and watches codelet sets of an application on this host.

    Example: lcm-cli --address /run/forwarder/lcm.sock --load queue-stats.yaml
    """
    context.obj = address
    if context.invoked_subcommand is not None:
        return
    if (load_file is None) == (unload_what is None):
        raise click.UsageError("give --load FILE, --unload FILE or ID, or a command: list, stats, watch")
    given = variables_of(variables)
    _run(context, lambda client: _change(client, load_file, unload_what, given))


def _change(client: Client, load_file: str | None, unload_what: str | None, variables: dict[str, str]) -> None:
    if load_file is not None:
        data = read_file(load_file)
        read_descriptor(data, load_file, variables)  # with the file's name in its faults
        say(f"loaded {client.load(data.decode('utf-8', 'replace'), variables)}")
        return
    name = unload_what or ""
    if "/" in name or name.endswith((".yaml", ".yml", ".json")):
        name = read_descriptor(read_file(name), name, variables).codeletset_id
    client.unload(name)
    say(f"unloaded {name}")


def _run(context: click.Context, work: Callable[[Client], None]) -> None:
    try:
        with Client(context.obj) as client:
            work(client)
    except KeepfleetError as error:
        context.exit(explained(error))


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def list_sets(context: click.Context, as_json: bool) -> None:
    """Every set, with its codelets."""

    def show(client: Client) -> None:
        found = client.sets()
        if as_json:
            click.echo(json.dumps([each.to_wire() for each in found], indent=2))
            return
        for each in found:
            say(f"{each.codeletset_id}  {'loaded' if each.loaded else f'unloaded: {each.why}'}")
            for codelet in each.codelets:
                say(f"  {_line(codelet)}")

    _run(context, show)


def _line(codelet: CodeletState) -> str:
    words = [f"{codelet.codelet_name} on {codelet.hook_name}", f"{codelet.calls} calls", f"{codelet.faults} faults"]
    if codelet.overruns:
        words.append(f"{codelet.overruns} overruns")
    if codelet.lost:
        words.append(f"{codelet.lost} messages lost")
    if codelet.median_ns:
        words.append(f"half under {codelet.median_ns} ns, 99 % under {codelet.p99_ns} ns")
    return ", ".join([*words, codelet.bound])


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def stats(context: click.Context, as_json: bool) -> None:
    """Every hook: calls, faults, and how long its codelets took."""

    def show(client: Client) -> None:
        found = client.stats()
        if as_json:
            click.echo(json.dumps([each.to_wire() for each in found], indent=2))
            return
        for each in found:
            dropped = f", {each.drops} messages lost" if each.drops else ""
            say(f"{each.name}: {each.calls} calls, {each.faults} faults, {each.overruns} overruns{dropped}")
            for bits, number in enumerate(each.times):
                if number:
                    click.echo(f"  under {1 << bits:>12} ns: {number}")

    _run(context, show)


@main.command()
@click.option("--seconds", default=1.0, show_default=True, help="Between two looks.")
@click.option("--times", default=0, help="How often; 0: until it is interrupted.")
@click.pass_context
def watch(context: click.Context, seconds: float, times: int) -> None:
    """What becomes of every set: that it was loaded or unloaded, immediately, and what its codelets do meanwhile."""
    least, most = (each / 1000 for each in EVERY_MS)
    if not least <= seconds <= most:
        raise click.BadParameter(f"it must be {least:g} to {most:g}", param_hint="--seconds")

    def show(client: Client) -> None:
        known: dict[str, SetState] = {}
        for looked, found in enumerate(client.watch(round(1000 * seconds)), 1):
            for each in changed(known, found):
                for line in sentences(known.get(each.codeletset_id), each):
                    say(line)
            known = {each.codeletset_id: each for each in found}
            if times and looked >= times:
                return

    _run(context, show)


if __name__ == "__main__":
    main(prog_name="lcm-cli")
