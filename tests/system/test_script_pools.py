"""Script pools in keeps: made over /v1/pools, used over mutual TLS, locked and limited as every keep."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_client.keep import endpoint_of
from keep_client.scripts import KeepStream
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts
from tests.python_component import python_directory
from tests.system.fixtures import INSTALLED, module_s_fleet
from tests.system.fleet import Fleet
from tests.system.host import Host, layout, message_of, until
from tests.system.wire import Answer, ask, request
from tools.sandbox.sandbox import Sandbox

RUN_SECONDS = 1
"""What takes a millisecond gets so much, as a process may stand still for long on a busy host."""
RULE = "total = 0\nfor (const item of items) total += item.price * item.count\n"


fleet = pytest.fixture(scope="module")(module_s_fleet)


@pytest.fixture
def place(fleet: Fleet) -> Iterator[Path]:
    """A directory of the host with scripts in it, and a pool called rules."""
    place = fleet.host.path / "pools"
    place.mkdir(exist_ok=True)
    (place / "rule.js").write_text(RULE)
    (place / "typed.ts").write_text("const doubled: number = x * 2\nx = doubled\n")
    (place / "loop.js").write_text("for (;;);\n")
    (place / "crash.js").write_text("const a = []; for (;;) a.push(new Uint8Array(1 << 20).fill(1))\n")
    made = typed(fleet, place, "scripts", "create", "rules", "--max", "2", "--time", f"{RUN_SECONDS}")
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


class Pool:
    """A pool's keep, asked byte by byte."""

    def __init__(self, fleet: Fleet, info: KeepInfo) -> None:
        self.fleet, self.info = fleet, info

    def post(self, body: bytes, name: str = "admin", kind: str = "application/json") -> Answer:
        data = request("POST", "/scripts", body, f"Content-Type: {kind}", "Connection: close")
        return ask(self.info.port, self.shown(name), data)

    def shown(self, name: str = "admin") -> ssl.SSLContext:
        """What a client of this name shows to keeps."""
        return self.fleet.pinned(name)

    def do(self, **members: object) -> dict[str, object]:
        answer = self.post(json.dumps(members).encode())
        assert answer.status == 200
        return answer.object

    def processes(self, name: str) -> list[int]:
        """Its processes that the kernel knows by this name."""
        listed = self.fleet.host.run(["ps", "-eww", "-o", "pid=,comm=,cgroup="]).stdout.splitlines()
        found = [line.split(None, 2) for line in listed if f"keep@{self.info.kuuid}.service" in line]
        return [int(pid) for pid, comm, _ in found if comm == name]


@pytest.fixture(scope="module")
def pool(fleet: Fleet) -> Iterator[Pool]:
    """For all tests that only ask it."""
    made = Pool(
        fleet, fleet.client().create_pool({"name": "asked", "options": {"max": 2, "time_ms": RUN_SECONDS * 1000}})
    )
    assert made.do(cmd="AddCode", name="twice", code="x *= 2") == {"ok": True}
    yield made
    fleet.client().remove(made.info.kuuid)


def test_one_request_is_one_body_and_a_stream_is_answered_as_it_comes(pool: Pool) -> None:
    pretty = b'{\r\n  "cmd": "ExecCode",\r\n  "name": "twice",\r\n  "inputSandbox": {"x": 21}\r\n}'
    assert pool.post(pretty).body == b'{"ok":true,"outputSandbox":{"x":42}}\n'
    assert pool.do(cmd="ExecCode", name="none", inputSandbox={}) == {"ok": False, "reason": "no such script"}
    assert pool.do(cmd="Other")["reason"] == "malformed request"
    lines = b"".join(
        b'{"id":%d,"cmd":"ExecCode","name":"twice","inputSandbox":{"x":%d}}\r\n' % (n, n) for n in range(50)
    )
    answers = [json.loads(line) for line in pool.post(lines, kind="application/json-lines").body.split(b"\r\n")[:-1]]
    assert {answer["id"]: answer["outputSandbox"]["x"] for answer in answers} == {n: 2 * n for n in range(50)}


