"""Codelets of an application on the host over HTTPS: real applications, and what an application may do wrong."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keep_manager import codelets
from keep_manager.callers import CallerEntry, Quotas
from keep_manager.codelets import MAX_ASKED, MAX_WATCHED
from keep_protocol.codelets import V1_CODELETS_PATH
from keep_protocol.identity import Identity, Role
from tests.fakes.running_manager import RunningManager
from tests.unit.codelets.application import COUNTER, Application, one, packet
from tests.unit.manager.test_manager_ownership import People, call, people

__all__ = ["people"]
SETS = f"{V1_CODELETS_PATH}/app/sets"
WATCH = f"{V1_CODELETS_PATH}/app/watch"
STATS = f"{V1_CODELETS_PATH}/app/stats"
COUNTING = {"descriptor": one("counter", "choose")}


def attach(manager: RunningManager, path: Path, owner: str = "ann", user: str | int = "", name: str = "app") -> Path:
    """Writes an application's file; it."""
    manager.attached.mkdir(exist_ok=True)
    file = manager.attached / f"{name}.yaml"
    file.write_text(f'socket: {path}\nuser: "{user or os.geteuid()}"\nowner: {owner}\n')
    return file


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application here is a thread of this process, or a task of its loop: how long it may take is no matter."""
    monkeypatch.setattr(codelets, "ASK_SECONDS", 60.0)


@pytest.fixture
def application(people: People, tmp_path: Path) -> Iterator[Application]:
    """Ann's application `app`, which has the codelet `counter:1` in its store."""
    made = Application(tmp_path, in_c=False, lcm_socket=str(tmp_path / "lcm.sock"))
    made.add("counter", COUNTER)
    attach(people.manager, tmp_path / "lcm.sock")
    yield made
    made.close()


async def test_its_owner_loads_watches_and_unloads_a_set(people: People, application: Application) -> None:
    status, answer = await call(people.ann, "POST", SETS, json=COUNTING)
    assert (status, answer) == (201, {"codeletset_id": "counter"})
    assert application.choose(packet()) == 1
    _, answer = await call(people.ann, "GET", SETS)
    assert [(each["codeletset_id"], each["codelets"][0]["calls"]) for each in answer["codeletsets"]] == [("counter", 1)]
    _, answer = await call(people.ann, "GET", STATS)
    assert {each["name"]: each["calls"] for each in answer["hooks"]}["choose"] == 1
    assert await call(people.ann, "DELETE", f"{SETS}/counter") == (204, "")
    assert application.choose(packet()) == -1


async def test_operators_do_all_viewers_look_and_to_others_it_is_not_there(
    people: People, application: Application
) -> None:
    listed = [[each["name"] for each in (await call(who, "GET", V1_CODELETS_PATH))[1]["applications"]]
              for who in (people.root, people.ann, people.vic, people.bob)]  # fmt: skip
    assert listed == [["app"], ["app"], ["app"], []]
    assert (await call(people.vic, "GET", SETS))[0] == 200
    assert (await call(people.vic, "POST", SETS, json=COUNTING))[0] == 403
    refused = await call(people.bob, "POST", SETS, json=COUNTING)
    nowhere = await call(people.bob, "POST", SETS.replace("app", "abc"), json=COUNTING)
    assert (refused[0], str(refused[1]).replace("app'", "abc'")) == (404, str(nowhere[1]))
    assert (await call(people.root, "POST", SETS, json=COUNTING))[0] == 201
    assert (await call(people.vic, "DELETE", f"{SETS}/counter"))[0] == 403
    assert (await call(people.root, "DELETE", f"{SETS}/counter"))[0] == 204


