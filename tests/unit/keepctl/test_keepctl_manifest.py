"""The manifest: what is understood, and every fault with its place; hostile files among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.limits import DEFAULTS
from keepctl.job import FRIENDLY, Grant, Job
from keepctl.manifest.check import ANNOTATIONS, IMPLEMENTED
from keepctl.manifest.reading import parse_job
from keepctl.manifest.reference import page
from keepctl.manifest.schema import SCHEMA, WORDS
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.upload_stub import UploadStub
from tests.unit.keepctl.conftest import MODULE, Run

ROOT = Path(__file__).resolve().parents[3]
WHOLE = """\
name: web
module: site.wasm
arguments: [--verbose, "8080"]
environment:
  LEVEL: info
  ANSWER: no
stdin: /srv/in
directories:
  - {host: /srv/site, guest: /site}
  - host: /srv/out
    guest: /out
    writable: true
secrets:
  - {name: token, file: /etc/token}
limits: {memory: 64M, time: 1h30m, cpu_time: 90, cpus: 0.5, stack: 512K, tasks: 20}
restart: no
profile: strict
labels: {app: web, tier/a: "1"}
"""


def faults(text: str | bytes) -> list[str]:
    job, found = parse_job(text if isinstance(text, bytes) else text.encode())
    assert (job is None) == bool(found)
    return [str(fault) for fault in found]


def test_every_member_is_understood() -> None:
    job, found = parse_job(WHOLE.encode(), "/home/ann")
    assert found == []
    assert job == Job(
        module="/home/ann/site.wasm",
        name="web",
        labels={"app": "web", "tier/a": "1"},
        arguments=("--verbose", "8080"),
        environment={"LEVEL": "info", "ANSWER": "no"},
        directories=(Grant("/srv/site", "/site"), Grant("/srv/out", "/out", True)),
        secrets={"token": "/etc/token"},
        stdin="/srv/in",
        limits={
            "memory_bytes": 64 << 20, "wall_seconds": 5400, "cpu_seconds": 90, "cpu_percent": 50,
            "stack_bytes": 512 << 10, "tasks": 20,
        },
        profile="strict",
    )  # fmt: skip


def test_arguments_of_an_export_are_its_own() -> None:
    job, _ = parse_job(b'export: add\narguments: ["1", "2"]')
    assert job is not None
    assert (job.export, job.arguments, job.export_arguments) == ("add", (), ("1", "2"))


def test_all_faults_are_said_together_each_with_its_place() -> None:
    text = """\
name: Web
nmae: x
environment:
  PORT: 8080
  "A=B": x
directories:
  - {guest: ../x}
limits:
  memory: lots
  tasks: 1
