"""`keepctl install` and `uninstall`: templates filled in, files put in place, systemd said."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import installation, prefix
from keepctl.installation import Target, templates
from keepctl.rendering import MARK, PLACEHOLDERS, render
from tests.unit.keepctl.conftest import Run

VALUES = {
    "PREFIX": "/opt/keepfleet",
    "PYTHON": "/opt/keepfleet/bin/python",
    "PYTHON_REAL": "/usr/bin/python3.11",
    "PACKAGES": "/opt/keepfleet/lib/python3.11/site-packages",
    "OPENSSL": "/usr/bin/openssl",
}
SERVICE = "[Service]\nExecStart=@PYTHON@ @PACKAGES@/keep_loader/__main__.py %i\nExecPaths=@PYTHON_REAL@ @OPENSSL@\n"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Templates as the package holds them."""
    root = tmp_path / "templates"
    (root / "system/keep@.service.d").mkdir(parents=True)
    (root / "system/keep@.service.d/10-keepfleet.conf").write_text(SERVICE)
    (root / "system/keep-manager.service").write_text("[Service]\nExecStart=@PREFIX@/bin/keep-manager\n")
    return root


@pytest.fixture
def where(tmp_path: Path) -> Target:
    return Target("system", str(tmp_path / "etc"), reload=False)


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `systemctl` that notes what it was said and prints what stands in `answer` beside it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {directory}/said\ncat {directory}/answer 2>/dev/null; exit 0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


@pytest.mark.parametrize("variant", ["system", "user"])
def test_the_packages_own_units_are_filled_in_completely(variant: str) -> None:
    found = templates(variant)
    assert {"keep-manager.service", "keep@.service.d/10-keepfleet.conf"} <= set(found)
    for name, template in found.items():
        text = render(name, template, VALUES)
        assert text.startswith(MARK)
        assert not re.search(r"@[A-Z_]+@", text)


def test_the_known_placeholders_are_those_that_have_values() -> None:
    assert set(PLACEHOLDERS) == set(VALUES)


def test_an_unknown_placeholder_is_an_error_and_nothing_is_written(units: Path, where: Target) -> None:
    (units / "system/extra.service").write_text("ExecStart=@HOME@/x\n")
    with pytest.raises(KeepfleetError, match=r"cannot write extra\.service: @HOME@ is no placeholder"):
        installation.install(where, VALUES, units)
    assert not Path(where.directory).exists()


@pytest.mark.parametrize("path", ["/opt/my keeps", "/opt/%i", "/opt/$x", "/opt/a\nExecStartPre=x", 'a"b', "relative"])
def test_a_path_a_unit_file_would_read_as_something_else_is_refused(path: str) -> None:
    with pytest.raises(KeepfleetError, match="install keepfleet elsewhere"):
        render("x", "@PREFIX@", {**VALUES, "PREFIX": path})


def test_units_are_written_below_the_directory_with_their_subdirectories(units: Path, where: Target) -> None:
    changes = installation.install(where, VALUES, units)
    drop_in = Path(where.directory, "keep@.service.d/10-keepfleet.conf")
    assert [change.what for change in changes] == ["written", "written"]
    assert drop_in.read_text() == (
        MARK + "[Service]\nExecStart=/opt/keepfleet/bin/python /opt/keepfleet/lib/python3.11/site-packages/keep_loader"
        "/__main__.py %i\nExecPaths=/usr/bin/python3.11 /usr/bin/openssl\n"
    )
    assert stat.S_IMODE(drop_in.stat().st_mode) == 0o644
    assert {path.name for path in Path(where.directory).rglob("*")} == {
        "keep-manager.service", "keep@.service.d", "10-keepfleet.conf",
    }  # fmt: skip


def test_installing_again_changes_only_what_differs(units: Path, where: Target) -> None:
    installation.install(where, VALUES, units)
    manager = Path(where.directory, "keep-manager.service")
    before = manager.stat().st_ino
    (units / "system/keep@.service.d/10-keepfleet.conf").write_text("[Service]\n")
    changes = installation.install(where, VALUES, units)
    assert [change.what for change in changes] == ["unchanged", "written"]
    assert manager.stat().st_ino == before


def test_a_unit_somebody_else_wrote_is_left_alone_and_so_is_everything_else(units: Path, where: Target) -> None:
    Path(where.directory).mkdir()
    Path(where.directory, "keep-manager.service").write_text("[Service]\n")
    with pytest.raises(KeepfleetError, match="`keepctl install` did not write it; move it away first"):
        installation.install(where, VALUES, units)
    assert os.listdir(where.directory) == ["keep-manager.service"]


def test_uninstalling_takes_away_what_was_written_and_nothing_else(units: Path, where: Target) -> None:
    installation.install(where, VALUES, units)
    own = Path(where.directory, "keep@.service.d/50-local.conf")
    own.write_text("[Service]\nMemoryMax=1G\n")
    changes = installation.uninstall(where, units)
    assert {change.what for change in changes} == {"removed"}
    assert [path for path in Path(where.directory).rglob("*") if path.is_file()] == [own]
    assert installation.uninstall(where, units) == []


