"""The server for language models, spoken to by the protocol's own client over standard input and output."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from mcp import Client, StdioServerParameters

from script_pool.client import ScriptError
from script_pool.mcp import host_functions, in_words
from tests.unit.script_pool.test_script_service import PATIENT

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("scripts_cache")
SHARED = pytest.mark.asyncio(loop_scope="module")


def server(*arguments: str) -> StdioServerParameters:
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],
    }
    command = [*arguments] or ["-m", "script_pool", "--mcp", *PATIENT, "--max=1"]
    return StdioServerParameters(command=sys.executable, args=command, cwd=str(ROOT), env=environment)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Client]:
    """One server for the tests that leave nothing in it: most of its time is importing the protocol's package. It is
    entered and left by one task, as that package wants it."""
    connected: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    end = asyncio.Event()

    async def serve() -> None:
        async with Client(server()) as made:
            connected.set_result(made)
            await end.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve())
        yield await connected
        end.set()


async def called(client: Client, **arguments: Any) -> Any:
    return await client.call_tool("run_javascript", arguments)


@SHARED
async def test_a_model_s_code_runs_with_its_input_and_gives_output_and_console(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert "run_javascript" in tools
    assert set(tools["run_javascript"].input_schema["properties"]) == {"code", "input", "typescript", "session"}
    done = await called(
        client, code="console.log('hi'); total = items.reduce((a, b) => a + b)", input={"items": [1, 2]}
    )
    assert not done.is_error
    assert done.structured_content["output"] == {"items": [1, 2], "total": 3}
    assert done.structured_content["console"] == ["hi"]
    typed = await called(client, code="const a: number = 4; x = a * 2", typescript=True)
    assert typed.structured_content["output"] == {"x": 8}


@SHARED
async def test_each_call_begins_in_a_fresh_world_and_what_goes_wrong_is_reported(client: Client) -> None:
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
    assert (await called(client, code="x = 1")).structured_content["output"] == {"x": 1}


@SHARED
async def test_python_is_offered_as_the_one_that_the_pool_has(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert str(tools["run_python"].description).startswith("Runs MicroPython 1.27 once")
    code = "print('hi')\ntotal = sum(items)"
    done = await client.call_tool("run_python", {"code": code, "input": {"items": [1, 2]}})
    assert done.structured_content["output"] == {"items": [1, 2], "total": 3}
    assert done.structured_content["console"] == ["hi"]
    wrong = await client.call_tool("run_python", {"code": "\nnobody()"})
    assert "NameError" in str(wrong.content[0])
    assert "script:2" in str(wrong.content[0])


@SHARED
async def test_a_session_goes_on_until_it_is_ended(client: Client) -> None:
    await called(client, code="const table = {a: 1}; var steps = 0", session="s")
    for steps in (1, 2):
        again = await called(client, code="steps++; seen = table.a", session="s")
        assert again.structured_content["output"]["steps"] == steps
    assert (await called(client, code="seen = typeof steps")).structured_content["output"] == {"seen": "undefined"}
    ended = await client.call_tool("end_session", {"session": "s"})
    assert ended.structured_content == {"ended": "s"}
    again = await client.call_tool("end_session", {"session": "s"})
    assert "no such session" in str(again.content[0])


SHOP = """
__all__ = ["price_of"]


def price_of(article: str) -> int:
    \"\"\"The price of an article.\"\"\"
    return {"pear": 4}[article]


def delete_all() -> None:
    raise AssertionError
"""


async def test_scripts_call_the_functions_that_the_operator_names_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(SHOP)
    options = ("-m", "script_pool", "--mcp", *PATIENT, "--max=1", f"--functions={file}", "--fetch=api.example.com")
    async with Client(server(*options)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        for name in ("run_javascript", "run_python"):
            assert "- price_of(article: str) -> int: The price of an article." in str(tools[name].description)
            assert "Asks api.example.com alone" in str(tools[name].description)
            assert tools[name].annotations is None
        done = await called(client, code="var total = 2 * await price_of('pear')")
        assert done.structured_content["output"] == {"total": 8}
        done = await client.call_tool("run_python", {"code": "total = 2 * price_of('pear')"})
        assert done.structured_content["output"] == {"total": 8}
        assert "among the hosts that are allowed" in str(
            (await called(client, code="await fetch('https://other.example/')")).content[0]
        )
        assert "delete_all" in str((await called(client, code="await delete_all()")).content[0])


@pytest.mark.parametrize("text", ["x = 1", "__all__ = ['missing']", "__all__ = 3"])
def test_a_file_that_names_no_functions_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ValueError, match="its __all__ must list functions that it defines"):
        host_functions(str(tmp_path / "a.py"), ())


async def test_keepctl_serves_it_too() -> None:
    async with Client(server("-m", "keepctl", "mcp", "--", *PATIENT, "--max=1")) as client:
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
        ({"reason": "time limit exceeded", "message": "the run took 1 s"}, "time limit exceeded: the run took 1 s"),
        ({"reason": "exception", "name": "E", "message": "m", "stack": ["at f"]}, "exception: E: m\n    at f"),
    ],
)
def test_why_a_script_has_no_result_is_said_in_lines(answer: dict[str, Any], said: str) -> None:
    assert in_words(ScriptError(answer)) == said
