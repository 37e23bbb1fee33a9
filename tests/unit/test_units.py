"""The unit files as text: each directive explained, nothing left unfilled, the two variants alike where they can be."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from keep_root.contents import MAIN, PACKAGES, PYTHON

UNITS = Path(str(resources.files("units")))
FILES = sorted(path for variant in ("system", "user") for path in (UNITS / variant).rglob("*") if path.is_file())
PLACEHOLDERS = {"@PREFIX@", "@TREES@"}
# What a user manager cannot do, and who a keep is there: the only keys of the system's variant the user's may lack.
SYSTEM_ONLY = {"DynamicUser", "User", "ProtectProc", "ProcSubset", "IPAddressDeny", "DevicePolicy"}
SYSTEM_ONLY |= {"LogRateLimitIntervalSec"}


def keys(path: Path) -> set[str]:
    return set(re.findall(r"^([A-Za-z]+)=", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(UNITS)))
def test_every_directive_stands_under_a_sentence_that_names_its_man_page(path: Path) -> None:
    comment: list[str] = []
    explained = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("#"):
            comment.append(line)
        elif re.match(r"[A-Za-z]+=", line):
            if comment:
                text = " ".join(comment)
                explained = bool(re.search(r"[.)] ?[a-z.-]*", text)) and bool(re.search(r"[a-z.-]+\([57]\)", text))
            assert explained, f"{path}:{number}: {line} has no sentence with its man page"
            comment = []
        else:
            comment, explained = [], line.strip() == "[Install]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(UNITS)))
def test_only_known_placeholders_stand_in_a_unit(path: Path) -> None:
    assert set(re.findall(r"@[A-Z_]+@", path.read_text())) <= PLACEHOLDERS


def test_the_user_variant_lacks_only_what_a_user_manager_cannot_do() -> None:
    name = Path("keep@.service.d/10-keepfleet.conf")
    assert keys(UNITS / "system" / name) - keys(UNITS / "user" / name) == SYSTEM_ONLY


@pytest.mark.parametrize("variant", ["system", "user"])
def test_a_keep_s_programs_are_those_of_its_own_root_which_the_unit_itself_does_not_name(variant: str) -> None:
    """Without the manager's RootDirectory= nothing of the host's is started in a keep's place."""
    name = Path("keep@.service.d/10-keepfleet.conf")
    text = (UNITS / variant / name).read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert command == f"/{PYTHON} -I -S /{PACKAGES}/{MAIN} %i"
    assert "RootDirectory" not in keys(UNITS / variant / name)


@pytest.mark.parametrize("variant", ["system", "user"])
def test_every_path_that_is_denied_is_one_inside_the_keep_s_root(variant: str) -> None:
    """Without the + systemd accepts them, takes them for the host's, and does nothing."""
    text = (UNITS / variant / "keep@.service.d/10-keepfleet.conf").read_text()
    denied = re.findall(r"^(?:NoExecPaths|InaccessiblePaths|ReadOnlyPaths)=(.*)$", text, re.MULTILINE)
    words = " ".join(denied).split()
    assert words and all(re.match(r"-?\+[/%]", word) for word in words), words
