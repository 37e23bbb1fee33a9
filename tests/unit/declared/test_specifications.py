"""Specifications as text and on disk: whole or not there, checked, and one bad file stops no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_manager.declared.specification import decode, encode
from keep_manager.declared.specifications import HISTORY, Specifications, Unreadable, check_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl.manifest.reading import parse_job
from tests.unit.declared.specs import DIGEST, specification


@pytest.fixture
def files(tmp_path: Path) -> Specifications:
    """An empty directory of them."""
    found = Specifications(str(tmp_path / "declared"))
    found.open()
    return found


def test_a_file_is_still_a_manifest_word_for_word() -> None:
    wanted = specification(text="# ours\nmodule: web:1.2  # the newest\n")
    data = encode(wanted)
    assert data.endswith(b"\n# ours\nmodule: web:1.2  # the newest\n")
    job, faults = parse_job(data)
    assert (faults, job and job.module) == ([], "web:1.2")
    again = decode("web", data)
    assert (again.text, again.job, again.digest) == (wanted.text, wanted.job, wanted.digest)


@given(st.data())
def test_no_flipped_bit_is_run(data: st.DataObject) -> None:
    whole = bytearray(encode(specification()))
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[at // 8] ^= 1 << at % 8
    with pytest.raises(KeepfleetError):
        decode("web", bytes(whole))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("module: web:1.2\nmemory: 3\n", "its manifest has 1 fault"),
        ("restart: always\n", "names no module"),
        ("module: web:1.2\nstdin: {stream: true}\n", "no client is there to send"),
        ("module: web:1.2\nname: other\n", "calls it 'other'"),
        ("module: ./web.wasm\n", "as a reference"),
    ],
)
def test_a_manifest_that_cannot_be_declared_says_why(text: str, why: str) -> None:
    with pytest.raises(KeepfleetError, match=why):
        specification(text=text)


def test_a_fault_is_shown_with_its_line() -> None:
    with pytest.raises(KeepfleetError) as refused:
        specification(text="module: web:1.2\nrestart: sometimes\n")
    assert refused.value.evidence[0].startswith("web:2:10: restart must be one of no, on-failure, always")


def test_what_only_people_read_needs_no_other_keep() -> None:
    before = specification()
    assert specification(text="# words\nrestart: on-failure\nmodule: web:1.3\n").digest == before.digest
    assert specification(text="module: web:1.2\narguments: [a]\n").digest != before.digest
    assert before.changed(module="sha256:" + "ef" * 32).digest != before.digest
    assert before.changed(generation=1).digest != before.digest
    assert before.changed(version=7, note="something").digest == before.digest


def test_the_digest_reveals_nothing_of_a_secret_word_to_those_without_the_salt() -> None:
    wanted = specification(text="module: web:1.2\nenvironment: {TOKEN: secret}\n")
    assert wanted.digest != wanted.changed(salt="00" * 32).digest


def test_what_was_written_is_read_and_what_it_replaces_is_its_history(files: Specifications) -> None:
    first, second = specification(), specification(text="module: web:1.3\n", version=2)
    files.write(first)
    files.write(second, first)
    found = files.load()["web"]
    assert not isinstance(found, Unreadable)
    assert (found.text, found.header.version, found.header.owner) == ("module: web:1.3\n", 2, "alice")
    assert [each.text for each in files.history("web")] == [first.text]


def test_history_has_its_end(files: Specifications) -> None:
    for version in range(1, HISTORY + 5):
        before = specification(version=version - 1) if version > 1 else None
        files.write(specification(version=version), before)
    versions = [each.header.version for each in files.history("web")]
    assert versions == list(range(HISTORY + 3, 3, -1))


def test_a_name_that_begins_as_another_has_a_history_of_its_own(files: Specifications, tmp_path: Path) -> None:
    for name in ("web", "web-2"):
        files.write(specification(name, version=2), specification(name))
    files.remove("web")
    assert list(files.load()) == ["web-2"]
    assert [each.name for each in files.history("web-2")] == ["web-2"]
    assert sorted(path.name for path in (tmp_path / "declared/history").iterdir()) == ["web-2.1"]


def test_one_bad_file_stops_no_other_and_is_kept(files: Specifications, tmp_path: Path) -> None:
    files.write(specification())
    directory = tmp_path / "declared"
    bad = {
        "empty": b"",
        "edited": encode(specification("edited")) + b"memory: 1G\n",
        "newer": encode(specification("newer")).replace(b'"schema":1', b'"schema":2'),
        "binary": b"\xff\xfe",
        "long": b"#" * (2 << 20),
    }
    for name, data in bad.items():
        (directory / f"{name}.yaml").write_bytes(data)
    (directory / "linked.yaml").symlink_to(directory / "web.yaml")
    (directory / "folder.yaml").mkdir()
    found = files.load()
    reasons = {name: each.why.message for name, each in found.items() if isinstance(each, Unreadable)}
    assert sorted(reasons) == sorted([*bad, "linked", "folder"])
    assert "changed since it was applied" in reasons["edited"]
    assert "its schema is 2, and this version knows 1" in reasons["newer"]
    assert all((directory / f"{name}.yaml").exists() for name in bad)


@pytest.mark.parametrize("name", ["", "a" * 64, "a/b", "..", "A", "a.yaml"])
def test_no_name_leaves_the_directory(name: str) -> None:
    with pytest.raises(KeepfleetError, match="invalid name"):
        check_name(name)


def test_the_pinned_digest_is_one(files: Specifications) -> None:
    files.write(specification(module=""))
    found = files.load()["web"]
    assert not isinstance(found, Unreadable)
    assert found.header.module == ""
    assert found.changed(module=DIGEST).header.module == DIGEST


def test_a_file_of_ten_megabytes_is_not_read_and_stops_no_other(files: Specifications, tmp_path: Path) -> None:
    files.write(specification("web"))
    files.write(specification("other"))
    with open(tmp_path / "declared/web.yaml", "ab") as file:
        file.write(b"#" * 10_000_000)
    found = files.load()
    assert isinstance(found["web"], Unreadable)
    assert found["web"].why.kind is ErrorKind.TOO_LARGE
    assert not isinstance(found["other"], Unreadable)


def test_that_one_was_ready_is_kept_and_older_files_are_read_without_it(files: Specifications) -> None:
    wanted = specification()
    assert b"proven" not in encode(wanted)
    assert decode("web", encode(wanted.changed(proven=True))).header.proven
    assert wanted.changed(proven=True).digest == wanted.digest
