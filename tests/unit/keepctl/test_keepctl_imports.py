"""What `keepctl run` and `keepctl ps` import before their first request: a person waits for each module of the list.

A module that is added costs every command its time. Add it to a list only with a reason.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import keepctl

ROOT = Path(keepctl.__file__).parent.parent
OURS = {
    "ps": {
        "keep_client",
        *(
            f"keep_client.{name}"
            for name in (
                "channel",
                "connection",
                "credentials",
                "http",
                "manager",
                "peer",
            )
        ),
        "keep_protocol",
        *(
            f"keep_protocol.{name}"
            for name in (
                "constants",
                "enumeration",
                "errors",
                "fields",
                "keep",
                "limits",
                "outcome",
                "patterns",
                "spec",
                "sse",
                "states",
                "strict_json",
                "sockets",
                "tls_client",
                "tls_server",
            )
        ),
        "keepctl",
        *(
            f"keepctl.{name}"
            for name in (
                "__main__",
                "access",
                "arguments",
                "commands",
                "describe",
                "display",
                "references",
            )
        ),
        "keepctl.commands.keeps",
    }
}
OURS["run"] = (OURS["ps"] - {"keepctl.commands.keeps"}) | {
    "keep_client.keep",
    "keep_client.output",
    "keep_protocol.output",
    "keep_protocol.ring",
    "keepctl.output",
    "keepctl.commands.run",
    "keepctl.job",
    "keepctl.run",
}
STANDARD_LIBRARY = {
    "__future__",
    "_collections_abc",
    "_json",
    "_socket",
    "_ssl",
    "_stat",
    "binascii",
    "errno",
    "gc",
    "genericpath",
    "os",
    "os.path",
    "posixpath",
    "select",
    "stat",
}
"""In addition to what `python -I -S` has loaded before our first line."""
MORE = {"ps": set[str](), "run": {"_struct", "struct"}}
LINES = {"ps": ["ps"], "run": ["run", "m.wasm"]}
_CODE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
from keepctl.__main__ import exit_code
code = exit_code(sys.argv[1:])
print(code, *sorted(set(sys.modules) - before))
"""


def imported(words: list[str], environment: dict[str, str]) -> tuple[str, set[str]]:
    """How a command that finds no certificates ends, and what it has imported by then."""
    command = [sys.executable, "-I", "-S", "-c", _CODE, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=True)
    code, *modules = done.stdout.splitlines()[-1].split()
    return code, set(modules)


@pytest.mark.parametrize("name", LINES)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the list is that of the release keepctl is measured on")
def test_a_command_that_is_typed_well_imports_these_modules_and_no_others(tmp_path: Path, name: str) -> None:
    environment = {"KEEPFLEET_PKI": str(tmp_path / "pki"), "XDG_CONFIG_HOME": str(tmp_path)}
    (tmp_path / "m.wasm").write_bytes(b"")
    words = [word.replace("m.wasm", str(tmp_path / "m.wasm")) for word in LINES[name]]
    code, modules = imported(words, environment)
    assert code == {"ps": "1", "run": "125"}[name], "it went as far as it gets without certificates"
    ours = {module for module in modules if module.startswith("keep")}
    assert ours == OURS[name]
    assert modules - ours == STANDARD_LIBRARY | MORE[name]


def test_the_version_is_said_with_hardly_any_import() -> None:
    code, modules = imported(["--version"], {})
    assert code == "0"
    assert {module for module in modules if module.startswith("keep")} == {
        "keepctl",
        "keepctl.__main__",
        "keepctl.version",
    }
    assert not modules & {"enum", "re", "ssl", "typing"}