restart: sometimes
name: again
"""
    assert faults(text) == [
        "line 2, column 1: 'nmae' is not known; there are name, module, export, arguments, environment, stdin, "
        "directories, secrets, limits, restart, profile, compiler, output, ready_seconds, schedule, missed, overlap, "
        "probe, volume, labels",
        "line 4, column 9: environment.PORT must be text, not '8080'; write it in quotes: \"8080\"",
        "line 5, column 3: the name 'A=B' in environment must be a variable's name, without =",
        "line 7, column 5: directories[0] has no 'host'",
        "line 7, column 13: directories[0].guest must be an absolute, plain path, and not /run/secrets, not '../x'",
        "line 9, column 11: limits.memory must be bytes, or a size like 64K, 64M or 1G, not 'lots'",
        "line 10, column 10: limits.tasks must be in 16 … 512, not 1",
        "line 11, column 10: restart must be one of no, on-failure, always, not 'sometimes'",
        "line 12, column 1: duplicate key 'name'; the first is in line 1",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1, column 1: it is empty"),
        ("- a", "line 1, column 1: the manifest must be a mapping of names to values, not a list"),
        ("hello", "the manifest must be a mapping"),
        ("a: &x [1]\nb: *x", "anchors are not allowed; leave out &x"),
        ("name: *x", "line 1, column 7: aliases are not allowed; write out what *x stands for"),
        ("name: !!python/object/apply:os.system [id]", "tags are not allowed"),
        ("name: !x y", "tags are not allowed"),
        ("%YAML 1.1\n---\nname: a", "directives (%) are not used here"),
        ("name: a\n---\nname: b", "line 2, column 1: a second document begins here"),
        ("? [a]\n: b", "a key must be a word"),
        ("name: [", "it is not YAML"),
        ("name: 'a", "it is not YAML"),
        ("\tname: a", "it is not YAML"),
        ("name: a\x00", "line 1, column 8: a control character (U+0000) is not allowed"),
        ("x: a\ny: \x1b[31m", "line 2, column 4: a control character (U+001B) is not allowed"),
        (b"name: \xff", "it is not UTF-8 text"),
        ("name: a".encode("utf-16"), "it is not UTF-8 text"),
        ('name: "a\\nb"', "name must be 1 to 63 of a-z, 0-9 and -, not 'a\\nb'"),
        ('name: "web\\n"', "name must be 1 to 63 of a-z, 0-9 and -"),
        ("name: wéb", "name must be 1 to 63 of a-z, 0-9 and -, not 'wéb'"),
        ("name: 'keep@7.service'", "name must be 1 to 63"),
        ("name: 'a\\x2db'", "name must be 1 to 63"),
        ("name: 7", "name must be text, not '7'; write it in quotes: \"7\""),
        ("name:", "name must be text, not nothing"),
        ("name: {a: b}", "name must be text, not a mapping"),
        ("arguments: [1]", "arguments[0] must be text"),
        ("arguments: a", "arguments must be a list"),
        ('arguments: ["a\\0"]', "arguments[0] must hold no NUL"),
        ("stdin: relative", "stdin must be an absolute path"),
        ("restart: true", "restart must be one of no, on-failure, always"),
        ("limits: {cpus: 0}", "limits.cpus must be in 0.01"),
        ("limits: {time: 0}", "'wall_seconds' must be a whole number in 1"),
        ("limits: {time: 10ms}", "limits.time must be whole seconds, or a time like 10s"),
        ("limits: {tasks: true}", "limits.tasks must be a whole number"),
        ("limits: {memory: 999999999999}", "'memory_bytes' must be a whole number in 65536"),
        ("labels: {A: b}", "the name 'A' in labels must be 1 to 63"),
        ('labels: {a: "b\\n"}', "labels.a must be printable"),
        ("labels: {" + ", ".join(f"a{n}: b" for n in range(17)) + "}", "labels has 17 entries; at most 16 fit"),
        ("secrets: [{name: ../x, file: /x}]", "secrets[0].name must be 1 to 63 of A-Z"),
        ("secrets:\n- {name: a, file: /x}\n- {name: a, file: /y}", "line 3, column 10: secrets: duplicate 'a'"),
        (
            "overlap: allow\nvolume: {name: a, size: 16M, guest: /a}",
            "line 1, column 10: overlap: one keep has a volume at a time; forbid it, or leave volume out",
        ),
        ("directories: [{host: /a, guest: /run/secrets/x}]", "not /run/secrets"),
        ("directories: [{host: /a, guest: /a/../b}]", "be an absolute, plain path"),
        ("directories: [{host: /a, guest: /b, mode: rw}]", "'directories[0].mode' is not known in directories[0]"),
        (f"module: {'x' * 5000}", "module is 5000 characters long; at most 4095 fit"),
        ("[" * 1000, "nested more than 16 deep"),
        ("x: " + "{a: " * 1000, "nested more than 16 deep"),
        (b"#" * 10_000_000, "it is over 1048576 bytes"),
    ],
)
def test_a_fault_is_said_in_words(text: str | bytes, said: str) -> None:
    assert any(said in fault for fault in faults(text)), faults(text)


def test_a_bomb_of_aliases_is_refused_where_it_begins() -> None:
    """Were one alias followed, this would not end."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 200)]
    assert len(faults("\n".join(lines))) == 50, "more are of no use"


@pytest.mark.rare
def test_a_whole_mebibyte_is_read() -> None:
    assert faults("arguments:\n" + "- aaaaaaaa\n" * 60_000) == []
    assert faults("arguments:\n" + "- {a: 1}\n" * 60_000) != []


