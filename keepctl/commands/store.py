"""`keepctl store …`: the modules of this host in place, or of a manager over its API."""

from __future__ import annotations

import click

from keep_client.peer import printable
from keep_protocol.store import Tagging
from keepctl.commands import policy, signing, whole_store
from keepctl.commands.access import output_option
from keepctl.commands.pulling import pull
from keepctl.commands.shared import FILE, Commands
from keepctl.commands.storing import Modules, meant, reading, short, store_options
from keepctl.describe import moment_text, size_text
from keepctl.display import echo, json_text, show_table
from keepctl.modules import read_file
from module_store import names
from module_store.signatures import MAX_SIGNATURE_BYTES

_UNNAMED = ""


@click.group("store", cls=Commands, short_help="Keeps modules, on this host or a manager's.")
def group() -> None:
    """Keeps modules: on this host in place, where root's are the system's, in /var/lib/keepfleet/store, and a user's
    are their own; or on a manager's host over its API, where one is chosen, by --context, --manager, their variables or
    `keepctl context use`. --in-place and --store DIR mean this host's whatever is chosen.

    WHAT is NAME:TAG, sha256:… or the beginning of that, or NAME:TAG@sha256:…, of which the digest decides.

    \b
    keepctl store add web.wasm web:1.2
    keepctl store ls
    """


for command in (whole_store.collect_garbage, whole_store.verify, whole_store.export, whole_store.import_modules, pull):
    group.add_command(command)
for command in (signing.key, signing.sign, signing.attach, signing.check, policy.group):
    group.add_command(command)


@group.command("add")
@click.argument("file", metavar="FILE", type=FILE)
@click.argument("reference", metavar="[NAME:TAG]", required=False)
@click.option("--digest", metavar="sha256:…", default="", help="Refuse a file that has another one.")
@click.option(
    "--signature", "signatures", metavar="FILE", type=FILE, multiple=True, help="A signature that is to go with it."
)
@store_options
@output_option
def add(
    file: str, reference: str | None, digest: str, signatures: tuple[str, ...], modules: Modules, output: str
) -> None:
    """Adds FILE (standard input for `-`) with its signatures and names it NAME:TAG; it is on disk when this ends. All
    of that happens, or nothing.

    \b
    keepctl store add web.wasm web:1.2 --signature web.wasm.minisig
    """
    given = [read_file(each, MAX_SIGNATURE_BYTES) for each in signatures]
    if reference:
        names.check_reference(reference)
    with reading(file) as source:
        added = modules.add(source, reference or "", names.check_digest(digest) if digest else "", given)
    if output == "json":
        echo(json_text({**added.to_wire(), "reference": reference}))
    else:
        echo(f"{reference or 'no reference'}  {added.digest}  {size_text(added.size)}")


@group.command("ls")
@store_options
@output_option
def list_modules(modules: Modules, output: str) -> None:
    """Lists every reference with its object, and the objects that have none.

    \b
    keepctl store ls
    """
    found = modules.listing()
    if output == "json":
        echo(json_text(found.to_wire()))
        return
    objects = {each.digest: each for each in found.objects}
    rows = []
    for name, digest in [
        *((each.name, each.digest) for each in found.references),
        *((_UNNAMED, digest) for digest in sorted(objects.keys() - {each.digest for each in found.references})),
    ]:
        known = objects.get(digest)
        size, added = (size_text(known.size), moment_text(known.added)) if known else ("missing", "")
        rows.append((name, short(digest), size, added))
    rows += [(name, "damaged", "", "") for name in found.damaged]
    show_table(("REFERENCE", "DIGEST", "SIZE", "ADDED"), rows)


@group.command("inspect")
@click.argument("what", metavar="WHAT")
@store_options
@output_option
def inspect(what: str, modules: Modules, output: str) -> None:
    """Shows an object, after reading all of it: what it is called, what is attached to it, and what needs it.

    \b
    keepctl store inspect web:1.2
    """
    known = modules.inspect(meant(modules, what))
    moves = modules.reference(what.partition("@")[0]).history if names.REFERENCE.match(what) else ()
    if output == "json":
        echo(json_text({**known.to_wire(), "history": [move.to_wire() for move in moves]}))
        return
    lines = [("digest", known.digest), ("size", f"{known.size} bytes"), ("added", moment_text(known.added))]
    lines += [("attached", kind) for kind in known.attachments] + [("needed by", user) for user in known.needed_by]
    for move in moves:
        before = f"from {short(move.source)} " if move.source else ""
        lines.append(("moved", f"{moment_text(move.when)} by {move.who} {before}to {short(move.target)}"))
    for title, text in lines:
        echo(printable(f"{title:<11} {text}"))


@group.command("tag")
@click.argument("what", metavar="WHAT")
@click.argument("reference", metavar="NAME:TAG")
@click.option(
    "--force",
    is_flag=True,
    help="Let it start although a newer version was seen: to go back, until a yet newer version starts.",
)
@store_options
@output_option
def tag(what: str, reference: str, force: bool, modules: Modules, output: str) -> None:
    """Has NAME:TAG name WHAT from now on; what it named before stays in its history.

    \b
    keepctl store tag web:1.2 web:current
    keepctl store tag web:1.1 web:current --force
    """
    moved = modules.tag(names.check_reference(reference), Tagging(meant(modules, what), force))
    echo(json_text(moved.to_wire()) if output == "json" else f"{moved.name}  {moved.digest}")


@group.command("rm")
@click.argument("what", metavar="WHAT...", nargs=-1, required=True)
@store_options
@output_option
def remove(what: tuple[str, ...], modules: Modules, output: str) -> None:
    """Removes references with their history, and objects, by digest, that nothing needs. The objects of references stay
    until `keepctl store gc`.

    \b
    keepctl store rm web:1.1
    """
    removed = []
    for each in what:
        if names.REFERENCE.fullmatch(each):
            modules.untag(each)
            removed.append(each)
        else:
            digest = meant(modules, each)
            modules.remove(digest)
            removed.append(digest)
        if output == "text":
            echo(f"removed {removed[-1]}")
    if output == "json":
        echo(json_text({"removed": removed}))
