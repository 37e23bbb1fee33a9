"""The life-cycle socket and the commands that speak to it, over a real socket."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import dropwhile, islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from codelets import CodeletError, Failure, listening
from codelets.__main__ import main as codelets_main
from codelets.lcm import Client, Command, Request, Server, answers
from codelets.lcm_cli import main as lcm_cli
from codelets.runtime import MAX_FAULTS
from codelets.states import SetState, changed, sentences
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.unit.codelets.application import COUNTER, Application, codelet, one, packet


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Application]:
    application = Application(tmp_path, in_c=False, lcm_socket=str(tmp_path / "lcm.sock"))
    yield application
    application.runtime.close()
    assert not (tmp_path / "lcm.sock").exists()


ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def address(served: Application, tmp_path: Path) -> str:
    return str(tmp_path / "lcm.sock")


def test_a_set_is_loaded_listed_and_unloaded_over_the_socket(served: Application, address: str) -> None:
    served.add("counter", COUNTER)
    with Client(address) as client:
        assert client.load(one("counter", "choose")) == "counter"
        assert served.choose(packet()) == 1
        [state] = client.sets()
        assert (state.codeletset_id, state.loaded, state.codelets[0].calls) == ("counter", True, 1)
        assert {each.name: each.calls for each in client.stats()}["choose"] == 1
        client.unload("counter")
        assert client.sets() == ()


def test_errors_come_with_jbpfs_numbers_and_their_evidence(served: Application, address: str) -> None:
    served.add("loops", codelet("(i64.const 0)", rest="(func $s) (start $s)"))
    with Client(address) as client:
        with pytest.raises(CodeletError, match="start") as refused:
            client.load(one("loops", "choose"))
        assert refused.value.failure is Failure.LOAD_FAILED
        assert any(line.startswith("start:") for line in refused.value.evidence)
        with pytest.raises(CodeletError) as missing:
            client.load(one("loops", "nowhere"))
        assert missing.value.failure.number == -1
        with pytest.raises(CodeletError) as unknown:
            client.unload("nothing")
        assert (unknown.value.failure, unknown.value.kind) == (Failure.UNLOAD_FAILED, ErrorKind.NOT_FOUND)
        with pytest.raises(CodeletError) as invalid:
            client.ask(Request(Command.UNLOAD))
        assert invalid.value.failure.number == -4


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"[]", "JSON"),
        (b'{"command":"run"}', "one of load, unload, list, stats, interface"),
        (b'{"command":"list","more":1}', "unknown field 'more'"),
        (b'{"command":"load","descriptor":7}', "descriptor"),
        (b"\xff\xfe", ""),
        (b'{"command":"list","command":"list"}', ""),
    ],
)
def test_what_is_no_request_is_answered_and_the_connection_goes_on(address: str, body: bytes, words: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        for given, ok in ((body, False), (b'{"command":"list"}', True)):
            connection.sendall(struct.pack(">I", len(given)) + given)
            size = struct.unpack(">I", connection.recv(4))[0]
            answer = json.loads(connection.recv(size))
            assert answer["ok"] is ok
            assert ok or words in answer["error"]["message"]


def test_a_frame_that_is_too_long_is_refused_unread(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(struct.pack(">I", 0xFFFFFFFF))
        size = struct.unpack(">I", connection.recv(4))[0]
        assert "at most" in json.loads(connection.recv(size))["error"]["message"]
        assert connection.recv(1) == b""


@pytest.mark.parametrize("sent", [b"\0\0", struct.pack(">I", 100) + b"half"])
def test_a_client_that_goes_in_the_middle_of_a_frame_harms_no_other(address: str, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(sent)
    with Client(address) as client:
        assert client.sets() == ()


def test_a_client_that_goes_while_its_set_is_loaded_leaves_it_whole(served: Application, address: str) -> None:
    served.add("counter", COUNTER)
    body = json.dumps({"command": "load", "descriptor": one("counter", "choose")}).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    connection.sendall(struct.pack(">I", len(body)) + body)
    connection.close()
    with Client(address) as client:
        while not client.sets():
            pass
    assert served.choose(packet()) == 1


def test_only_the_applications_user_and_root_may_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = Application(tmp_path, in_c=False)
    server = Server(str(tmp_path / "s"), application.runtime)
    assert os.stat(server.path).st_mode & 0o777 == 0o600
    monkeypatch.setattr(server, "_users", frozenset({12345}))
    with Client(server.path) as client, pytest.raises(KeepfleetError, match=r"user [0-9]+ may not; only"):
        client.sets()
    server.close()


def test_connections_beyond_the_limit_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 2)
    clients = [Client(address) for _ in range(2)]
    assert [client.sets() for client in clients] == [(), ()]
    with Client(address) as third, pytest.raises(KeepfleetError, match="there are 2 connections"):
        third.sets()
    for client in clients:
        client.close()


def test_many_clients_load_and_unload_concurrently(served: Application, address: str) -> None:
    served.add("counter", COUNTER)

    def cycle(name: str) -> None:
        with Client(address) as client:
            for _ in range(10):
                client.load(one(name, "choose", path="counter:1"))
                client.unload(name)

    threads = [threading.Thread(target=cycle, args=(f"set{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served.runtime.sets() == ()


def test_a_socket_in_use_is_not_taken_over(served: Application, address: str) -> None:
    with pytest.raises(KeepfleetError, match="an application listens there"):
        Server(address, served.runtime)


def test_the_socket_of_an_application_that_was_killed_is_replaced(served: Application, tmp_path: Path) -> None:
    path = str(tmp_path / "left")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    server = Server(path, served.runtime)
    with Client(path) as client:
        assert client.sets() == ()
    server.close()


FORKS = """
import os, sys
from pathlib import Path
from codelets.lcm import Client
from tests.unit.codelets.application import Application

