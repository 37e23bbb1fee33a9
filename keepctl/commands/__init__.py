"""Every command of keepctl, and where it is. What prints, has options or decides an exit code is in here.

A command that speaks to a manager is a table (`keepctl.arguments`) and read without click; the others are click's.
"""

from __future__ import annotations

import gc

from keepctl.arguments import Command, WrongUsage
from keepctl.display import guarded

COMMANDS = {
    "run": "keepctl.commands.run:RUN",
    "ps": "keepctl.commands.keeps:PS",
    "create": "keepctl.commands.create:CREATE",
    "new": "keepctl.commands.create:CREATE",
    "start": "keepctl.commands.create:START",
    "upload": "keepctl.commands.create:UPLOAD",
    "inspect": "keepctl.commands.keeps:INSPECT",
    "logs": "keepctl.commands.watch:LOGS",
    "wait": "keepctl.commands.watch:WAIT",
    "events": "keepctl.commands.watch:EVENTS",
    "top": "keepctl.commands.top:TOP",
    "stop": "keepctl.commands.keeps:STOP",
    "rm": "keepctl.commands.keeps:REMOVE",
    "apply": "keepctl.commands.declared:APPLY",
    "diff": "keepctl.commands.declared:DIFF",
    "get": "keepctl.commands.declared:GET",
    "delete": "keepctl.commands.declared:DELETE",
    "restart": "keepctl.commands.declared:RESTART",
    "rollback": "keepctl.commands.declared:ROLLBACK",
    "history": "keepctl.commands.history:HISTORY",
    "secret": "keepctl.commands.secret:group",
    "volume": "keepctl.commands.volumes:group",
    "codelets": "keepctl.commands.codelets:group",
    "verify": "keepctl.commands.verify:VERIFY",
    "manifest": "keepctl.commands.local:manifest",
    "store": "keepctl.commands.store:group",
    "scripts": "keepctl.commands.scripts:group",
    "mcp": "keepctl.commands.mcp:mcp",
    "context": "keepctl.commands.local:context",
    "completion": "keepctl.commands.local:completion",
    "init": "keepctl.commands.issuing:init",
    "pki": "keepctl.commands.pki:group",
    "install": "keepctl.commands.units:install",
    "uninstall": "keepctl.commands.units:uninstall",
    "doctor": "keepctl.commands.units:doctor",
}
"""Every command, in the order of --help, and where it is: a table by its name in capitals, or click's."""


def run_table(name: str, words: list[str]) -> int | None:
    """Runs a command line that is written as the table of the command `name` says; the exit code, or None for a line
    that is click's to read."""
    module, _, attribute = COMMANDS.get(name, "").partition(":")
    if not attribute.isupper():
        return None
    command: Command = getattr(__import__(module, fromlist=[attribute]), attribute)  # `importlib` is 1 ms
    values = command.read(words)
    if values is None:
        return None
    if not gc.isenabled():  # as `main` has it until here: nothing of what is imported goes away
        gc.freeze()
        gc.enable()
    try:
        return guarded(lambda: command.work(**values))
    except WrongUsage:  # which click says, with the way to --help
        return None
