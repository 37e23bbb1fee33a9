"""Programs that others wrote, as packages bring them or toolchains make them, each in a keep by its manifest.

What cannot be fetched because a registry cannot be reached is skipped, and nothing else is.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.fleet import Fleet

PROGRAMS = Path(__file__).resolve().parents[2] / "examples/programs"
MACHINE = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""The machine's network, opened before a test's host brings its own: what is fetched comes from there."""
SCRIPT = runpy.run_path(str(PROGRAMS / "get"))
NAMED, ROOT = "/srv/keepfleet/programs", "/run/programs"
"""The host's directory in the manifests, and what stands for it here; unlike /srv it is the sandbox's own."""
SECONDS = 1500
"""yosys takes 80 seconds of processor time to be compiled, on a machine with others at work."""
REFUSED = 126
RUN = """
began=$EPOCHREALTIME
keepctl run --rm -f "$@" | { dd bs=1 count=1 status=none; echo $EPOCHREALTIME >"$0.first"; cat; } >"$0"
code=${PIPESTATUS[0]}
echo "$began $(cat "$0.first") $EPOCHREALTIME"
exit "$code"
"""
ENDS: dict[str, tuple[int, str]] = {
    "cpython": (0, '{"mean": 3}\n'),
    "boolector": (10, "sat\n((x #b00000111))\n"),
    "yosys": (0, "assign sum = a +"),
    "resvg": (0, "PNG"),
    "usvg": (0, "<path"),
    "flite": (0, "seconds of speech synthesized"),
    "avr-as": (0, "configured for a target of `avr'"),
    "avr-ld": (0, "GNU ld"),
    "avr-cc1": (0, "twice:"),
    "gofmt": (0, "func main() {\n\tprintln(1 + 1)\n}\n"),
    "go-web": (0, '{"drivers":0,"path":"/hello"}\n'),
    "go-service": (0, "<pre>{&#34;drivers&#34;:0,&#34;path&#34;:&#34;/hello&#34;}\n</pre>"),
    "hello-js": (0, 'Hello from JavaScript, inside a keep! {"squares":[1,4,9]}\n'),
    "hello-quickjs": (0, 'Hello from QuickJS, inside a keep! {"squares":[1,4,9]}\n'),
}
"""Each program's exit code, and what is in its output."""
LIGHT = ("flite", "resvg", "avr-as", "hello-quickjs")
"""Of each toolchain the one that is compiled soonest, but Go's, whose smallest takes ten seconds. A Python is in
examples/json-python, too."""


def got(name: str, directory: Path) -> Path:
    """The program's file there, with its manifest."""
    command = ["nsenter", f"--net=/proc/self/fd/{MACHINE}", "--", sys.executable, str(PROGRAMS / "get"), "--into"]
    done = subprocess.run([*command, str(directory), name], pass_fds=(MACHINE,), capture_output=True, text=True)
    if done.returncode == SCRIPT["UNREACHABLE"]:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    manifest = directory / f"{name}.yaml"
    manifest.write_text((PROGRAMS / manifest.name).read_text().replace(NAMED, ROOT))
    return manifest


@pytest.fixture(scope="module")
def inputs() -> dict[str, bytes]:
    """What the manifests read from the host."""
    return {path.name: path.read_bytes() for path in (PROGRAMS / "input").iterdir()}


@pytest.fixture
def granting(fleet: Fleet, inputs: dict[str, bytes]) -> Iterator[Fleet]:
    """A fleet whose manager may grant what lies in ROOT."""
    shared = fleet.host.path / "inputs"
    shared.mkdir(exist_ok=True)
    for name, contents in inputs.items():
        (shared / name).write_bytes(contents)
    fleet.host.run(["cp", "-r", str(shared), ROOT])
    try:
        with fleet.configured(callers=f'{{"*": {{grant_roots: [{{path: {ROOT}}}]}}}}'):
            yield fleet
    finally:
        fleet.host.run(["rm", "-r", ROOT])


@pytest.fixture
def ran(granting: Fleet) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs a program by its manifest: its exit code, its output, and what keepctl said. `-s` shows how soon its first
    byte was there, from the command on: keep, upload and compiling are in it."""
    place = granting.host.path / "programs"
    place.mkdir(exist_ok=True)

    def run(name: str, *options: str) -> tuple[int, str, str]:
        command = ["bash", "-c", RUN, str(place / "output"), str(got(name, place))]
        environment = {"KEEPFLEET_MANAGER": f"127.0.0.1:{granting.port}"}
        done = granting.host.run([*command, *options], check=False, env=environment, timeout=SECONDS)
        began, first, ended = map(float, done.stdout.split())
        print(f"| {name} | {first - began:.2f} s to the first byte, {ended - began:.2f} s in all")
        return done.returncode, (place / "output").read_bytes().decode("utf-8", "replace"), done.stderr

    yield run
    shutil.rmtree(place)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.heavy][: name not in LIGHT]) for name in ENDS])
def test_a_real_program_runs_with_the_default_limits_of_compiling(
    ran: Callable[..., tuple[int, str, str]], name: str
) -> None:
    code, output, said = ran(name)
    assert (code, ENDS[name][1] in output) == (ENDS[name][0], True), (code, output[-2000:], said)


@pytest.mark.heavy
def test_a_ruby_that_calls_javascript_is_refused_for_that_with_what_to_take(
    ran: Callable[..., tuple[int, str, str]],
) -> None:
    """And without having been compiled, which would take more than the second of processor time it is given."""
    code, _, said = ran("ruby", "--limit", "compile_seconds=1")
    assert code == REFUSED, said
    assert "it imports what a keep does not have: 'rb-js-abi-host'" in said
    assert "take a Ruby without the js gem" in said


def test_a_program_over_a_limit_of_compiling_is_refused_with_which_to_raise(
    ran: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, said = ran("gofmt", "--limit", "compile_seconds=1")
    assert code == REFUSED, said
    assert "takes more processor time than compile_seconds=1 gives" in said
    assert "raise it, to compile_seconds=2" in said