async def next_set(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The data of a stream's next event."""
    lines: list[bytes] = []
    while not lines or lines[-1] != b"\n" or lines == [b": alive\n", b"\n"]:
        lines = lines if lines[-1:] != [b"\n"] else []
        lines.append(await asyncio.wait_for(response.content.readline(), 60))
    assert lines[0] == b"event: codeletset\n"
    found: dict[str, Any] = json.loads(lines[1].removeprefix(b"data: "))
    return found


async def test_who_watches_sees_sets_come_and_count_and_go(people: People, application: Application) -> None:
    application.load("before", COUNTER, "seen")
    async with people.ann.get(WATCH) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert (await next_set(response))["codeletset_id"] == "before"
        await call(people.root, "POST", SETS, json=COUNTING)
        found = await next_set(response)
        assert (found["codeletset_id"], found["loaded"], found["codelets"][0]["calls"]) == ("counter", True, 0)
        application.choose(packet())
        assert (await next_set(response))["codelets"][0]["calls"] == 1
        application.runtime.unload("counter")
        found = await next_set(response)
        assert (found["codeletset_id"], found["loaded"], found["why"]) == ("counter", False, "")


async def test_who_may_not_read_may_not_watch_and_few_watch_at_a_time(people: People, application: Application) -> None:
    status, answer = await call(people.bob, "GET", WATCH)
    assert (status, answer["error"]["kind"]) == (404, "not-found")
    application.load("before", COUNTER, "seen")
    async with AsyncExitStack() as watching:
        for _ in range(MAX_WATCHED):
            response = await watching.enter_async_context(people.ann.get(WATCH))
            await next_set(response)
        status, answer = await call(people.root, "GET", WATCH)
        assert (status, answer["error"]["kind"]) == (429, "too-many")
        assert (await call(people.ann, "GET", SETS))[0] == 200
    while people.manager.applications._watched.total():  # noqa: ASYNC110 - the manager sees it when its turn comes
        await asyncio.sleep(0)
    async with people.ann.get(WATCH) as response:
        assert (await next_set(response))["codeletset_id"] == "before"


async def test_a_stream_ends_with_its_application_and_the_next_answer_says_why(
    people: People, application: Application
) -> None:
    application.load("before", COUNTER, "seen")
    async with people.ann.get(WATCH) as response:
        await next_set(response)
        await asyncio.to_thread(application.runtime.close)
        with suppress(aiohttp.ClientPayloadError):
            assert b"event" not in await asyncio.wait_for(response.content.read(), 60)
    status, answer = await call(people.ann, "GET", WATCH)
    assert (status, answer["error"]["kind"]) == (503, "unavailable")


async def test_each_change_is_a_line_of_the_security_log_whatever_becomes_of_it(
    people: People, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "keepfleet.security"):
        await call(people.ann, "POST", SETS, json=COUNTING)
        await call(people.ann, "POST", SETS, json=COUNTING)
        await call(people.ann, "DELETE", f"{SETS}/counter")
    said = [each.getMessage() for each in caplog.records if each.name == "keepfleet.security"]
    assert len(said) == 3
    assert said[0].startswith("load of a codelet set into app by ann") and said[0].endswith("done, counter")
    assert "conflict" in said[1]
    assert said[2].startswith("unload of the codelet set counter from app by ann") and said[2].endswith("done")


async def test_an_application_s_refusal_comes_with_jbpf_s_number_and_the_evidence(
    people: People, application: Application
) -> None:
    status, answer = await call(people.ann, "POST", SETS, json={"descriptor": one("counter", "nowhere")})
    assert (status, answer["error"]["evidence"][0]) == (404, "failure: hook-missing, jbpf's number -1")
    status, answer = await call(people.ann, "DELETE", f"{SETS}/nothing")
    assert (status, answer["error"]["kind"]) == (404, "not-found")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "descriptor"),
        ({"descriptor": "x: 1"}, "unknown key 'x'"),
        ({"descriptor": one("a", "choose", path="/etc/passwd")}, "and no path"),
        ({"descriptor": one("${A}", "choose"), "variables": {"B": "b"}}, "unknown variable ${A}; there are B"),
        ({"descriptor": "", "code": "AGFzbQEAAAA="}, "unknown field 'code'"),
    ],
)
async def test_what_is_no_descriptor_never_reaches_the_application(
    people: People, tmp_path: Path, body: dict[str, object], words: str
) -> None:
    attach(people.manager, tmp_path / "unused.sock")
    status, answer = await call(people.ann, "POST", SETS, json=body)
    assert (status, words in str(answer)) == (400, True), answer


async def test_a_descriptor_of_10_mb_is_refused_by_its_length(people: People, tmp_path: Path) -> None:
    attach(people.manager, tmp_path / "unused.sock")
    headers = {"Content-Type": "application/json"}
    assert (await call(people.ann, "POST", SETS, data=io.BytesIO(bytes(10_000_000)), headers=headers))[0] == 413