@given(st.one_of(st.binary(max_size=300), st.text("ab: -[]{}&*!%#|>\n\t\"'?,1.~", max_size=120).map(str.encode)))
def test_no_bytes_at_all_make_anything_but_a_job_or_faults(data: bytes) -> None:
    job, found = parse_job(data)
    assert (job is None) == bool(found)


def _schemas(schema: dict[str, object]) -> Iterator[dict[str, object]]:
    yield schema
    inner = [schema.get("items"), schema.get("additionalProperties"), schema.get("propertyNames")]
    inner += cast("dict[str, object]", schema.get("properties", {})).values()
    for one in inner:
        if isinstance(one, dict):
            yield from _schemas(one)


def test_every_keyword_of_the_schema_is_checked() -> None:
    used = {keyword for schema in _schemas(SCHEMA) for keyword in schema}
    assert used <= IMPLEMENTED | ANNOTATIONS


def test_every_limit_can_be_written_in_a_manifest() -> None:
    properties = cast("dict[str, dict[str, dict[str, object]]]", SCHEMA["properties"])
    written = {WORDS.get(name, name) for name in properties["limits"]["properties"]}
    assert {FRIENDLY.get(name, name) for name in written} == set(DEFAULTS)


def test_the_reference_page_is_made_of_the_schema() -> None:
    assert (ROOT / "docs/reference/manifest.md").read_text(encoding="utf-8") == page(), (
        "run: python -m keepctl.manifest.reference > docs/reference/manifest.md"
    )


def test_the_schema_is_printed_as_json(run: Run) -> None:
    assert json.loads(run("manifest", "schema").output) == SCHEMA


def test_check_names_the_file_and_the_place_of_every_fault(run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(WHOLE)
    bad.write_text("name: A\nx: \x0b")
    assert run("manifest", "check", str(good)).output == f"{good}: all is well\n"
    bad.write_text("name: A\nx: 1")
    result = run("manifest", "check", str(good), str(bad))
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == f"keepctl: cannot use {bad}: 2 faults; see: keepctl manifest schema"
    assert lines[1] == f"    {bad}:1:7: name must be 1 to 63 of a-z, 0-9 and -, not 'A'"
    assert lines[2].startswith(f"    {bad}:2:1: 'x' is not known")


def test_a_manifest_is_run_with_options_on_top(run: Run, manager: ManagerInMemory, pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WHOLE)
    (tmp_path / "site.wasm").write_bytes(MODULE)
    with UploadStub(pki.keep()) as stub:
        manager.upload_port = stub.port
        result = run(
            "run", "-d", "-f", str(tmp_path / "w.yaml"), "--name", "other", "--env", "LEVEL=debug", "--time", "5s"
        )
    assert (result.exit_code, result.output) == (0, f"{FIRST_ID}\n")
    keep, workload = manager.keeps[FIRST_ID], cast("dict[str, object]", manager.workloads[FIRST_ID])
    assert (keep.name, keep.limits.wall_seconds, keep.limits.memory_bytes) == ("other", 5, 64 << 20)
    assert workload["environment"] == {"LEVEL": "debug", "ANSWER": "no"}
    assert workload["arguments"] == ["--verbose", "8080"]
    assert stub.received == MODULE


def test_a_bad_manifest_makes_no_keep(run: Run, manager: ManagerInMemory, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("name: A")
    assert run("run", "-f", str(tmp_path / "w.yaml")).exit_code == 125
    assert run("run", "-f", str(tmp_path)).exit_code == 125
    assert run("run", "-f", "/dev/zero").exit_code == 125
    assert manager.requests == []


def test_the_how_tos_manifest_is_good_and_its_faults_are_said_as_it_says() -> None:
    text = (ROOT / "docs/how-to/manifests.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    job, found = parse_job(example.encode())
    assert (job is not None, found) == (True, [])
    spoiled = example.replace("name: thumb", "name: Thumb", 1).replace('"256"', "256").replace("128M", "lots")
    said = [line.removeprefix("    thumbnails.yaml:") for line in text.splitlines() if line.startswith("    thumb")]
    assert said == [f"{fault.line}:{fault.column}: {fault.message}" for fault in parse_job(spoiled.encode())[1]]
