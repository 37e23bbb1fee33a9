"""Functions of the application that scripts call, through the pool with its JavaScript engine: who may call what, how
often and how long, and applications that answer badly or never.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from script_pool.client import BlockingPool, Pool, ScriptError
from script_pool.fetching import Fetch, FetchRefused
from script_pool.hostcalls import Allowance, Calls, HostCall
from script_pool.sessions import Sessions
from tests.unit.script_pool.test_script_service import PATIENT

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def pool(scripts_cache: str) -> AsyncIterator[Pool]:
    """One child, so that a run that holds it keeps all others waiting."""
    async with Pool(options=("--max=1", *PATIENT, f"--cache={scripts_cache}")) as made:
        yield made


async def fails(pool: Pool, name: str, sandbox: dict[str, Any] | None = None) -> ScriptError:
    with pytest.raises(ScriptError) as caught:
        await pool.run(name, sandbox or {})
    return caught.value


async def test_a_script_calls_functions_of_the_application(pool: Pool) -> None:
    @pool.host_function
    async def lookup(key: int, *more: object) -> dict[str, object]:
        return {"key": key, "more": more}

    pool.host_function(lambda: threading.current_thread() is not threading.main_thread(), name="threaded")
    await pool.add(
        "a", "var found = await lookup(key, 'x', [null]); var t = await threaded()", functions=["lookup", "threaded"]
    )
    assert await pool.run("a", {"key": 7}) == {"key": 7, "found": {"key": 7, "more": ["x", [None]]}, "t": True}
    await pool.add(
        "many",
        "var all = await Promise.all([1, 2, 3].map((n) => lookup(n))); all = all.map((f) => f.key)",
        functions=["lookup"],
    )
    assert (await pool.run("many", {}))["all"] == [1, 2, 3]
    await pool.add("then", "lookup(1).then((found) => { x = found.key })", functions=["lookup"])
    assert await pool.run("then", {"x": 0}) == {"x": 1}


async def test_a_script_calls_nothing_that_it_was_not_added_with(pool: Pool) -> None:
    pool.host_function(lambda: 1, name="lookup")
    await pool.add("a", "await lookup()")
    assert (await fails(pool, "a")).name == "ReferenceError"
    await pool.add("b", "\nawait missing()", functions=["missing"])
    error = await fails(pool, "b")
    assert (error.reason, error.name) == ("exception", "HostCallError")
    assert error.message == "LookupError: the application has no function missing"
    assert "script:2:" in error.stack[-1]


async def test_what_a_function_raises_is_thrown_in_the_script(pool: Pool) -> None:
    @pool.host_function
    async def wrong() -> None:
        raise ValueError("not now")

    await pool.add("a", "var e; try { await wrong() } catch (error) { e = `${error}` }", functions=["wrong"])
    assert await pool.run("a", {}) == {"e": "HostCallError: ValueError: not now"}


async def test_more_calls_bytes_or_time_than_allowed_are_refused(pool: Pool) -> None:
    @pool.host_function
    async def echo(text: str) -> str:
        return text * 2

    @pool.host_function
    async def never() -> None:
        await asyncio.Event().wait()

    await pool.add("calls", "for (let i = 0; i < 9; i++) await echo('x')", functions={"echo": {"calls": 3}})
    await pool.add("large", "await echo('x'.repeat(200))", functions={"echo": {"bytes": 100}})
    await pool.add("answer", "await echo('x'.repeat(60))", functions={"echo": {"bytes": 100}})
    await pool.add("never", "await never()", functions={"never": {"seconds": 0.05}})
    for name, message in (
        ("calls", "a run may call echo 3 times"),
        ("large", "the arguments of echo have 204 bytes; at most 100 are allowed"),
        ("answer", "the value of echo has 122 bytes; at most 100 are allowed"),
        ("never", "never has not answered within 0.05 s"),
    ):
        error = await fails(pool, name)
        assert (error.reason, error.message) == ("host call refused", message)


async def test_a_value_of_ten_megabytes_and_one_without_json_are_errors_in_the_script(pool: Pool) -> None:
    pool.host_function(lambda: "x" * 10_000_000, name="large")
    pool.host_function(lambda: {1, 2}, name="odd")
    await pool.add(
        "a",
        "var e = []; for (const f of [large, odd]) await f().catch((x) => e.push(x.message))",
        functions=["large", "odd"],
    )
    messages = (await pool.run("a", {}))["e"]
    assert messages[0] == "its value has over 5242880 bytes"
    assert messages[1].startswith("its value has no JSON")


async def test_a_run_that_waits_is_parked_and_others_have_its_child(pool: Pool) -> None:
    decided = asyncio.Event()

    @pool.host_function
    async def approve(what: str) -> bool:
        await decided.wait()
        return True

    await pool.add(
        "pay", "let held = {n: 41}; var ok = await approve('pay'); held.n++; n = held.n", functions=["approve"]
    )
    await pool.add("other", "x *= 2")
    waiting = [asyncio.create_task(pool.run("pay", {"n": 0})) for _ in range(5)]
    for x in range(20):
        assert await pool.run("other", {"x": x}) == {"x": 2 * x}
    decided.set()
    assert [await run for run in waiting] == [{"n": 42, "ok": True}] * 5


async def test_a_host_function_may_ask_the_pool_itself(pool: Pool) -> None:
    """The one child that there is is given up for it, as deep as it goes."""

    @pool.host_function
    async def deeper(n: int) -> int:
        return 0 if n == 0 else int((await pool.run("recursive", {"n": n - 1}))["depth"])

    await pool.add("recursive", "var depth = 1 + await deeper(n)", functions=["deeper"])
    assert (await pool.run("recursive", {"n": 10}))["depth"] == 11


async def test_a_blocking_host_function_may_too(scripts_cache: str) -> None:
    def ask() -> object:
        with BlockingPool(options=("--max=1", *PATIENT, f"--cache={scripts_cache}")) as pool:
            pool.host_function(lambda x: pool.run("double", {"x": x})["x"], name="twice")
            pool.add("double", "x *= 2")
            pool.add("a", "var y = await twice(21)", functions=["twice"])
            return pool.run("a", {})["y"]

    assert await asyncio.to_thread(ask) == 42


async def test_the_guests_clock_stops_while_it_waits(scripts_cache: str) -> None:
    """It may run for a second, and waits for longer."""
    loop = asyncio.get_running_loop()
    async with Pool(options=("--max=1", "--time=1", "--deadline=60", f"--cache={scripts_cache}")) as pool:

        @pool.host_function
        async def slow() -> None:
            done = asyncio.Event()
            loop.call_later(0.6, done.set)
            await done.wait()

        await pool.add("a", "await slow(); await slow(); var done = 1", functions=["slow"])
        await pool.add("loop", "await slow(); for (;;);", functions=["slow"])
        assert await pool.run("a", {}) == {"done": 1}
        assert (await fails(pool, "loop")).reason == "time limit exceeded"


async def test_answers_that_come_twice_late_or_for_nothing_change_nothing(scripts_cache: str) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "script_pool", "--stdio", *PATIENT, f"--cache={scripts_cache}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert program.stdin is not None and program.stdout is not None

    async def say(**message: object) -> None:
        assert program.stdin is not None
        program.stdin.write(json.dumps(message).encode() + b"\r\n")

    async def hear() -> Any:
        assert program.stdout is not None
        return json.loads(await program.stdout.readline())

    await say(id=1, cmd="AddCode", name="a", code="var x = [await f(1), await f(2)]", hostFunctions=["f"])
    assert await hear() == {"id": 1, "ok": True}
    await say(id=2, cmd="ExecCode", name="a", inputSandbox={})
    for n in (1, 2):
        asked = await hear()
        assert (asked["id"], asked["hostCall"]["name"], asked["hostCall"]["arguments"]) == (2, "f", [n])
        call = asked["hostCall"]["call"]
        await say(id=2, cmd="HostResult", call=call + 1000, value="no such call")
        for value in (f"value {n}", "a second answer"):
            await say(id=2, cmd="HostResult", call=call, value=value)
    assert (await hear())["outputSandbox"] == {"x": ["value 1", "value 2"]}
    await say(id=2, cmd="HostResult", call=call, value="too late")
    await say(id=3, cmd="HostResult", call=1)
    assert await hear() == {"ok": False, "reason": "malformed request"}
    await say(cmd="ExecCode", name="a", inputSandbox={})
    assert (await hear())["reason"] == "host call refused"
    program.stdin.close()
    assert await program.wait() == 0


async def test_a_parked_run_survives_the_child_that_it_began_in(pool: Pool) -> None:
    asked = asyncio.Event()

    @pool.host_function
    async def f() -> int:
        asked.set()
        await pool.run("other", {})  # the run is parked for it
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        while True:
            try:
                await pool.run("other", {})
                return 5
            except ScriptError as error:
                assert error.reason == "crashed"

    await pool.add("other", "x = 1")
    await pool.add("a", "var x = await f()", functions=["f"])
    assert pool._program is not None
    template = _children_of(pool._program.pid)[0]
    running = asyncio.create_task(pool.run("a", {}))
    await asked.wait()
    children = _children_of(template)
    assert await running == {"x": 5}


NODE = """
const { Pool } = require("./examples/script-pool-node/script-pool.js");
(async () => {
  const pool = new Pool({ command: process.argv.slice(1) });
  pool.hostFunction("twice", async (x) => x * 2);
  pool.hostFunction("wrong", () => { throw new TypeError("why"); });
  await pool.add("a", "var y = await twice(x); var e; try { await wrong() } catch (f) { e = f.message }",
    { functions: ["twice", "wrong"] });
  const session = pool.session();
  await pool.add("count", "globalThis.n = (globalThis.n ?? 0) + 1");
  await session.run("count", {});
  const moved = await pool.loadSession(await session.save());
  const { n } = await moved.run("count", {});
  await session.end();
  console.log(JSON.stringify([await pool.run("a", { x: 21 }), n]));
  await pool.close();
})();
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_client_for_node_has_host_functions_and_sessions(scripts_cache: str) -> None:
    pool = [sys.executable, "-m", "script_pool", "--stdio", *PATIENT, f"--cache={scripts_cache}"]
    done = subprocess.run(["node", "-e", NODE, *pool], capture_output=True, cwd=ROOT, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"x": 21, "y": 42, "e": "TypeError: why"}, 2]


