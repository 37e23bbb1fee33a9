"""The commands of docs/operations.md for a new host, typed on one that has nothing of keepfleet but a checkout."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from script_pool.program.__main__ import KEPT
from tests.system.host import Host
from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/operations.md"
NEWER = "0.2.0"
SECONDS = 300
"""pip installs two environments and a wheel."""
ENABLED = "/etc/systemd/system/multi-user.target.wants/keep-manager.service"
OURS = ("/opt/keepfleet", "/var/lib/keepfleet", "/etc/systemd/system/keep*", "/usr/local/bin/*", ENABLED)
MAKE_KEEP_7 = (
    "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager "
    "StartTransientUnit 'ssa(sv)a(sa(sv))' keep@7.service fail 0 0"
)
"""Without what the manager would say of it: its loader cannot start."""
UNSEEN = shutil.ignore_patterns(".git", "node_modules", "build", "dist", "__pycache__", ".*_cache", "tests")


def section(heading: str) -> str:
    """The commands of one section of the page."""
    text = PAGE.read_text(encoding="utf-8")
    body = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert body is not None, heading
    (block,) = re.findall(r"^```sh\n(.*?)^```$", body[1], re.MULTILINE | re.DOTALL)
    return str(block)


class Newcomer:
    """An operator in a checkout on a host of their own."""

    def __init__(self, host: Host, wheels: Path) -> None:
        self.host = host
        self.checkout = host.path / "checkout"
        self._environment = {  # a sandbox need not have a network, nor compile what is used once, or what was before
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_COMPILE": "0",
            KEPT: str(host.path / "compiled"),
        }

    def types(self, script: str, user: str | None = None, *, status: int = 0) -> str:
        """What the commands print, typed one after another into one shell in the checkout."""
        command = ["bash", "-euxo", "pipefail", "-c", f"cd {self.checkout}\n{script}"]
        done = self.host.run(command, check=False, user=user, env=self._environment, timeout=SECONDS)
        assert done.returncode == status, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def sources_become(self, version: str) -> None:
        """The checkout has the sources of another version."""
        project = self.checkout / "pyproject.toml"
        project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text()))

    def left(self) -> list[str]:
        """What there is of keepfleet for all users of the host, but its configuration."""
        return self.host.run(["bash", "-c", f"shopt -s nullglob; ls -d {' '.join(OURS)} || :"]).stdout.split()


@pytest.fixture(scope="module")
def newcomer(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    directories = {name: tmp_path_factory.mktemp(name) for name in ("shared", "programs", "cache")}
    for directory in directories.values():
        directory.chmod(0o755)
    shared = directories["shared"]
    shutil.copytree(ROOT, shared / "checkout", ignore=UNSEEN, symlinks=True)
    (shared / "compiled").mkdir()
    with contextlib.suppress(OSError):  # there is none, or what another run is making there gets its name meanwhile
        shutil.copytree(prefix.parent / "compiled", shared / "compiled", dirs_exist_ok=True)
    made = subprocess.run([ROOT / "run", "wheelhouse"], stdout=subprocess.PIPE, text=True, check=True)
    wheels = shared / "wheels"
    shutil.copytree(made.stdout.strip(), wheels)
    binds = (
        (str(shared), str(shared), False),
        (str(directories["programs"]), "/usr/local/bin", False),
        (str(directories["cache"]), "/var/cache", False),
    )
    with Sandbox(f"install-{os.getpid()}", Layout(binds, ("/opt",))) as sandbox:
        yield Newcomer(Host(sandbox, shared), wheels)


def test_a_host_is_installed_upgraded_and_uninstalled_as_the_page_says(newcomer: Newcomer) -> None:
    output = newcomer.types(section("Install"))
    assert "Next: keepctl init, then systemctl enable --now keep-manager" in output
    assert "Hello from C, inside a keep!" in output
    (first,) = re.findall(r"^current +(\S+)$", output, re.MULTILINE)
    assert re.fullmatch(r"/opt/keepfleet/versions/0\.1\.0-[0-9a-f]{12}", first)
    assert newcomer.host.run(["keepctl", "--version"]).stdout.split()[-1] == "0.1.0"
    assert "unchanged " + first in re.sub(" +", " ", newcomer.types("./run install"))

    newcomer.host.run(["keepctl", "new", "--name", "kept"])
    newcomer.sources_become(NEWER)
    output = newcomer.types(section("Upgrade"))
    assert "Next: systemctl restart keep-manager; keeps go on" in output
    assert re.search("^[0-9]+ +kept ", output, re.MULTILINE), "the keep of the version before is listed"
    assert newcomer.host.run(["keepctl", "--version"]).stdout.split()[-1] == NEWER

    output = newcomer.types("./run uninstall", status=1)
    assert "cannot uninstall while 3 of our units run" in output, "two keeps and the manager"
    newcomer.types(f"systemctl stop 'keep@*'; busctl call {MAKE_KEEP_7}")
    newcomer.host.wait_journal("Failed with result 'exit-code'", unit="keep@7.service")
    output = newcomer.types(section("Uninstall"))
    assert f"removed   {ENABLED}" in output
    assert "left as it is: /etc/keepfleet, your configuration and certificates" in output
    assert newcomer.left() == []
    assert newcomer.host.units("keep*") == [], "a keep that failed is forgotten, too, and the slices are"
    assert "there is no installation in /opt/keepfleet" in newcomer.types("./run uninstall", status=1)


def test_a_wheel_is_enough(newcomer: Newcomer) -> None:
    newcomer.sources_become("0.1.0")
    output = newcomer.types(section("From a wheel"))
    assert "current   /opt/keepfleet/versions/0.1.0\n" in output
    newcomer.types("systemctl start keep-manager; keepctl run examples/hello-c/hello.wasm")
    newcomer.types("systemctl stop keep-manager 'keep@*'; keepctl uninstall")
    assert newcomer.left() == []


def test_a_user_installs_and_uninstalls_without_root(newcomer: Newcomer) -> None:
    user = newcomer.host.with_user_manager("ada")
    home = newcomer.host.run(["sh", "-c", "echo ~"], user=user).stdout.strip()
    assert "for you alone: ./run install --user" in newcomer.types("./run install", user, status=1)
    output = newcomer.types(section("A user's own keeps"), user)
    assert f"current   {home}/.local/share/keepfleet/versions/" in output
    assert "Hello from C, inside a keep!" in output
    newcomer.types("systemctl --user stop keep-manager 'keep@*'; ./run uninstall --user", user)
    left = newcomer.host.run(["find", home, "-path", "*/.cache", "-prune", "-o", "-type", "f", "-print"]).stdout
    assert {Path(path).relative_to(home).parts[1] for path in left.split() if "/.config/" in path} == {"keepfleet"}
    assert "/.local/" not in left
    assert newcomer.left() == []


def test_an_interrupted_installation_is_finished_by_the_next(newcomer: Newcomer) -> None:
    newcomer.types(
        "mkdir -p /opt/keepfleet/versions/0.0.9-1.new /opt/keepfleet/versions/0.0.8-1.removed; ./run install"
    )
    (version,) = newcomer.host.run(["ls", "/opt/keepfleet/versions"]).stdout.split()
    assert version.startswith("0.1.0-")
    newcomer.types("./run uninstall")
    assert newcomer.left() == []


def test_only_one_option_is_known(newcomer: Newcomer) -> None:
    for verb in ("install", "uninstall"):
        assert "the only option is --user" in newcomer.types(f"./run {verb} --everything", status=1)
