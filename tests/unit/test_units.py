"""The unit files as text: each directive explained, nothing left unfilled, the two variants alike where they can be."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

UNITS = Path(str(resources.files("units")))
FILES = sorted(path for variant in ("system", "user") for path in (UNITS / variant).rglob("*") if path.is_file())
PLACEHOLDERS = {"@PREFIX@", "@PYTHON_REAL@", "@PACKAGES@", "@VERSIONS@", "@OPENSSL@"}
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
