"""Asks a registry for a module: an OCI artifact with one layer that is WebAssembly.

That is the layout of wasmCloud, Spin and containerd (https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact).
Nothing is believed that has no digest: a manifest asked for by digest must have it, and so must the layer that the
manifest names, of which nothing is kept before its last byte was hashed. Written on the standard library: `oras`
(oras-py) does not compare what it receives with the digest it asked for. Import rule: that of module_pull.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from urllib.parse import urlencode, urlsplit

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.store import ALGORITHM
from module_pull.artifact import INDEXES, MANIFESTS, MAX_MANIFEST_BYTES, Address, Artifact, Body, Site, lied, look
from module_pull.transport import MAX_REDIRECTS, Transport, explained_transfer, site_of, unavailable

MAX_TOKEN_BYTES = 64 * 1024
MAX_CREDENTIALS_BYTES = 1024 * 1024
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_CHALLENGE = re.compile(r'([a-z]+)="([^"\\]{0,2000})"')


class Fetched(Record):
    """A module that comes. manifests: what led to it, byte for byte, an index first; body: where it is read."""

    artifact: Artifact
    manifests: tuple[bytes, ...]
    body: Body


class Credentials(Record):
    """Users and passwords by host, as docker, podman and oras write them to a file."""

    by_host: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Credentials(of {len(self.by_host)} hosts)"

    def of(self, site: Site) -> str:
        """`USER:PASSWORD` in base64, "" where there are none."""
        known = dict(self.by_host)
        return known.get(str(site)) or known.get(site.host, "")


def read_credentials(path: str) -> Credentials:
    """The credentials in a file that its owner alone may read. Raises KeepfleetError(CONFIGURATION)."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_CREDENTIALS_BYTES + 1)
    except OSError as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: others may read it; run: chmod 600 {path}")
    found = []
    auths = strict_json.loads_object(data, MAX_CREDENTIALS_BYTES, path).get("auths")
    for host, entry in auths.items() if isinstance(auths, dict) else ():
        secret = entry.get("auth") if isinstance(entry, dict) else None
        try:
            decoded = base64.b64decode(secret, validate=True) if isinstance(secret, str) else b""
        except binascii.Error:
            decoded = b""
        if b":" not in decoded:
            why = f"its entry for {host} has no `auth`, the user and the password in base64"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: {why}")
        found.append((host.removeprefix("https://").partition("/")[0], str(secret)))
    if not found:
        why = "it has no `auths`, as `docker login` writes them"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use {path}: {why}")
    return Credentials(tuple(found))


class Registry:
    """The registry at `site`, for a client with these credentials; `context` says whose certificates are believed.

    Its methods raise KeepfleetError.
    """

    def __init__(self, site: Site, credentials: Credentials, context: ssl.SSLContext) -> None:
        self._transport, self._credentials = Transport(site, context), credentials
        self._authorization: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Registry({self._transport.home})"

    @contextmanager
    def fetch(self, address: Address) -> Iterator[Fetched]:
        """The module at `address`, to be read in the block, which raises KeepfleetError as this does."""
        manifests = [self._manifest(address)]
        found = look(address, manifests[0])
        if isinstance(found, Address):
            manifests.append(self._manifest(found))
            found = look(found, manifests[1], nested=True)
        if isinstance(found, Address):
            raise lied(address, "what an index names is an index")
        with self._get(address, f"/v2/{address.name}/blobs/{found.digest}", {}, MAX_REDIRECTS) as answer:
            yield Fetched(found, tuple(manifests), Body(found, _Explained(answer, address.site)))

    def _manifest(self, address: Address) -> bytes:
        """A manifest or an index."""
        target = f"/v2/{address.name}/manifests/{address.digest or address.tag}"
        with self._get(address, target, {"Accept": ", ".join((*MANIFESTS, *INDEXES))}) as answer:
            body, said = answer.read(MAX_MANIFEST_BYTES + 1), answer.getheader("Docker-Content-Digest", "")
        if len(body) > MAX_MANIFEST_BYTES:
            raise unavailable(address.site, f"its manifest of {address.name} is over {MAX_MANIFEST_BYTES} bytes")
        digest = ALGORITHM + sha256(body).hexdigest()
        if said.startswith(ALGORITHM) and said != digest:
            raise lied(address, f"the manifest that it sent has the digest {digest}, and {said} is what it says itself")
        return body

    @contextmanager
    def _get(
        self, address: Address, target: str, headers: dict[str, str], redirects: int = 0
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer with what was asked for; as whom, the registry says at the first request."""
        for first in (True, False):
            sent = {**headers, **self._authorization}
            with self._transport.get(self._transport.home, target, sent, redirects=redirects) as answer:
                if answer.status == 200:
                    yield answer
                    return
                if answer.status != 401 or not first:
                    raise _refused(address, answer.status)
                challenge = answer.getheader("WWW-Authenticate", "")
            self._authorization = self._authorized(address, challenge)

    def _authorized(self, address: Address, challenge: str) -> dict[str, str]:
        """The header by which a registry with this challenge lets us in (RFC 7235, and docker's tokens)."""
        site, known = self._transport.home, self._credentials.of(self._transport.home)
        if known and not site.secure and not _LOOPBACK.fullmatch(site.host):
            raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot pull {address}: no password is sent without TLS")
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and known:
            return {"Authorization": f"Basic {known}"}
        asked = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or "realm" not in asked:
            raise _refused(address, 401)
        try:
            realm = urlsplit(asked["realm"])
            issuer = site_of(realm)
        except ValueError:
            raise unavailable(site, "it sends for credentials to what is no address") from None
        if not issuer.secure and (site.secure or realm.scheme != "http" or issuer.host != site.host):
            raise unavailable(site, f"it wants credentials to be sent to {issuer} without TLS")
        wanted = {name: asked[name] for name in ("service", "scope") if name in asked}
        sent = {"Authorization": f"Basic {known}"} if known else {}
        with self._transport.get(issuer, f"{realm.path or '/'}?{urlencode(wanted)}", sent) as answer:
            if answer.status != 200:
                raise _refused(address, answer.status)
            token = strict_json.loads_object(
                answer.read(MAX_TOKEN_BYTES + 1), MAX_TOKEN_BYTES, f"the token of {issuer}"
            )
        text = token.get("token") or token.get("access_token")
        if not isinstance(text, str) or not text.isprintable():
            raise unavailable(site, f"{issuer} sent no token")
        return {"Authorization": f"Bearer {text}"}


class _Explained:
    """A body of HTTP as it comes, whose failures say between whom."""

    def __init__(self, answer: http.client.HTTPResponse, site: Site) -> None:
        self._answer, self._site = answer, site

    def read(self, size: int, /) -> bytes:
        with explained_transfer(self._site):
            return self._answer.read1(size)


def _refused(address: Address, status: int) -> KeepfleetError:
    known = {
        401: (
            ErrorKind.FORBIDDEN,
            "the registry wants to know who asks; name a file by --credentials, or in the configuration",
        ),
        403: (ErrorKind.FORBIDDEN, "the registry does not let you have it"),
        404: (ErrorKind.NOT_FOUND, "the registry has nothing of this name"),
        429: (ErrorKind.TOO_MANY, "the registry takes no more requests now; try again later"),
    }
    kind, why = known.get(status, (ErrorKind.UNAVAILABLE, f"the registry answered with status {status}"))
    return KeepfleetError(kind, f"cannot pull {address}: {why}")
