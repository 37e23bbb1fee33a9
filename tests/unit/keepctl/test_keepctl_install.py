"""`keepctl install` and `uninstall`: templates filled in, versions switched, files put in place, systemd notified."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import files, installation, prefix
from keepctl.installation import MARK, PLACEHOLDERS, Target, render, templates
from keepctl.prefix import Prefix, find_prefix
from keepctl.versions import PROGRAMS, Change
from tests.unit.keepctl.conftest import Run

VALUES = {
    "PREFIX": "/opt/keepfleet/current",
    "PACKAGES": "/opt/keepfleet/versions/1/lib/python3.11/site-packages",
    "TREES": "/var/lib/keepfleet",
}
SERVICE = "[Service]\nExecStart=/keepfleet/python %i\nEnvironment=X=@TREES@:@PREFIX@\n"


@pytest.fixture
def templates_root(tmp_path: Path) -> Path:
    """Templates as the package holds them."""
    root = tmp_path / "templates"
    (root / "system/keep@.service.d").mkdir(parents=True)
    (root / "system/keep@.service.d/10-keepfleet.conf").write_text(SERVICE)
    (root / "system/keep-manager.service").write_text("[Service]\nExecStart=@PREFIX@/bin/keep-manager\n")
    return root


@pytest.fixture
def where(tmp_path: Path) -> Target:
    return Target("system", str(tmp_path / "etc"), str(tmp_path / "programs"), str(tmp_path / "trees"), reload=False)


@pytest.fixture
def lone(tmp_path: Path) -> Prefix:
    """A virtual environment that has no other versions next to it."""
    return Prefix(str(tmp_path / "venv"))


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `systemctl` that notes its arguments in `called` and, of a list of units or of their environments, prints what
    stands in the file `list-units` or `show` next to it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "systemctl"
    script = f'echo "$@" >>{directory}/called; for w; do [ ! -e "{directory}/$w" ] || exec cat "{directory}/$w"; done'
    program.write_text(f"#!/bin/sh\n{script}\n")
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


def test_an_unknown_placeholder_is_an_error_and_nothing_is_written(
    templates_root: Path, where: Target, lone: Prefix
) -> None:
    (templates_root / "system/extra.service").write_text("ExecStart=@HOME@/x\n")
    with pytest.raises(KeepfleetError, match=r"cannot write extra\.service: @HOME@ is no placeholder"):
        installation.install(where, lone, VALUES, None, templates_root)
    assert not Path(where.directory).exists()


@pytest.mark.parametrize("path", ["/opt/my keeps", "/opt/%i", "/opt/$x", "/opt/a\nExecStartPre=x", 'a"b', "relative"])
def test_a_path_a_unit_file_would_read_as_something_else_is_refused(path: str) -> None:
    with pytest.raises(KeepfleetError, match="install keepfleet elsewhere"):
        render("x", "@PREFIX@", {**VALUES, "PREFIX": path})


def test_units_are_written_below_the_directory_with_their_subdirectories(
    templates_root: Path, where: Target, lone: Prefix
) -> None:
    changes = installation.install(where, lone, VALUES, None, templates_root)
    drop_in = Path(where.directory, "keep@.service.d/10-keepfleet.conf")
    assert [change.what for change in changes] == ["written", "written"]
    assert drop_in.read_text() == (
        MARK + "[Service]\nExecStart=/keepfleet/python %i\nEnvironment=X=/var/lib/keepfleet:/opt/keepfleet/current\n"
    )
    assert stat.S_IMODE(drop_in.stat().st_mode) == 0o644
    assert {path.name for path in Path(where.directory).rglob("*")} == {
        "keep-manager.service", "keep@.service.d", "10-keepfleet.conf",
    }  # fmt: skip


def test_installing_again_changes_only_what_differs(templates_root: Path, where: Target, lone: Prefix) -> None:
    installation.install(where, lone, VALUES, None, templates_root)
    manager = Path(where.directory, "keep-manager.service")
    before = manager.stat().st_ino
    (templates_root / "system/keep@.service.d/10-keepfleet.conf").write_text("[Service]\n")
    changes = installation.install(where, lone, VALUES, None, templates_root)
    assert [change.what for change in changes] == ["unchanged", "written"]
    assert manager.stat().st_ino == before


def test_a_unit_of_another_author_is_left_alone_and_so_is_everything_else(
    templates_root: Path, where: Target, lone: Prefix
) -> None:
    Path(where.directory).mkdir()
    Path(where.directory, "keep-manager.service").write_text("[Service]\n")
    with pytest.raises(KeepfleetError, match="`keepctl install` did not write it; move it away first"):
        installation.install(where, lone, VALUES, None, templates_root)
    assert os.listdir(where.directory) == ["keep-manager.service"]


def test_uninstalling_takes_away_what_was_written_and_nothing_else(
    templates_root: Path, where: Target, lone: Prefix
) -> None:
    installation.install(where, lone, VALUES, None, templates_root)
    own = Path(where.directory, "keep@.service.d/50-local.conf")
    own.write_text("[Service]\nMemoryMax=1G\n")
    changes = installation.uninstall(where, lone, templates_root)
    assert {change.what for change in changes} == {"removed"}
    assert [path for path in Path(where.directory).rglob("*") if path.is_file()] == [own]
    assert installation.uninstall(where, lone, templates_root) == []


def test_systemd_is_made_to_read_its_units_again(
    templates_root: Path, where: Target, lone: Prefix, systemctl: Path
) -> None:
    installation.install(
        Target("system", where.directory, where.programs, where.trees), lone, VALUES, None, templates_root
    )
    (templates_root / "user").mkdir()
    (templates_root / "user/keep.slice").write_text("[Slice]\n")
    installation.install(
        Target("user", where.directory + "2", where.programs, where.trees), lone, VALUES, None, templates_root
    )
    assert (systemctl / "called").read_text() == "daemon-reload\n--user daemon-reload\n"


def test_units_in_use_are_not_removed_and_the_message_says_how_to_end_them(
    templates_root: Path, where: Target, lone: Prefix, systemctl: Path
) -> None:
    installation.install(where, lone, VALUES, None, templates_root)
    (systemctl / "list-units").write_text("keep@7.service loaded active running Keep 7\n")
    with pytest.raises(KeepfleetError, match=r"while 1 of our units run.*: systemctl stop 'keep@") as raised:
        installation.uninstall(Target("system", where.directory, where.programs, where.trees), lone, templates_root)
    assert (raised.value.kind, raised.value.evidence) == (ErrorKind.CONFLICT, ("keep@7.service",))
    assert Path(where.directory, "keep-manager.service").exists()


def test_uninstalling_takes_the_links_by_which_the_manager_was_enabled_with_it(
    templates_root: Path, where: Target, lone: Prefix
) -> None:
    installation.install(where, lone, VALUES, None, templates_root)
    wanted = Path(where.directory, "multi-user.target.wants")
    for directory in (wanted, Path(where.directory, "other.target.requires")):
        directory.mkdir()
        (directory / "keep-manager.service").symlink_to(f"{where.directory}/keep-manager.service")
    (wanted / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    changes = installation.uninstall(where, lone, templates_root)
    assert [os.path.relpath(change.path, where.directory) for change in changes] == [
        "multi-user.target.wants/keep-manager.service",
        "other.target.requires/keep-manager.service",
        "keep-manager.service",
        "keep@.service.d/10-keepfleet.conf",
    ]
    assert os.listdir(where.directory) == ["multi-user.target.wants"]
    assert os.listdir(wanted) == ["ssh.service"]


def test_a_systemctl_that_fails_is_reported_with_its_complaint(systemctl: Path) -> None:
    (systemctl / "systemctl").write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    with pytest.raises(KeepfleetError, match="is this host running systemd") as raised:
        installation.systemctl("system", "daemon-reload")
    assert raised.value.evidence == ("no bus",)


def make_prefix(directory: Path) -> Path:
    """A virtual environment by hand, with a package of ours in it."""
    packages = directory / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for package in ("keep_protocol", "keep_isolation", "keep_loader", "app_loader", "module_pull", "wasmtime"):
        (packages / package).mkdir(parents=True)
        (packages / package / "__init__.py").touch()
    (packages / "keep_loader/__main__.py").touch()
    (directory / "bin").mkdir()
    real = os.path.realpath(sys.executable)
    (directory / "bin/python").symlink_to(real)
    (directory / "pyvenv.cfg").write_text(f"home = {os.path.dirname(real)}\n")
    return packages


def test_the_values_of_a_lone_virtual_environment_are_its_own_paths(tmp_path: Path) -> None:
    root = tmp_path / "venv"
    packages = make_prefix(root)
    assert prefix.values_for(find_prefix(str(root)), "user", "/home/ann/trees") == {
        "PREFIX": str(root),
        "PACKAGES": str(packages),
        "TREES": "/home/ann/trees",
    }


def test_the_values_of_a_version_name_the_link_that_is_switched(tmp_path: Path) -> None:
    make_prefix(tmp_path / "versions/1")
    (tmp_path / "current").symlink_to("versions/1")
    for path in ("versions/1", "current"):
        assert prefix.values_for(find_prefix(str(tmp_path / path)), "user", "/t")["PREFIX"] == f"{tmp_path}/current"


def test_a_version_that_is_not_ours_to_switch_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1", "2"):
        make_prefix(tmp_path / "versions" / name)
    (tmp_path / "current").symlink_to("versions/1")
    monkeypatch.setattr("os.access", lambda _, how: how != os.W_OK)
    for name, named in (("1", "current"), ("2", "versions/2")):
        assert find_prefix(str(tmp_path / "versions" / name)).in_units == f"{tmp_path}/{named}"


def test_a_prefix_without_keepfleet_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    packages = make_prefix(tmp_path / "venv")
    shutil.rmtree(packages / "keep_loader")
    with pytest.raises(KeepfleetError, match=r"run \./run install in keepfleet's sources") as raised:
        prefix.target_for(find_prefix(str(tmp_path / "venv")))
    assert raised.value.evidence == ("ModuleNotFoundError: No module named 'keep_loader'",)


def test_a_prefix_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="does not exist; name it with --prefix"):
        find_prefix(str(tmp_path / "none"))


@pytest.mark.parametrize("path", ["/root/venv", "/home/ann/venv", "/tmp/venv", "/run/user/1000/x"])
def test_where_the_manager_does_not_see_the_prefix_it_is_refused_for_the_system(path: str) -> None:
    with pytest.raises(KeepfleetError, match="which the manager does not see; install keepfleet elsewhere"):
        prefix.check_visible(path)


@pytest.fixture
def open_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that only its owner changes, as far as `check_visible` looks."""
    monkeypatch.setattr(prefix, "HIDDEN_FROM_MANAGER", ())
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o055)
    return tmp_path