def test_a_pool_in_a_keep_runs_micropython_and_says_that_it_has_no_cpython(pool: Pool) -> None:
    code = "import json\ntotal = sum(json.loads(text))"
    assert pool.do(cmd="AddCode", name="sum", code=code, language="micropython") == {"ok": True}
    assert pool.do(cmd="ExecCode", name="sum", inputSandbox={"text": "[20, 22]"}) == {
        "ok": True, "outputSandbox": {"text": "[20, 22]", "total": 42}
    }  # fmt: skip
    assert pool.do(cmd="AddCode", name="loop", code="while True: pass", language="micropython") == {"ok": True}
    assert pool.do(cmd="ExecCode", name="loop", inputSandbox={})["reason"] == "time limit exceeded"
    said = pool.do(id=1, cmd="AddCode", name="a", code="pass", language="python")
    assert (said["reason"], "CPython is not there" in str(said["message"])) == ("not installed", True)


def test_a_session_over_tls_is_its_owners_alone(fleet: Fleet) -> None:
    fleet.issue("carol")
    pool = Pool(fleet, fleet.client().create_pool({"callers": ["name:carol", "name:admin"]}))
    try:
        assert pool.do(cmd="AddCode", name="step", code="globalThis.n = (globalThis.n ?? 0) + 1") == {"ok": True}
        step = b'{"id":1,"cmd":"ExecCode","name":"step","inputSandbox":{},"session":"s"}'
        counted = [pool.post(step, name).object["outputSandbox"] for name in ("admin", "admin", "carol", "admin")]
        assert counted == [{"n": 1}, {"n": 2}, {"n": 1}, {"n": 3}]
        saved = pool.do(id=1, cmd="SaveSession", session="s")["saved"]
        taken = json.dumps({"id": 1, "cmd": "LoadSession", "session": "t", "saved": saved}).encode()
        answer = pool.post(taken, "carol").object
        assert (answer["reason"], "another owner" in answer["message"]) == ("session refused", True)
    finally:
        fleet.client().remove(pool.info.kuuid)


def test_a_script_calls_a_function_of_its_callers_over_tls(fleet: Fleet, pool: Pool) -> None:
    code = "var price = await price_of(article)"
    assert pool.do(cmd="AddCode", name="order", code=code, hostFunctions=["price_of"]) == {"ok": True}
    stream = KeepStream(endpoint_of(pool.info, "127.0.0.1"), fleet.credentials())
    try:
        stream.send(b'{"id":7,"cmd":"ExecCode","name":"order","inputSandbox":{"article":"pear"}}\r\n')
        asked = json.loads(stream.receive())
        call = asked["hostCall"]
        assert (asked["id"], call["name"], call["arguments"]) == (7, "price_of", ["pear"])
        stream.send(b'{"cmd":"HostResult","id":7,"call":%d,"value":4}\r\n' % call["call"])
        assert json.loads(stream.receive())["outputSandbox"] == {"article": "pear", "price": 4}
    finally:
        stream.close()


def test_what_is_no_request_of_a_pool_is_refused_with_its_status(pool: Pool) -> None:
    context = pool.shown()
    for data, status in (
        (request("PUT", "/workload", b"x"), 404),
        (request("GET", "/scripts"), 405),
        (request("POST", "/scripts", b"{}", "Content-Type: text/plain"), 415),
        (request("POST", "/scripts", b"{}", "Content-Length: 2"), 400),
        (b"nonsense\r\n\r\n", 400),
        (request("POST", "/scripts", length=1 << 40), 413),
    ):
        assert ask(pool.info.port, context, data).status == status, data[:60]
    large = b'{"cmd":"AddCode","name":"a","code":"' + b"x" * (6 << 20) + b'"}'
    assert pool.post(large).status == 413
    assert pool.do(cmd="ExecCode", name="twice", inputSandbox={"x": 1})["outputSandbox"] == {"x": 2}


def test_only_the_owner_and_the_callers_he_names_are_served(fleet: Fleet, pool: Pool) -> None:
    fleet.issue("bob")
    body = b'{"cmd":"ListCode"}'
    answer = pool.post(body, "bob")
    assert (answer.status, answer.kind) == (403, "forbidden")
    shared = Pool(fleet, fleet.client().create_pool({"callers": ["name:bob", "name:admin"]}))
    assert shared.post(body, "bob").object == {"ok": True, "scripts": []}
    with pytest.raises(KeepfleetError) as refused:
        fleet.client("bob").remove(shared.info.kuuid)
    assert refused.value.kind in (ErrorKind.NOT_FOUND, ErrorKind.FORBIDDEN)
    fleet.keepctl("pki", "revoke", "bob")
    assert shared.post(body, "bob").status == 403
    fleet.client().remove(shared.info.kuuid)


