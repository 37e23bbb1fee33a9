"""Pulls one module: `python -I -S …/module_pull/__main__.py`, as keep-pull@.service does; see `exchange`.

Ends with 0 where all was passed on, 1 where not; the reason is the last line on standard error. The one who asks may go
at any moment; then it ends, too.
"""

import os
import sys

if not __package__:  # run by path under -I -S: our packages lie together, and the standard library must win
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ssl
from io import FileIO

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_pull.exchange import MAX_REQUEST_BYTES, encode_error, hand_over, read_request
from module_pull.registry import Credentials, Registry

REQUEST, MODULE, REPORT = 0, 1, 2
DONE, FAILED = 0, 1


def main() -> int:
    """Does what standard input asks for; returns the exit status."""
    try:
        pull(FileIO(REQUEST, closefd=False), MODULE)
    except KeepfleetError as error:
        os.write(REPORT, encode_error(error))
    except BrokenPipeError:
        os.write(REPORT, b"the manager has gone\n")
    else:
        return DONE
    return FAILED


def pull(source: FileIO, output: int) -> None:
    """Asks the registry, and writes what it sends. Raises KeepfleetError, OSError where it cannot be written."""
    request = read_request(source.read(MAX_REQUEST_BYTES) or b"")
    address = request.meant
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if request.ca:
            context.load_verify_locations(cadata=request.ca)
    except (ssl.SSLError, ValueError) as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read the CA for {address.site}: {error}") from error
    login = Credentials(((str(address.site), request.login),) if request.login else ())
    with Registry(address.site, login, context).fetch(address) as found:
        hand_over(found, output)


if __name__ == "__main__":
    os._exit(main())  # there is nothing to finalise
