"""The entry point of `keep-manager-tester`."""

from __future__ import annotations

import sys

from keep_client.manager import ManagerClient
from keep_protocol.constants import FIRST_KEEP_PORT
from testers import client
from testers.client import Console, run
from testers.keep_manager_tester.walk import Walk

PROGRAM = "keep-manager-tester"


def main() -> int:
    """Runs the walk; 0 only if every answer was the expected one."""
    parser = client.parser(PROGRAM, "Creates and starts a keep over the manager's original protocol, step by step.")
    parser.add_argument("--yes", action="store_true", help="do not wait for <Enter> between the steps")
    parser.add_argument(
        "--address",
        type=client.address,
        default="127.0.0.1",
        help="where the keep is to listen (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=client.port, default=FIRST_KEEP_PORT, help=f"(default: {FIRST_KEEP_PORT})")
    options = parser.parse_args()

    def walk() -> None:
        manager = ManagerClient(options.manager, client.credentials(options).manager_context())
        Walk(manager, Console(pauses=not options.yes), client.repeated(options)).all(options.address, options.port)

    return run(PROGRAM, walk)


if __name__ == "__main__":
    sys.exit(main())
