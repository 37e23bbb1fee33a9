"""The server for language models, spoken to by the protocol's own client over standard input and output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from script_pool.client import ScriptError
from script_pool.mcp import in_words

ROOT = Path(__file__).resolve().parents[3]


def server(*arguments: str) -> StdioServerParameters:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "HOME": os.environ.get("HOME", "/")}
    command = [*arguments] or ["-m", "script_pool", "--mcp", "--time=0.5", "--max=1"]
    return StdioServerParameters(command=sys.executable, args=command, cwd=str(ROOT), env=environment)


async def called(client: Client, **arguments: Any) -> Any:
    return await client.call_tool("run_javascript", arguments)


async def test_a_model_s_code_runs_with_its_input_and_gives_output_and_console() -> None:
    async with Client(server()) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert "run_javascript" in tools
        assert set(tools["run_javascript"].input_schema["properties"]) == {"code", "input", "typescript"}
        done = await called(
            client, code="console.log('hi'); total = items.reduce((a, b) => a + b)", input={"items": [1, 2]}
        )
        assert not done.is_error
        assert done.structured_content["output"] == {"items": [1, 2], "total": 3}
        assert done.structured_content["console"] == ["hi"]
        typed = await called(client, code="const a: number = 4; x = a * 2", typescript=True)
        assert typed.structured_content["output"] == {"x": 8}


async def test_each_call_begins_in_a_fresh_world_and_what_goes_wrong_is_told() -> None:
    async with Client(server()) as client:
        await called(client, code="globalThis.left = 1")
        again = await called(client, code="seen = typeof left")
        assert again.structured_content["output"] == {"seen": "undefined"}
        thrown = await called(client, code="console.log('begins');\nfunction f() { null.x }\nf()")
        assert thrown.is_error
        text = thrown.content[0].text
        assert "exception: TypeError: cannot read property 'x' of null" in text
        assert "script:2:" in text
        assert "console:\n    begins" in text
        assert "syntax error" in (await called(client, code="let a = ;")).content[0].text
        assert "time limit exceeded" in (await called(client, code="for (;;);")).content[0].text
        assert (await called(client, code="x = 1")).structured_content["output"] == {"x": 1}


async def test_keepctl_serves_it_too() -> None:
    async with Client(server("-m", "keepctl", "mcp", "--", "--max=1")) as client:
        assert (await called(client, code="x = 2")).structured_content["output"] == {"x": 2}


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "mcp").mkdir()
    (tmp_path / "mcp" / "__init__.py").write_text("raise ModuleNotFoundError('No module named mcp', name='mcp')\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "script_pool", "--mcp"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 1
    assert b"there is no package mcp; pip install keepfleet[mcp]" in done.stderr


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"reason": "queue full"}, "queue full"),
        ({"reason": "exception", "name": "E", "message": "m", "stack": ["at f"]}, "exception: E: m\n    at f"),
    ],
)
def test_why_a_script_has_no_result_is_said_in_lines(answer: dict[str, Any], said: str) -> None:
    assert in_words(ScriptError(answer)) == said
