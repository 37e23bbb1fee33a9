"""The pool with real processes and a small engine: limits, crashes, order, and each request answered once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from keep_protocol.errors import KeepfleetError
from script_pool import decisions
from script_pool.decisions import Settings
from script_pool.engine.interface import Limits
from script_pool.keep.service import over_or_failed
from script_pool.pool import ScriptPool
from script_pool.processes import Processes, receive
from script_pool.protocol import DONE, Answer

ENGINE = "tests.fakes.script_engine:FakeEngine"
LIMITS = Limits(wall_seconds=0.1, memory_bytes=16 << 20)
SECONDS = 60.0


async def made(settings: Settings) -> ScriptPool:
    pool = ScriptPool(settings, LIMITS, ENGINE, say=lambda line: None)
    await pool.start()
    return pool


def kills_after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What a run gets beyond its limit until its process is killed."""
    monkeypatch.setattr(decisions, "GRACE_SECONDS", seconds)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No good run is to end by its limit on a busy machine; the small engine's loops end by themselves."""
    kills_after(monkeypatch, SECONDS)


@pytest.fixture
async def pool() -> AsyncIterator[ScriptPool]:
    pool = await made(Settings(1, 2, queue=1000, deadline_seconds=SECONDS))
    yield pool
    await pool.stop()
    assert pool.children == {}


def asked(call: Callable[..., None], *arguments: object) -> asyncio.Future[Answer]:
    """A second answer would raise InvalidStateError in the loop."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    call(*arguments, future.set_result)
    return future


def kill(pid: int) -> None:
    """Of a child that may have ended meanwhile: the pool hears so a moment later."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def add(pool: ScriptPool, name: str, code: str) -> None:
    assert await asked(pool.add, name, code, "js") == DONE


async def test_a_script_runs_and_is_overwritten_and_removed(pool: ScriptPool) -> None:
    await add(pool, "a", "double x\nlog hello")
    ran = await asked(pool.run, "a", b'{"x":2}')
    assert (ran.output, ran.console) == (b'{"x":4}', ("hello",))
    await add(pool, "a", "set x 0")
    assert (await asked(pool.run, "a", b'{"x":2}')).output == b'{"x":0}'
    assert await asked(pool.remove, "a") == DONE
    for call in (asked(pool.run, "a", b"{}"), asked(pool.remove, "a")):
        assert (await call).reason == "no such script"


async def test_a_name_is_what_it_was_when_the_request_came(pool: ScriptPool) -> None:
    answers = [
        asked(pool.add, "a", f"set x {n // 2}", "js") if n % 2 == 0 else asked(pool.run, "a", b"{}") for n in range(40)
    ]
    answers += [asked(pool.remove, "a"), asked(pool.run, "a", b"{}"), asked(pool.remove, "a")]
    answers += [asked(pool.add, "a", "set x 77", "js"), asked(pool.run, "a", b"{}")]
    done = await asyncio.gather(*answers)
    assert [answer.output for answer in done[1:40:2]] == [b'{"x":%d}' % n for n in range(20)]
    assert [answer.reason for answer in done[40:43]] == [None, "no such script", "no such script"]
    assert done[44].output == b'{"x":77}'


async def test_code_that_is_none_leaves_the_name_as_it_was(pool: ScriptPool) -> None:
    await add(pool, "a", "set x 1")
    wrong, run = asked(pool.add, "a", "nonsense", "js"), asked(pool.run, "a", b"{}")
    assert ((await wrong).reason, (await wrong).name) == ("syntax error", "SyntaxError")
    assert (await run).output == b'{"x":1}'
    assert (await asked(pool.add, "b", "prepare-crash", "js")).reason == "crashed"
    assert (await asked(pool.run, "b", b"{}")).reason == "no such script"