address = str(Path(sys.argv[1]) / "lcm.sock")
application = Application(Path(sys.argv[1]), in_c=False, lcm_socket=address)
with Client(address) as client:
    client.sets()
    child = os.fork()
    if not child:
        application.runtime.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(client.sets())
with Client(address) as client:
    print(client.sets())
application.runtime.close()
print(os.path.exists(address))
"""


def test_a_process_that_was_forked_off_closes_nothing_of_the_first_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "()\n()\nFalse\n"), done.stderr


def test_a_file_in_the_sockets_place_is_left_alone(served: Application, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    with pytest.raises(KeepfleetError, match="no socket"):
        Server(str(tmp_path / "file"), served.runtime)
    assert (tmp_path / "file").read_text() == "data"


def test_lcm_cli_loads_lists_watches_and_unloads(served: Application, address: str, tmp_path: Path) -> None:
    served.add("counter", COUNTER)
    (tmp_path / "counter.yaml").write_text(one("counter", "${HOOK}"))

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(lcm_cli, ["--address", address, *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert run("--load", str(tmp_path / "counter.yaml"), "--variable", "HOOK=choose") == "loaded counter\n"
    served.choose(packet())
    assert "counter on choose, 1 calls, 0 faults" in run("list")
    assert "at most 16 instructions" in run("list")
    assert json.loads(run("list", "--json"))[0]["codeletset_id"] == "counter"
    assert "choose: 1 calls, 0 faults, 0 overruns" in run("stats")
    assert "counter.counter: 1 calls more, 0 faults" in run("watch", "--times", "1")
    done = run("--unload", str(tmp_path / "counter.yaml"), "--variable", "HOOK=choose")
    assert done == "unloaded counter\n"


def test_who_watches_sees_a_set_come_do_something_and_go_for_its_faults(
    served: Application, address: str, tmp_path: Path
) -> None:
    served.add("faulty", codelet("unreachable"))
    known: dict[str, SetState] = {}
    said: list[str] = []
    with Client(address) as client:
        for found in client.watch(10_000):
            for each in changed(known, found):
                said += sentences(known.get(each.codeletset_id), each)
            known = {each.codeletset_id: each for each in found}
            if not said:
                served.runtime.load(one("faulty", "choose"))
            elif len(said) == 2:
                for _ in range(MAX_FAULTS):
                    served.choose(packet())
            else:
                break
    assert said[:2] == ["faulty: loaded", "faulty.faulty: 0 calls more, 0 faults"]
    assert said[2].startswith(f"faulty: unloaded: {MAX_FAULTS} faults, the last: codelet faulty: wasm `unreachable`")


def test_who_watches_sees_counts_each_time_and_the_end_of_the_application(served: Application, address: str) -> None:
    served.load("counter", COUNTER)
    with Client(address) as client:
        watching = client.watch(100)
        assert next(watching)[0].codelets[0].calls == 0
        served.choose(packet())
        calls = (found[0].codelets[0].calls for found in islice(watching, 600))  # those of a minute
        assert next(dropwhile(lambda count: count == 0, calls)) == 1  # some may have been sent before the call
        served.runtime.close()
        with pytest.raises(KeepfleetError, match="cannot ask the application"):
            while True:
                next(watching)


@pytest.mark.parametrize("every_ms", [99, 10_001, "1", True])
def test_who_watches_does_so_in_bounds(served: Application, every_ms: object) -> None:
    body = json.dumps({"command": "watch", "every_ms": every_ms}).encode()
    [refused] = answers(served.runtime, body)
    assert refused["ok"] is False


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--unload", "nothing"], 1, "cannot unload the codelet set nothing: it is not loaded"),
        (["--load", "{dir}/hook.yaml"], 1, "there are: seen, changed, choose, data"),
        (["--load", "{dir}/broken.yaml"], 1, "broken.yaml: line 1, column 1"),
        (["--load", "{dir}/missing.yaml"], 1, "No such file"),
        ([], 2, "give --load FILE"),
        (["--load", "a", "--unload", "b"], 2, "give --load FILE"),
        (["watch", "--seconds", "0"], 2, "it must be 0.1 to 10"),
        (["--address", "{dir}/none", "list"], 1, "cannot reach the application at"),
    ],
)
def test_lcm_cli_says_what_failed(
    served: Application, address: str, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    (tmp_path / "hook.yaml").write_text(one("a", "nowhere"))
    (tmp_path / "broken.yaml").write_text("[]")
    given = [each.replace("{dir}", str(tmp_path)) for each in arguments]
    done = CliRunner().invoke(lcm_cli, ["--address", address, *given])
    assert done.exit_code == status
    assert words in done.output


def test_codelets_verify_asks_the_application_or_a_file(served: Application, address: str, tmp_path: Path) -> None:
    (tmp_path / "counter.wasm").write_bytes(COUNTER)
    (tmp_path / "bad.wasm").write_bytes(codelet("(i64.const 0)", rest="(memory 1)"))
    (tmp_path / "invalid.wasm").write_bytes(codelet("(i32.const 0)"))
    described = CliRunner().invoke(codelets_main, ["interface", "--address", address])
    (tmp_path / "interface.json").write_text(described.output)
    for source in (["--address", address], ["--interface", str(tmp_path / "interface.json")]):
        for name, status, words in (
            ("counter", 0, "run time: at most 16 instructions"),
            ("bad", 1, "FAIL memories"),
            ("invalid", 1, "the engine refuses it: "),
        ):
            arguments = ["verify", str(tmp_path / f"{name}.wasm"), "--hook", "choose", *source]
            done = CliRunner().invoke(codelets_main, arguments)
            assert done.exit_code == status, done.output
            assert words in done.output


def test_what_an_application_or_a_module_says_cannot_reach_the_terminal(
    served: Application, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.load("counter", COUNTER)
    [state] = served.runtime.sets()
    hostile = state.replace(codeletset_id="a\x1b[2Jb\nc: unloaded", why="\x1b]0;x\x07")
    monkeypatch.setattr(served.runtime, "sets", lambda: (hostile, hostile.replace(loaded=False)))
    for arguments in (["list"], ["watch", "--times", "1"]):
        done = CliRunner().invoke(lcm_cli, ["--address", address, *arguments])
        assert done.exit_code == 0
        assert not any(each in done.output for each in "\x1b\x07")
        assert not any(line.startswith("c:") for line in done.output.splitlines())
    (tmp_path / "hostile.wasm").write_bytes(codelet("(i64.const 0)", '(import "helper" "\\1b[2J" (func))'))
    done = CliRunner().invoke(
        codelets_main, ["verify", str(tmp_path / "hostile.wasm"), "--hook", "choose", "--address", address]
    )
    assert done.exit_code == 1
    assert "codelet-imports" in done.output and "\x1b" not in done.output


def test_what_a_codelet_prints_is_one_line_of_the_log(served: Application, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    imported = '(import "helper" "print" (func $print (param i32 i32)))'
    text = '(data (i32.const 0) "a\\0aWARNING b\\1b[2J\\0a")'
    served.load("prints", codelet("(call $print (i32.const 0) (i32.const 16)) (i64.const 0)", imported, text))
    served.choose(packet())
    assert [record.getMessage() for record in caplog.records if record.name.endswith("output")] == ["a WARNING b [2J"]
