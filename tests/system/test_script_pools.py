"""Script pools in keeps: made over /v1/pools, used over mutual TLS, locked and limited as every keep."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.fleet import Fleet

RULE = "total = 0\nfor (const item of items) total += item.price * item.count\n"


@pytest.fixture
def place(fleet: Fleet) -> Iterator[Path]:
    """A directory of the host with scripts in it, and a pool called rules."""
    place = fleet.host.path / "pools"
    place.mkdir(exist_ok=True)
    (place / "rule.js").write_text(RULE)
    (place / "typed.ts").write_text("const doubled: number = x * 2\nx = doubled\n")
    (place / "loop.js").write_text("for (;;);\n")
    (place / "crash.js").write_text("const a = []; for (;;) a.push(new Uint8Array(1 << 20).fill(1))\n")
    made = typed(fleet, place, "scripts", "create", "rules", "--max", "2", "--time", "0.3")
    assert made.returncode == 0, made.stderr
    yield place
    typed(fleet, place, "rm", "rules")


def typed(fleet: Fleet, place: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return fleet.host.run(
        ["sh", "-c", 'cd "$0" && exec keepctl "$@"', str(place), *words],
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"},
        check=False,
        input=given,
    )


def test_scripts_are_added_run_listed_and_removed_over_tls(fleet: Fleet, place: Path) -> None:
    assert typed(fleet, place, "scripts", "add", "--pool", "rules", "rule", "rule.js").returncode == 0
    assert typed(fleet, place, "scripts", "add", "--pool", "rules", "typed", "typed.ts").returncode == 0
    order = json.dumps({"items": [{"price": 7, "count": 6}]})
    ran = typed(fleet, place, "scripts", "exec", "--pool", "rules", "rule", order)
    assert json.loads(ran.stdout)["total"] == 42, ran.stderr
    assert json.loads(typed(fleet, place, "scripts", "exec", "--pool", "rules", "typed", '{"x":4}').stdout) == {"x": 8}
    listed = json.loads(typed(fleet, place, "scripts", "ls", "--pool", "rules", "-o", "json").stdout)
    assert [each["name"] for each in listed["scripts"]] == ["rule", "typed"]
    assert typed(fleet, place, "scripts", "rm", "--pool", "rules", "typed").returncode == 0


def test_a_loop_and_a_memory_eater_are_ended_and_the_pool_goes_on(fleet: Fleet, place: Path) -> None:
    for name in ("rule", "loop", "crash"):  # the last one's processes may be ended by the kernel, for memory
        assert typed(fleet, place, "scripts", "add", "--pool", "rules", name, f"{name}.js").returncode == 0
    said = json.loads(typed(fleet, place, "scripts", "exec", "--pool", "rules", "loop", "-o", "json").stdout)
    assert said["reason"] == "time limit exceeded"
    said = json.loads(typed(fleet, place, "scripts", "exec", "--pool", "rules", "crash", "-o", "json").stdout)
    assert said["reason"] in ("memory limit exceeded", "time limit exceeded")
    rounds = typed(
        fleet, place, "scripts", "bench", "--pool", "rules", "rule", '{"items":[]}', "--calls", "100", "-o", "json"
    )
    assert [(each["in_flight"], each["refused"]) for each in json.loads(rounds.stdout)["rounds"]] == [
        (1, 0), (2, 0), (8, 0)
    ]  # fmt: skip


def test_a_pool_is_a_keep_with_an_owner(fleet: Fleet, place: Path) -> None:
    assert typed(fleet, place, "scripts", "ls", "--pool", "rules").returncode == 0  # it serves by now
    keep = json.loads(typed(fleet, place, "inspect", "rules", "-o", "json").stdout)
    assert (keep["kind"], keep["state"], keep["detail"]) == ("scripts", 2, "serving scripts")
    assert keep["owner"] == "admin"
