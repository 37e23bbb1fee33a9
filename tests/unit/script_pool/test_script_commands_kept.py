"""What an installation compiles for scripts is taken from where another has left it, when it was made of the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from script_pool.program import __main__ as program

MADE = {"commands": ("javascript-standard.cwasm", b"command"), "engines": ("quickjs.cwasm", b"engine")}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the engines of an installation are; its commands are next to them."""
    monkeypatch.setenv(program.KEPT, str(tmp_path / "kept"))
    monkeypatch.setattr(program, "INSTALLED", str(tmp_path / "engines"))
    monkeypatch.setattr("sys.argv", ["program", str(tmp_path / "commands")])
    return tmp_path


def test_what_was_made_of_the_same_is_copied_and_not_compiled(installed: Path) -> None:
    for part, (name, data) in MADE.items():
        place = installed / "kept" / program.digest_of_all() / part
        place.mkdir(parents=True)
        (place / name).write_bytes(data)
    program.main()
    for part, (name, data) in MADE.items():
        assert (installed / part / name).read_bytes() == data
    assert (installed / "commands" / program.MADE_OF).read_text() == program.digest_of_all()


def test_what_was_made_is_left_for_the_next_and_of_two_that_make_it_one_wins(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(commands: str, engines: str) -> None:
        made.append(commands)
        if len(made) == 1:
            program.main()  # another one, meanwhile
        for part, directory in (("commands", commands), ("engines", engines)):
            Path(directory).mkdir(exist_ok=True)
            (Path(directory) / MADE[part][0]).write_bytes(MADE[part][1])

    monkeypatch.setattr(program, "_make", make)
    program.main()
    (installed / "commands" / program.MADE_OF).unlink()
    program.main()
    assert len(made) == 2
    assert [path.name for path in (installed / "kept").iterdir()] == [program.digest_of_all()]
    assert (installed / "engines" / "quickjs.cwasm").read_bytes() == b"engine"


def test_what_cannot_be_made_leaves_nothing(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(commands: str, engines: str) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(program, "_make", fail)
    with pytest.raises(OSError, match="the disk is full"):
        program.main()
    assert list((installed / "kept").iterdir()) == []
