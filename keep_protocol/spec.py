"""What a keep is: decided by the manager when it makes the unit, kept by systemd in the unit's environment, and read
back from there. A loader reads its own; what it says of it to others counts for nothing.

Import rule: `base64`'s part in `binascii`, and the light part of keep_protocol.
"""

from __future__ import annotations

import binascii
from _collections_abc import Iterable

from keep_protocol import strict_json
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import (
    Flag,
    Items,
    Maybe,
    Nested,
    Pairs,
    Record,
    Seconds,
    Text,
    Whole,
    Word,
    field,
    invalid,
    parse,
)
from keep_protocol.limits import DEFAULT_LIMITS, TEN_YEARS, Limits
from keep_protocol.patterns import matches

START_VARIABLE = "KEEPFLEET_START_FOLLOWS"
"""Set in a unit whose loader hears of its start immediately after READY: it begins what that takes before."""
SPEC_VARIABLE = "KEEPFLEET_SPEC"
SCHEMA = 1
"""The format of an encoded spec; one of another number is never guessed at."""
MAX_SPEC_TEXT = 120 * 1024
"""Characters of an encoded spec: the kernel takes 128 KiB for one variable (man 2 execve); 16 labels of 255 characters
that JSON writes as twelve bytes each come to 70 KiB."""
MAX_LABELS = 16
MAX_LABEL_VALUE = 255
MAX_UPLOADERS = 16
ANONYMOUS = "anonymous"
"""The owner word of callers without a certificate; no certificate may have it."""

