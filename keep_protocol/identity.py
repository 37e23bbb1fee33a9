"""Who a certificate says its holder is: a role and a name, in one URI of its subject alternative names.

`spiffe://TRUST-DOMAIN/ROLE/NAME`, and for an uploader `spiffe://TRUST-DOMAIN/uploader/NAME/keep/ID`. A certificate
without such a URI names its holder by its common name; its role is what the manager's configuration says.

Import rule: `_hashlib` and the light part of keep_protocol.
"""

from __future__ import annotations

from _collections_abc import Iterable
from _hashlib import openssl_sha256

from keep_protocol.constants import parse_kuuid
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.patterns import matches
from keep_protocol.spec import ANONYMOUS

DEFAULT_TRUST_DOMAIN = "keepfleet"
MAX_UPLOADER_SECONDS = 600
"""The longest an uploader's certificate may be valid: it is made for one upload, which follows within minutes."""
ANY_CERTIFICATE = "*"
"""Of the entries that say who may upload into a keep: every client's certificate. Keeps of `anonymous` have it."""
MAX_URI = 512
_SCHEME = "spiffe:"
_NAME = "[A-Za-z0-9._@-]{1,64}"
_HASHED = "cn-[0-9a-f]{16}"
"""What `owner_of` makes of a common name that is no word: no certificate may claim it as its name."""
_TRUST_DOMAIN = "[a-z0-9._-]{1,255}"
_RULE = "1 to 64 of A-Z, a-z, 0-9, `.`, `_`, `@` and -, and neither `.`, `..`, `anonymous` nor `cn-` and 16 hex digits"


class Role(Enum):
    """What a caller may do in general. OPERATOR: everything; USER: its own keeps; VIEWER: reads what an operator may;
    UPLOADER: one upload into one keep; ANONYMOUS: who shows no certificate, where the manager serves such clients."""

    OPERATOR = "operator"
    USER = "user"
    VIEWER = "viewer"
    UPLOADER = "uploader"
    ANONYMOUS = "anonymous"


class Identity(Record):
    """What the URI says. keep: the one keep that an uploader may send a workload to, None for every other role."""

    role: Role
    name: str
    keep: int | None = None
    trust_domain: str = DEFAULT_TRUST_DOMAIN

    def uri(self) -> str:
        """The URI that says it."""
        path = "" if self.keep is None else f"/keep/{self.keep}"
        return f"{_SCHEME}//{self.trust_domain}/{self.role.value}/{self.name}{path}"


def is_name(name: str) -> bool:
    """Whether a certificate may call its holder so: a word that is safe in a log line and in a file's name."""
    return matches(_NAME, name) and not (name in (".", "..") or name.lower() == ANONYMOUS or matches(_HASHED, name))


def check_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless a certificate may call its holder so."""
    if not is_name(name):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"invalid name {name[:80]!r}: it must be {_RULE}")
    return name


def check_trust_domain(domain: str) -> str:
    """`domain` itself. Raises KeepfleetError(BAD_REQUEST) unless it may stand in an identity's URI."""
    if not matches(_TRUST_DOMAIN, domain):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"invalid trust domain {domain[:80]!r}: it must be 1 to 255 of a-z, 0-9, `.`, `_`, -"
        )
    return domain


def _forbidden(uri: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.FORBIDDEN, f"cannot read the identity {uri[:200]!r}: {why}")


def parse_identity(uri: str) -> Identity:
    """The identity in one URI. Raises KeepfleetError(FORBIDDEN) for anything that is not written exactly so."""
    parts = uri.removeprefix(_SCHEME + "//").split("/") if len(uri) <= MAX_URI else []
    if not uri.startswith(_SCHEME + "//") or len(parts) not in (3, 5) or not matches(_TRUST_DOMAIN, parts[0]):
        raise _forbidden(uri, f"it must be {_SCHEME}//TRUST-DOMAIN/ROLE/NAME")
    domain, word, name = parts[:3]
    role = next((role for role in Role if role.value == word and role is not Role.ANONYMOUS), None)
    if role is None:
        raise _forbidden(uri, "its role must be operator, user, viewer or uploader")
    if not is_name(name):
        raise _forbidden(uri, f"its name must be {_RULE}")
    if (role is Role.UPLOADER) != (len(parts) == 5 and parts[3] == "keep") or (role is not Role.UPLOADER and parts[3:]):
        raise _forbidden(uri, "an uploader, and no other role, has /keep/ID behind its name")
    try:
        keep = parse_kuuid(parts[4]) if role is Role.UPLOADER else None
    except KeepfleetError as error:
        raise _forbidden(uri, error.message) from None
    return Identity(role, name, keep, domain)


def identity_of(uris: Iterable[str]) -> Identity | None:
    """The identity among a certificate's URIs; those of another scheme say nothing here. None where there is none.

    Raises KeepfleetError(FORBIDDEN) where there are several, or one that is malformed.
    """
    ours = [uri for uri in uris if uri[: len(_SCHEME)].lower() == _SCHEME]
    if len(ours) > 1:
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot read the identity: the certificate has {len(ours)}, not one")
    return parse_identity(ours[0]) if ours else None


def owner_of(common_name: str) -> str:
    """The owner word of a certificate without an identity: its common name where it may be one, else `cn-` and 16 hex
    digits of the name's SHA-256, so that no two names become one owner."""
    if is_name(common_name):
        return common_name
    return "cn-" + openssl_sha256(common_name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def may_upload(uploaders: Iterable[str], kuuid: int, identity: Identity | None, subject: str, fingerprint: str) -> bool:
    """Whether the holder of a valid client's certificate may send the keep `kuuid` its workload.

    `uploaders` are the keep's entries: a certificate's fingerprint, `name:` and a caller's name, or `*`. An uploader's
    certificate is for the keep it names and needs no entry: who signed it has decided. A viewer never may.
    """
    if identity is not None and identity.role is Role.UPLOADER:
        return identity.keep == kuuid
    if identity is not None and identity.role is Role.VIEWER:
        return False
    name = owner_of(subject) if identity is None else identity.name
    return any(entry in (ANY_CERTIFICATE, fingerprint, f"name:{name}") for entry in uploaders)
