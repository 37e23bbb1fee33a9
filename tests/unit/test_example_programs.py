"""The script that fetches real programs: what it keeps, and what it refuses. A program in the place of pip answers."""

from __future__ import annotations

import hashlib
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from keepctl.manifest.reading import read_job

SCRIPT = Path(__file__).resolve().parents[2] / "examples/programs/get"
PIP = """#!/bin/sh
echo "$@" >>{place}/asked
{does}
"""


class Place:
    """A cache, and a pip that does what a test says: `does` is a line of shell, where $to is the directory to fill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path / "thing.whl", "w") as wheel:
            wheel.writestr("thing/thing.wasm", b"\0asm\1\0\0\0")
        self.sha256 = hashlib.sha256((path / "thing.whl").read_bytes()).hexdigest()

    def __repr__(self) -> str:
        return f"Place({self.path})"

    def get(self, *names: str, does: str, sha256: str = "") -> subprocess.CompletedProcess[str]:
        """Runs the script, in which `thing` is a program of the wheel with that digest."""
        pip = self.path / "bin/pip3"
        pip.parent.mkdir(exist_ok=True)
        find_target = 'while [ "$1" != --dest ]; do shift; done; to=$2'
        pip.write_text(PIP.format(place=self.path, does=f"{find_target}\n{does}"))
        pip.chmod(0o755)
        (self.path / "into").mkdir(exist_ok=True)
        added = (
            f'THING = pypi("thing", "1.0", "{sha256 or self.sha256}")\n'
            'PROGRAMS["thing"] = member(THING, "thing/thing.wasm")\n\n\ndef get('
        )
        script = self.path / "get"
        script.write_text(SCRIPT.read_text().replace("def get(", added, 1))
        environment = {
            **os.environ,
            "PATH": f"{pip.parent}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "KEEPFLEET_PROGRAMS": str(self.path / "cache"),
        }
        command = [sys.executable, str(script), "--into", str(self.path / "into"), *names]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    @property
    def asked(self) -> int:
        """How often pip was asked."""
        asked = self.path / "asked"
        return len(asked.read_text().splitlines()) if asked.exists() else 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_program_is_fetched_once_and_kept(place: Place) -> None:
    does = f'cp {place.path}/thing.whl "$to"/thing-1.0-py3-none-any.whl'
    first = place.get("thing", does=does)
    assert first.returncode == 0, first.stderr
    assert (place.path / "into/thing.wasm").read_bytes() == b"\0asm\1\0\0\0"
    (place.path / "into/thing.wasm").unlink()
    assert place.get("thing", does="exit 1").returncode == 0
    assert place.asked == 1
    assert "--no-deps" in (place.path / "asked").read_text()


def test_a_package_with_another_digest_is_refused_and_not_kept(place: Place) -> None:
    done = place.get("thing", does=f'cp {place.path}/thing.whl "$to"/thing.whl', sha256="0" * 64)
    assert done.returncode == 1
    assert f"thing 1.0 has the SHA-256 {place.sha256}, and not 000" in done.stderr
    assert not list((place.path / "into").iterdir()) and not list((place.path / "cache").iterdir())


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", 3),
        ("npm error code EAI_AGAIN", 3),
        ("ERROR: No matching distribution found for thing==1.0", 1),
    ],
)
def test_a_registry_that_cannot_be_reached_is_distinguished_from_a_package_that_is_not_there(
    place: Place, said: str, code: int
) -> None:
    done = place.get("thing", does=f'echo "{said}" >&2; exit 1')
    assert (done.returncode, said in done.stderr) == (code, True)


def test_a_program_that_is_none_is_refused_with_those_there_are(place: Place) -> None:
    done = place.get("nothing", does="exit 1")
    assert (done.returncode, place.asked) == (1, 0)
    assert "there is none called nothing; there are cpython, boolector" in done.stderr


@pytest.mark.parametrize("name", sorted(runpy.run_path(str(SCRIPT))["PROGRAMS"]))
def test_a_program_has_a_manifest_with_the_default_limits_of_compiling_and_stands_in_the_how_to(name: str) -> None:
    job = read_job(str(SCRIPT.parent / f"{name}.yaml"))
    assert (job.name, job.module) == (name, str(SCRIPT.parent / f"{name}.wasm"))
    assert job.limits["memory_bytes"] <= 512 << 20
    assert not {"compile_seconds", "compile_memory_bytes"}.intersection(job.limits)
    assert f"`{name}`" in (SCRIPT.parents[2] / "docs/how-to/programs.md").read_text(encoding="utf-8")
