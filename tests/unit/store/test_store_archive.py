"""Exports: the same for the same, taken in whole, and refused when a single byte is another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.store import Moved
from module_store import archive, tar
from module_store.store import Store
from tests.unit.store.conftest import HELLO, WORLD, add, digest_of, read, tree


@pytest.fixture
def other(tmp_path: Path) -> Any:
    with Store.create(str(tmp_path / "other")) as store:
        yield store


def filled(store: Store) -> None:
    store.attach(add(store, HELLO, "web:1"), "signature.a", b"signed")
    store.attach(digest_of(HELLO), "local.report", b"what this host found")
    add(store, WORLD, "web:2")


def exported(store: Store, *wanted: str) -> bytes:
    output = io.BytesIO()
    archive.export(store, output, wanted)
    return output.getvalue()


def import_bytes(store: Store, data: bytes, *, replace: bool = False) -> Moved:
    return archive.import_from(store, io.BytesIO(data), "importer", replace=replace)


def test_an_export_holds_everything_and_is_the_same_for_the_same(store: Store, other: Store) -> None:
    filled(store)
    data = exported(store)
    assert import_bytes(other, data) == Moved(2, 1, 2, len(HELLO) + len(WORLD) + 6)
    assert exported(other) == data
    assert read(other, other.resolve("web:1")) == HELLO
    assert other.attached(digest_of(HELLO), "signature.a") == b"signed"
    assert other.reference("web:2").history[0].who == "importer"
    assert import_bytes(other, data).objects == 2, "taking it in again changes nothing"
    assert exported(other) == data


def test_what_a_host_found_out_by_itself_stays_there(store: Store, other: Store) -> None:
    filled(store)
    import_bytes(other, exported(store))
    assert other.attachments(digest_of(HELLO)) == ("signature.a",)
    assert b"what this host found" not in exported(store)


def test_an_export_of_some_has_those_alone(store: Store, other: Store) -> None:
    filled(store)
    assert import_bytes(other, exported(store, "web:1")) == Moved(1, 1, 1, len(HELLO) + 6)
    assert import_bytes(other, exported(store, digest_of(WORLD))) == Moved(1, 0, 0, len(WORLD))
    assert [each.name for each in other.references()] == ["web:1"]
    with pytest.raises(KeepfleetError, match="cannot find the reference web:9"):
        exported(store, "web:9")


def test_any_tar_reads_an_export(store: Store) -> None:
    filled(store)
    with tarfile.open(fileobj=io.BytesIO(exported(store))) as file:
        names = file.getnames()
        member = file.extractfile(f"objects/{digest_of(HELLO).removeprefix('sha256:')}")
        assert member is not None and member.read() == HELLO
    assert len(names) == 4 and names[0].startswith("manifest/")


def test_any_bit_that_is_flipped_is_found_and_nothing_is_taken_in(store: Store, other: Store, tmp_path: Path) -> None:
    store.attach(add(store, HELLO, "web:1"), "signature.a", b"signed")
    data = exported(store)
    before = tree(tmp_path / "other")
    for position in range(0, len(data), 11):  # of every field and every file some
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(KeepfleetError, match="nothing was changed") as refused:
            import_bytes(other, bytes(flipped))
        assert refused.value.kind is ErrorKind.BAD_REQUEST
    assert tree(tmp_path / "other") == before


def test_an_export_that_ends_early_or_goes_on_is_refused(store: Store, other: Store, tmp_path: Path) -> None:
    filled(store)
    data = exported(store)
    before = tree(tmp_path / "other")
    for length in (0, 1, 511, 512, 600, len(data) // 2, len(data) - 1025, len(data) - 1):
        with pytest.raises(KeepfleetError, match="the export ends early"):
            import_bytes(other, data[:length])
    with pytest.raises(KeepfleetError, match="there are bytes after its last file"):
        import_bytes(other, data + b"\0")
    assert tree(tmp_path / "other") == before


def hostile(kind: bytes, name: str, link: str = "") -> bytes:
    """A tar of one member that is not a regular file of the store's."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        file.addfile(member)
    return output.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        hostile(tarfile.SYMTYPE, "objects/x", "/etc/passwd"),
        hostile(tarfile.LNKTYPE, "objects/x", "/etc/shadow"),
        hostile(tarfile.CHRTYPE, "objects/x"),
        hostile(tarfile.REGTYPE, "../../etc/cron.d/x"),
        hostile(tarfile.REGTYPE, "/etc/cron.d/x"),
        hostile(tarfile.REGTYPE, "x" * 300),
        hostile(tarfile.DIRTYPE, "objects"),
        b"\xff" * 10240,
        bytes(10240),
        b"PK\x03\x04" * 1000,
    ],
)
def test_what_no_export_begins_with_is_refused(other: Store, tmp_path: Path, data: bytes) -> None:
    before = tree(tmp_path)
    with pytest.raises(KeepfleetError, match=r"it does not begin as|as `keepctl store export` writes"):
        import_bytes(other, data)
    assert tree(tmp_path) == before