Labels = tuple[tuple[str, str], ...]
NAME = Text(63, r"([a-z0-9-]{1,63})?", "1 to 63 of a-z, 0-9 and -")
LABEL_KEY = Text(63, r"[a-z0-9./-]{1,63}", "1 to 63 of a-z, 0-9, `.`, `/` and -")
OWNER = Text(64, r"([A-Za-z0-9._@-]{1,64})?", "1 to 64 of A-Z, a-z, 0-9, `.`, `_`, `@` and -")
FINGERPRINT = Text(71, r"sha256:[0-9a-f]{64}", "`sha256:` and 64 hexadecimal digits")
UPLOADER = Text(
    71,
    r"\*|name:[A-Za-z0-9._@-]{1,64}|sha256:[0-9a-f]{64}",
    "`name:` and a caller's name, or a certificate's fingerprint",
)
MODULE_DIGEST = Text(71, r"(sha256:[0-9a-f]{64})?", "`sha256:` and 64 hexadecimal digits")
MAX_MODULE_NAME = 255
CREDENTIAL = Text(63, "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "1 to 63 of A-Z, a-z, 0-9, `_`, `.` and -")
MAX_CREDENTIALS = 16
"""As many secrets as a workload may have."""
_DIGEST = Text(64, r"([0-9a-f]{64})?", "64 hexadecimal digits")


class Printable(Text):
    """A string of printable characters."""

    def parse(self, value: object) -> str:
        text = super().parse(value)
        if not text.isprintable():
            raise ValueError
        return text


LABEL_VALUE = Printable(MAX_LABEL_VALUE, must=f"at most {MAX_LABEL_VALUE} printable characters")
LABELS = Pairs(LABEL_KEY, LABEL_VALUE, MAX_LABELS, ordered=True)


class Kind(Enum):
    """What a keep is made for. UPLOAD: it waits for one module over mutual TLS, then runs it. STORED: it runs a module
    of the manager's store, which comes with its start. SCRIPTS: it serves a script pool over mutual TLS."""

    UPLOAD = "upload"
    STORED = "stored"
    SCRIPTS = "scripts"


class RestartPolicy(Enum):
    """When the loader lets systemd start a workload again."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Compiler(Enum):
    """What makes the code that runs."""

    OPTIMIZING = "optimizing"
    FAST = "fast"


class Profile(Enum):
    """What a keep gives for its isolation. A strict one interprets its guest, so that nothing in it need be executable
    that was not there before."""

    STANDARD = "standard"
    STRICT = "strict"


class OutputPolicy(Enum):
    """Whether a guest waits while a reader of its output does not keep up. It never waits for the journal."""

    BLOCK = "block"
    DROP_OLDEST = "drop-oldest"


OUTPUT_ABOUT = "whether its workload waits for those who read its output (`block`), or they miss the oldest of it"
COMPILER_ABOUT = "what compiles its module; `fast` takes a fifth of the time, for core modules, and makes slower code"
PROFILE_ABOUT = "`strict` interprets the guest, in a unit without any new executable memory; many times slower"


def check_engine(profile: Profile, compiler: Compiler) -> None:
    """Raises KeepfleetError(BAD_REQUEST) where one is not to be had with the other."""
    if profile is Profile.STRICT and compiler is not Compiler.OPTIMIZING:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot have compiler {compiler.value} with profile {profile.value}, which interprets the guest: leave "
            "one of them out",
        )


class Lease(Record):
    """How long the manager leaves a keep unused before it ends it, in seconds; 0 is for ever."""

    idle_seconds: int = field(Whole(0, TEN_YEARS), default=0, about="unstarted, in seconds; 0 for ever")
    await_seconds: int = field(Whole(0, TEN_YEARS), default=0, about="awaiting its workload, in seconds; 0 for ever")


class Declaration(Record):
    """What a declared keep was made for: the version of its specification, what of that decides how the keep runs, as a
    keyed SHA-256 digest, and how many keeps before it failed, one soon after the other; run: of a job which run it is,
    0 for what is no job."""

    version: int = field(Whole(1, 1 << 53))
    digest: str = field(Text(64, r"[0-9a-f]{64}", "64 hexadecimal digits"))
    attempt: int = field(Whole(0, 1 << 53), default=0)
    run: int = field(Whole(0, 1 << 53), default=0)


class KeepSpec(Record):
    """One keep. uploaders: who may send its workload; empty where its start decides. key and request: SHA-256 digests
    of the idempotency key it was asked for with and of that request, so that a new manager knows them again. spare: its
    unit was made before anyone asked for a keep; until someone does, it has no owner. credentials: the secrets of the
    manager's that systemd gives its unit, by name."""

    kind: Kind = field(Word(Kind), default=Kind.UPLOAD, about="what it is made for")
    name: str = field(NAME, default="", about="what its creator called it, or empty")
    labels: Labels = field(LABELS, default=(), about="what it can be found by")
    owner: str = field(OWNER, default="", about="whose it is; empty for a keep of before there were owners")
    uploaders: tuple[str, ...] = field(
        Items(UPLOADER, MAX_UPLOADERS), default=(), about="who may send its workload: names and fingerprints"
    )
    limits: Limits = field(Nested(Limits, "limits"), default=DEFAULT_LIMITS, about="what it may use")
    restart: RestartPolicy = field(Word(RestartPolicy), default=RestartPolicy.NO, about="when its workload runs again")
    lease: Lease = field(Nested(Lease, "lease"), default=Lease(), about="how long it may stay unused")
    created_at: float = field(Seconds(), default=0.0, about="seconds of the epoch")
    module: str = field(Text(MAX_MODULE_NAME), default="", about="the name by which the module it runs was asked for")
    key: str = field(_DIGEST, default="")
    request: str = field(_DIGEST, default="")
    profile: Profile = field(Word(Profile), default=Profile.STANDARD, about=PROFILE_ABOUT)
    compiler: Compiler = field(Word(Compiler), default=Compiler.OPTIMIZING, about=COMPILER_ABOUT)
    spare: bool = field(Flag(), default=False)
    output: OutputPolicy = field(Word(OutputPolicy), default=OutputPolicy.BLOCK, about=OUTPUT_ABOUT)
    digest: str = field(MODULE_DIGEST, default="", about="the module it runs, where that is known at its creation")
    declared: Declaration | None = field(Maybe(Nested(Declaration, "declaration")), default=None)
    credentials: tuple[str, ...] = field(Items(CREDENTIAL, MAX_CREDENTIALS), default=())

    def _check(self) -> None:
        check_engine(self.profile, self.compiler)


def encode_spec(spec: KeepSpec) -> str:
    """The spec in letters, digits, `-` and `_` alone, for a unit's Environment=. Raises KeepfleetError(TOO_LARGE)."""
    data = strict_json.dumps({"schema": SCHEMA, **spec.to_wire()})
    text = binascii.b2a_base64(data, newline=False).decode("ascii").translate(_TO_URL).rstrip("=")
    if len(text) > MAX_SPEC_TEXT:
        raise KeepfleetError(ErrorKind.TOO_LARGE, "cannot describe the keep in its unit: its labels are too long")
    return text


def decode_spec(text: str) -> KeepSpec:
    """The spec that `encode_spec` wrote. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) for anything else."""
    try:
        if not matches(_ENCODED, text):
            raise ValueError
        data = binascii.a2b_base64(text.translate(_FROM_URL) + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise invalid("spec", "it is no base64url") from None
    value = strict_json.loads_object(data, MAX_SPEC_TEXT, "the keep's spec")
    if value.pop("schema", None) != SCHEMA:
        raise invalid("spec", f"its schema is not {SCHEMA}")
    return parse(KeepSpec, value, "spec")


_TO_URL, _FROM_URL = str.maketrans("+/", "-_"), str.maketrans("-_", "+/")
_ENCODED = "[A-Za-z0-9_-]*"


def check_name(name: str) -> str:
    """`name` when a keep may be called so; "" is a keep without a name. Raises KeepfleetError(BAD_REQUEST)."""
    return str(_checked(NAME, name, f"name {name[:63]!r}"))


def check_label(key: str, value: object) -> tuple[str, str]:
    """The label, when a keep may have it. Raises KeepfleetError(BAD_REQUEST)."""
    return str(_checked(LABEL_KEY, key, f"label key {key[:63]!r}")), str(_checked(LABEL_VALUE, value, f"label {key!r}"))


def check_labels(labels: Iterable[tuple[str, object]]) -> Labels:
    """The labels, each once, sorted by key. Raises KeepfleetError(BAD_REQUEST)."""
    checked = [check_label(key, value) for key, value in labels]
    if len(checked) > MAX_LABELS:
        raise invalid("labels", f"{len(checked)} of them, at most {MAX_LABELS} fit")
    if len(dict(checked)) != len(checked):
        raise invalid("labels", "duplicate key")
    return tuple(sorted(checked))


def _checked(type: Text, value: object, what: str) -> object:
    try:
        return type.parse(value)
    except ValueError:
        raise invalid(what, f"it must be {type.must}") from None
