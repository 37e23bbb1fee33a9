"""One specification: a manifest, word for word, behind one line that says whose it is and which version. Pure.

    # keepfleet declared {"schema":1,"owner":"alice",…}
    module: web:1.2
    restart: always

It stays a manifest that people and `keepctl manifest check` read. The line has a digest of itself and of what follows:
a file that was changed by something else than an apply, or is damaged, is not run.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Flag, Record, Seconds, Text, Whole, Word, field, parse
from keep_protocol.identity import Role
from keep_protocol.spec import OWNER
from keepctl.job import NO_RESTART, Job
from keepctl.manifest.reading import parse_job
from module_store.names import parse_wanted
from strict_yaml.tree import MAX_BYTES

SCHEMA = 1
"""The format of a file; one of another number is never guessed at."""
MAX_HEADER = 4096
MAX_NOTE = 1000
MAX_FILE = MAX_HEADER + MAX_BYTES
_BEGIN = b"# keepfleet declared "
_HEX = "[0-9a-f]{64}"


class Header(Record):
    """The first line. version: counted up by each change; applied_at: seconds of the epoch; module: the digest that the
    module's reference named when it was applied, "" while the store has none; generation: counted up by each restart;
    salt: keys the digests of this name; note: what the manager did of its own; content: the digest of all
    the rest; proven: whether a keep of it has been ready, as far as that is asked for."""

    owner: str = field(OWNER)
    role: Role = field(Word(Role))
    version: int = field(Whole(1, 1 << 53))
    applied_at: float = field(Seconds())
    salt: str = field(Text(64, _HEX, "64 hexadecimal digits"))
    module: str = field(Text(71, f"(sha256:{_HEX})?", "`sha256:` and 64 hexadecimal digits"), default="")
    generation: int = field(Whole(0, 1 << 53), default=0)
    note: str = field(Text(MAX_NOTE), default="")
    content: str = field(Text(64, f"({_HEX})?", "64 hexadecimal digits"), default="")
    proven: bool = field(Flag(), default=False)


@dataclass(frozen=True)
class Specification:
    """A declared keep as it is wanted. text: the manifest; job: what it says."""

    name: str
    header: Header
    text: str
    job: Job

    @cached_property
    def digest(self) -> str:
        """What decides how its keep runs; two with the same one need no other keep.

        Users of the host may read it in the unit, and its environment may be secret: it is keyed. A member that is as
        usual is left out, so that a newer version with more members finds the same digest. Each decision asks for it.
        """
        usual = Job().fields()
        said = {name: _plain(value) for name, value in self.job.fields().items() if value != usual[name]}
        for managed in ("module", "restart", "ready_seconds", "probe", "name"):
            said.pop(managed, None)
        said |= {"module": self.header.module, "generation": self.header.generation}
        return hmac.digest(self.header.salt.encode(), strict_json.dumps(said), "sha256").hex()

    def changed(self, **changes: object) -> Specification:
        """The same with other values of the header."""
        return replace(self, header=self.header.replace(**changes))


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return {name: _plain(inner) for name, inner in value.fields().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(value[name]) for name in sorted(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def read_job(name: str, text: str) -> Job:
    """What the manifest of the declared keep `name` says. Raises KeepfleetError(BAD_REQUEST), each fault with its line
    as evidence."""
    job, faults = parse_job(text.encode())
    if job is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = tuple(f"{name}:{fault.line}:{fault.column}: {fault.message}" for fault in faults)
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot declare {name}: its manifest has {count}", lines)
    why = ""
    if not job.module:
        why = "its manifest names no module; write one of the store: module: web:1.2"
    elif job.schedule and job.restart != NO_RESTART:
        why = "a job is run again by its schedule; leave restart out"
    elif not job.schedule and (job.missed, job.overlap) != (Job().missed, Job().overlap):
        why = "missed and overlap are said of a job; write its schedule, or leave them out"
    elif job.streams:
        why = "no client is there to send its standard input; name a file, or leave it out"
    elif job.name not in ("", name):
        why = f"its manifest calls it {job.name!r}; leave the name out, or declare {job.name}"
    if why:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot declare {name}: {why}")
    parse_wanted(job.module)
    return job.replace(name=name)


def encode(specification: Specification) -> bytes:
    """The file's bytes."""
    body = specification.text.encode()
    header = specification.header.replace(content=_checksum(specification.header, body))
    return _BEGIN + strict_json.dumps({"schema": SCHEMA, **_wire(header)}) + b"\n" + body


def _wire(header: Header) -> dict[str, object]:
    """Its members. What older versions do not know is there only where it says something."""
    wire = header.to_wire()
    if not header.proven:
        del wire["proven"]
    return wire


def _checksum(header: Header, body: bytes) -> str:
    return hashlib.sha256(strict_json.dumps(_wire(header.replace(content=""))) + b"\n" + body).hexdigest()


def decode(name: str, data: bytes) -> Specification:
    """The specification in a file's bytes. Raises KeepfleetError(BAD_REQUEST, UNSUPPORTED or TOO_LARGE)."""
    if len(data) > MAX_FILE:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the specification {name}: it is over {MAX_FILE} bytes")
    line, newline, body = data.partition(b"\n")
    if not line.startswith(_BEGIN) or not newline or len(line) > MAX_HEADER:
        raise _unreadable(name, f"its first line does not begin with {_BEGIN.decode()!r}")
    value = strict_json.loads_object(line.removeprefix(_BEGIN), MAX_HEADER, f"the first line of {name}")
    schema = value.pop("schema", None)
    if schema != SCHEMA:
        why = f"its schema is {str(schema)[:20]}, and this version knows {SCHEMA}; it is kept for the version it is of"
        raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot read the specification {name}: {why}")
    header = parse(Header, value, f"first line of {name}", strict=True)
    if not hmac.compare_digest(header.content, _checksum(header, body)):
        raise _unreadable(name, "it is damaged, or was changed since it was applied")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(name, "it is not UTF-8") from error
    return Specification(name, header, text, read_job(name, text))


def _unreadable(name: str, why: str) -> KeepfleetError:
    what = f"cannot read the specification {name}: {why}; apply it again: keepctl apply -f FILE"
    return KeepfleetError(ErrorKind.BAD_REQUEST, what)