async def test_loads_count_as_starts_of_the_caller_s_quota(people: People, application: Application) -> None:
    people.manager.quotas.apply({"ann": CallerEntry(quotas=Quotas(starts_per_minute=1))})
    assert (await call(people.ann, "POST", SETS, json=COUNTING))[0] == 201
    status, answer = await call(people.ann, "POST", SETS, json=COUNTING)
    assert (status, "starts_per_minute" in answer["error"]["message"]) == (429, True)
    assert (await call(people.ann, "DELETE", f"{SETS}/counter"))[0] == 204


async def test_an_application_that_has_ended_is_unavailable_until_it_is_there_again(
    people: People, tmp_path: Path
) -> None:
    attach(people.manager, tmp_path / "lcm.sock")
    for _ in range(2):
        status, answer = await call(people.ann, "GET", SETS)
        assert (status, answer["error"]["message"]) == (
            503,
            "cannot ask the application app: No such file or directory",
        )
        application = Application(tmp_path / "again", in_c=False, lcm_socket=str(tmp_path / "lcm.sock"))
        assert (await call(people.ann, "GET", SETS))[1] == {"codeletsets": []}
        application.close()


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("socket: /run/x\nuser: root\nmore: 1\n", "unknown key 'more'"),
        ("socket: run/x\nuser: root\n", "absolute path"),
        ("socket: /run/x\nuser: root\nowner: anonymous\n", "a caller's name"),
        ("socket: /run/x\n", "user"),
        ("#" * 5000, "over 4096 bytes"),
    ],
)
async def test_a_file_with_a_fault_says_so_in_the_list_and_the_others_are_there(
    people: People, application: Application, text: str, words: str
) -> None:
    (people.manager.attached / "odd.yaml").write_text(text)
    _, answer = await call(people.root, "GET", V1_CODELETS_PATH)
    assert [each["name"] for each in answer["applications"]] == ["app", "odd"]
    assert words in answer["applications"][1]["detail"]
    status, answer = await call(people.root, "GET", SETS.replace("app", "odd"))
    assert (status, words in answer["error"]["message"]) == (500, True)


async def test_a_file_that_others_may_write_attaches_nothing(people: People, application: Application) -> None:
    file = people.manager.attached / "app.yaml"
    file.chmod(0o666)
    _, answer = await call(people.root, "GET", SETS)
    assert "others than root or the manager's user may write it" in answer["error"]["message"]
    file.chmod(0o644)
    people.manager.attached.chmod(0o777)
    _, answer = await call(people.root, "GET", SETS)
    assert "others than root" in answer["error"]["message"]
    people.manager.attached.chmod(0o755)
    assert (await call(people.root, "GET", SETS))[0] == 200


async def test_a_link_or_a_fifo_in_a_file_s_place_attaches_nothing(people: People, application: Application) -> None:
    file = people.manager.attached / "app.yaml"
    file.rename(people.manager.attached / "text")
    file.symlink_to(people.manager.attached / "text")
    assert "symbolic links" in (await call(people.root, "GET", SETS))[1]["error"]["message"]
    file.unlink()
    os.mkfifo(file, 0o600)
    assert "no regular file" in (await call(people.root, "GET", SETS))[1]["error"]["message"]


# --- what an application may do wrong --------------------------------------------------------------------------------

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def behaving(people: People, tmp_path: Path, behaviour: Behaviour) -> AsyncIterator[None]:
    """An application that answers each connection so; they have ended when the block has."""
    path, serving = tmp_path / "odd.sock", set[asyncio.Task[None] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        await behaviour(reader, writer)
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, str(path)):
        attach(people.manager, path)
        yield
        await asyncio.wait([task for task in serving if task is not None])


def frame(body: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I", len(body) if size is None else size) + body


def error(kind: str, message: str = "cannot", **more: Any) -> bytes:
    return json.dumps({"ok": False, "error": {"kind": kind, "message": message, "evidence": [], **more}}).encode()


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (b"", 503, "it was cut"),
        (b"\0\0", 503, "it was cut"),
        (frame(b'{"ok"', 100), 503, "it was cut"),
        (frame(b"", 1 << 30), 503, "1048576 at most"),
        (frame(b"[" * 100_000), 503, "nested too deeply"),
        (frame(b'{"ok":true,"sets":[{"codeletset_id":1}]}'), 503, "codeletset_id"),
        (frame(error("forbidden")), 503, "cannot"),
        (frame(error("compiling")), 503, "cannot"),
        (frame(error("too-many")), 429, "cannot"),
        (frame(b'{"ok":true}'), 200, ""),
    ],
)
async def test_an_odd_answer_is_a_refusal_and_no_fault_of_the_manager_s(
    people: People, tmp_path: Path, answer: bytes, status: int, words: str
) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(answer)
        writer.close()

    async with behaving(people, tmp_path, behaviour):
        got, found = await call(people.ann, "GET", SETS)
        assert (got, words in str(found)) == (status, True), found


