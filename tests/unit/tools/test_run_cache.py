"""The cache of `./run`: shared by what is in it, built once, and never taken away from its users."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 120
"""For what hangs; on a busy machine eight shells take a while."""
MAKE = """make() {
  echo made >>"$cache/count"
  mkdir "$entry.new"; echo whole >"$entry.new/file"; mv -T "$entry.new" "$entry"
}"""
"""Whole or not at all, as every maker's: another run that sees it takes no lock."""


def bash(cache: Path, script: str, run: Path = ROOT / "run") -> subprocess.Popen[str]:
    """A script that has the functions of `./run`, with a cache of its own."""
    text = f'set -- help; source "{run}" >/dev/null; cache={cache}; python=/usr/bin/python3\n{MAKE}\n{script}'
    return subprocess.Popen(["bash", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


def fill(cache: Path, count: int) -> list[Path]:
    """Entries of the kind `thing`, the one used longest ago first."""
    entries = [cache / f"thing-{number:012d}" for number in range(count)]
    for age, entry in enumerate(reversed(entries)):
        entry.mkdir()
        os.utime(entry, (1_000_000_000 - age, 1_000_000_000 - age))
    return entries


def test_concurrent_runs_build_once(tmp_path: Path) -> None:
    runs = [bash(tmp_path, 'entry thing 00000000000a make; cat "$entry/file"') for _ in range(8)]
    assert [output(run) for run in runs] == ["whole\n"] * 8
    assert (tmp_path / "count").read_text() == "made\n"


def test_what_an_interrupted_run_left_is_removed_and_made_again(tmp_path: Path) -> None:
    (tmp_path / "thing-00000000000a.new").mkdir()
    output(bash(tmp_path, "entry thing 00000000000a make"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count", "lock", "thing-00000000000a"]


def test_the_eight_used_last_of_a_kind_stay(tmp_path: Path) -> None:
    old = fill(tmp_path, 12)
    (tmp_path / "thing-opt-00000000000b").mkdir()
    output(bash(tmp_path, "entry thing 00000000000a make"))
    assert sorted(tmp_path.glob("thing-*")) == sorted(
        [*old[5:], tmp_path / "thing-00000000000a", tmp_path / "thing-opt-00000000000b"]
    )


def test_using_an_entry_makes_it_the_last_to_go(tmp_path: Path) -> None:
    old = fill(tmp_path, 8)
    output(bash(tmp_path, f"entry thing {old[0].name.removeprefix('thing-')} make; entry thing 00000000000a make"))
    assert old[0].exists()
    assert not old[1].exists()


def test_what_another_run_or_a_sandbox_uses_stays(tmp_path: Path) -> None:
    old = fill(tmp_path, 12)
    used = os.open(old[0], os.O_RDONLY)
    fcntl.flock(used, fcntl.LOCK_SH)
    output(bash(tmp_path, "entry thing 00000000000a make"))
    assert (old[0].exists(), old[1].exists()) == (True, False)
    os.close(used)


def test_what_a_run_uses_stays_as_long_as_what_it_started_runs(tmp_path: Path) -> None:
    old = fill(tmp_path, 12)
    key = old[0].name.removeprefix("thing-")
    first = bash(tmp_path, f"entry thing {key} make; touch -d @1 $entry; exec sleep infinity")
    with first:
        while old[0].stat().st_mtime != 1:
            assert first.poll() is None
        output(bash(tmp_path, "entry thing 00000000000a make"))
        assert old[0].exists()
        first.kill()


def test_what_a_unit_of_this_host_names_stays(tmp_path: Path) -> None:
    old = fill(tmp_path, 12)
    units = tmp_path / "config" / "systemd" / "user"
    units.mkdir(parents=True)
    (units / "x.service").write_text(f"[Service]\nExecStart={old[0]}/bin/keep-manager\n")
    output(bash(tmp_path, f"export XDG_CONFIG_HOME={tmp_path}/config; entry thing 00000000000a make"))
    assert (old[0].exists(), old[1].exists()) == (True, False)


def test_an_entry_that_went_while_it_was_waited_for_is_made_again(tmp_path: Path) -> None:
    (old,) = fill(tmp_path, 1)
    pruning = os.open(old, os.O_RDONLY)
    fcntl.flock(pruning, fcntl.LOCK_EX)
    waiting = bash(
        tmp_path, f'echo >"$cache/begun"; entry thing {old.name.removeprefix("thing-")} make; cat $entry/file'
    )
    while not (tmp_path / "begun").exists():
        assert waiting.poll() is None
    shutil.rmtree(old)
    os.close(pruning)
    assert output(waiting) == "whole\n"


def test_checkouts_share_what_is_equal_and_a_changed_source_is_another_key(tmp_path: Path) -> None:
    keys = []
    for name in ("one", "two"):
        checkout = tmp_path / name
        (checkout / "keep_protocol").mkdir(parents=True)
        (checkout / "keep_protocol" / "x.py").write_text("x = 1\n")
        for file in ("run", "pyproject.toml", "README.md", "LICENSE", "requirements.lock"):
            shutil.copy(ROOT / file, checkout / file)
        keys.append(output(bash(tmp_path, 'sources_key; echo "$playground"', checkout / "run")).split())
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1], "each checkout has a playground of its own"
    (tmp_path / "two" / "keep_protocol" / "x.py").write_text("x = 2\n")
    assert output(bash(tmp_path, "sources_key", tmp_path / "two" / "run")).split() != keys[0][:1]


MIRROR = """there={tmp}/mirror; mirror() {{ echo "file://$there"; }}; is_root() {{ true; }}
debootstrap() {{ echo "I: begins"; echo "E: {said}"; {then}; }}
mkdir -p "$there/dists/trixie"; echo x >"$there/dists/trixie/Release"; entry=$cache/root-00000000000a; {script}"""


def made_root(tmp: Path, said: str, then: str = "return 1", script: str = "make_root trixie") -> tuple[int, str]:
    """The exit status of making a root directory, and what is said, where debootstrap says that and does `then`."""
    cache = tmp / "cache"
    cache.mkdir()
    process = bash(cache, MIRROR.format(tmp=tmp, said=said, then=then, script=script))
    text, _ = process.communicate(timeout=SECONDS)
    return process.returncode, text


def test_a_debootstrap_that_fails_is_a_failure_with_its_last_word(tmp_path: Path) -> None:
    status, said = made_root(tmp_path, "Failure while configuring base packages")
    assert status == 1
    assert "cannot make a root directory of trixie: E: Failure while configuring base packages; see " in said


@pytest.mark.parametrize(
    ("said", "then", "script"),
    [
        ("gone", "return 1", "make_root forky"),
        ("gone", 'rm -r "$there"; return 1', "make_root trixie"),
        ("Cannot install into target '/x' mounted with noexec or nodev", "return 1", "make_root trixie"),
        ("gone", "return 1", "is_root() { false; }; debian_root trixie"),
    ],
    ids=["no such suite", "the mirror went meanwhile", "no device files", "no root"],
)
def test_a_root_directory_that_cannot_be_had_here_is_no_failure(
    tmp_path: Path, said: str, then: str, script: str
) -> None:
    status, text = made_root(tmp_path, said, then, script)
    assert status == os.EX_UNAVAILABLE, text
    assert "cannot get what a test needs" in text


def test_a_root_directory_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    status, text = made_root(tmp_path, "none", 'mkdir "$entry.new"', 'make_root trixie && ls "$cache"')
    assert (status, text.splitlines()[-1]) == (0, "root-00000000000a"), text
