"""What an artifact of a registry is: its address, and what its manifests say of the module in it. Pure.

The store's owner decides here what it must be, by the manifests' bytes alone: with a digest in the address
nothing on the way, the program that fetched it included, can have it be another one.
Import rule: that of module_pull.
"""

from __future__ import annotations

import hashlib
import re

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.store import ALGORITHM, DIGEST, MAX_OBJECT_BYTES, REFERENCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """What a module is read from."""

        def read(self, size: int, /) -> bytes:
            """At most `size` bytes, none at the end."""


SCHEME = "oci://"
MAX_ADDRESS = 1000
MAX_MANIFEST_BYTES = 256 * 1024
"""An artifact's manifest has 1 KiB, an index of a hundred platforms 50; registries take 4 MiB, of which small lists
alone would be 100 MB once they are parsed."""
MAX_MANIFESTS = 2
"""An index, and the manifest that it names."""
LAYERS = (
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
)
"""Media types of a layer that is a module: of the layout; of wasm-to-oci and Spin; of containerd's shims."""
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ADDRESS = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"/(?P<name>[a-z0-9._-]+(?:/[a-z0-9._-]+)*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


class Site(Record):
    """A server: with TLS where `secure`."""

    host: str
    port: int
    secure: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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


class Artifact(Record):
    """The module of an artifact. address: with the manifest's digest; digest, size: of the module."""

    address: Address
    digest: str
    size: int


def parse_address(text: str, *, plain: bool = False) -> Address:
    """The artifact at `oci://HOST[:PORT]/NAME:TAG[@sha256:…]`. plain: without TLS. Raises KeepfleetError."""
    match = _ADDRESS.fullmatch(text) if len(text) <= MAX_ADDRESS else None
    port = int((match and match["port"]) or 1)
    if match is None or not (match["tag"] or match["digest"]) or not 0 < port <= 65535:
        why = "it must be oci://HOST/NAME:TAG, oci://HOST/NAME@sha256:… or both"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {text[:200]!r} as an artifact's address: {why}")
    site = Site(match["host"].strip("[]"), int(match["port"] or (80 if plain else 443)), not plain)
    return Address(site, match["name"], match["tag"] or "", match["digest"] or "")


def reference_of(address: Address, asked: str) -> str:
    """What the module is called in a store: as asked, or as there. Raises KeepfleetError(BAD_REQUEST)."""
    name = asked or address.reference
    if name and not REFERENCE.fullmatch(name):
        why = "it must be NAME:TAG, of a-z, 0-9, dot, dash and underline" + ("" if asked else "; say what to call it")
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot call a module {name[:200]!r}: {why}")
    return name


def look(address: Address, body: bytes, *, nested: bool = False) -> Address | Artifact:
    """What a manifest at `address` leads to: its module, or, of an index, the manifest that is to be asked for.

    nested: an index has named it, which is none itself. Raises KeepfleetError, also for another manifest than the
    address's digest is of.
    """
    digest = ALGORITHM + hashlib.sha256(body).hexdigest()
    if address.digest and digest != address.digest:
        why = f"the manifest that it sent has the digest {digest}, and {address.digest} was asked for"
        raise lied(address, why)
    manifest = strict_json.loads_object(body, MAX_MANIFEST_BYTES, f"the manifest of {address}")
    if not nested and (manifest.get("mediaType") in INDEXES or "manifests" in manifest):
        return address.replace(digest=_of_index(address, manifest))
    layer, size = _layer(address, manifest)
    return Artifact(address.replace(digest=digest), layer, size)


def _of_index(address: Address, index: dict[str, object]) -> str:
    """The digest of the one manifest of an index that is for WebAssembly."""
    entries = index.get("manifests")
    found = []
    for entry in entries if isinstance(entries, list) else ():
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if isinstance(platform, dict) and platform.get("architecture") == "wasm":
            found.append(entry.get("digest"))
    if len(found) != 1 or not isinstance(found[0], str) or not DIGEST.fullmatch(found[0]):
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
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot pull {address}: its module has no SHA-256")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_OBJECT_BYTES:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot pull {address}: its module is over {MAX_OBJECT_BYTES} bytes")
    return digest, size


def lied(address: Address, why: str) -> KeepfleetError:
    """The refusal of what a registry sent in place of what it should have."""
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot pull {address}: {why}; nothing was kept")


class Body:
    """A module's bytes as they come, which must be those that its manifest names.

    source: has `read`, which returns at most so many bytes, none at the end.
    """

    def __init__(self, artifact: Artifact, source: Readable) -> None:
        self._artifact, self._source = artifact, source
        self._hash = hashlib.sha256()
        self.count = 0

    def __repr__(self) -> str:
        return f"Body({self.count} of {self._artifact.size} bytes)"

    def read(self, size: int, /) -> bytes:
        """The next bytes, none at the end. Raises KeepfleetError where it ends, or goes on, elsewhere, or differs."""
        data = self._source.read(size)
        self.count += len(data)
        self._hash.update(data)
        wanted, address = self._artifact.size, self._artifact.address
        if self.count > wanted or (not data and self.count != wanted):
            what = "more than" if data else f"{self.count} bytes and not"
            raise lied(address, f"of a module of {wanted} bytes it sent {what} that")
        if not data and ALGORITHM + self._hash.hexdigest() != self._artifact.digest:
            raise lied(address, f"the module that it sent is not {self._artifact.digest}, which its manifest names")
        return data
