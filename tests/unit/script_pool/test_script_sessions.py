"""Sessions through the pool with its JavaScript engine: state that stays, is kept from others, survives its process,
and is refused when it was changed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keep_protocol.errors import KeepfleetError
from script_pool.client import BlockingPool, Pool, ScriptError
from script_pool.sessions import SessionRefused, Sessions, read_key
from tests.unit.script_pool.test_script_service import PATIENT


@pytest.fixture
async def pool(scripts_cache: str) -> AsyncIterator[Pool]:
    async with Pool(options=("--max=2", *PATIENT, f"--cache={scripts_cache}")) as made:
        yield made


async def test_a_session_keeps_what_its_calls_leave_and_no_one_else_sees_it(pool: Pool) -> None:
    await pool.add("first", "const secret = 40; function more(n) { return secret + n }; kept = new Map([[1, 2]])")
    await pool.add("next", "x = [more(2), kept.get(1), typeof Symbol.for('a')]; delete kept")
    await pool.add("look", "x = [typeof secret, typeof kept]")
    session, other = pool.session(), pool.session()
    await session.run("first", {})
    assert (await session.run("next", {}))["x"] == [42, 2, "symbol"]
    for world in (other, pool):
        assert (await world.run("look", {}))["x"] == ["undefined", "undefined"]
    await session.end()
    assert (await session.run("look", {}))["x"] == ["undefined", "undefined"]


async def test_a_script_may_run_again_in_its_session_strict_or_not(pool: Pool) -> None:
    for name, source in (
        ("sloppy", "const step = 2; n += step"),
        ("strict", '"use strict"; const step = 2; n += step'),
        ("awaiting", "const step = await 2; n += step"),
    ):
        await pool.add(name, source)
        session = pool.session()
        n = 0
        for _ in range(3):
            n = (await session.run(name, {"n": n}))["n"]
        assert n == 6


async def test_calls_of_one_session_run_one_after_another(pool: Pool) -> None:
    await pool.add("count", "globalThis.n = (globalThis.n ?? 0) + 1; at = n")
    session = pool.session()
    done = await asyncio.gather(*[session.run("count", {}) for _ in range(20)])
    assert [output["at"] for output in done] == list(range(1, 21))


async def test_a_call_that_fails_leaves_the_session_as_it_was(scripts_cache: str) -> None:
    async with Pool(options=("--deadline=60", f"--cache={scripts_cache}")) as pool:  # a run has a second
        await pool.add("set", "n = 1")
        await pool.add("throw", "\nn = 2; null.x")
        await pool.add("loop", "n = 3; for (;;);")
        await pool.add("look", "x = n")
        session = pool.session()
        await session.run("set", {})
        for name in ("throw", "loop"):
            with pytest.raises(ScriptError) as caught:
                await session.run(name, {})
            assert name != "throw" or "script:2:" in caught.value.stack[0]
        assert (await session.run("look", {}))["x"] == 1


async def test_a_session_survives_its_child(pool: Pool) -> None:
    await pool.add("set", "n = (globalThis.n ?? 0) + 1")
    session = pool.session()
    await session.run("set", {})
    assert pool._program is not None
    with open(f"/proc/{pool._program.pid}/task/{pool._program.pid}/children", encoding="ascii") as file:  # noqa: ASYNC230
        (template,) = map(int, file.read().split())
    with open(f"/proc/{template}/task/{template}/children", encoding="ascii") as file:  # noqa: ASYNC230
        for pid in map(int, file.read().split()):
            os.kill(pid, signal.SIGKILL)
    n = 1
    while n == 1:
        try:
            n = (await session.run("set", {}))["n"]
        except ScriptError as error:
            assert error.reason == "crashed"  # it was sent to a child that had been killed
    assert n == 2


async def test_a_host_function_is_called_in_a_session_by_those_scripts_alone_that_may(pool: Pool) -> None:
    pool.host_function(lambda: 5, name="f")
    await pool.add("may", "keep = f; var x = await f()", functions=["f"])
    await pool.add("not", "y = typeof f; await keep()")
    session = pool.session()
    assert (await session.run("may", {"keep": 0}))["x"] == 5
    with pytest.raises(ScriptError, match="host call refused: HostCallRefused: the script may not call f"):
        await session.run("not", {"y": 0})


async def test_a_session_keeps_the_modules_that_it_has_imported(pool: Pool) -> None:
    await pool.add("lib", "let n = 0; export const next = () => ++n; globalThis.begun = (globalThis.begun ?? 0) + 1")
    await pool.add("main", "import { next } from 'lib'; const once = next(); r = [once, begun]")
    await pool.add("own", "export const x = 1; r = [typeof once, x]")
    await pool.add("look", "r = [begun]")
    session = pool.session()
    assert (await session.run("main", {"r": 0}))["r"] == [1, 1]
    assert (await session.run("main", {"r": 0}))["r"] == [2, 1]
    assert (await session.run("own", {"r": 0}))["r"] == ["undefined", 1]
    await pool.add("lib", "export const next = () => 'another'")
    assert (await session.run("main", {"r": 0}))["r"] == [3, 1]
    assert (await session.run("look", {"r": 0}))["r"] == [1]
    assert (await pool.session().run("main", {"r": 0, "begun": 0}))["r"] == ["another", 0]
    await pool.add("throws", "import { next } from 'lib';\nnext(); null.x")
    with pytest.raises(ScriptError) as caught:
        await session.run("throws", {})
    assert "script:2:" in caught.value.stack[0]
    assert (await session.run("main", {"r": 0}))["r"] == [4, 1]


async def test_a_session_is_saved_moved_and_refused_when_it_was_changed(scripts_cache: str, tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    options = (*PATIENT, f"--cache={scripts_cache}", f"--session-key={key}")
    async with Pool(options=options) as one:
        await one.add("set", "const table = {a: 1}; var n = 2")
        session = one.session()
        await session.run("set", {})
        saved = await session.save()
    (tmp_path / "session").write_bytes(saved)
    async with Pool(options=options) as other:
        moved = await other.load_session((tmp_path / "session").read_bytes())
        await other.add("look", "x = [table.a, n]")
        assert (await moved.run("look", {}))["x"] == [1, 2]
        for forged in (
            saved[:-1],
            saved[:100],
            b"",
            bytes([saved[0] ^ 1]) + saved[1:],
            saved[:200] + b"x" + saved[201:],
            saved + b"x",
        ):
            with pytest.raises(ScriptError, match="session refused: cannot load the session: it was not saved by"):
                await other.load_session(forged)
    async with Pool(options=(*PATIENT, f"--cache={scripts_cache}")) as stranger:
        with pytest.raises(ScriptError, match="session refused"):
            await stranger.load_session(saved)
        with pytest.raises(ScriptError, match="no such session"):
            await stranger.session().save()


def test_a_blocking_client_has_sessions(scripts_cache: str) -> None:
    with BlockingPool(options=(*PATIENT, f"--cache={scripts_cache}")) as pool:
        pool.add("count", "globalThis.n = (globalThis.n ?? 0) + 1")
        session = pool.session("mine")
        session.run("count", {})
        assert session.call("count", {}).output["n"] == 2
        again = pool.load_session(session.save())
        session.end()
        assert again.run("count", {})["n"] == 3


def test_what_was_saved_belongs_to_its_owner() -> None:
    sessions = Sessions(lambda seconds, call: _NoTimer(), b"k" * 32)
    session = sessions.open("me", "a")
    assert session is not None
    assert sessions.keep(session, b"memory")
    saved = sessions.save(session)
    with pytest.raises(SessionRefused, match="another owner"):
        sessions.load("you", "a", saved)
    sessions.load("me", "b", saved)
    loaded = sessions.get("me", "b")
    assert loaded is not None
    assert loaded.memory == b"memory"


class _NoTimer:
    def cancel(self) -> None:
        """There is none."""


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = read_key(str(path))
    assert read_key(str(path)) == made
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(KeepfleetError, match="no one else may read it"):
        read_key(str(path))
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(KeepfleetError, match="less than 32 bytes"):
        read_key(str(path))
