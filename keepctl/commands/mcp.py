"""`keepctl mcp`: runs code that a language model writes, by the Model Context Protocol."""

from __future__ import annotations

import os
import sys

import click

from keepctl.commands.shared import FILE

PACKAGE = "script_pool"


@click.command("mcp", short_help="Serves a language model's program: runs the code that it writes.")
@click.option("--socket", "path", metavar="PATH", type=FILE, help="From the pool that script-pool serves there.")
@click.argument("options", metavar="[-- OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
def mcp(path: str | None, options: tuple[str, ...]) -> None:
    """Serves the Model Context Protocol on standard input and output: it offers run_javascript and run_python, each
    call in a fresh sandbox or a session, of a pool of its own with OPTIONS of script-pool, or of one that is there.
    Needs: pip install keepfleet[mcp].

    \b
    keepctl mcp -- --time 2 --memory 64
    keepctl mcp -- --functions shop.py --fetch api.example.com
    """
    where = f"--mcp={path}" if path else "--mcp"
    # The program itself takes this one's place: the protocol is on its standard input and output.
    os.execv(sys.executable, [sys.executable, "-m", PACKAGE, where, *options])  # noqa: S606 - nothing of a shell's
