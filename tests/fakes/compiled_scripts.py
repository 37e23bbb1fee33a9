"""One directory with the script pools' compiled engines, for all workers of a run: compiling takes seconds."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from script_pool.program.__main__ import ENGINES_KEPT, KEPT, digest_of_all
from tests.workers import directory_of_all

ROOT = Path(__file__).resolve().parents[2]
_COMPILE = "import sys; from script_pool.engine.languages import Languages; Languages(sys.argv[1]).warm()"


@pytest.fixture(scope="session")
def scripts_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `--cache` is for a pool; also the default of every pool that this process starts."""
    home = directory_of_all(pytestconfig, tmp_path_factory) / "cache"
    place = home / "keepfleet" / "scripts"
    place.mkdir(0o700, parents=True, exist_ok=True)
    with open(home / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(place.iterdir()):
            kept = Path(os.environ.get(KEPT, "")) / digest_of_all() / ENGINES_KEPT
            if kept.is_dir():
                shutil.copytree(kept, place, dirs_exist_ok=True)
            else:
                subprocess.run([sys.executable, "-c", _COMPILE, str(place)], cwd=ROOT, check=True)
    os.environ["XDG_CACHE_HOME"] = str(home)
    return str(place)