def test_a_template_that_is_killed_is_forked_again_and_the_scripts_are_there(pool: Pool) -> None:
    before = pool.processes("keep-runner")
    pool.fleet.host.assistant.kill(signal.SIGKILL, *before)
    answers = [pool.do(id=1, cmd="ExecCode", name="twice", inputSandbox={"x": 2}) for _ in range(3)]
    assert answers[-1]["outputSandbox"] == {"x": 4}, answers
    until(lambda: pool.processes("keep-runner") not in ([], before), lambda: "no other template is forked")


def test_an_endpoint_that_is_killed_opens_again_with_the_same_certificate(pool: Pool) -> None:
    pool.fleet.host.assistant.kill(signal.SIGKILL, *pool.processes("keep-endpoint"))
    assert pool.do(cmd="ExecCode", name="twice", inputSandbox={"x": 2})["reason"] == "no such script"
    keep = pool.fleet.client().keep(pool.info.kuuid)
    assert keep.fingerprint == pool.info.fingerprint
    assert pool.do(cmd="AddCode", name="twice", code="x *= 2") == {"ok": True}


def test_its_processes_are_locked_and_hold_no_other_file(pool: Pool) -> None:
    children = pool.processes("script-child")
    assert children
    for pid in (*children, *pool.processes("keep-endpoint")):
        status = pool.fleet.host.run(["grep", "-E", "^(Seccomp|NoNewPrivs|CapEff):", f"/proc/{pid}/status"]).stdout
        assert [line.split()[1] for line in status.splitlines()] == ["0000000000000000", "1", "2"]


def test_pools_are_listed_read_and_removed_by_their_own_routes(fleet: Fleet, pool: Pool) -> None:
    def asked(method: str, path: str, body: bytes = b"") -> Answer:
        return ask(fleet.port, fleet.tls(), request(method, path, body, "Connection: close"))

    other = fleet.client().create()
    listed = asked("GET", "/v1/pools").object["keeps"]
    assert [keep["kuuid"] for keep in listed] == [pool.info.kuuid]  # each other test has removed its own
    assert asked("GET", f"/v1/pools/{pool.info.kuuid}").object["kind"] == "scripts"
    assert asked("GET", f"/v1/pools/{other.kuuid}").status == 404
    assert asked("DELETE", f"/v1/pools/{other.kuuid}").status == 404
    wrong = asked("POST", "/v1/pools", b'{"options":{"min":3,"max":2}}')
    assert (wrong.status, wrong.kind) == (400, "bad-request")
    assert asked("POST", "/v1/pools", b'{"options":{"time_ms":1}}').status == 400
    made = asked("POST", "/v1/pools")
    assert made.status == 201
    assert asked("DELETE", f"/v1/pools/{made.object['kuuid']}").status == 204
    fleet.client().remove(other.kuuid)


def test_what_scripts_print_goes_to_the_keeps_journal_where_that_is_asked(fleet: Fleet, place: Path) -> None:
    made = typed(fleet, place, "scripts", "create", "journaled", "--console", "journal")
    pool = Pool(fleet, fleet.client().keep(int(made.stdout)))
    unit = f"keep@{pool.info.kuuid}.service"
    forged = 'script-pool: script "b" run 1: paid'
    code = f"console.log('begins'); console.log({json.dumps(chr(10) + forged)}); console.log('the last')"
    assert pool.do(cmd="AddCode", name="a", code=code) == {"ok": True}
    assert "console" not in pool.do(id=1, cmd="ExecCode", name="a", inputSandbox={})
    fleet.host.wait_journal("the last", unit)
    assert forged in typed(fleet, place, "logs", "journaled").stdout
    lines = [message_of(entry) for entry in fleet.host.journal(unit) if " run " in message_of(entry)]
    assert [re.sub(r" run [0-9]+: ", " run N: ", line, count=1) for line in lines] == [
        'script-pool: script "a" run N: begins',
        f'script-pool: script "a" run N: \\n{forged}',
        'script-pool: script "a" run N: the last',
    ]
    fleet.host.assistant.kill(signal.SIGKILL, *pool.processes("keep-endpoint"))
    assert pool.do(cmd="AddCode", name="b", code="console.log('of the next endpoint')") == {"ok": True}
    assert pool.do(cmd="ExecCode", name="b", inputSandbox={})["ok"]
    fleet.host.wait_journal("of the next endpoint", unit)
    cursor = fleet.host.cursor()
    fleet.host.run(["kill", "-KILL", fleet.host.show(unit, "MainPID")["MainPID"]])
    fleet.host.wait_journal("awaiting-workload", unit, cursor)
    assert pool.do(cmd="AddCode", name="c", code="console.log('of the next loader')") == {"ok": True}
    assert pool.do(cmd="ExecCode", name="c", inputSandbox={})["ok"]
    fleet.host.wait_journal("of the next loader", unit)
    fleet.client().remove(pool.info.kuuid)


