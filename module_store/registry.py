"""Takes a module from a registry: an OCI artifact with one layer that is WebAssembly.

That is the layout of wasmCloud, Spin and containerd (https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact).
Nothing is believed that has no digest: a manifest asked for by digest must have it, and so must the layer that the
manifest names, of which the store has nothing before its last byte was hashed. Written on the standard library: `oras`
(oras-py) does not compare what it receives with the digest it asked for. Import rule: that of module_store.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode, urlsplit

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.store import MAX_OBJECT_BYTES, Object
from module_store import names
from module_store.store import Store
from module_store.transport import MAX_REDIRECTS, Site, Transport, explained_transfer, site_of, unavailable

SCHEME = "oci://"
ORIGIN = "local.origin"
"""The attachment that says where an object came from."""
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""The least that registries must take (OCI distribution specification)."""
MAX_TOKEN_BYTES = 64 * 1024
MAX_CREDENTIALS_BYTES = 1024 * 1024
LAYERS = (
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
)
"""Media types of a layer that is a module: of the layout; of wasm-to-oci and Spin; of containerd's shims."""
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ADDRESS = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"/(?P<name>[a-z0-9._-]+(?:/[a-z0-9._-]+)*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_CHALLENGE = re.compile(r'([a-z]+)="([^"\\]{0,2000})"')


class Address(Record):
    """An artifact in a registry. tag, digest: "" where it is not given; the digest decides."""

    site: Site
    name: str
    tag: str
    digest: str

    def __str__(self) -> str:
        pinned = f"@{self.digest}" if self.digest else ""
        return f"{SCHEME}{self.site}/{self.name}{f':{self.tag}' if self.tag else ''}{pinned}"

    @property
    def reference(self) -> str:
        """What it is called in a store: the last part of its name, and its tag; "" without a tag."""
        return f"{self.name.rpartition('/')[2]}:{self.tag}" if self.tag else ""


class Pulled(Record):
    """A module that was taken from a registry: where from, with the manifest's digest, and what it is here."""

    address: Address
    object: Object


class Credentials(Record):
    """Users and passwords by host, as docker, podman and oras write them to a file."""

    by_host: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Credentials(of {len(self.by_host)} hosts)"

    def of(self, site: Site) -> str:
        """`USER:PASSWORD` in base64, "" where there are none."""
        known = dict(self.by_host)
        return known.get(str(site)) or known.get(site.host, "")


def parse_address(text: str, *, plain: bool = False) -> Address:
    """The artifact at `oci://HOST[:PORT]/NAME:TAG[@sha256:…]`. plain: without TLS. Raises KeepfleetError."""
    match = _ADDRESS.fullmatch(text) if len(text) <= 1000 else None
    if match is None or not (match["tag"] or match["digest"]) or int(match["port"] or 1) > 65535:
        why = "it must be oci://HOST/NAME:TAG, oci://HOST/NAME@sha256:… or both"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {text[:200]!r} as an artifact's address: {why}")
    site = Site(match["host"].strip("[]"), int(match["port"] or (80 if plain else 443)), not plain)
    return Address(site, match["name"], match["tag"] or "", match["digest"] or "")


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

    def pull(self, store: Store, address: Address, reference: str, who: str) -> Pulled:
        """Takes the module at `address` into `store`, named `reference` unless that is ""."""
        manifest, digest = self._manifest(address)
        if manifest.get("mediaType") in _INDEXES or "manifests" in manifest:
            manifest, digest = self._manifest(address.replace(digest=_of_index(address, manifest)))
        layer, size = _layer(address, manifest)
        pinned = address.replace(digest=digest)
        with self._get(address, f"/v2/{address.name}/blobs/{layer}", {}, MAX_REDIRECTS) as answer:
            body = _Measured(answer, size, pinned)
            try:
                added = store.add(body, reference=reference, who=who, digest=layer, limit=size)
            except KeepfleetError as error:
                if body.count != size or error.kind is not ErrorKind.BAD_REQUEST:
                    raise
                raise _lied(address, f"the module that it sent is not {layer}, which its manifest names") from error
        store.attach(added.digest, ORIGIN, str(pinned).encode())
        return Pulled(pinned, added)

    def _manifest(self, address: Address) -> tuple[dict[str, object], str]:
        """A manifest or an index, and its digest."""
        target = f"/v2/{address.name}/manifests/{address.digest or address.tag}"
        with self._get(address, target, {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}) as answer:
            body, said = answer.read(MAX_MANIFEST_BYTES + 1), answer.getheader("Docker-Content-Digest", "")
        if len(body) > MAX_MANIFEST_BYTES:
            raise unavailable(address.site, f"its manifest of {address.name} is over {MAX_MANIFEST_BYTES} bytes")
        digest = names.ALGORITHM + hashlib.sha256(body).hexdigest()
        for wanted, whose in ((address.digest, "was asked for"), (said, "is what it says itself")):
            if wanted.startswith(names.ALGORITHM) and wanted != digest:
                raise _lied(address, f"the manifest that it sent has the digest {digest}, and {wanted} {whose}")
        return strict_json.loads_object(body, MAX_MANIFEST_BYTES, f"the manifest of {address}"), digest

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


class _Measured:
    """A blob, as a store reads it, which must have the length that the manifest says."""

    def __init__(self, answer: http.client.HTTPResponse, size: int, address: Address) -> None:
        self._answer, self._size, self._address = answer, size, address
        self.count = 0

    def read(self, size: int, /) -> bytes:
        with explained_transfer(self._address.site):
            data = self._answer.read1(size)
        self.count += len(data)
        if self.count > self._size or (not data and self.count != self._size):
            what = "more than" if data else f"{self.count} bytes and not"
            raise _lied(self._address, f"of a module of {self._size} bytes it sent {what} that")
        return data


def _of_index(address: Address, index: dict[str, object]) -> str:
    """The digest of the one manifest of an index that is for WebAssembly."""
    entries = index.get("manifests")
    found = []
    for entry in entries if isinstance(entries, list) else ():
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if isinstance(platform, dict) and platform.get("architecture") == "wasm":
            found.append(entry.get("digest"))
    if len(found) != 1 or not isinstance(found[0], str) or not names.DIGEST.fullmatch(found[0]):
        why = f"of its manifests {len(found)} are for WebAssembly, and there must be one"
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, f"cannot pull {address}: {why}; name it by its digest")
    return found[0]


def _layer(address: Address, manifest: dict[str, object]) -> tuple[str, int]:
    """The digest and the length of the layer that is a module."""
    layers = manifest.get("layers")
    types, found = [], []
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict):
            types.append(str(layer.get("mediaType"))[:100])
            if layer.get("mediaType") in LAYERS:
                found.append((layer.get("digest"), layer.get("size")))
    if len(found) != 1:
        why = f"{len(found)} of its layers are WebAssembly, and one must be; they are {', '.join(types[:8]) or 'none'}"
        hint = "; a container image has to be pushed as an artifact" if any("tar" in each for each in types) else ""
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, f"cannot pull {address}: {why}{hint}")
    digest, size = found[0]
    if not isinstance(digest, str) or not names.DIGEST.fullmatch(digest):
        raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot pull {address}: its module has no SHA-256")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_OBJECT_BYTES:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot pull {address}: its module is over {MAX_OBJECT_BYTES} bytes")
    return digest, size


def _refused(address: Address, status: int) -> KeepfleetError:
    known = {
        401: (ErrorKind.FORBIDDEN, "the registry wants to know who asks; name a file by --credentials"),
        403: (ErrorKind.FORBIDDEN, "the registry does not let you have it"),
        404: (ErrorKind.NOT_FOUND, "the registry has nothing of this name"),
        429: (ErrorKind.TOO_MANY, "the registry takes no more requests now; try again later"),
    }
    kind, why = known.get(status, (ErrorKind.UNAVAILABLE, f"the registry answered with status {status}"))
    return KeepfleetError(kind, f"cannot pull {address}: {why}")


def _lied(address: Address, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot pull {address}: {why}; nothing was kept")
