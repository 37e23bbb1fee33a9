"""A host whose /opt/keepfleet has versions, as `./run install` makes them: copies of one, changed as a test needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from script_pool.program.__main__ import KEPT
from tests.system.fleet import Fleet
from tests.system.host import Host
from tests.system.life import Life

ROOT = "/opt/keepfleet"
VERSIONS = f"{ROOT}/versions"
COMPILED = "/run/compiled"
"""What runs scripts in keeps, where it was compiled before."""
INSTALL_SECONDS = 600
"""It compiles for an engine that no installation had before: seconds of a quiet machine, and many of a busy one."""
_MARKED = ("keep_loader", "app_loader", "keep_protocol")
_SETTINGS = "app_loader/engine/settings.py"
"""Has no mark: from what is in it, scripts are compiled, for some seconds."""
_MARK = '\ngetattr(__import__("sys").stderr, "write", len)("imported " + __name__ + " of {name}\\n")\n'
"""At the end of each module that runs in a keep. A process without standard error imports it silently."""


class Installation:
    """/opt/keepfleet of `host`, which is `directory` outside.

    `prefix` is what a version is a copy of; `engines` has the wheel of another wasmtime for some versions.
    """

    def __init__(self, fleet: Fleet, directory: Path, prefix: Path, engines: dict[str, Path]) -> None:
        self.fleet = fleet
        self.host: Host = fleet.host
        self._directory = directory
        self._prefix = prefix
        self._engines = engines
        self._current = ""

    def __repr__(self) -> str:
        return f"Installation({self.host}, {sorted(self.names())})"

    def names(self) -> set[str]:
        """The versions that are there."""
        return {path.name for path in (self._directory / "versions").iterdir()}

    def make(self, name: str) -> None:
        """Makes a version, whose modules name it as they load."""
        version = self._directory / "versions" / name
        shutil.copytree(self._prefix, version, symlinks=True)
        for script in (version / "bin").iterdir():
            if not script.is_symlink():
                text = re.sub(r"\A#!/opt/keepfleet/", f"#!{VERSIONS}/{name}/", script.read_text())
                script.write_text(text)
        (packages,) = version.glob("lib/python3*/site-packages")
        for package in _MARKED:
            for module in set((packages / package).glob("**/*.py")) - {packages / _SETTINGS}:
                module.write_text(module.read_text() + _MARK.format(name=name))
        subprocess.run([sys.executable, "-m", "compileall", "-q", *(packages / name for name in _MARKED)], check=True)
        if name in self._engines:
            for old in packages.glob("wasmtime*"):
                shutil.rmtree(old)
            with zipfile.ZipFile(self._engines[name]) as wheel:
                wheel.extractall(packages)

    def begin_with(self, name: str) -> None:
        """Makes a version the current one, where another is."""
        if name != self._current:
            self.install(name)

    def install(self, name: str) -> str:
        """Makes a version the current one, as the docs say, and returns what was printed."""
        if name not in self.names():
            self.make(name)
        install = [f"{VERSIONS}/{name}/bin/keepctl", "install", "--system"]
        said = self.host.run(install, env={KEPT: COMPILED}, timeout=INSTALL_SECONDS).stdout
        if not self.fleet.pki.exists():
            self.host.run(["keepctl", "init"])
            self.fleet.configure()
        self.fleet.restart()
        self._current = name
        return said


def versions_of(life: Life) -> set[str]:
    """The versions that the roots of a keep's processes were made of."""
    pid = str(life.loader_pid)
    pids = life.host.run(["ps", "-o", "pid=", "--pid", pid, "--ppid", pid]).stdout.split()
    shown = life.host.run(["cat", *(f"/proc/{process}/mountinfo" for process in pids)]).stdout
    roots = set(re.findall(r"/(root-[0-9a-f]+)/tree / ", shown))
    records = life.host.run(["cat", *(f"/var/lib/keepfleet/{root}/record.json" for root in roots)]).stdout
    return set(re.findall(f"{VERSIONS}/([^/]+)/", records))


def imported(life: Life) -> set[tuple[str, str]]:
    """Each package of which the keep's processes have imported modules so far, with the version they were of."""
    found = (re.fullmatch(r"(?:app-loader: )?imported ([a-z_]+)\S* of (\S+)", line) for line in life.output())
    return {(match[1], match[2]) for match in found if match}


def pip_of(prefix: Path) -> list[str]:
    """What runs the pip that made a prefix: no environment here has one of its own."""
    build = max(prefix.parent.glob("build-*/bin/python"), key=lambda found: found.lstat().st_mtime)
    return [str(build), "-m", "pip"]


def download(prefix: Path, lock: Path, directory: Path) -> list[Path]:
    """What a lock file names, from the registry that this machine is configured for."""
    pip = [*pip_of(prefix), "download", "-qq", "--disable-pip-version-check"]
    wanted = ["--no-deps", "--require-hashes", "--requirement", str(lock), "--dest", str(directory)]
    subprocess.run([*pip, *wanted], check=True)
    return sorted(directory.iterdir())