def test_what_only_its_owner_can_change_is_accepted_also_where_others_cannot_read_it(open_tmp: Path) -> None:
    (open_tmp / "closed/venv").mkdir(parents=True)
    (open_tmp / "closed").chmod(0o700)
    prefix.check_visible(str(open_tmp / "closed/venv"))
    prefix.check_visible(os.path.realpath(sys.executable))


def test_a_directory_anybody_can_change_is_named(open_tmp: Path) -> None:
    (open_tmp / "open/venv").mkdir(parents=True)
    (open_tmp / "open").chmod(0o777)
    with pytest.raises(KeepfleetError, match=f"anybody can change {open_tmp}/open; run: chmod o-w"):
        prefix.check_visible(str(open_tmp / "open/venv"))


@pytest.fixture
def versions(tmp_path: Path) -> list[Prefix]:
    """Two versions of one installation."""
    for name in ("1", "2"):
        make_prefix(tmp_path / "kf/versions" / name)
    return [find_prefix(str(tmp_path / "kf/versions" / name)) for name in ("1", "2")]


def paths(changes: list[Change], what: str) -> list[str]:
    return [os.path.basename(change.path) for change in changes if change.what == what]


def test_the_installed_version_becomes_current_and_its_programs_are_linked(
    versions: list[Prefix], templates_root: Path, where: Target
) -> None:
    first, second = versions
    changes = installation.install(where, first, VALUES, None, templates_root)
    assert paths(changes, "current") == ["1"] and paths(changes, "linked") == list(PROGRAMS)
    assert os.readlink(first.current) == "versions/1"
    assert os.readlink(f"{where.programs}/keepctl") == f"{first.root}/current/bin/keepctl"
    assert {change.what for change in installation.install(where, first, VALUES, None, templates_root)} == {"unchanged"}
    changes = installation.install(where, second, VALUES, None, templates_root)
    assert os.readlink(first.current) == "versions/2"
    assert {change.what for change in changes if change.kind != "version"} == {"unchanged"}
    assert sorted(os.listdir(first.versions)) == ["1", "2"], "without asking systemd no version is removed"


