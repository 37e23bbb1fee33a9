"""Every command the README and the tutorial tell a newcomer to type is typed here, on a real host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.system.fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 300
"""`./run demo` builds a wheel and its environment where there is none yet."""
# Everything a checkout's script runs gets a loopback of its own, so that the ports of the docs are free.
OWN_LOOPBACK = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed(script: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [*OWN_LOOPBACK, "bash", "-euxo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.usefixtures("prefix")
def test_the_readmes_playground_does_what_it_says() -> None:
    lines = [line for block in blocks("README.md", "") for line in block.splitlines()]
    playground = [line for line in lines if re.match(r"\./run (up|exec|down)", line)]
    assert playground[0] == "./run up" and playground[-1] == "./run down"
    name = f"readme-{os.getpid()}"
    output = typed(f"trap './run down' EXIT\n{chr(10).join(playground)}", {"KEEPFLEET_PLAYGROUND": name})
    assert "All answers were as they should be" in output
    assert "awaiting workload" in output


@pytest.mark.usefixtures("prefix")
def test_the_readmes_demo_ends_with_every_step_checked() -> None:
    assert "./run demo" in "".join(blocks("README.md", ""))
    output = typed("./run demo", {})
    assert "Hello from C, inside a keep!" in output
    assert output.rstrip().endswith("Every step was checked.")


def test_the_demo_fails_and_names_the_step_for_a_file_that_is_no_module() -> None:
    done = subprocess.run(
        [*OWN_LOOPBACK, "./run", "demo", "README.md"], cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 1
    assert "FAILED at: step 6" in done.stderr
    assert "cannot take the module" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_the_tutorial_can_be_typed_from_its_first_to_its_last_line(fleet: Fleet) -> None:
    commands = [line for block in blocks("docs/tutorial.md", "sh") for line in block.splitlines()]
    inside = [line for line in commands if not line.startswith("./run ") and line != "exit"]
    assert len(commands) - len(inside) == 4, "only ./run up, ./run exec, exit and ./run down stand outside the host"
    checkout = fleet.host.path / "checkout"  # the host need not see the real one: it may lie below /tmp
    shutil.copytree(ROOT / "examples", checkout / "examples")
    output = fleet.host.run(
        ["bash", "-euxo", "pipefail", "-c", f"cd {checkout}\n{chr(10).join(inside)}"],
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"},
        timeout=COMMAND_SECONDS,
    ).stdout
    for told in (
        "listening: ready for a start",
        "Hello from C, inside a keep!",
        "returned: [1]",
        "refused, exit code 1",
        "trapped, exit code 1",
        "out of bounds memory access",
        "All answers were as they should be",
    ):
        assert told in output, f"the tutorial promises {told!r}; it printed:\n{output}"
