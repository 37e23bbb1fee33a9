"""`python3 -m tools.sandbox`: a private systemd from the command line."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from tools.sandbox import client
from tools.sandbox.channel import Request
from tools.sandbox.errors import SandboxError
from tools.sandbox.layout import Layout, parse_bind
from tools.sandbox.sandbox import Sandbox
from tools.sandbox.state import names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tools.sandbox", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    boot = verbs.add_parser("boot", help="boot NAME")
    boot.add_argument("--bind", action="append", default=[], metavar="SOURCE:PLACE[:ro]", help="show SOURCE at PLACE")
    boot.add_argument("--tmpfs", action="append", default=[], metavar="PLACE", help="an empty directory at PLACE")
    run = verbs.add_parser("exec", help="run CMD in NAME")
    run.add_argument("--user", default="root", help="as this user of the sandbox")
    run.add_argument("--setenv", action="append", default=[], metavar="NAME=VALUE", help="set a variable for CMD")
    boot.add_argument("--root", metavar="DIR", help="boot this directory's system, not the machine's own")
    shown = verbs.add_parser("shown", help="what NAME, which must be running, shows of this machine with --bind")
    for verb in (boot, run, shown, verbs.add_parser("off", help="power NAME off and remove every trace")):
        verb.add_argument("name", metavar="NAME")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")
    verbs.add_parser("list", help="the sandboxes of this machine")
    return parser.parse_args()


def _exec(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise SandboxError("cannot run nothing: name a command after --")
    environment = {**client.environment(), **dict(setting.partition("=")[::2] for setting in options.setenv)}
    return client.run(options.name, Request(command, options.user, os.getcwd(), environment))


def main() -> int:
    """The exit status: the command's own for `exec`, 1 where the sandbox is the reason."""
    options = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that an interrupted boot is undone
    try:
        if options.verb == "boot":
            Sandbox(
                options.name, Layout(tuple(map(parse_bind, options.bind)), tuple(options.tmpfs), options.root)
            ).boot()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # it is up and stays: what comes now has come too late
        elif options.verb == "exec":
            return _exec(options)
        elif options.verb == "shown":
            print(*(source for source, _, _ in Sandbox(options.name).shown().binds), sep="\n")
        elif options.verb == "off":
            Sandbox(options.name).off()
        else:
            print(*(repr(Sandbox(name)) for name in names()), sep="\n", end="\n" if names() else "")
    except (SandboxError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