def test_a_program_that_we_did_not_link_is_not_replaced_and_nothing_is_installed(
    versions: list[Prefix], templates_root: Path, where: Target
) -> None:
    Path(where.programs).mkdir()
    Path(where.programs, "keepctl").symlink_to("/usr/bin/true")
    with pytest.raises(KeepfleetError, match=f"cannot replace {where.programs}/keepctl: `keepctl install` did not"):
        installation.install(where, versions[0], VALUES, None, templates_root)
    assert not os.path.exists(where.directory) and not os.path.lexists(versions[0].current)


@contextmanager
def process(*argv: str) -> Iterator[None]:
    """A process that was started with these words, until the end of the block."""
    code = "print(flush=True); input()"
    with subprocess.Popen(
        [argv[0], "-c", code, *argv[1:]], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield
        running.communicate(b"\n")


def test_a_version_goes_with_the_next_installation_unless_a_process_of_it_runs(
    versions: list[Prefix], templates_root: Path, where: Target, systemctl: Path
) -> None:
    first, second = versions
    target = Target("system", where.directory, where.programs, where.trees)
    installation.install(where, first, VALUES, None, templates_root)
    with process(f"{first.directory}/bin/python", "keep-manager"):
        assert paths(installation.install(target, second, VALUES, None, templates_root), "removed") == []
    Path(first.versions, "3.new").mkdir()
    with process("vi", f"{first.directory}/bin/keepctl"):
        assert paths(installation.install(target, second, VALUES, None, templates_root), "removed") == ["1", "3.new"]
    assert os.listdir(first.versions) == ["2"]


def test_what_another_program_has_in_a_folder_called_versions_is_left_alone(
    versions: list[Prefix], templates_root: Path, where: Target, systemctl: Path
) -> None:
    first, second = versions
    other = Path(first.versions, "another-program")
    (other / "lib/python3/site-packages/other").mkdir(parents=True)
    target = Target("system", where.directory, where.programs, where.trees)
    installation.install(where, first, VALUES, None, templates_root)
    assert paths(installation.install(target, second, VALUES, None, templates_root), "removed") == ["1"]
    installation.uninstall(where, second, templates_root)
    assert os.listdir(first.versions) == ["another-program"] and list(other.glob("lib/*/*/other")) != []


def test_only_one_installation_at_a_time(versions: list[Prefix], templates_root: Path, where: Target) -> None:
    with files.locked(versions[0].versions), pytest.raises(KeepfleetError, match="another keepctl is at work there"):
        installation.install(where, versions[0], VALUES, None, templates_root)


def test_uninstalling_removes_every_version_and_program_but_no_other_file(
    versions: list[Prefix], templates_root: Path, where: Target
) -> None:
    root = Path(versions[0].root)
    installation.install(where, versions[0], VALUES, None, templates_root)
    Path(where.programs, "keepctl").unlink()
    Path(where.programs, "keepctl").symlink_to("/usr/bin/true")
    changes = installation.uninstall(where, versions[0], templates_root)
    assert [change.kind for change in changes] == ["unit"] * 2 + ["program"] * 3 + ["version"] * 2
    assert os.listdir(where.programs) == ["keepctl"]
    assert not root.exists()


def test_an_installation_is_kept_while_a_keep_of_another_service_manager_runs_in_its_root(
    versions: list[Prefix], templates_root: Path, where: Target
) -> None:
    installation.install(where, versions[0], VALUES, None, templates_root)
    tree = Path(where.trees, "root-0123456789abcdef")
    (tree / "tree").mkdir(parents=True)
    held = os.open(tree / "tree", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    with pytest.raises(KeepfleetError, match="while a user's own keeps run from these roots") as raised:
        installation.uninstall(where, versions[0], templates_root)
    assert raised.value.evidence == (str(tree),)
    assert os.path.exists(versions[0].current)
    os.close(held)
    installation.uninstall(where, versions[0], templates_root)
    assert not os.path.exists(where.trees)


def test_the_command_installs_and_uninstalls_and_says_so(run: Run, tmp_path: Path) -> None:
    make_prefix(tmp_path / "kf/versions/1")
    units, programs = tmp_path / "units", tmp_path / "programs"
    trees = tmp_path / "trees"
    directories = ("--unit-directory", str(units), "--program-directory", str(programs), "--tree-directory", str(trees))
    options = ("--user", "--no-reload", *directories, "--prefix", str(tmp_path / "kf/versions/1"))
    result = run("install", *options)
    assert result.exit_code == 0, result.output
    assert f"written   {units}/keep-manager.service" in result.output
    assert f"current   {tmp_path}/kf/versions/1\n" in result.output
    assert f"linked    {programs}/keepctl\n" in result.output
    assert f"Not on your PATH: {programs}" in result.output
    (tree,) = trees.iterdir()
    assert f"built     {tree}\n" in result.output
    assert f"Environment=KEEPFLEET_TREES={trees}\n" in (units / "keep-manager.service").read_text()
    assert f"ExecStart={tmp_path}/kf/current/bin/keep-manager" in (units / "keep-manager.service").read_text()
    made = json.loads(run("install", *options, "-o", "json").output)
    assert made["versions"] == [{"file": f"{tmp_path}/kf/versions/1", "change": "unchanged"}]
    assert made["roots"] == [{"file": str(tree), "change": "unchanged"}]
    assert run("doctor", *options).output == "all is well\n"
    (tree / "tree/keepfleet/python").unlink()
    (units / "keep.slice").unlink()
    said = run("doctor", *options)
    assert said.exit_code == 1
    assert said.output.splitlines() == [
        f"{units}/keep.slice is not what this version writes; run: keepctl install",
        f"{tree}/tree/keepfleet/python is missing",
    ]
    assert json.loads(run("doctor", *options, "-o", "json").output)["findings"] == said.output.splitlines()
    output = run("uninstall", *options).output
    assert f"removed   {programs}/keepctl\n" in output and f"removed   {tree}\n" in output
    assert list(tmp_path.glob("kf")) == list(tmp_path.glob("trees")) == []


def test_uninstalling_a_lone_virtual_environment_again_says_that_nothing_was_there(run: Run, tmp_path: Path) -> None:
    make_prefix(tmp_path / "venv")
    directories = ("--unit-directory", str(tmp_path / "units"), "--tree-directory", str(tmp_path / "trees"))
    options = ("--user", "--no-reload", *directories, "--prefix", str(tmp_path / "venv"))
    assert run("install", *options).exit_code == 0
    assert "removed" in run("uninstall", *options).output
    assert "nothing of ours was there" in run("uninstall", *options).output
    assert (tmp_path / "venv/bin/python").exists()
