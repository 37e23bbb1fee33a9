"""One directory with the script pools' compiled engines, for all workers of a run: compiling takes seconds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from script_pool.program.__main__ import ENGINES_KEPT, KEPT, digest_of_all
from tests.workers import directory_of_all

_OF_TESTS = "-of-tests"
"""Behind the digest, in the name of a directory that has the engines alone."""
ROOT = Path(__file__).resolve().parents[2]
_COMPILE = "import sys; from script_pool.engine.languages import Languages; Languages(sys.argv[1]).warm()"


def _fill(place: Path) -> None:
    """With what an earlier run, or an installation, has left in the directory of such things, or else compiled now."""
    found, digest = os.environ.get(KEPT), digest_of_all()
    of_tests = Path(found or "", f"{digest}{_OF_TESTS}")
    for kept in (of_tests, Path(found or "", digest, ENGINES_KEPT)):
        if found and kept.is_dir():
            with contextlib.suppress(OSError):  # another run makes room; what is missing is compiled
                shutil.copytree(kept, place, dirs_exist_ok=True)
                return
    subprocess.run([sys.executable, "-c", _COMPILE, str(place)], cwd=ROOT, check=True)
    if found:
        os.makedirs(found, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found) as made:
            shutil.copytree(place, f"{made}/engines")
            with contextlib.suppress(OSError):  # another run was sooner
                os.rename(f"{made}/engines", of_tests)


@pytest.fixture(scope="session")
def scripts_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `--cache` is for a pool; also the default of every pool that this process starts."""
    home = directory_of_all(pytestconfig, tmp_path_factory) / "cache"
    place = home / "keepfleet" / "scripts"
    place.mkdir(0o700, parents=True, exist_ok=True)
    with open(home / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(place.iterdir()):
            _fill(place)
    os.environ["XDG_CACHE_HOME"] = str(home)
    return str(place)
