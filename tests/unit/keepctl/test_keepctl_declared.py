"""`keepctl apply`, `diff`, `get`, `delete`, `restart`, `rollback` and `volume`, against a whole manager's API."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_client.credentials import Credentials, parse_manager
from keep_client.declared import DeclaredClient
from keep_protocol.declared import MAX_SETTLING_SECONDS, DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
from strict_yaml.tree import MAX_BYTES
from tests.fakes.manager_thread import manager_thread
from tests.fakes.running_manager import RunningManager
from tests.unit.keepctl.conftest import MODULE, Run, let_operator_in

SERVER = "module: web:1\nrestart: always\nready_seconds: 0\n"


@pytest.fixture(scope="module")
def manager() -> Iterator[RunningManager]:
    with tempfile.TemporaryDirectory(prefix="km") as name, manager_thread(Path(name)) as made:
        yield made


@pytest.fixture(autouse=True)
def let_in(
    manager: RunningManager, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> Iterator[None]:
    """What lets the operator in, the manager chosen, and a module in its store; nothing is declared."""
    let_operator_in(manager, directory)
    monkeypatch.setenv("KEEPFLEET_MANAGER", f"127.0.0.1:{manager.port}")
    monkeypatch.chdir(tmp_path)
    for number, section in ((1, b""), (2, b"\0\1\0")):
        Path("module.wasm").write_bytes(MODULE + section)
        assert run("store", "add", "module.wasm", f"web:{number}").exit_code == 0
    yield
    for each in json.loads(run("get", "-o", "json").stdout):
        run("delete", each["name"])


@pytest.fixture
def client(manager: RunningManager, let_in: None) -> Iterator[DeclaredClient]:
    endpoint = parse_manager(f"127.0.0.1:{manager.port}")
    with DeclaredClient(endpoint, Credentials.find().manager_context()) as made:
        yield made


def wrote(name: str, text: str = SERVER) -> str:
    """A manifest in the current directory."""
    Path(name).write_text(text)
    return name


def test_apply_says_of_each_what_it_did(run: Run) -> None:
    assert run("apply", "-f", wrote("web.yaml")).stdout == "web: declared, version 1\n"
    assert run("apply", "--wait", "-f", "web.yaml").stdout == "web: unchanged, version 1; running\n"
    wrote("web.yaml", SERVER + "arguments: [a]\n")
    assert run("apply", "-f", "web.yaml").stdout == "web: changed, version 2\n"
    done = run("apply", "-o", "json", "-f", "web.yaml")
    assert [(each["name"], each["version"]) for each in json.loads(done.stdout)] == [("web", 2)]


def test_a_directory_declares_each_of_its_manifests_by_its_file_s_name_or_its_own(run: Run) -> None:
    Path("all").mkdir()
    wrote("all/one.yaml")
    wrote("all/two.yml", SERVER + "name: other\n")
    wrote("all/notes.txt", "no manifest")
    assert run("apply", "-f", "all").stdout == "one: declared, version 1\nother: declared, version 1\n"
    (row, *_) = json.loads(run("get", "-o", "json", "other").stdout)
    assert row["name"] == "other"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (SERVER + "memory: 3\n", "1 fault"),
        (SERVER + "volume: {name: data, size: 1M, guest: /d}\n", "1 fault"),
        (SERVER + "probe: {within: 3s}\n", "1 fault"),
        (SERVER + "name: web\n", "another file declares web, too"),
        (SERVER + "#" * 10_000_000, "1 fault"),
    ],
    ids=["unknown", "small volume", "probe of nothing", "a name twice", "10 MB"],
)
def test_nothing_is_declared_unless_every_manifest_can_be_read(run: Run, bad: str, why: str) -> None:
    done = run("apply", "-f", wrote("web.yaml"), "-f", wrote("bad.yaml", bad))
    assert (done.exit_code != 0, why in done.stderr) == (True, True), done.stderr
    assert json.loads(run("get", "-o", "json").stdout) == []


@pytest.mark.parametrize("path", ["missing.yaml", "empty"])
def test_what_is_not_there_is_named(run: Run, path: str) -> None:
    Path("empty").mkdir(exist_ok=True)
    done = run("apply", "-f", path)
    assert (done.exit_code != 0, path in done.stderr) == (True, True)
    assert run("apply").exit_code != 0


def test_a_diff_shows_lines_or_json_and_exits_1_where_there_is_any(run: Run) -> None:
    run("apply", "-f", wrote("web.yaml"), "-f", wrote("same.yaml"))
    wrote("web.yaml", SERVER.replace("web:1", "web:2"))
    done = run("diff", "-f", "web.yaml", "-f", "same.yaml")
    assert (done.exit_code, "-module: web:1\n+module: web:2\n" in done.stdout) == (1, True)
    done = run("diff", "-o", "json", "-f", "web.yaml", "-f", "same.yaml", "-f", wrote("new.yaml"))
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert {name: each["change"] for name, each in found.items()} == {
        "new": "new",
        "same": "unchanged",
        "web": "changed",
    }
    assert found["web"]["diff"][-4:-2] == ["-module: web:1", "+module: web:2"]
    same = run("diff", "-o", "json", "-f", "same.yaml")
    assert (same.exit_code, json.loads(same.stdout)[0]["diff"]) == (0, [])


def test_get_prints_manifests_word_for_word(run: Run) -> None:
    run("apply", "-f", wrote("web.yaml", "# ours\n" + SERVER))
    assert run("get", "-o", "yaml", "web").stdout == "# ours\n" + SERVER
    assert run("get", "web").stdout.splitlines()[1].split()[:1] == ["web"]


@pytest.mark.parametrize("command", ["delete", "restart", "rollback", "get"])
def test_a_name_that_is_not_declared_is_an_error_that_keeps_no_other(run: Run, command: str) -> None:
    run("apply", "--wait", "-f", wrote("web.yaml"))
    done = run(command, "missing", "web")
    assert done.exit_code != 0
    assert "cannot find the declared keep 'missing'" in done.stderr
    if command == "delete":
        assert done.stdout == "web: declared no more\n"
    if command == "restart":
        assert done.stdout == "web: another keep takes its place, version 2\n"


def test_a_rollback_wants_what_was_before_and_refuses_where_nothing_was(run: Run) -> None:
    run("apply", "-f", wrote("web.yaml"))
    refused = run("rollback", "web")
    assert (refused.exit_code != 0, "nothing else was declared before" in refused.stderr) == (True, True)
    run("apply", "-f", wrote("web.yaml", SERVER.replace("web:1", "web:2")))
    done = run("rollback", "--wait", "web")
    assert done.stdout.startswith("web: version 2 was rolled back to version 1: it was asked for; running")
    assert run("get", "-o", "yaml", "web").stdout == SERVER


def test_a_wait_ends_when_nothing_is_under_way(run: Run, client: DeclaredClient) -> None:
    done = run("apply", "--wait", "-f", wrote("web.yaml", SERVER.replace("web:1", "nothing:1")))
    assert (done.exit_code, "; unmet: cannot find the reference nothing:1" in done.stdout) == (1, True)
    found = client.settled("web")
    assert (found.state, found.settled) == (DeclaredState.UNMET, True)


@pytest.mark.parametrize("query", ["settled=-1", "settled=61", "settled=a", "settled=1.5", "settled=", "other=1"])
def test_what_is_no_time_to_wait_is_refused(client: DeclaredClient, query: str) -> None:
    client.apply("web", SERVER)
    with pytest.raises(KeepfleetError) as caught:
        client._call("GET", f"/v1/declared/web?{query}")
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert MAX_SETTLING_SECONDS == 60


def test_of_two_who_apply_at_the_same_time_both_are_counted_and_one_is_wanted(
    manager: RunningManager, client: DeclaredClient
) -> None:
    texts = [f"{SERVER}arguments: ['{number}']\n" for number in range(8)]
    failures: list[KeepfleetError] = []

    def apply(text: str) -> None:
        try:
            with DeclaredClient(
                parse_manager(f"127.0.0.1:{manager.port}"), Credentials.find().manager_context()
            ) as one:
                one.apply("web", text)
        except KeepfleetError as error:
            failures.append(error)

    threads = [threading.Thread(target=apply, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = client.settled("web")
    assert (failures, found.version, found.manifest in texts) == ([], len(texts), True)
    assert found.state is DeclaredState.RUNNING


def test_a_manifest_of_more_than_its_parser_takes_is_refused_by_the_manager_too(client: DeclaredClient) -> None:
    with pytest.raises(KeepfleetError):
        client.apply("web", SERVER + "#" * MAX_BYTES)
    with pytest.raises(KeepfleetError):
        client.apply("web", SERVER + "#" * 10_000_000)
    assert client.declared() == ()


def test_volumes_are_listed_and_removed_by_name(run: Run, manager: RunningManager) -> None:
    run("apply", "-f", wrote("web.yaml"))
    owner = json.loads(run("get", "-o", "json", "web").stdout)[0]["owner"]
    manager.parts.volumes.ensure("data", owner, 16 << 20, 100)
    (row,) = json.loads(run("volume", "ls", "-o", "json").stdout)
    assert (row["name"], row["owner"], row["size_bytes"], row["declared"]) == ("data", owner, 16 << 20, [])
    assert run("volume", "ls").stdout.splitlines()[1].split()[:4] == ["data", owner, "16", "MiB"]
    run("apply", "-f", wrote("web.yaml", SERVER + "volume: {name: data, size: 16M, guest: /data}\n"))
    used = run("volume", "rm", "data", "none")
    assert (used.exit_code != 0, "declared keep web has it; run: keepctl delete web" in used.stderr) == (True, True)
    assert "cannot find volume 'none'" in used.stderr
    run("delete", "web")
    assert run("volume", "rm", "data").stdout == "data: removed\n"
    assert json.loads(run("volume", "ls", "-o", "json").stdout) == []


def test_a_volume_is_a_declared_keep_s_alone(run: Run) -> None:
    done = run("run", "-f", wrote("web.yaml", SERVER + "volume: {name: data, size: 16M, guest: /data}\n"))
    assert (done.exit_code != 0, "only a declared keep has one" in done.stderr) == (True, True)