async def test_what_an_application_says_is_cut(people: People, tmp_path: Path) -> None:
    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(frame(error("conflict", "x" * 9000, evidence=["y" * 9000] * 90)))
        writer.close()

    async with behaving(people, tmp_path, behaviour):
        found = (await call(people.ann, "GET", SETS))[1]["error"]
        assert (len(found["message"]), len(found["evidence"]), len(found["evidence"][0])) == (1024, 64, 1024)


async def test_one_that_never_answers_takes_its_time_and_its_few_requests_and_no_other_s(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ended = asyncio.Semaphore(0), asyncio.Event()

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.release()
        await ended.wait()
        writer.close()

    async with behaving(people, tmp_path, behaviour):
        waiting = [asyncio.create_task(call(people.ann, "GET", SETS)) for _ in range(MAX_ASKED)]
        for _ in waiting:
            await asked.acquire()
        assert (await call(people.ann, "GET", SETS))[0] == 429
        assert (await call(people.ann, "GET", V1_CODELETS_PATH))[0] == 200
        ended.set()
        assert {status for status, _ in await asyncio.gather(*waiting)} == {503}
        ended.clear()
        monkeypatch.setattr(codelets, "ASK_SECONDS", 0.01)
        status, answer = await call(people.ann, "GET", SETS)
        assert (status, answer["error"]["message"]) == (503, "cannot ask the application app: no answer in 0.01 s")
        ended.set()


async def test_a_load_whose_client_goes_away_is_ended_and_leaves_its_line(
    people: People, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        gone.set()
        writer.close()

    async with behaving(people, tmp_path, behaviour):
        task = asyncio.create_task(call(people.ann, "POST", SETS, json=COUNTING))
        await asked.wait()
        task.cancel()
        await gone.wait()
    assert "load of a codelet set into app by ann" in caplog.text and "broken off; it may have been done" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="to listen as another user takes root")
async def test_another_user_s_socket_in_its_place_gets_nothing(people: People, tmp_path: Path) -> None:
    """Even one to which a link leads: who listens is asked of the kernel."""
    program = (
        "import os, socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666)\n"
        "os.setuid(65534); listener.listen(); print(flush=True)\n"
        "print(len(listener.accept()[0].recv(4)), flush=True)\n"
    )
    path = tmp_path / "other.sock"
    (tmp_path / "lcm.sock").symlink_to(path)
    attach(people.manager, tmp_path / "lcm.sock")
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path), stdout=pipe)
    assert other.stdout is not None
    await other.stdout.readline()
    status, answer = await call(people.ann, "GET", SETS)
    assert (status, "user 65534 listens on" in answer["error"]["message"]) == (503, True), answer
    assert await other.stdout.readline() == b"0\n"
    assert await other.wait() == 0


async def test_a_user_that_the_host_does_not_have_is_named(people: People, tmp_path: Path) -> None:
    attach(people.manager, tmp_path / "x.sock", user="no-such-user")
    _, answer = await call(people.ann, "GET", SETS)
    assert answer["error"]["message"].endswith("this host has no user no-such-user")


def test_neither_the_manager_nor_keepctl_imports_the_engine() -> None:
    program = (
        "import sys, keep_manager.daemon, keepctl.commands.codelets, codelets.lcm, codelets.descriptor\n"
        "print([name for name in sys.modules if name.startswith(('wasmtime', 'codelets.engine', 'codelets.runtime'))])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_an_uploader_and_who_shows_no_certificate_have_nothing_here() -> None:
    from keep_manager.authorize.table import TABLE, Action, Scope

    for role in (Role.UPLOADER, Role.ANONYMOUS):
        assert {TABLE[role, each] for each in (Action.READ_CODELETS, Action.CHANGE_CODELETS)} == {Scope.NONE}
    assert Identity(Role.USER, "ann").name == "ann"
