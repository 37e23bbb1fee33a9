"""`keepctl store gc`, `verify`, `export`, `import`: what is done to a whole store; `store` has the rest."""

from __future__ import annotations

import os
import sys

import click

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import GRACE_SECONDS, MAX_HISTORY, Collection, Moved
from keepctl import files
from keepctl.commands.access import output_option
from keepctl.commands.shared import FILE
from keepctl.commands.storing import Modules, meant, reading, store_options
from keepctl.describe import FAILED, size_text
from keepctl.display import echo, json_text
from module_store import archive, names


@click.command("gc")
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=GRACE_SECONDS,
    show_default=True,
    help="Spare what was added since.",
)
@click.option(
    "--history",
    metavar="N",
    type=click.IntRange(0, MAX_HISTORY),
    help=f"First have references forget all but their last N moves; they keep {MAX_HISTORY} otherwise.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed; --history is passed over.")
@store_options
@output_option
def collect_garbage(grace: float, history: int | None, dry_run: bool, modules: Modules, output: str) -> None:
    """Removes the objects that no reference, no history and no user of the store needs.

    \b
    keepctl store gc --dry-run
    """
    collected = modules.collect(Collection(grace, history, dry_run))
    if output == "json":
        removed, young = ([each.to_wire() for each in part] for part in (collected.removed, collected.young))
        echo(json_text({"removed": removed, "young": young, "bytes": collected.bytes, "dry_run": dry_run}))
        return
    for each in collected.removed:
        echo(f"{'would remove' if dry_run else 'removed'} {each.digest}  {size_text(each.size)}")
    verb = "would be removed" if dry_run else "removed"
    young_text = f"; too young to go: {len(collected.young)}" if collected.young else ""
    echo(f"{verb}: {len(collected.removed)}, {size_text(collected.bytes)}{young_text}")


@click.command("verify")
@store_options
@output_option
def verify(modules: Modules, output: str) -> None:
    """Reads every byte of the store, and exits 1 when there is something to do. Damaged objects go into quarantine.

    \b
    keepctl store verify
    """
    done = modules.verify()
    path, found = done.store, done.findings
    if output == "json":
        echo(json_text(done.to_wire()))
        raise SystemExit(FAILED if found else 0)
    if found:
        why = "there is something to fix"
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot vouch for the module store {path}: {why}", found)
    echo(f"{path}: all is well")


@click.command("export")
@click.argument("what", metavar="[WHAT...]", nargs=-1)
@click.option("--to", metavar="FILE", type=FILE, help="Instead of standard output; whole, or not there at all.")
@store_options
@output_option
def export(what: tuple[str, ...], to: str | None, modules: Modules, output: str) -> None:
    """Writes objects with their references and signatures as a tar; the whole store without WHAT.

    \b
    keepctl store export web:1.2 --to web.tar
    """
    if to is None and output == "json":
        raise click.UsageError("-o json goes with --to: standard output is the export's")
    if to is None and sys.stdout.isatty():
        raise click.UsageError("an export is for a pipe or a file: name one by --to")
    wanted = [meant(modules, each) if names.is_abbreviated(each) else each for each in what]
    if to is None:
        modules.export(sys.stdout.buffer, wanted)
        sys.stdout.buffer.flush()
        return
    with files.explained(f"write {to}"):
        temporary = files.temporary_path(os.path.abspath(to))
        try:
            with open(temporary, "x+b") as target:
                modules.export(target, wanted)
                target.flush()
                os.fsync(target.fileno())
                target.seek(0)
                moved = archive.contents(target)
            os.rename(temporary, to)
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    _show_moved(moved, to, output)


@click.command("import")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--replace", is_flag=True, help="Move references that name another object here.")
@store_options
@output_option
def import_modules(file: str, replace: bool, modules: Modules, output: str) -> None:
    """Takes in what `keepctl store export` wrote to FILE (standard input for `-`), all of it or nothing.

    \b
    keepctl store import web.tar
    """
    with reading(file) as source:
        moved = modules.import_from(source, replace)
    _show_moved(moved, file, output)


def _show_moved(moved: Moved, file: str, output: str) -> None:
    if output == "json":
        echo(json_text({**moved.fields(), "file": file if file == "-" else os.path.abspath(file)}))
        return
    counts = f"objects: {moved.objects}, references: {moved.references}, attachments: {moved.attachments}"
    echo(f"{file}: {counts}; {size_text(moved.bytes)}")