Manifest = dict[str, Any]


def crafted(change: Callable[[Manifest], object], *files: bytes) -> bytes:
    """An export with a manifest that was changed, and its digest with it."""
    manifest: Manifest = {
        "format": 1,
        "objects": [{"digest": digest_of(HELLO), "size": len(HELLO)}],
        "attachments": [],
        "references": [{"name": "web:1", "digest": digest_of(HELLO)}],
    }
    change(manifest)
    body = json.dumps(manifest).encode()
    head = tar.header(f"manifest/{hashlib.sha256(body).hexdigest()}.json", len(body))
    return head + body + tar.padding(len(body)) + b"".join(files) + tar.END


def file(path: str, data: bytes) -> bytes:
    return tar.header(path, len(data)) + data + tar.padding(len(data))


OBJECT = f"objects/{digest_of(HELLO).removeprefix('sha256:')}"


def test_a_manifest_as_it_should_be_is_taken(other: Store) -> None:
    assert import_bytes(other, crafted(lambda manifest: None, file(OBJECT, HELLO))).objects == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda manifest: manifest.update(format=2), "field 'format'"),
        (lambda manifest: manifest.update(more=1), "unknown field 'more'"),
        (lambda manifest: manifest["objects"].append(manifest["objects"][0]), "or one is there twice"),
        (lambda manifest: manifest["objects"].clear(), "it names objects that it does not have"),
        (lambda manifest: manifest["objects"][0].update(size=1 << 40), "field 'size'"),
        (lambda manifest: manifest["objects"][0].update(digest="sha256:../../x"), "field 'digest'"),
        (lambda manifest: manifest["references"][0].update(name="../x:1"), "field 'name'"),
        (
            lambda manifest: manifest["attachments"].append(
                {"object": digest_of(HELLO), "kind": "local.report", "digest": digest_of(b""), "size": 0}
            ),
            "which only a host itself makes",
        ),
        (
            lambda manifest: manifest.update(
                attachments=[
                    {"object": digest_of(HELLO), "kind": f"a{number:02}", "digest": digest_of(b""), "size": 1 << 20}
                    for number in range(65)
                ]
            ),
            "its attachments are over",
        ),
    ],
)
def test_a_manifest_that_asks_for_more_than_it_may_is_refused(
    other: Store, tmp_path: Path, change: Callable[[Manifest], object], why: str
) -> None:
    before = tree(tmp_path)
    with pytest.raises(KeepfleetError, match=why) as refused:
        import_bytes(other, crafted(change, file(OBJECT, HELLO)))
    assert refused.value.message.startswith("cannot import: ")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ((file(OBJECT, HELLO[:-1]),), "there is another file"),
        ((file(OBJECT, HELLO[:-1] + b"!"),), "the object sha256:[0-9a-f]{64} is damaged"),
        ((hostile(tarfile.SYMTYPE, OBJECT, "/etc/passwd")[:512],), r"there is a symbolic link \('objects/"),
        ((hostile(tarfile.LNKTYPE, "../x", "/x")[:512],), r"there is a hard link \('\.\./x'\)"),
        ((hostile(tarfile.XHDTYPE, OBJECT)[:512],), "there is another file or no header"),
        ((), "there is the end"),
        ((file(OBJECT, HELLO), file("objects/more", b"")), "there are bytes after its last file"),
    ],
)
def test_files_that_are_not_those_of_the_manifest_are_refused(
    other: Store, tmp_path: Path, files: tuple[bytes, ...], why: str
) -> None:
    before = tree(tmp_path)
    with pytest.raises(KeepfleetError, match=why):
        import_bytes(other, crafted(lambda manifest: None, *files))
    assert tree(tmp_path) == before


def test_an_export_for_which_there_is_no_room_is_refused_before_its_first_byte(
    other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstatvfs(0)
    monkeypatch.setattr(os, "fstatvfs", lambda file: os.statvfs_result((*real[:4], 0, *real[5:])))
    with pytest.raises(KeepfleetError, match="it has 10 bytes, and 0 are free here") as refused:
        import_bytes(other, crafted(lambda manifest: None))
    assert refused.value.kind is ErrorKind.NO_SPACE


def test_a_reference_that_names_another_object_here_moves_only_when_that_is_asked_for(
    store: Store, other: Store
) -> None:
    filled(store)
    add(other, b"\0asm ours", "web:1")
    other.attach(add(other, HELLO), "signature.a", b"ours")
    data = exported(store)
    with pytest.raises(KeepfleetError, match=r"web:1 names .* here, and .* in the export") as refused:
        import_bytes(other, data)
    assert refused.value.kind is ErrorKind.CONFLICT
    assert "web:2" not in other.reference_names()
    import_bytes(other, data, replace=True)
    assert other.resolve("web:1") == digest_of(HELLO)
    assert len(other.reference("web:1").history) == 2
    assert other.attached(digest_of(HELLO), "signature.a") == b"ours", "what is here already stays"
