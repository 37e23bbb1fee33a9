"""Names, those of descriptors among them, limits and deadlines that both ends of a process boundary must agree on.

Import rule: `errors` and `patterns` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.patterns import matches

PROTOCOL_NAME = "Enarx-Keep-Manager"
PROTOCOL_VERSION = "0.1"
LEGACY_PATH = "/keeps_post"
WORKLOAD_FOLLOWS_HEADER = "Workload-Follows"
"""With a creation that has its start in it, as `yes`: the client sends the workload immediately. A header, which a
manager that does not know it passes over."""
V1_KEEPS_PATH = "/v1/keeps"
V1_POOLS_PATH = "/v1/pools"
V1_EVENTS_PATH = "/v1/events"
"""Where the manager is asked. Here and not in `api`, whose checks of a request are 5 ms of a client's start."""

DEFAULT_MANAGER_ADDRESS = "127.0.0.1"
DEFAULT_MANAGER_PORT = 3030
FIRST_KEEP_PORT = 3031
"""On 127.0.0.1 a taken port moves to the next free one, searched from the port asked for, or from here."""
LAST_KEEP_PORT = 65535

KUUID_BITS = 53
"""The widest integer every JSON reader keeps whole (RFC 8259, section 6)."""
SLICE_GROUPS = 32
"""Keeps are spread over this many slices: PID 1 pays for the other units in a new one's slice."""

LISTENER, CLIENT_CA, REVOKED = "listener", "client-ca", "revoked"
START_DESCRIPTORS = (LISTENER, CLIENT_CA, REVOKED)
"""The names of descriptors. What every start brings of a keep that receives its workload: the listening TCP socket, the
client CA's PEM, and the list of revoked serial numbers (one hexadecimal number a line), which is only ever appended to
and is read again for each connection."""
MODULE, COMPILED, FOLLOW = "module", "compiled", "follow"
"""What the start of a keep of kind stored brings: its module, read-only, and perhaps that module compiled, and
a channel as the command FOLLOW brings one, so that its workload waits for its readers from its first byte on. The first
two are, too, what a runner reports that has checked an upload: the module as it was sent, and compiled."""
OUTPUT, RECORD, JOURNAL = "output", "record", "journal"
OUTPUT_DESCRIPTORS = (OUTPUT, RECORD, JOURNAL)
"""What every start of a loader of version 3 brings, too: the ring, made by the manager, that the workload's output goes
into; the file that the keep's record is written to; both named in the manager's own folder for the keep, and open for
reading and writing; and a datagram socket that is connected to journald's own
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
WORKLOAD_DESCRIPTOR = "workload"
"""A read-only file with `workload.Workload.to_json`; with it come the descriptors of its `grant_names`: those that
follow."""
STDIN, INPUT, DIRECTORY, SECRET = "stdin", "input", "directory", "secret"
"""A workload's standard input, as a file, or as it is streamed, over a socket; a granted directory and a secret, their
number behind it."""
IDENTITY, CHECKS, STATUS = "identity", "checks", "status"
"""Within a keep: the endpoint's key and certificate, in a file without a name; the socket over which the endpoint asks
the runner for checks; and the runner's /proc/self/status, which it alone can open."""
STDOUT, STDERR = "stdout", "stderr"
"""The ends of the workload's pipes that its runner gets with what it is to run, and ours."""
RESULT = "result"
"""The file into which a checker writes the compiled module."""

SECRETS_DIRECTORY = "secrets"
"""Below the keep's runtime directory, a tmpfs: where a runner puts its workload's secrets, so that what is there is
never on a disk, and goes with the keep."""
MAX_CONTROL_FRAME = 128 * 1024
"""One message on the control socket, in bytes; a keep's object with its certificate and a backtrace is 8 KiB, and with
16 labels of 255 characters that JSON writes as twelve bytes each, 110 KiB."""
MAX_CONTROL_FDS = 48
"""Descriptors in one control message: the upload endpoint's three, the workload's description, its standard input, and
at most 16 directories and 16 secrets; the kernel takes 253 (man 7 unix)."""
MAX_CONTROL_CONNECTIONS = 8
"""Open control connections per loader; the manager uses one at a time."""
CONTROL_REPLY_SECONDS = 2.0
"""A loader answers from memory; one that has not in this time is shown as it was, in state 0 to a manager that is new,
and not waited for."""
TERM_SECONDS = 2.0
"""From a loader's SIGTERM to its SIGKILL; the unit's TimeoutStopSec is 5 s."""
STOP_REPLY_SECONDS = TERM_SECONDS + 8.0
"""`apploader-stop` is answered when the process has ended: after TERM_SECONDS one that takes no notice is killed, and
its memory, up to 4 GiB, is freed in 1 s where the host is idle; this covers one eight times busier."""
APPLOADER_START_SECONDS = 10.0
"""start-keep to listening takes 40 ms; this covers a host a hundred times busier."""

MAX_WORKLOAD_BYTES = 256 * 1024 * 1024
"""Default ceiling of one module: the largest published WASI programs (a Python interpreter) are 30 MB."""
MAX_PAYLOAD_JSON_FACTOR = 5
"""`contents` as an array of numbers costs up to four characters a byte, and white space."""
MAX_MANAGER_BODY = 64 * 1024
"""One request body to the manager: its longest is a start request with 16 names, under 6 KiB."""
MAX_CERTIFICATE_NAMES = 16
"""DNS names and addresses a keep's certificate may carry besides the address it listens on."""

MAX_CA_FILE_BYTES = 256 * 1024
"""A hundred CAs in one file, which the manager refuses where it is longer, and a keep does not read further."""

UNIT_PATTERN = "keep@*.service"
_KUUID = "[1-9][0-9]{0,15}"


def check_kuuid(kuuid: int) -> int:
    """`kuuid` itself. Raises KeepfleetError(BAD_REQUEST) outside 1 … 2^53 - 1."""
    if not 0 < kuuid < 1 << KUUID_BITS:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot use {kuuid} as a keep's ID: it must lie in 1 … 2^{KUUID_BITS} - 1"
        )
    return kuuid


def parse_kuuid(text: str) -> int:
    """The keep's ID written in `text`. Raises KeepfleetError(BAD_REQUEST) unless it is a plain decimal in range."""
    if not matches(_KUUID, text):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot read {text[:40]!r} as a keep's ID: it must be a decimal number"
        )
    return check_kuuid(int(text))


def unit_name(kuuid: int) -> str:
    """The systemd unit of the keep `kuuid`: `keep@ID.service`."""
    return f"keep@{check_kuuid(kuuid)}.service"


def kuuid_of_unit(unit: str) -> int | None:
    """The keep's ID in a unit's name, or None where the unit is not a keep's."""
    kuuid = unit.removeprefix("keep@").removesuffix(".service")
    if f"keep@{kuuid}.service" != unit or not matches(_KUUID, kuuid) or int(kuuid) >= 1 << KUUID_BITS:
        return None
    return int(kuuid)


def slice_name(kuuid: int) -> str:
    """The slice the keep's unit lives in: `keep-gNN.slice`, one of SLICE_GROUPS below `keep.slice`."""
    return f"keep-g{check_kuuid(kuuid) % SLICE_GROUPS:02d}.slice"


def control_socket_path(runtime_root: str, kuuid: int) -> str:
    """The keep's control socket below `runtime_root` (`/run`, or the user's `$XDG_RUNTIME_DIR`)."""
    return f"{runtime_root}/keepfleet/{check_kuuid(kuuid)}/control.sock"
