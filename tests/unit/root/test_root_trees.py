"""A keep's root on disk: what is in it, how it is made whole or not at all, and how a change of the host is noticed."""

from __future__ import annotations

import compileall
import errno
import fcntl
import functools
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_root import build as builder
from keep_root import contents as goods
from keep_root import trees as all_trees
from keep_root.build import UNFINISHED
from keep_root.contents import (
    COMPILED,
    DATA,
    MAIN,
    MOUNT_POINTS,
    PACKAGES,
    PYTHON,
    Contents,
    Entry,
    Target,
    contents,
    target_of,
)
from keep_root.tree import FILES, RECORD, Tree, findings, is_in_use, read_tree, write_records
from keep_root.trees import FRESH_SECONDS, Trees, remove_trees, trees_in_use

ROOT = Path(__file__).resolve().parents[3]
EVERY_IMPORT = """import importlib, os, sys
sys.path.append("/keepfleet/packages")
for directory, _, names in os.walk("/keepfleet/packages"):
    for name in names:
        module = os.path.relpath(os.path.join(directory, name), "/keepfleet/packages")
        ours = module.startswith(("keep_", "app_loader"))
        if ours and module.endswith(".py") and not module.endswith("__main__.py"):
            importlib.import_module(module[:-3].replace("/", ".").removesuffix(".__init__"))
import calendar, encodings.idna, ssl, traceback
ssl.create_default_context()
from app_loader.engine.binding import Library
Library()
print(sys.prefix, *sys.path)
"""
BEING_WRITTEN = shutil.ignore_patterns("*.pyc.*")
"""What an interpreter that another test has started is compiling, in the checkout itself."""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with keepfleet's packages and what they need, all of it compiled, as a version's site-packages."""
    directory = tmp_path_factory.mktemp("site-packages")
    for name in goods.OURS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=BEING_WRITTEN)
    for name in goods.LIBRARIES:
        shutil.copytree(Path(sysconfig.get_path("purelib"), name), directory / name)
    compileall.compile_dir(directory, quiet=2)
    return directory


FEW = re.compile(r"[^/]+/[^/]+/[^/]+/(os\.py|json/.*|lib-dynload/_(ssl|ctypes|json)\..*)")
_whole_library = goods._standard_library


@functools.cache
def few_of(_left_out: re.Pattern[str], library: str, place: str, tag: str) -> list[Entry]:
    return [entry for entry in _whole_library(library, place, tag) if FEW.fullmatch(entry.place)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard library of a few files, which is found and copied faster, and of which `ldd` has few to load."""
    monkeypatch.setattr(goods, "_standard_library", lambda *of: few_of(goods._LEFT_OUT_MODULES, *of))


@pytest.fixture
def host(packages: Path, tmp_path: Path) -> Path:
    """A version of one's own, to be changed: hard links of `packages`, and an interpreter that can be replaced."""
    directory = tmp_path / "version"
    shutil.copytree(packages, directory, copy_function=os.link)
    return directory


@pytest.fixture
def trees(host: Path, tmp_path: Path, few: None) -> Trees:
    return Trees(str(tmp_path / "trees"), target_of(sys.executable, str(host)))


def replace(path: Path) -> None:
    """As a package manager does: another file takes the name."""
    new = path.with_name(path.name + ".new")
    shutil.copy2(path, new)
    os.utime(new, ns=(1, path.stat().st_mtime_ns + 1))
    new.replace(path)


def files_of(tree: Tree) -> set[str]:
    return {str(path.relative_to(tree.path)) for path in Path(tree.path).rglob("*") if path.is_file()}