@pytest.mark.parametrize(
    ("word", "reason", "message"),
    [
        ("loop", "time limit exceeded", "the run took 0.1 s"),
        ("eat", "memory limit exceeded", "the script asked for over 16777216 bytes"),
        ("crash", "crashed", "the script's process has ended: signal SIGABRT"),
        ("fault", "crashed", "the script's process has ended: signal SIGSEGV"),
        ("forge", "crashed", "the script's process has ended: it answered what it was not asked"),
        ("large", "output too large", "the output is over 5242880 bytes"),
        ("deep", "nested too deeply", "the output is nested too deeply"),
        ("throw TypeError why", "exception", "why"),
    ],
)
async def test_each_limit_has_its_reason_and_the_next_request_runs(
    pool: ScriptPool, word: str, reason: str, message: str
) -> None:
    await add(pool, "bad", word)
    await add(pool, "good", "double x")
    bad, good = asked(pool.run, "bad", b"{}"), [asked(pool.run, "good", b'{"x":%d}' % n) for n in range(20)]
    assert ((await bad).reason, (await bad).message) == (reason, message)
    assert [(await answer).output for answer in good] == [b'{"x":%d}' % (2 * n) for n in range(20)]


async def test_a_process_that_notices_no_limit_is_killed_and_the_next_request_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = await made(Settings(1, 1, queue=1000, deadline_seconds=SECONDS))
    await add(pool, "bad", "hang")
    await add(pool, "good", "double x")
    kills_after(monkeypatch, 0.0)
    bad, good = asked(pool.run, "bad", b"{}"), [asked(pool.run, "good", b'{"x":%d}' % n) for n in range(20)]
    message = "the script's process did not end its run within 0.1 s, and was killed"
    assert ((await bad).reason, (await bad).message) == ("time limit exceeded", message)
    kills_after(monkeypatch, SECONDS)  # before the next process has been forked
    assert [(await answer).output for answer in good] == [b'{"x":%d}' % (2 * n) for n in range(20)]
    await pool.stop()


async def test_what_is_added_last_is_what_every_child_runs_now_and_later(pool: ScriptPool) -> None:
    """The answers to AddCode are not awaited: the order of the requests is what counts."""
    for n in range(10):
        added = [asked(pool.add, "a", f"set x {each}", "js") for each in (n - 1, n)]
        answers = [asked(pool.run, "a", b"{}") for _ in range(8)]
        assert {(await answer).output for answer in answers} == {b'{"x":%d}' % n}
        assert [await answer for answer in added] == [DONE, DONE]
        if n % 3 == 2:
            killed = {pid for pid in pool.children.values() if pid > 0}
            for pid in killed:
                kill(pid)
            while killed & set(pool.children.values()):
                await asked(pool.run, "a", b"{}")


async def test_there_are_as_many_children_as_must_and_as_may_be() -> None:
    pool = await made(Settings(1, 3, queue=1000, deadline_seconds=SECONDS))
    await add(pool, "a", "double x")
    assert len(pool.children) == 1
    seen, answers = set[int](), [asked(pool.run, "a", b'{"x":1}') for _ in range(1000)]
    for answer in answers:
        assert (await answer).output == b'{"x":2}'
        seen.add(len(pool.children))
    assert max(seen) == 3
    await pool.stop()


async def test_children_killed_at_random_cost_no_more_than_what_they_ran(pool: ScriptPool) -> None:
    await add(pool, "a", "double x")
    answers = [asked(pool.run, "a", b'{"x":%d}' % n) for n in range(400)]
    for at in range(0, 400, 40):
        await answers[at]
        for pid in random.sample(sorted(pool.children.values()), 1):
            if pid > 0:
                kill(pid)
    crashed = 0
    for n, answer in enumerate(await asyncio.gather(*answers)):
        crashed += answer.reason == "crashed"
        assert answer.reason == "crashed" or answer.output == b'{"x":%d}' % (2 * n)
    assert crashed <= 10


