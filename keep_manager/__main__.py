"""The keep-manager's command line: flags, configuration, log, run, exit code."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import sys
from typing import NoReturn

from keep_manager import config, daemon, log
from keep_manager.model import is_exhausted
from keep_protocol.errors import ErrorKind, KeepfleetError

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
"""systemd does not restart for it (RestartPreventExitStatus=2): a second start would read the same file. One that had
no descriptors left to read it with is another failure."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keep-manager", description="Creates, starts, lists and removes keeps.")
    parser.add_argument("--config", metavar="FILE", help=f"the configuration file (default: {config.default_path()})")
    parser.add_argument("--address", help="listen on this address")
    parser.add_argument("--port", type=int, help="listen on this port")
    parser.add_argument(
        "--client-certificates", choices=("required", "optional"), help="whether a client must show one"
    )
    parser.add_argument("--pki", metavar="DIRECTORY", help="where the certificates are")
    parser.add_argument("--instance", choices=("system", "user"), help="which service manager runs the keeps")
    parser.add_argument("--log-level", choices=config.LOG_LEVELS, help="the least important lines to log")
    parser.add_argument("--check-config", action="store_true", help="print the configuration in force, and exit")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the manager until SIGTERM. 0: ended as asked; 1: could not go on; 2: the configuration is wrong."""
    options = vars(_parser().parse_args(arguments))
    path, check_only = options.pop("config"), options.pop("check_config")
    flags = {name: value for name, value in options.items() if value is not None}
    load = functools.partial(config.load, path, flags)
    try:
        settings = load()
    except KeepfleetError as error:
        print(f"keep-manager: {error.message}", file=sys.stderr)
        return EXIT_FAILED if is_exhausted(error.__cause__) else EXIT_CONFIGURATION
    if check_only:
        print(config.render(settings), end="")
        return 0
    log.set_up(settings.log_level.value)
    try:
        with asyncio.Runner() as runner:
            runner.run(daemon.run(settings, load))
    except KeepfleetError as error:
        log.LOG.error("%s", error.message)
        return EXIT_CONFIGURATION if error.kind is ErrorKind.CONFIGURATION else EXIT_FAILED
    except Exception as error:
        if not is_exhausted(error):
            log.LOG.exception("a part of the manager failed; systemd starts it again")
            raise
        log.LOG.error("cannot go on: %s; systemd starts the manager again", error)
        return EXIT_FAILED
    return 0


def run() -> NoReturn:
    """Runs it as a program, and exits without taking the interpreter apart: that is 0.1 s of every restart."""
    code = main()
    logging.shutdown()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # its reader has gone
            code = code or EXIT_FAILED
    os._exit(code)


if __name__ == "__main__":
    run()
