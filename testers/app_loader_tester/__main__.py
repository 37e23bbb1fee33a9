"""The entry point of `app-loader-tester`."""

from __future__ import annotations

import sys

from testers import client
from testers.app_loader_tester.send import Sending
from testers.client import Console, run

PROGRAM = "app-loader-tester"


def main() -> int:
    """Sends one file; 0 only if the keep has accepted it."""
    parser = client.parser(PROGRAM, "Sends a file to a keep that waits for its workload, and says what happened.")
    parser.add_argument("port", metavar="PORT", type=client.port, help="the port the keep listens on")
    parser.add_argument("file", metavar="FILE.wasm", help="any file; only a WebAssembly module is accepted")
    parser.add_argument(
        "--address", type=client.address, default="127.0.0.1", help="where the keep listens (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--fingerprint",
        type=client.fingerprint,
        help="the keep's certificate, sha256:…, as start-keep answered it (default: ask the manager)",
    )
    parser.add_argument(
        "--encoding",
        choices=("wasm", "raw"),
        default="wasm",
        help="wasm: the original's JSON; raw: the bytes as they are (default: wasm)",
    )
    options = parser.parse_args()

    def send() -> None:
        sending = Sending(Console(pauses=False), client.credentials(options), options.manager)
        sending.send(options.address, options.port, options.fingerprint, options.file, options.encoding)

    return run(PROGRAM, send)


if __name__ == "__main__":
    sys.exit(main())
