"""Takes objects, with references and attachments, from one store to another: one tar stream, the same for the same.

Its first file says what follows, and has its own digest in its name; so every byte of an export is checked before the
store has any of it. What a host found out by itself (kinds that begin with LOCAL) stays there, and is not believed
from elsewhere. Import rule: that of module_store.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Nested, Record, Text, Whole, field, parse
from keep_protocol.store import MAX_OBJECT_BYTES, MAX_OBJECTS, Moved
from module_store import names, tar
from module_store.disk import explained
from module_store.objects import CHUNK_BYTES
from module_store.place import MAX_RECORD_BYTES, Folder
from module_store.store import MAX_ATTACHMENTS, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from module_store.objects import Readable

    AdmitAll = Callable[[Mapping[str, int]], Mapping[str, bytes]]
    """Asked under the lock, before anything is kept, of the objects that are new here, by digest with their lengths:
    what is to be attached to each of them, by its kind. What it raises keeps all of it out."""

    class Writable(Protocol):
        """What an export is written to."""

        def write(self, data: bytes, /) -> object:
            """Writes all of `data`."""


FORMAT = 1
LOCAL = "local."
"""How the kinds of attachments begin that hold for one host alone, as a verification report does."""
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
"""10,000 objects of a reference and several attachments each; it is read into memory."""
MAX_ATTACHED_BYTES = 64 * 1024 * 1024
"""They are read into memory; a signature is 300 bytes."""
_MANIFEST = re.compile("manifest/([0-9a-f]{64})[.]json")
_DIGEST = Text(71, names.DIGEST, "a digest")


class _Object(Record):
    digest: str = field(_DIGEST)
    size: int = field(Whole(0, MAX_OBJECT_BYTES))

    @property
    def path(self) -> str:
        return f"objects/{names.file_of(self.digest)}"


class _Attachment(Record):
    object: str = field(_DIGEST)
    kind: str = field(Text(63, names.WORD, "the kind of an attachment"))
    digest: str = field(_DIGEST)
    size: int = field(Whole(0, MAX_RECORD_BYTES))

    @property
    def path(self) -> str:
        return f"attachments/{names.file_of(self.object)}/{self.kind}"


class _Name(Record):
    name: str = field(Text(192, names.REFERENCE, "NAME:TAG"))
    digest: str = field(_DIGEST)


class _Manifest(Record):
    """What an export has, in the order in which it has it."""

    format: int = field(Whole(FORMAT, FORMAT))
    objects: tuple[_Object, ...] = field(Items(Nested(_Object, "object", strict=True), MAX_OBJECTS))
    attachments: tuple[_Attachment, ...] = field(
        Items(Nested(_Attachment, "attachment", strict=True), MAX_ATTACHMENTS * MAX_OBJECTS)
    )
    references: tuple[_Name, ...] = field(Items(Nested(_Name, "reference", strict=True), MAX_OBJECTS))

    @property
    def attached_bytes(self) -> int:
        return sum(each.size for each in self.attachments)

    def _check(self) -> None:
        there = {each.digest for each in self.objects}
        keys = (
            [each.path for each in self.objects],
            [each.path for each in self.attachments],
            [each.name for each in self.references],
        )
        if any(key != sorted(set(key)) for key in keys):
            raise tar.invalid("its parts are not in order, or one is there twice")
        if {each.object for each in self.attachments} | {each.digest for each in self.references} > there:
            raise tar.invalid("it names objects that it does not have")
        if self.attached_bytes > MAX_ATTACHED_BYTES:
            raise tar.invalid(f"its attachments are over {MAX_ATTACHED_BYTES} bytes")
        if any(each.kind.startswith(LOCAL) for each in self.attachments):
            raise tar.invalid(f"it has attachments of a kind that begins with {LOCAL}, which only a host itself makes")


def export(store: Store, output: Writable, wanted: Iterable[str] = ()) -> Moved:
    """Writes the objects that `wanted` means, and their references, to `output`; the whole store without any."""
    manifest, attached = _gather(store, list(wanted))
    body = strict_json.dumps(manifest.to_wire())
    with explained("write the export"):
        _write(output, f"manifest/{hashlib.sha256(body).hexdigest()}.json", body)
    for each in manifest.objects:
        file = store.open_object(each.digest)
        try:
            with explained("write the export"):
                output.write(tar.header(each.path, each.size))
                while data := os.read(file, CHUNK_BYTES):
                    output.write(data)
                output.write(tar.padding(each.size))
        finally:
            os.close(file)
    with explained("write the export"):
        for attachment in manifest.attachments:
            _write(output, attachment.path, attached[attachment.path])
        output.write(tar.END)
    return _moved(manifest)


def _write(output: Writable, path: str, body: bytes) -> None:
    output.write(tar.header(path, len(body)) + body + tar.padding(len(body)))


def _gather(store: Store, wanted: list[str]) -> tuple[_Manifest, dict[str, bytes]]:
    """What an export has, and the attachments' bytes, which are small. Raises KeepfleetError."""
    chosen = {name: store.resolve(name) for name in wanted}
    references = {name: digest for name, digest in chosen.items() if names.REFERENCE.fullmatch(name)}
    digests = set(chosen.values())
    if not wanted:
        references = {each.name: each.digest for each in store.references()}
        digests = {each.digest for each in store.objects()}
    objects = tuple(_Object(digest, store.object(digest).size) for digest in sorted(digests))
    attachments, bodies = [], {}
    for digest in sorted(digests):
        for kind in store.attachments(digest):
            body = None if kind.startswith(LOCAL) else store.attached(digest, kind)
            if body is not None:
                own = names.ALGORITHM + hashlib.sha256(body).hexdigest()
                attachments.append(_Attachment(digest, kind, own, len(body)))
                bodies[attachments[-1].path] = body
    named = tuple(_Name(name, digest) for name, digest in sorted(references.items()))
    return _Manifest(FORMAT, objects, tuple(attachments), named), bodies


