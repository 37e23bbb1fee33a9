"""`keepctl store …`: the modules that are kept on this host, changed in place by the user whose store it is."""

from __future__ import annotations

import os

import click

from keep_client.text import printable
from keepctl.commands import signing, whole_store
from keepctl.commands.access import output_option
from keepctl.commands.pulling import pull
from keepctl.commands.shared import FILE, Commands
from keepctl.commands.storing import meant, reading, short, store_option, store_path, who
from keepctl.describe import moment_text, size_text
from keepctl.display import echo, json_text, show_table
from module_store import collect, names
from module_store.place import Damaged
from module_store.references import Reference
from module_store.store import Store

_UNNAMED = ""


@click.group("store", cls=Commands, short_help="Keeps modules on this host.")
def group() -> None:
    """Keeps modules on this host: root's are the system's, in /var/lib/keepfleet/store; a user's are their own.

    WHAT is NAME:TAG, sha256:… or the beginning of that, or NAME:TAG@sha256:…, of which the digest decides.

    \b
    keepctl store add web.wasm web:1.2
    keepctl store ls
    """


for command in (whole_store.collect_garbage, whole_store.verify, whole_store.export, whole_store.import_modules, pull):
    group.add_command(command)
for command in (signing.key, signing.sign, signing.attach, signing.check):
    group.add_command(command)


@group.command("add")
@click.argument("file", metavar="FILE", type=FILE)
@click.argument("reference", metavar="[NAME:TAG]", required=False)
@click.option("--digest", metavar="sha256:…", default="", help="Refuse a file that has another one.")
@store_option
@output_option
def add(file: str, reference: str | None, digest: str, directory: str | None, output: str) -> None:
    """Adds FILE (standard input for `-`) and names it NAME:TAG; it is on disk when this ends.

    \b
    keepctl store add web.wasm web:1.2
    """
    with reading(file) as source, Store.create(store_path(directory)) as store:
        added = store.add(source, reference=reference or "", who=who(), digest=digest)
    if output == "json":
        echo(json_text({**added.to_wire(), "reference": reference}))
    else:
        echo(f"{reference or 'no reference'}  {added.digest}  {size_text(added.size)}")


@group.command("ls")
@store_option
@output_option
def list_modules(directory: str | None, output: str) -> None:
    """Lists every reference with its object, and the objects that have none.

    \b
    keepctl store ls
    """
    with Store.open(store_path(directory)) as store:
        objects = {each.digest: each for each in store.objects()}
        references, damaged = _references(store)
    if output == "json":
        listed = [{"name": each.name, "digest": each.digest} for each in references]
        wire = {"objects": [each.to_wire() for each in objects.values()], "references": listed, "damaged": damaged}
        echo(json_text(wire))
        return
    rows = []
    for name, digest in [
        *((each.name, each.digest) for each in references),
        *((_UNNAMED, digest) for digest in sorted(objects.keys() - {each.digest for each in references})),
    ]:
        known = objects.get(digest)
        size, added = (size_text(known.size), moment_text(known.added)) if known else ("missing", "")
        rows.append((name, short(digest), size, added))
    rows += [(name, "damaged", "", "") for name in damaged]
    show_table(("REFERENCE", "DIGEST", "SIZE", "ADDED"), rows)


def _references(store: Store) -> tuple[list[Reference], list[str]]:
    """The references, and the names of those that are damaged."""
    found, damaged = [], []
    for name in store.reference_names():
        try:
            found.append(store.reference(name))
        except Damaged:
            damaged.append(name)
    return found, damaged


@group.command("inspect")
@click.argument("what", metavar="WHAT")
@store_option
@output_option
def inspect(what: str, directory: str | None, output: str) -> None:
    """Shows an object, after reading all of it: what it is called, what is attached to it, and what needs it.

    \b
    keepctl store inspect web:1.2
    """
    with Store.open(store_path(directory)) as store:
        digest = meant(store, what)
        os.close(store.open_object(digest))
        known = store.object(digest)
        users = collect.needed(store).get(digest, [])
        attached = store.attachments(digest)
        moves = store.reference(what.partition("@")[0]).history if names.REFERENCE.match(what) else ()
    if output == "json":
        history = [move.to_wire() for move in moves]
        echo(json_text({**known.to_wire(), "attachments": attached, "needed_by": users, "history": history}))
        return
    lines = [("digest", known.digest), ("size", f"{known.size} bytes"), ("added", moment_text(known.added))]
    lines += [("attached", kind) for kind in attached] + [("needed by", user) for user in users]
    for move in moves:
        before = f"from {short(move.source)} " if move.source else ""
        lines.append(("moved", f"{moment_text(move.when)} by {move.who} {before}to {short(move.target)}"))
    for title, text in lines:
        echo(printable(f"{title:<11} {text}"))


@group.command("tag")
@click.argument("what", metavar="WHAT")
@click.argument("reference", metavar="NAME:TAG")
@store_option
@output_option
def tag(what: str, reference: str, directory: str | None, output: str) -> None:
    """Has NAME:TAG name WHAT from now on; what it named before stays in its history.

    \b
    keepctl store tag web:1.2 web:current
    """
    with Store.open(store_path(directory)) as store:
        moved = store.tag(reference, meant(store, what), who())
    echo(json_text(moved.to_wire()) if output == "json" else f"{moved.name}  {moved.digest}")


@group.command("rm")
@click.argument("what", metavar="WHAT...", nargs=-1, required=True)
@store_option
@output_option
def remove(what: tuple[str, ...], directory: str | None, output: str) -> None:
    """Removes references with their history, and objects, by digest, that nothing needs. The objects of references stay
    until `keepctl store gc`.

    \b
    keepctl store rm web:1.1
    """
    removed = []
    with Store.open(store_path(directory)) as store:
        for each in what:
            if names.REFERENCE.fullmatch(each):
                store.untag(each)
                removed.append(each)
            else:
                digest = meant(store, each)
                collect.remove(store, digest)
                removed.append(digest)
            if output == "text":
                echo(f"removed {removed[-1]}")
    if output == "json":
        echo(json_text({"removed": removed}))