def _children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def test_a_forged_call_is_refused_without_asking_anyone() -> None:
    asked, answered = list[HostCall](), list[int]()
    calls = Calls({"f": Allowance()}, asked.append, lambda seconds, call: _NoTimer(), lambda: answered.append(1))
    calls.make([(1, "f", "[]"), (2, "rm", "[]")], iter(range(50, 60)).__next__)
    assert [call.number for call in asked] == [50]
    assert json.loads(calls.take()) == [[2, False, {"message": "the script may not call rm", "refused": True}]]
    assert asked[0].answer("[7]")
    assert not asked[0].answer("[8]")
    assert calls.take() == "[[1,true,[7]]]"
    assert answered == [1]


class _NoTimer:
    def cancel(self) -> None:
        """There is none."""


@pytest.mark.parametrize(
    "given", [1, {"f": 1}, {"f": {"more": 1}}, {"f": {"calls": 0}}, {"f": {"calls": True}},
        {"f": {"seconds": 1e9}}, ["a b"], [1], ["é"], {"f": {"calls": 1.5}}]
)  # fmt: skip
def test_an_allowance_that_is_none_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="host"):
        Allowance.read(given)


class _Served(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps([self.path, self.headers["Authorization"], body.decode()]).encode()
        self.send_response(201)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.2:1/")
        self.send_header("Content-Length", "2000")
        self.end_headers()
        self.wfile.write(b"\xff" * 2000)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


async def test_a_run_in_python_may_not_wait_for_longer_than_a_process_is_kept(pool: Pool) -> None:
    for language in ("python", "micropython"):
        with pytest.raises(ScriptError, match=r"approve may take 3600 s, and a run in .*python keeps a process"):
            await pool.add("rule", "approve()", language, {"approve": {"seconds": 3600}})
    assert Allowance.read({"approve": {"seconds": 60}}, "python")["approve"].seconds == 60


async def test_fetch_asks_the_hosts_that_are_allowed_alone(pool: Pool) -> None:
    with HTTPServer(("127.0.0.1", 0), _Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        pool.host_function(Fetch([origin], headers={"Authorization": "secret"}, max_bytes=2000), name="fetch")
        source = (
            "const f = await fetch(url + '/a?b', {method: 'POST', body: 'é'});"
            "var r = [f.status, f.ok, JSON.parse(f.body)]"
        )
        await pool.add("post", source, functions=["fetch"])
        assert (await pool.run("post", {"url": origin}))["r"] == [201, True, ["/a?b", "secret", "é"]]
        await pool.add(
            "get",
            "const f = await fetch(url); var r = [f.status, f.headers.location, f.base64.length]",
            functions=["fetch"],
        )
        assert (await pool.run("get", {"url": origin}))["r"] == [302, "http://127.0.0.2:1/", 2668]
        for url in (
            "http://127.0.0.2:1/",
            "https://127.0.0.1/",
            "file:///etc/passwd",
            f"http://x@127.0.0.1:{server.server_port}/",
            "nothing",
        ):
            assert "FetchRefused" in (await fails(pool, "get", {"url": url})).message
        with pytest.raises(FetchRefused, match="over 10 bytes"):
            await asyncio.to_thread(Fetch([origin], max_bytes=10), origin)
        with pytest.raises(FetchRefused, match="cannot set the header"):
            Fetch([origin])(origin, {"headers": {"Host": "other"}})
        server.shutdown()


def test_a_session_has_a_size_an_owner_and_an_end() -> None:
    """The table alone: size, owner and end."""
    timers = list[Any]()

    def later(seconds: float, call: Any) -> _NoTimer:
        timers.append(call)
        return _NoTimer()

    sessions = Sessions(later, b"k" * 32)
    session = sessions.open("me", "s")
    assert session is not None
    assert sessions.keep(session, b"memory")
    assert not sessions.keep(session, b"x" * (17 << 20))
    assert session.memory == b"memory"
    assert sessions.get("you", "s") is None
    timers[-1]()
    assert sessions.get("me", "s") is None
