"""The docs hold together: generated parts are current, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keep_protocol.constants import DEFAULT_MANAGER_PORT, FIRST_KEEP_PORT

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_what_the_docs_derive_from_code_is_what_the_code_says() -> None:
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_teaches_to_read_a_keep_s_lines_by_a_field_that_any_user_can_write(page: Path) -> None:
    """A line's sender chooses KEEP_ID and the like; only journald sets the unit that `-u` looks for."""
    taught = re.findall(r"journalctl\b[^`\n]*\bKEEP_[A-Z]+=[^`\n]*", page.read_text(encoding="utf-8"))
    assert [command for command in taught if not re.search(r" (-u|--unit=)", command)] == []


def test_the_readme_says_all_that_a_host_needs() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "needs systemd, Python 3.11 or later and OpenSSL's library" in text


def test_the_pages_say_which_ports_a_firewall_opens() -> None:
    page = " ".join((ROOT / "docs/how-to/keepctl.md").read_text(encoding="utf-8").split())
    assert f"A firewall opens the manager's port ({DEFAULT_MANAGER_PORT}) and those: `keep_ports: " in page
    assert f"`keep_ports: {{first: {FIRST_KEEP_PORT}, last: " in page
    assert "## From another host" in (ROOT / "docs/how-to/keepctl.md").read_text(encoding="utf-8")
    operations = " ".join((ROOT / "docs/operations.md").read_text(encoding="utf-8").split())
    assert "firewall opens its port and [those of the keeps](how-to/keepctl.md#from-another-host)" in operations


def test_the_classifiers_name_every_python_that_is_supported() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'"Programming Language :: Python :: 3\.([0-9]+)"', text)
    assert named == ["11", "12", "13", "14"]


def test_no_line_of_the_changelog_is_over_120_characters() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []
