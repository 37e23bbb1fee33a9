"""The entry point of `keepctl`: the commands, put together."""

from __future__ import annotations

from keepctl.commands import keeps, pki, units
from keepctl.commands.shared import Commands


def build() -> Commands:
    """The whole command line, one list of commands a reader can take in."""
    top = Commands(
        "keepctl",
        help="Certificates, installation, and every call of the manager's.\n\n"
        "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no answer: not reached, or one side does not trust the other.",
    )
    for command in (pki.init, pki.group, units.install, units.uninstall):
        top.add_command(command)
    for command in (keeps.ps, keeps.new, keeps.start, keeps.upload, keeps.inspect, keeps.stop, keeps.remove):
        top.add_command(command)
    return top


def main() -> None:
    """Runs one command and exits with its code."""
    build()(prog_name="keepctl")


if __name__ == "__main__":
    main()