def parent_of(pid: int) -> int:
    """The template process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("PPid:")[2].split()[0])


async def kill_template(pool: ScriptPool, runs: int) -> None:
    """And has so many runs meanwhile, or more, until the pool knows: it may be long until a busy host has it ended."""
    (pid,) = killed = set(pool.children.values())
    os.kill(parent_of(pid), signal.SIGKILL)
    while runs or killed & set(pool.children.values()):
        answers = await asyncio.gather(*[asked(pool.run, "a", b'{"x":1}') for _ in range(max(1, runs))])
        assert {answer.reason for answer in answers} <= {None, "crashed"}
        runs = 0


async def test_a_template_that_is_killed_is_started_again(pool: ScriptPool) -> None:
    await add(pool, "a", "double x")
    await kill_template(pool, 20)
    assert (await asked(pool.run, "a", b'{"x":1}')).output == b'{"x":2}'


async def test_a_template_that_cannot_be_started_again_is_tried_again_whatever_the_reason(
    pool: ScriptPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(pool, "a", "double x")
    start, refusals = Processes.start, [KeyError("unforeseen"), OSError(errno.EMFILE, "Too many open files")]

    async def starts_at_last(processes: Processes) -> None:
        if refusals:
            raise refusals.pop()
        await start(processes)

    monkeypatch.setattr(Processes, "start", starts_at_last)
    await kill_template(pool, 2)
    assert (await asked(pool.run, "a", b'{"x":1}')).output == b'{"x":2}'
    assert not refusals


async def test_a_keep_whose_clients_are_looked_at_no_more_ends_with_the_reason() -> None:
    over = asyncio.Event()

    async def rechecks(fails: bool) -> None:
        await asyncio.sleep(0)
        if fails:
            raise ValueError("unforeseen")
        over.set()
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="unforeseen"):
        await over_or_failed(over, rechecks(True))
    over.clear()
    await over_or_failed(over, rechecks(False))


async def test_a_child_gives_way_after_its_runs() -> None:
    pool = await made(Settings(1, 1, recycle_after=3, deadline_seconds=SECONDS))
    await add(pool, "a", "double x")
    seen = set[int]()
    for _ in range(9):
        assert (await asked(pool.run, "a", b'{"x":1}')).output == b'{"x":2}'
        seen |= set(pool.children)
    assert len(seen) >= 3
    await pool.stop()


async def test_a_request_more_than_the_queue_holds_is_refused_and_one_that_waits_too_long_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = await made(Settings(1, 1, queue=2, deadline_seconds=0.05))
    await add(pool, "h", "hang")
    kills_after(monkeypatch, 0.0)
    answers = await asyncio.gather(*[asked(pool.run, "h", b"{}") for _ in range(4)])
    assert [answer.reason for answer in answers] == ["time limit exceeded"] * 3 + ["queue full"]
    assert answers[1].message == "the request waited 0.05 s for a child"
    await pool.stop()


async def test_a_drain_answers_what_is_there_and_refuses_the_rest() -> None:
    pool = await made(Settings(1, 1, deadline_seconds=SECONDS, drain_seconds=SECONDS))
    await add(pool, "a", "double x")
    answers = [asked(pool.run, "a", b'{"x":1}') for _ in range(20)]
    drained = asyncio.create_task(pool.drain())
    await asyncio.sleep(0)
    assert (await asked(pool.run, "a", b"{}")).reason == "shutting down"
    await drained
    assert {(await answer).output for answer in answers} == {b'{"x":2}'}


async def test_what_does_not_end_is_refused_when_the_drains_time_is_over() -> None:
    pool = await made(Settings(1, 1, deadline_seconds=SECONDS, drain_seconds=0.0))
    await add(pool, "h", "hang")
    hanging = asked(pool.run, "h", b"{}")
    await pool.drain()
    assert (await hanging).reason == "shutting down"


async def test_a_pool_without_an_engine_says_so() -> None:
    pool = ScriptPool(engine="tests.fakes.script_engine:NoEngine", say=lambda line: None)
    with pytest.raises(KeepfleetError, match=r"^cannot start the script pool: the template process has ended: exit"):
        await pool.start()


async def test_a_child_is_locked_as_a_runner_is(pool: ScriptPool) -> None:
    (pid,) = pool.children.values()
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: ASYNC230 - of memory
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    assert (fields["Seccomp"], fields["NoNewPrivs"], fields["Threads"]) == ("2", "1", "1")
    with open(f"/proc/{pid}/limits", encoding="ascii") as limits:  # noqa: ASYNC230
        rows = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert rows["Max core file size"] == rows["Max file size"] == ["0", "0"]
    assert rows["Max open files"] == ["64", "64"]
    assert rows["Max data size"][0] != "unlimited"
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0


def test_what_a_template_said_before_it_ended_is_heard_though_it_left_something_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        assert receive(ours) is None
        theirs.send(b"first")
        theirs.send(b"second")
        ours.send(b"unread")
        theirs.close()
        assert [receive(ours) for _ in range(3)] == [(b"first", []), (b"second", []), (b"", [])]
