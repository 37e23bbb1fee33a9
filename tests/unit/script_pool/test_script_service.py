"""The service at its edges: standard input and output, the socket and who may connect, clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keep_isolation.locks import what_the_kernel_lacks
from keep_protocol.errors import KeepfleetError
from script_pool import serve
from script_pool.__main__ import cache_directory
from script_pool.client import BlockingPool, Pool, PoolError, ScriptError
from script_pool.connection import MAX_OPEN, Connection
from script_pool.protocol import Answer
from script_pool.serve import Service
from tests.unit.isolation.test_locks import PROLOGUE, WITHOUT

PROGRAM = (sys.executable, "-m", "tests.fakes.script_pool_main")
PATIENT = ("--time=60", "--deadline=60")
"""No run is to end by a limit on a busy machine."""
STDIO = (*PROGRAM, "--stdio", *PATIENT)
ROOT = Path(__file__).resolve().parents[3]
CONVERSATION = (
    (b'{"cmd":"AddCode","name":"a","code":"double x"}', b'{"ok":true}'),
    (b'{"cmd":"ExecCode","name":"a","inputSandbox":{"x":2}}', b'{"ok":true,"outputSandbox":{"x":4}}'),
    (b'{"cmd":"ExecCode","name":"b","inputSandbox":{}}', b'{"ok":false,"reason":"no such script"}'),
    (b'{"cmd":"RemoveCode","name":"b"}', b'{"ok":false,"reason":"no such script"}'),
    (b'{"cmd":"RemoveCode","name":"a"}', b'{"ok":true}'),
    (b'{"cmd":"ExecCode"}', b'{"ok":false,"reason":"malformed request"}'),
    (b"", b'{"ok":false,"reason":"malformed request"}'),
)


def test_the_protocol_is_jefes_byte_for_byte_over_pipes() -> None:
    asked, expected = (b"".join(line + b"\r\n" for line in lines) for lines in zip(*CONVERSATION, strict=True))
    done = subprocess.run(STDIO, input=asked, capture_output=True, cwd=ROOT)
    assert (done.stdout, done.returncode) == (expected, 0)
    assert b"script-pool: isolation: it is no unit of systemd" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_pool_says_on_standard_error_which_isolation_it_lacks_before_it_serves(tmp_path: Path) -> None:
    unit = (
        "script-pool: isolation: it is no unit of systemd: its processes have this user's identity, memory and"
        " processor time, and no namespaces"
    )
    kernel = [f"script-pool: isolation: {line}" for line in what_the_kernel_lacks()]
    done = subprocess.run(STDIO, input=b"", capture_output=True, cwd=ROOT)
    assert (done.stdout, done.stderr.decode().splitlines()) == (b"", [unit, *kernel])
    older = f"{PROLOGUE}{WITHOUT.replace('LANDLOCK', 'ENOSYS')}from script_pool.__main__ import main\n"
    older += "main('tests.fakes.script_engine:FakeEngine')"
    program = [sys.executable, "-c", older, "--stdio", f"--cache={tmp_path}"]
    done = subprocess.run(program, input=b"", capture_output=True, cwd=ROOT)
    assert done.stderr.decode().splitlines() == [
        unit,
        "script-pool: isolation: the kernel has no Landlock: mounts and filters alone keep a runner to its directories"
        " (Linux 5.13)",
        "script-pool: isolation: the kernel has no PR_SET_MDWE: filters alone refuse new executable memory (Linux 6.3)",
    ]


def test_more_requests_than_may_be_open_are_all_answered_over_pipes() -> None:
    """The pool stops reading the pipe, and goes on."""
    count = MAX_OPEN * 3
    asked = b'{"cmd":"AddCode","name":"a","code":"double x"}\r\n' + b"".join(
        b'{"id":%d,"cmd":"ExecCode","name":"a","inputSandbox":{"x":%d}}\r\n' % (n, n) for n in range(count)
    )
    done = subprocess.run([*STDIO, "--queue=2000"], input=asked, capture_output=True, cwd=ROOT)
    answers = {answer["id"]: answer for line in done.stdout.split(b"\r\n")[1:-1] if (answer := json.loads(line))}
    assert len(answers) == count
    assert all(answer["outputSandbox"] == {"x": 2 * n} for n, answer in answers.items())
    assert b"Traceback" not in done.stderr


def test_half_a_line_at_the_end_is_malformed() -> None:
    done = subprocess.run(STDIO, input=b'{"cmd":', capture_output=True, cwd=ROOT)
    assert done.stdout == b'{"ok":false,"reason":"malformed request"}\r\n'


def test_options_that_cannot_be_are_refused(tmp_path: Path) -> None:
    done = subprocess.run([*PROGRAM, "--stdio", "--max=0"], capture_output=True, cwd=ROOT)
    assert done.returncode == 2
    assert b"cannot make a pool: maximum must lie in 1" in done.stderr
    (tmp_path / "requests").write_bytes(b"")
    with open(tmp_path / "requests", "rb") as file:
        done = subprocess.run([*PROGRAM, "--stdio"], stdin=file, capture_output=True, cwd=ROOT)
    assert b"cannot serve on standard input: it is a regular file; use a pipe" in done.stderr


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    path = str(tmp_path / "pool.sock")
    program = subprocess.Popen([*PROGRAM, "--socket", path, *PATIENT], stderr=subprocess.PIPE, cwd=ROOT)
    assert program.stderr is not None
    while b"listening on" not in program.stderr.readline():
        assert program.poll() is None
    yield path, program
    program.terminate()
    program.stderr.close()
    assert program.wait() == 0
    assert not os.path.exists(path)


def test_the_socket_is_its_users_alone(served: tuple[str, subprocess.Popen[bytes]]) -> None:
    path, _ = served
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(KeepfleetError, match="another process serves it"):
        serve.listen(path)


def test_two_clients_overwrite_one_name_and_each_run_is_of_one_of_them(
    served: tuple[str, subprocess.Popen[bytes]],
) -> None:
    path, _ = served
    with BlockingPool(path) as one, BlockingPool(path) as other:
        for n in range(20):
            one.add("a", f"set x {n}")
            assert other.run("a", {}) == {"x": n}
            other.add("a", f"set x {-n}")
            assert one.run("a", {}) == {"x": -n}
        with pytest.raises(ScriptError, match=r"^syntax error: SyntaxError: unknown word 'foo'$") as raised:
            one.add("a", "\nfoo")
        assert raised.value.stack == ("a:2",)


def test_a_blocking_client_says_that_the_pool_has_gone(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="cannot reach the pool at "):
        BlockingPool(str(tmp_path / "none")).__enter__()
    with BlockingPool(program=("true",)) as pool, pytest.raises(PoolError):
        pool.run("a", {})


async def test_an_asyncio_client_has_many_requests_in_flight() -> None:
    async with Pool(program=STDIO) as pool:
        await pool.add("a", "double x\nlog hello")
        await pool.add("bad", "log begins\nthrow TypeError why")
        outputs = await asyncio.gather(*[pool.run("a", {"x": n}) for n in range(200)])
        assert outputs == [{"x": 2 * n} for n in range(200)]
        assert (await pool.call("a", {"x": 1})).console == ("hello",)
        with pytest.raises(ScriptError, match=r"^exception: TypeError: why$") as raised:
            await pool.run("bad", {})
        assert raised.value.console == ("begins",)
        await pool.remove("a")
        with pytest.raises(ScriptError, match=r"^no such script$"):
            await pool.run("a", {})
    with pytest.raises(PoolError, match="it is closed"):
        await pool.run("a", {})


async def test_requests_in_flight_fail_when_the_pool_is_killed() -> None:
    async with Pool(program=STDIO) as pool:
        await pool.add("loop", "hang")
        running = asyncio.create_task(pool.run("loop", {}))
        await asyncio.sleep(0)
        assert pool._program is not None
        pool._program.send_signal(signal.SIGKILL)
        with pytest.raises((PoolError, OSError)):
            await running


def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    serve.listen(path).close()
    os.unlink(path)
    Path(path).write_text("mine")
    with pytest.raises(KeepfleetError, match="there is something else than a socket"):
        serve.listen(path)
    assert Path(path).read_text() == "mine"


class _Quiet:
    """A pool that keeps every request open."""

    def __init__(self) -> None:
        from script_pool.engine.interface import Limits

        self.limits, self.replies = Limits(), list[object]()

    def run(self, name: str, text: bytes, reply: object, settings: object) -> None:
        self.replies.append(reply)


async def test_a_connection_reads_no_further_while_much_is_open(tmp_path: Path) -> None:
    pool = _Quiet()
    connection = Connection(pool, lambda ended: None)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
    line = b'{"id":1,"cmd":"ExecCode","name":"a","inputSandbox":{}}\r\n'
    connection.data_received(line * (MAX_OPEN + 5))
    assert len(pool.replies) == MAX_OPEN
    assert connection._reading is not None
    assert not connection._reading.is_reading()
    connection.abort()
    ours.close()


async def test_a_client_that_does_not_read_is_ended() -> None:
    ended = asyncio.Event()
    pool = _Quiet()
    connection = Connection(pool, lambda gone: ended.set())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
    for _ in range(20):
        connection.data_received(b'{"id":1,"cmd":"ExecCode","name":"a","inputSandbox":{}}\r\n')
    answer = Answer(None, b'{"x":"' + b"x" * 5_000_000 + b'"}')
    for reply in pool.replies:
        reply(answer)  # type: ignore[operator]
    await ended.wait()
    ours.close()


async def test_half_a_line_and_silence_is_answered_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("script_pool.connection.LINE_SECONDS", 0.01)
    ended = asyncio.Event()
    connection = Connection(_Quiet(), lambda gone: ended.set())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, theirs)
    ours.sendall(b'{"cmd":')
    await ended.wait()
    assert ours.recv(1000) == b'{"ok":false,"reason":"malformed request"}\r\n'
    ours.close()


def as_user(uid: int, path: str) -> socket.socket:
    """A connection of another user's, as the kernel reports it to the peer."""
    made = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        made.connect(path)
    finally:
        os.seteuid(0)
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_two_users_have_sessions_of_one_name_each_and_a_third_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o711)  # noqa: S103 - others connect below it
        path = os.path.join(place, "pool.sock")
        users = ("--allow-uid=65533", "--allow-uid=65534")
        command = [sys.executable, "-m", "script_pool", "--socket", path, *users, *PATIENT]
        with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as program:
            assert program.stderr is not None
            while b"listening on" not in program.stderr.readline():
                assert program.poll() is None
            os.chmod(path, 0o666)  # noqa: S103 - the operator's way to let others in
            with (
                contextlib.ExitStack() as ended,
                as_user(65533, path) as one,
                as_user(65534, path) as other,
                as_user(65532, path) as third,
            ):
                ended.callback(program.terminate)
                with contextlib.suppress(ConnectionResetError):
                    assert third.recv(1) == b""
                files = {client: ended.enter_context(client.makefile("rb")) for client in (one, other)}

                def ask(client: socket.socket, **members: object) -> dict[str, Any]:
                    client.sendall(json.dumps({"id": 1, **members}).encode() + b"\r\n")
                    answer: dict[str, Any] = json.loads(files[client].readline())
                    return answer

                def step(client: socket.socket) -> object:
                    said = ask(client, cmd="ExecCode", name="step", inputSandbox={}, session="s")
                    return said["outputSandbox"]["n"]

                code = "globalThis.n = (globalThis.n ?? 0) + 1"
                assert ask(one, cmd="AddCode", name="step", code=code)["ok"]
                assert [step(one), step(one), step(other), step(one), step(other)] == [1, 2, 1, 3, 2]
                saved = ask(one, cmd="SaveSession", session="s")["saved"]
                taken = ask(other, cmd="LoadSession", session="t", saved=saved)
                assert (taken["reason"], taken["message"]) == (
                    "session refused",
                    "cannot load the session: it belongs to another owner",
                )
                assert ask(other, cmd="EndSession", session="s")["ok"]
                assert step(one) == 4
            assert b"refused a connection: user 65532 is not one of" in program.stderr.read()


def test_another_user_is_refused() -> None:
    service = Service(_Quiet(), frozenset((1000,)))  # type: ignore[arg-type]
    assert service._refusal(1000) == ""
    assert service._refusal(1001) == "user 1001 is not one of 1000"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_client_for_node_runs_scripts() -> None:
    done = subprocess.run(["node", "tests/unit/script_pool/node_client_test.js", *STDIO], capture_output=True, cwd=ROOT)
    assert done.stderr.replace(b"script-pool: isolation", b"") and done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"doubled": 42, "reason": "exception", "many": 190}


def test_where_compiled_code_is_kept() -> None:
    assert cache_directory({"CACHE_DIRECTORY": "/var/cache/a:/b", "XDG_CACHE_HOME": "/c"}) == "/var/cache/a"
    assert cache_directory({"XDG_CACHE_HOME": "/c"}) == "/c/keepfleet/scripts"
    assert cache_directory({"XDG_CACHE_HOME": "c"}) == os.path.expanduser("~/.cache/keepfleet/scripts")