def test_systemd_is_said_to_read_its_units_again(units: Path, where: Target, systemctl: Path) -> None:
    installation.install(Target("system", where.directory), VALUES, units)
    (units / "user").mkdir()
    (units / "user/keep.slice").write_text("[Slice]\n")
    installation.install(Target("user", where.directory + "2"), VALUES, units)
    assert (systemctl / "said").read_text() == "daemon-reload\n--user daemon-reload\n"


def test_units_in_use_are_not_removed(units: Path, where: Target, systemctl: Path) -> None:
    installation.install(where, VALUES, units)
    (systemctl / "answer").write_text("keep@7.service loaded active running Keep 7\n")
    with pytest.raises(KeepfleetError, match="while 1 of our units run") as raised:
        installation.uninstall(Target("system", where.directory), units)
    assert (raised.value.kind, raised.value.evidence) == (ErrorKind.CONFLICT, ("keep@7.service",))
    assert Path(where.directory, "keep-manager.service").exists()


def test_a_systemctl_that_fails_is_said_with_its_complaint(systemctl: Path) -> None:
    (systemctl / "systemctl").write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    with pytest.raises(KeepfleetError, match="is this host running systemd") as raised:
        installation.systemctl("system", "daemon-reload")
    assert raised.value.evidence == ("no bus",)


def make_prefix(directory: Path) -> Path:
    """A virtual environment by hand, with a package of ours in it."""
    packages = directory / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (packages / "keep_loader").mkdir(parents=True)
    (packages / "keep_loader/__init__.py").touch()
    (packages / "keep_loader/__main__.py").touch()
    (directory / "bin").mkdir()
    real = os.path.realpath(sys.executable)
    (directory / "bin/python").symlink_to(real)
    (directory / "pyvenv.cfg").write_text(f"home = {os.path.dirname(real)}\n")
    return packages


def test_the_values_come_from_the_prefix_and_its_interpreter(tmp_path: Path) -> None:
    root = tmp_path / "venv"
    packages = make_prefix(root)
    values = prefix.values_for(str(root), "user")
    assert values == {
        "PREFIX": str(root),
        "PYTHON": f"{root}/bin/python",
        "PYTHON_REAL": os.path.realpath(sys.executable),
        "PACKAGES": str(packages),
        "OPENSSL": os.path.realpath("/usr/bin/openssl"),
    }


def test_a_prefix_without_keepfleet_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    packages = make_prefix(tmp_path / "venv")
    (packages / "keep_loader/__init__.py").unlink()
    (packages / "keep_loader/__main__.py").unlink()
    (packages / "keep_loader").rmdir()
    with pytest.raises(KeepfleetError, match="-m pip install keepfleet") as raised:
        prefix.values_for(str(tmp_path / "venv"), "user")
    assert raised.value.evidence == ("ModuleNotFoundError: No module named 'keep_loader'",)


def test_a_prefix_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="does not exist; name it with --prefix"):
        prefix.values_for(str(tmp_path / "none"), "system")


@pytest.mark.parametrize("path", ["/root/venv", "/home/ann/venv", "/tmp/venv", "/run/user/1000/x"])
def test_where_keeps_do_not_see_the_prefix_it_is_refused_for_the_system(path: str) -> None:
    with pytest.raises(KeepfleetError, match="which keeps do not see; install keepfleet elsewhere"):
        prefix.check_visible(path)


@pytest.fixture
def open_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory every user can reach, as far as `check_visible` looks."""
    monkeypatch.setattr(prefix, "HIDDEN_FROM_KEEPS", ())
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o055)
    return tmp_path


def test_what_everybody_can_reach_and_only_its_owner_change_is_accepted(open_tmp: Path) -> None:
    (open_tmp / "venv").mkdir(mode=0o755)
    prefix.check_visible(str(open_tmp / "venv"))
    prefix.check_visible(os.path.realpath(sys.executable))


def test_a_directory_others_cannot_enter_is_named(open_tmp: Path) -> None:
    (open_tmp / "closed/venv").mkdir(parents=True)
    (open_tmp / "closed").chmod(0o700)
    with pytest.raises(KeepfleetError, match=f"{open_tmp}/closed has mode 0700"):
        prefix.check_visible(str(open_tmp / "closed/venv"))


def test_a_directory_anybody_can_change_is_named(open_tmp: Path) -> None:
    (open_tmp / "open/venv").mkdir(parents=True)
    (open_tmp / "open").chmod(0o777)
    with pytest.raises(KeepfleetError, match=f"anybody can change {open_tmp}/open; run: chmod o-w"):
        prefix.check_visible(str(open_tmp / "open/venv"))


def test_the_command_installs_and_uninstalls_and_says_so(run: Run, tmp_path: Path) -> None:
    make_prefix(tmp_path / "venv")
    target = tmp_path / "units"
    options = ("--user", "--no-reload", "--unit-directory", str(target))
    result = run("install", *options, "--prefix", str(tmp_path / "venv"))
    assert result.exit_code == 0, result.output
    assert f"written   {target}/keep-manager.service" in result.output
    assert f"ExecStart={tmp_path}/venv/bin/keep-manager" in (target / "keep-manager.service").read_text()
    assert "removed" in run("uninstall", *options).output
    assert "nothing of ours was there" in run("uninstall", *options).output
