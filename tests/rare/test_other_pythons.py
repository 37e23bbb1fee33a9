"""keepfleet under an interpreter that is not the distribution's: the keeps' root is made of that one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.fleet import Fleet
from tests.system.host import Host
from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
MADE_BY = (f".pyenv/versions/{VERSION}.*", f".local/share/uv/python/cpython-{VERSION}.*")
"""Below a home: where pyenv and uv put an interpreter of the version that the tests' packages were built for."""
PLACE = "/opt/another-python"
ROOT = Path(__file__).resolve().parents[2]
HELLO = ROOT / "examples/hello-c/hello.wasm"


@pytest.fixture(scope="module")
def another() -> Path:
    """The directory of an interpreter of pyenv's or uv's."""
    found = [path for pattern in MADE_BY for path in Path.home().glob(pattern) if (path / "bin").is_dir()]
    if not found:
        pytest.skip(f"there is no Python {VERSION} of pyenv's or uv's in {Path.home()}")
    return found[0]


@pytest.fixture(scope="module")
def fleet(another: Path, prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A host where keepfleet's environment is of that interpreter, which every user may read but need not."""
    python, environment, etc, shared = (tmp_path_factory.mktemp(name) for name in ("python", "env", "etc", "shared"))
    shutil.copytree(another, python, symlinks=True, dirs_exist_ok=True)
    shutil.copytree(prefix, environment, symlinks=True, dirs_exist_ok=True)
    (environment / "bin/python3").unlink()
    (environment / "bin/python3").symlink_to(f"{PLACE}/bin/python{VERSION}")
    settings = environment / "pyvenv.cfg"
    settings.write_text(f"home = {PLACE}/bin\ninclude-system-site-packages = false\nversion = {VERSION}\n")
    for directory in (python, environment, etc, shared):
        directory.chmod(0o755)
    environment.chmod(0o700)
    binds = (
        (str(python), PLACE, True),
        (str(environment), "/opt/keepfleet", True),
        (str(etc), "/etc/keepfleet", False),
        (str(shared), str(shared), False),
    )
    with Sandbox(f"python-{os.getpid()}", Layout(binds)) as sandbox, sandbox.network():
        fleet = Fleet(Host(sandbox, shared), etc)
        fleet.install()
        yield fleet


def test_a_keep_runs_in_a_root_of_that_interpreter(fleet: Fleet) -> None:
    module = fleet.host.path / "hello.wasm"
    shutil.copy(HELLO, module)
    environment = {"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}
    said = fleet.host.run(["keepctl", "run", str(module)], env=environment).stdout
    assert "Hello from C, inside a keep!" in said
    (keep,) = fleet.client().keeps()
    assert keep.isolation_failures == ()
    (tree,) = fleet.host.run(["sh", "-c", "echo /var/lib/keepfleet/root-*"]).stdout.split()
    assert f'"python": "{PLACE}/bin/python{VERSION}"' in fleet.host.run(["cat", f"{tree}/record.json"]).stdout
    assert fleet.host.run(["keepctl", "doctor"]).stdout == "all is well\n"
