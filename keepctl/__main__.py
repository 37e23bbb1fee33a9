"""The entry point of `keepctl`: the commands, put together."""

from __future__ import annotations

from keepctl.commands.shared import LazyCommands, version_option
from keepctl.display import open_standard_streams

HELP = """Runs workloads in keeps, shows them, and looks after certificates and installation.

\b
    keepctl run hello.wasm              run a program and see its output
    keepctl ps                          what is there
    keepctl inspect KEEP                everything about one, with why it ended
    keepctl logs -f KEEP                what it prints

KEEP is a keep's ID, the beginning of its ID, or its name.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no answer: not reached, or one side does not trust the other.
`run`, `wait` and `upload --wait` exit as the workload did: see their --help.
"""
COMMANDS = {
    "run": "keepctl.commands.run:run",
    "ps": "keepctl.commands.keeps:ps",
    "create": "keepctl.commands.keeps:create",
    "new": "keepctl.commands.keeps:create",
    "start": "keepctl.commands.keeps:start",
    "upload": "keepctl.commands.keeps:upload",
    "inspect": "keepctl.commands.keeps:inspect",
    "logs": "keepctl.commands.watch:logs",
    "wait": "keepctl.commands.watch:wait",
    "events": "keepctl.commands.watch:events",
    "top": "keepctl.commands.top:top",
    "stop": "keepctl.commands.keeps:stop",
    "rm": "keepctl.commands.keeps:remove",
    "manifest": "keepctl.commands.local:manifest",
    "context": "keepctl.commands.local:context",
    "completion": "keepctl.commands.local:completion",
    "init": "keepctl.commands.issuing:init",
    "pki": "keepctl.commands.pki:group",
    "install": "keepctl.commands.units:install",
    "uninstall": "keepctl.commands.units:uninstall",
    "doctor": "keepctl.commands.units:doctor",
}
"""Every command, in the order of --help, and where it is."""


def build() -> LazyCommands:
    """The whole command line."""
    root = LazyCommands("keepctl", COMMANDS, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
    return version_option(root)


def main() -> None:
    """Runs one command and exits with its code."""
    open_standard_streams()
    build()(prog_name="keepctl")


if __name__ == "__main__":
    main()
