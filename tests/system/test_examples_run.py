"""Every example in a keep of a real host, by its manifest: what it prints, and how it is reported to have ended."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.fleet import Fleet

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMED = "/srv/keepfleet"
"""What the manifests name as their host's directory."""
ROOT = "/run/examples"
"""What stands for it here; unlike /srv it is the sandbox's own."""
CALLERS = f'{{"*": {{grant_roots: [{{path: {ROOT}}}, {{path: {ROOT}/filter/out, writable: true}}]}}}}'
SECONDS = 600
"""The largest takes some twenty on an idle machine, and building it five, which a busy one needs ten times over."""
LIMITED, REFUSED, TRAPPED = 124, 126, 134
MISBEHAVING = [
    ("spin-wat/spin", LIMITED, "over its processor time limit of 1 s"),
    ("sleep-wat/sleep", LIMITED, "over its time limit of 1 s"),
    ("flood-wat/flood", LIMITED, "over its time limit of 2 s"),
    ("big-wat/big", LIMITED, "over its memory limit of 16 MiB"),
    ("grow-wat/grow", 12, "exited 12"),
    ("recurse-wat/recurse", TRAPPED, "trapped: call stack exhausted"),
    ("trap-wat/trap", TRAPPED, "trapped: out of bounds memory access"),
    ("unknown-import/unknown-import", REFUSED, "open_the_door"),
]


@pytest.fixture
def workplace(fleet: Fleet) -> Path:
    """The examples in a directory that is the same inside the host, their manifests naming ROOT."""
    place = fleet.host.path / "examples"
    shutil.copytree(EXAMPLES, place, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    for manifest in place.glob("*/*.yaml"):
        manifest.write_text(manifest.read_text().replace(NAMED, ROOT))
    return place


@pytest.fixture
def granting(fleet: Fleet) -> Iterator[Fleet]:
    """A fleet whose manager may grant from ROOT, where the examples' files are."""
    script = f"""
mkdir -p {ROOT}/filter/lists {ROOT}/filter/out {ROOT}/words && cd {ROOT} && chmod 0700 . && chown 5000:5000 filter/out
printf 'one\\nsecret\\ntwo\\n' >filter/input.txt
printf 'secret\\n' >filter/lists/left-out.txt
printf 'the cat and the dog and the bird\\n' >words/text.txt
"""
    fleet.host.run(["sh", "-ec", script])
    try:
        with fleet.configured(callers=CALLERS):
            yield fleet
    finally:
        fleet.host.run(["rm", "-r", ROOT])


def ran(fleet: Fleet, workplace: Path, example: str, *options: str) -> tuple[int, str, str]:
    """`keepctl run` of an example's manifest: its exit code, its output, and what keepctl said."""
    path = f"{workplace}/{example}"
    done = fleet.host.run(
        ["keepctl", "run", "--rm", "-f", f"{path}.yaml", *options],
        check=False,
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"},
        timeout=SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_c_filter_reads_what_it_was_granted_and_writes_its_report(granting: Fleet, workplace: Path) -> None:
    assert ran(granting, workplace, "filter-c/filter")[:2] == (0, "1 ONE\n2 TWO\n")
    assert granting.host.run(["cat", f"{ROOT}/filter/out/report.txt"]).stdout == "3 lines read, 1 left out\n"


def test_the_c_filter_reaches_no_file_but_what_it_was_granted(granting: Fleet, workplace: Path) -> None:
    code, _, said = ran(granting, workplace, "filter-c/filter", "--", "/lists/report.txt")
    assert code == 1
    assert "filter: cannot open /lists/report.txt" in said, "it is granted to be read"
    code, _, said = ran(granting, workplace, "filter-c/filter", "--", "/out/report.txt", "/lists/../input.txt")
    assert code == 1
    assert "filter: cannot open /lists/../input.txt" in said


def test_the_rust_example_counts_words_as_its_environment_says(granting: Fleet, workplace: Path) -> None:
    assert ran(granting, workplace, "words-rust/words")[:2] == (0, "3 the\n2 and\n")
    assert ran(granting, workplace, "words-rust/words", "--env=MOST=1")[:2] == (0, "3 the\n")


def test_the_assemblyscript_example_takes_its_argument(fleet: Fleet, workplace: Path) -> None:
    assert ran(fleet, workplace, "primes-as/primes")[:2] == (0, "2\n3\n5\n7\n11\n13\n17\n19\n")
    code, output, said = ran(fleet, workplace, "primes-as/primes", "--", "few")
    assert (code, output) == (2, "")
    assert said.startswith("usage: primes LIMIT, a number from 2 on\n")


def test_the_named_function_takes_typed_arguments_and_its_result_is_printed(fleet: Fleet, workplace: Path) -> None:
    assert ran(fleet, workplace, "gcd-wat/gcd")[:2] == (0, "returned: [21]\n")
    assert ran(fleet, workplace, "gcd-wat/gcd", "--", "0x30", "36")[:2] == (0, "returned: [12]\n")
    code, _, said = ran(fleet, workplace, "gcd-wat/gcd", "--", "7")
    assert code == REFUSED
    assert "it takes 2 arguments, 1 given" in said


@pytest.fixture
def built(workplace: Path) -> str:
    """The Python example, which takes twenty seconds of processor time each time that it is compiled in a keep."""
    subprocess.run([sys.executable, workplace / "build", "json-python"], check=True, timeout=SECONDS)
    return "json-python/tidy"


@pytest.mark.heavy
def test_the_python_component_runs(fleet: Fleet, workplace: Path, built: str) -> None:
    output = '{\n  "in": [\n    "a",\n    "keep"\n  ],\n  "made": "by Python"\n}\n'
    got = ran(fleet, workplace, built)
    assert got[:2] == (0, output), got


@pytest.mark.heavy
def test_the_python_component_says_what_it_cannot_read(fleet: Fleet, workplace: Path, built: str) -> None:
    code, _, said = ran(fleet, workplace, built, "--", "{")
    assert code == 1, said
    assert "tidy: cannot read '{'" in said


@pytest.mark.parametrize(("example", "code", "words"), MISBEHAVING, ids=[name for name, _, _ in MISBEHAVING])
def test_an_example_that_misbehaves_ends_in_the_words_of_its_manifest(
    fleet: Fleet, workplace: Path, example: str, code: int, words: str
) -> None:
    exit_code, _, said = ran(fleet, workplace, example)
    assert exit_code == code, said
    assert words in said
    assert not fleet.client().keeps()


@pytest.mark.parametrize(("example", "function"), [("recurse-wat/recurse", "deeper"), ("trap-wat/trap", "read_past")])
def test_a_trap_s_backtrace_names_the_function(fleet: Fleet, workplace: Path, example: str, function: str) -> None:
    assert f"0: {function}" in ran(fleet, workplace, example)[2]