def contents(source: Readable) -> Moved:
    """What an export has, as its beginning says. Raises KeepfleetError, OSError."""
    return _moved(_read_manifest(tar.Reader(source)))


def import_from(
    store: Store, source: Readable, who: str = "", *, replace: bool = False, admit: AdmitAll | None = None
) -> Moved:
    """Takes in an export, whole or not at all; a reference that names another object here moves only with `replace`.

    Attachments that an object has here already stay as they are. admit: see there.
    """
    place, reader = store.place, tar.Reader(source)
    with explained(f"import into the module store {place.path}"), place.new_file() as (_, stem), ExitStack() as held:
        manifest = _read_manifest(reader)
        _check_room(store, manifest)
        staged = [_stage(store, reader, held, f"{stem}.{number}", each) for number, each in enumerate(manifest.objects)]
        attached = _read_attachments(reader, manifest)
        reader.end()
        with place.locked():
            if not replace:
                _check_references(store, manifest)
            there = {each.digest for each in store.objects()} if admit else set()
            new = {each.digest: each.size for each in manifest.objects if each.digest not in there}
            added = admit(new) if admit else {}
            for name, each in zip(staged, manifest.objects, strict=True):
                store.keep_new(name, each.digest)
            for attachment, body in zip(manifest.attachments, attached, strict=True):
                if attachment.kind not in store.attachments(attachment.object):
                    file = names.attachment_file(attachment.object, attachment.kind)
                    place.write_record(Folder.ATTACHMENTS, file, body)
            for digest in new if added else ():
                for kind, body in added.items():
                    store.attach_locked(digest, kind, body)
            for reference in manifest.references:
                store.move(reference.name, reference.digest, who)
    return _moved(manifest)


def _read_manifest(reader: tar.Reader) -> _Manifest:
    path, size = reader.first()
    match = _MANIFEST.fullmatch(path)
    if match is None or size > MAX_MANIFEST_BYTES:
        raise tar.invalid("it does not begin with what it has in it, as `keepctl store export` writes that")
    body = reader.exactly(size)
    reader.end_file(size)
    if hashlib.sha256(body).hexdigest() != match[1]:
        raise tar.invalid("the list of what it has in it is damaged")
    try:
        return parse(_Manifest, strict_json.loads_object(body, size, "the export's manifest"), "manifest", strict=True)
    except KeepfleetError as error:
        raise error if error.message.startswith("cannot import") else tar.invalid(error.message) from error


def _check_room(store: Store, manifest: _Manifest) -> None:
    """Raises KeepfleetError(NO_SPACE) before the first byte where the disk has not the room for all of it."""
    status = os.fstatvfs(store.place.of(Folder.OBJECTS))
    free, size = status.f_bavail * status.f_frsize, _moved(manifest).bytes
    if size > free:
        raise KeepfleetError(ErrorKind.NO_SPACE, f"cannot import: it has {size} bytes, and {free} are free here")


def _stage(store: Store, reader: tar.Reader, held: ExitStack, name: str, wanted: _Object) -> str:
    """Writes one object next to its place; `held` removes what has not got there."""
    place = store.place
    reader.begin(wanted.path, wanted.size)
    file = place.disk.create(place.of(Folder.NEW), name)
    held.callback(place.discard, name)
    try:
        hashed, left = hashlib.sha256(), wanted.size
        while left:
            data = reader.exactly(min(left, CHUNK_BYTES))
            left -= len(data)
            hashed.update(data)
            place.disk.write(file, data)
        reader.end_file(wanted.size)
        if names.ALGORITHM + hashed.hexdigest() != wanted.digest:
            raise tar.invalid(f"the object {wanted.digest} is damaged")
        place.disk.protect(file)
        place.disk.sync(file)
    finally:
        os.close(file)
    return name


def _read_attachments(reader: tar.Reader, manifest: _Manifest) -> list[bytes]:
    found = []
    for each in manifest.attachments:
        reader.begin(each.path, each.size)
        body = reader.exactly(each.size)
        reader.end_file(each.size)
        if names.ALGORITHM + hashlib.sha256(body).hexdigest() != each.digest:
            raise tar.invalid(f"{each.path} is damaged")
        found.append(body)
    return found


def _check_references(store: Store, manifest: _Manifest) -> None:
    there = {name: store.reference(name).digest for name in store.reference_names()}
    for each in manifest.references:
        if there.get(each.name, each.digest) != each.digest:
            why = f"{each.name} names {there[each.name]} here, and {each.digest} in the export"
            raise KeepfleetError(ErrorKind.CONFLICT, f"cannot import: {why}; --replace moves it; nothing was changed")


def _moved(manifest: _Manifest) -> Moved:
    counts = (len(manifest.objects), len(manifest.attachments), len(manifest.references))
    return Moved(*counts, sum(each.size for each in manifest.objects) + manifest.attached_bytes)