@pytest.fixture
def fleet_with_python(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A host of its own, whose installation has CPython made."""
    directories = {name: tmp_path_factory.mktemp(name) for name in ("engines", "made", "etc", "shared")}
    for directory in directories.values():
        directory.chmod(0o755)
    (place,) = prefix.glob("lib/python3*/site-packages/script_pool/engine/installed")
    shutil.copytree(place, directories["engines"], dirs_exist_ok=True)
    path = cpython.make(Artifacts(python_directory(str(tmp_path_factory.getbasetemp()))))
    shutil.copy(path, directories["made"])
    Artifacts(str(directories["made"])).install(str(directories["engines"]))
    binds = (
        (str(prefix), INSTALLED, True),
        (str(directories["engines"]), f"{INSTALLED}/{place.relative_to(prefix)}", True),
        (str(directories["etc"]), "/etc/keepfleet", False),
        (str(directories["shared"]), str(directories["shared"]), False),
    )
    with Sandbox(f"python-pools-{os.getpid()}", layout(binds)) as sandbox, sandbox.network():
        fleet = Fleet(Host(sandbox, directories["shared"]), directories["etc"])
        fleet.install()
        yield fleet


IN_PYTHON = """
import dataclasses, datetime, statistics
from decimal import Decimal

@dataclasses.dataclass
class Order:
    price: Decimal
    count: int

print("an order")
orders = [Order(Decimal(each["price"]), each["count"]) for each in items]
total = str(sum(order.price * order.count for order in orders))
middle = statistics.median(order.count for order in orders)
day = datetime.date(2026, 11, 28).isoformat()
seen = [name for name in ("left",) if name in globals()]
del items, orders
globals()["left"] = 1
"""


def test_a_pool_in_a_keep_runs_cpython_where_the_installation_has_it(fleet_with_python: Fleet) -> None:
    fleet = fleet_with_python
    pool = Pool(fleet, fleet.client().create_pool({"name": "python", "options": {"max": 2, "time_ms": 1000}}))
    failing = "def price():\n    return 1 / 0\n\nprice()"
    sources = {"order": IN_PYTHON, "fails": failing, "loop": "while True: pass", "eater": "a = ['x' * 99] * 10**9"}
    for name, code in sources.items():
        assert pool.do(id=1, cmd="AddCode", name=name, code=code, language="python") == {"id": 1, "ok": True}
    items = [{"price": "1.10", "count": 3}, {"price": "0.05", "count": 1}]
    for _ in range(3):
        said = pool.do(id=2, cmd="ExecCode", name="order", inputSandbox={"items": items})
        assert said["console"] == ["an order"], said
        assert said["outputSandbox"] == {"total": "3.35", "middle": 2.0, "day": "2026-11-28", "seen": [], "left": 1}
    said = pool.do(id=3, cmd="ExecCode", name="fails", inputSandbox={})
    assert (said["reason"], said["name"]) == ("exception", "ZeroDivisionError")
    assert any("2" in line for line in said["stack"]), said  # type: ignore[attr-defined]
    assert pool.do(id=4, cmd="ExecCode", name="loop", inputSandbox={})["reason"] == "time limit exceeded"
    assert pool.do(id=5, cmd="ExecCode", name="eater", inputSandbox={})["reason"] == "memory limit exceeded"
    assert pool.do(id=6, cmd="ExecCode", name="order", inputSandbox={"items": items})["ok"]
    fleet.client().remove(pool.info.kuuid)