def test_a_tree_has_everything_that_a_keep_imports_and_its_paths_are_the_same_for_every_interpreter(
    packages: Path, tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("only root can make a directory its root")
    tree = Trees(str(tmp_path / "trees"), target_of(sys.executable, str(packages))).current()
    done = subprocess.run(
        ["chroot", tree.path, f"/{PYTHON}", "-I", "-S", "-c", EVERY_IMPORT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "/keepfleet"
    assert all(path.startswith("/keepfleet/") for path in done.stdout.split()[1:])


def test_a_tree_has_no_program_but_the_interpreter_no_account_and_no_setting_of_the_host(trees: Trees) -> None:
    tree = trees.current()
    programs = {
        place
        for place in files_of(tree)
        if not place.endswith((".py", ".pyc", *COMPILED, *DATA)) and ".so" not in place
    }
    assert programs == {PYTHON}
    libraries = ["lib"] if any(place.startswith("usr/lib/") for place in files_of(tree)) else []  # as the host has it
    assert (os.listdir(f"{tree.path}/etc"), os.listdir(f"{tree.path}/usr")) == ([], libraries)
    assert all(os.path.isdir(f"{tree.path}/{point}") for point in MOUNT_POINTS)


def test_no_one_may_read_the_interpreter_and_every_user_the_rest(trees: Trees) -> None:
    old = os.umask(0o077)
    try:
        tree = trees.current()
    finally:
        os.umask(old)
    for path in Path(tree.path).rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if str(path.relative_to(tree.path)) == PYTHON:
            assert mode == 0o111
        else:
            assert mode & 0o444 == 0o444 and not mode & 0o022, path


def test_a_file_that_others_could_not_read_or_could_change_is_copied_and_every_other_linked(
    trees: Trees, host: Path
) -> None:
    closed, opened, plain = (host / "app_loader" / name for name in ("limits.py", "settings.py", "__init__.py"))
    for path, mode in ((closed, 0o600), (opened, 0o666), (plain, 0o644)):
        replace(path)
        path.chmod(mode)
    tree = trees.current()
    inodes = {path: (Path(tree.path) / PACKAGES / path.relative_to(host)).stat() for path in (closed, opened, plain)}
    assert [found.st_ino == path.stat().st_ino for path, found in inodes.items()] == [False, False, True]
    assert {stat.S_IMODE(found.st_mode) for found in inodes.values()} == {0o644}


def test_where_no_hard_link_can_be_made_files_are_copied_with_their_time(
    trees: Trees, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    tree = trees.current()
    copied, source = Path(tree.path, PACKAGES, MAIN), host / MAIN
    assert copied.read_bytes() == source.read_bytes() and copied.stat().st_ino != source.stat().st_ino
    assert copied.stat().st_mtime_ns == source.stat().st_mtime_ns, "else Python would not take its compiled form"
    assert findings(tree) == []


def test_what_the_host_has_not_compiled_is_compiled_in_the_tree(trees: Trees, host: Path) -> None:
    for cache in host.rglob("__pycache__"):
        shutil.rmtree(cache)
    tree = trees.current()
    sources = [place for place in files_of(tree) if place.endswith(".py")]
    assert {goods.compiled_place(place, sys.implementation.cache_tag or "") for place in sources} <= files_of(tree)
    assert findings(tree) == []


def test_the_same_host_has_one_tree_and_a_new_manager_finds_it(trees: Trees) -> None:
    tree = trees.current()
    assert trees.current() == tree and trees.ready == tree
    assert Trees(trees.directory, trees.target).current() == tree
    assert trees.names() == [os.path.basename(tree.directory)]


def test_another_version_has_another_tree(trees: Trees, packages: Path) -> None:
    other = Trees(trees.directory, Target(trees.target.python, str(packages)))
    assert trees.current().directory != other.current().directory
    assert len(trees.names()) == 2


@pytest.mark.parametrize("place", [MAIN, "wasmtime/linux-x86_64/_libwasmtime.so"])
def test_a_library_that_is_replaced_on_the_host_leads_to_a_new_tree_and_the_old_one_keeps_its_own(
    trees: Trees, host: Path, place: str
) -> None:
    if not (host / place).exists():
        pytest.skip("a library of another processor")
    old = trees.current()
    before = Path(old.path, PACKAGES, place).stat().st_ino
    replace(host / place)
    assert trees.ready is None
    assert (old.change() or "").endswith("has changed since")
    new = trees.current()
    assert new.directory != old.directory
    assert Path(old.path, PACKAGES, place).stat().st_ino == before
    assert Path(new.path, PACKAGES, place).stat().st_ino == (host / place).stat().st_ino


def test_a_source_that_is_replaced_is_found_by_a_look_at_every_file(trees: Trees, host: Path) -> None:
    old = trees.current()
    replace(host / "app_loader/limits.py")
    assert trees.ready == old, "no creation looks at a thousand files"
    assert findings(old) == [f"{host}/app_loader/limits.py has changed since the tree was made"]
    assert trees.repaired() == findings(old)
    assert trees.current().directory != old.directory
    assert read_tree(old.directory) == old, "a keep may have it"


def delete(tree: Tree) -> None:
    shutil.rmtree(tree.directory)


def delete_the_interpreter(tree: Tree) -> None:
    os.unlink(f"{tree.path}/{PYTHON}")


def replace_a_library(tree: Tree) -> None:
    replace(next(Path(tree.path).glob("**/libc.so.6")))


def move_another_over_it(tree: Tree) -> None:
    shutil.rmtree(tree.path)
    os.mkdir(tree.path)


DAMAGES = (delete, delete_the_interpreter, replace_a_library, move_another_over_it)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_tree_is_noticed_before_the_next_keep_and_made_again(
    trees: Trees, damage: Callable[[Tree], None]
) -> None:
    tree = trees.current()
    damage(tree)
    assert trees.ready is None and tree.damage() is not None
    assert trees.current() == read_tree(tree.directory)
    assert findings(trees.current()) == [] and trees.names() == [os.path.basename(tree.directory)]


def test_a_tree_that_is_damaged_under_a_keep_is_removed_when_that_has_gone(trees: Trees) -> None:
    tree = trees.current()
    held = os.open(tree.path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    Path(tree.path, PACKAGES, "keep_loader/loop.py").unlink()
    assert trees.repaired() == [f"{tree.path}/{PACKAGES}/keep_loader/loop.py is missing"]
    assert findings(trees.current()) == [] and trees.names() == [os.path.basename(tree.directory)]
    assert os.path.exists(f"/proc/self/fd/{held}/{PACKAGES}/{MAIN}")
    os.close(held)
    trees.remove_unused(frozenset())
    assert os.listdir(trees.directory) == trees.names()


def test_every_file_that_is_missing_changed_or_new_is_named(trees: Trees) -> None:
    tree = trees.current()
    loader = Path(tree.path, PACKAGES, "keep_loader")
    (loader / "control.py").unlink()
    (loader / "loop.py").unlink()
    (loader / "loop.py").write_text("x")
    (loader / "extra.py").write_text("x")
    Path(tree.path, "srv").mkdir()
    Path(tree.path, "srv/mounted-over").touch()
    shutil.rmtree(Path(tree.path, "home"))
    assert sorted(findings(tree)) == sorted([
        f"{loader}/control.py is missing", f"{loader}/loop.py is not as it was made",
        f"{loader}/extra.py is none of the tree's files", f"{tree.path}/home is missing",
    ])  # fmt: skip
    (Path(tree.directory) / FILES).write_text("{")
    assert "cannot be read" in findings(tree)[0]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 1, "watched": [[1]]}', "x" * 100])
def test_a_tree_whose_record_cannot_be_read_is_none(trees: Trees, text: str) -> None:
    tree = trees.current()
    Path(tree.directory, RECORD).write_text(text)
    assert read_tree(tree.directory) is None
    again = Trees(trees.directory, trees.target)
    assert findings(again.current()) == []


def test_a_tree_that_another_user_could_have_made_is_not_used(trees: Trees) -> None:
    tree = trees.current()
    Path(tree.directory).chmod(0o777)
    made = Trees(trees.directory, trees.target).current()
    assert stat.S_IMODE(os.stat(made.directory).st_mode) == 0o755


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_disk_that_is_full_is_a_clear_error_and_nothing_is_left(
    trees: Trees, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    calls = iter(range(after))

    def write(_: int, data: memoryview) -> int:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))
        return len(data)

    monkeypatch.setattr("keep_root.build.os.write", write)
    with pytest.raises(KeepfleetError, match="cannot build the keeps' root in") as raised:
        trees.current()
    assert os.listdir(trees.directory) == []
    full = number != errno.EIO
    assert raised.value.kind is (ErrorKind.NO_SPACE if full else ErrorKind.CONFIGURATION)
    assert ("it takes up to 80 MB" in raised.value.message) == full


def test_what_a_killed_builder_left_is_no_tree_and_is_removed(trees: Trees, host: Path) -> None:
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from keep_root import build; from keep_root.trees import Trees; from keep_root.contents import target_of\n"
        "build.write_records = lambda *_: os.kill(os.getpid(), 9)\n"
        "Trees(sys.argv[2], target_of(sys.argv[3], sys.argv[4])).current()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), trees.directory, trees.target.python, trees.target.packages]
    )
    assert done.returncode == -9
    (left,) = os.listdir(trees.directory)
    assert left.startswith(UNFINISHED) and trees.names() == []
    tree = trees.current()
    assert remove_trees(trees.directory) == [tree.directory]
    assert not os.path.exists(trees.directory)


def test_a_builder_at_work_is_left_alone(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_trees, "ABANDONED_SECONDS", 0.0)

    def clear_first(directory: str, target: Target, wanted: Contents) -> None:
        trees.remove_unused(frozenset())
        write_records(directory, target, wanted)

    monkeypatch.setattr(builder, "write_records", clear_first)
    assert findings(trees.current()) == []


def test_of_builders_at_the_same_time_each_gets_the_one_tree(trees: Trees) -> None:
    several = [Trees(trees.directory, trees.target) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda one: one.make(), several))
    assert len({tree.directory for tree in made}) == 1 and findings(made[0]) == []
    assert os.listdir(trees.directory) == [os.path.basename(made[0].directory)]


@pytest.fixture
def old(trees: Trees, host: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """A tree that new keeps no longer get, of two hours ago."""
    tree = trees.current()
    replace(host / MAIN)
    trees.current()
    now = time.time() + 2 * FRESH_SECONDS
    monkeypatch.setattr("keep_root.trees.time.time", lambda: now)
    yield tree


def test_an_old_tree_stays_while_a_unit_names_it_or_a_loader_runs_in_it(trees: Trees, old: Tree) -> None:
    assert trees.remove_unused({old.path}) == []
    held = os.open(old.path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    assert is_in_use(old.directory) and trees_in_use(trees.directory) == [old.directory]
    assert trees.remove_unused(frozenset()) == []
    os.close(held)
    assert trees.remove_unused(frozenset()) == [os.path.basename(old.directory)]
    assert len(trees.names()) == 1 and trees.ready is not None


def test_a_fresh_tree_stays_for_the_manager_that_is_to_use_it(trees: Trees, packages: Path) -> None:
    Trees(trees.directory, Target(trees.target.python, str(packages))).current()
    trees.current()
    assert trees.remove_unused(frozenset()) == [] and len(trees.names()) == 2


def test_a_user_s_manager_takes_root_s_tree_where_it_is_the_same(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_trees, "SYSTEM", trees.directory)
    shared = trees.current()
    own = Trees(str(tmp_path / "home"), trees.target)
    assert own.current() == own.make() == shared
    assert not (tmp_path / "home").exists()


def test_what_is_missing_is_named_with_what_to_do(trees: Trees, host: Path) -> None:
    shutil.rmtree(host / "wasmtime")
    with pytest.raises(KeepfleetError, match="has no package wasmtime; run: keepctl install"):
        trees.current()
    with pytest.raises(KeepfleetError, match="it cannot ask /nonexistent/python"):
        contents(Target("/nonexistent/python", str(host)))
    with pytest.raises(KeepfleetError, match="does not say where its library is"):
        contents(Target("/bin/true", str(host)))


def test_an_interpreter_that_has_tls_within_it_gets_the_host_s_libcrypto(
    host: Path, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As uv's: no object of its own needs the library."""
    monkeypatch.setattr(goods, "_LEFT_OUT_MODULES", re.compile(r"_ssl|_hashlib"))
    tree = Trees(str(tmp_path / "trees"), target_of(sys.executable, str(host))).current()
    assert [place for place in files_of(tree) if "libcrypto" in place]
    assert not [place for place in files_of(tree) if "/_ssl." in place]


def test_an_interpreter_that_has_tls_within_it_on_a_host_without_libcrypto_is_refused(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goods, "_LEFT_OUT_MODULES", re.compile(r"_ssl|_hashlib"))
    monkeypatch.setattr(goods, "_CRYPTO", goods._CRYPTO.replace("libcrypto.so.3", "libcrypto.so.0"))
    with pytest.raises(KeepfleetError, match=r"finds no libcrypto: OSError: libcrypto\.so\.0: cannot open"):
        trees.current()
