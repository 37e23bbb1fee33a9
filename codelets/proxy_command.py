"""`codelets-proxy`: serves a life-cycle socket over HTTPS.

Import rule: the standard library, click, keep_protocol, codelets.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys

import click

from codelets.lcm_cli import SOCKET
from codelets.proxy import Proxy, serve
from keep_protocol.errors import KeepfleetError
from keep_protocol.revocation import RevokedFile
from keep_protocol.sdnotify import Notifier, take_stored
from keep_protocol.tls import server_context

MAX_CA_BYTES = 1024 * 1024


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CODELETS_PROXY"})
@click.option("--address", default=SOCKET, show_default=True, help="The application's life-cycle socket.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8443, show_default=True, help="Where to listen; 0: any.")
@click.option("--certificate", required=True, help="The server's certificate, PEM.")
@click.option("--key", help="Its key; without it in the certificate's file.")
@click.option("--client-ca", required=True, type=click.File("rb"), help="The CA of clients' certificates, PEM.")
@click.option("--revoked", help="The list of revoked certificates, which keepctl pki keeps.")
def main(
    address: str, host: str, port: int, certificate: str, key: str | None, client_ca: click.File, revoked: str | None
) -> None:
    """Loads and unloads codelet sets of an application on this host for clients with a certificate of the right role.

    It serves the socket that systemd passes to it (codelets-proxy@.socket); without one it listens by itself.

    Example: codelets-proxy --certificate proxy.pem --client-ca ca.pem --revoked revoked.txt
    """
    passed = take_stored()
    listener = socket.socket(fileno=next(iter(passed.values()))) if passed else None
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    pem = client_ca.read(MAX_CA_BYTES + 1)  # type: ignore[attr-defined]
    try:
        context = server_context(certificate, key, pem.decode("ascii", "replace"))
        asyncio.run(_serve(Proxy(address, RevokedFile(revoked) if revoked else None), context, host, port, listener))
    except KeepfleetError as error:
        raise click.ClickException(error.message) from None


async def _serve(proxy: Proxy, context: ssl.SSLContext, host: str, port: int, listener: socket.socket | None) -> None:
    place = listener.getsockname()[0] if listener is not None else host
    serving = serve(proxy, context, host, port, lambda bound: _ready(place, bound), listener)
    task = asyncio.ensure_future(serving)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await task


def _ready(host: str, port: int) -> None:
    click.echo(f"codelets-proxy: https://{host}:{port}", err=True)
    Notifier().send("READY=1")


if __name__ == "__main__":
    main(prog_name="codelets-proxy")
