"""Pulls over the manager's API: by a program of their own, which has the network and no store, and is not believed."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from keep_client.store import StoreClient
from keep_manager import pulls
from keep_manager.callers import CallerEntry, Quotas
from keep_manager.http.app import ROUTES
from keep_manager.registries import EVERY, RegistryEntry, allowed, request_for
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.pulling import Pull, Pulling, PullState
from module_pull.artifact import MAX_MANIFEST_BYTES, parse_address
from module_pull.exchange import Incoming, head
from module_store.additions import ORIGIN
from module_store.disk import Disk
from module_store.store import Store
from tests.fakes.fake_registry import Answer, FakeRegistry
from tests.fakes.manager_thread import manager_thread
from tests.fakes.running_manager import RunningManager
from tests.unit.manager.test_manager_store import NOTHING, WASM, client_of, left, refusal

DIGEST = f"sha256:{sha256(WASM).hexdigest()}"
PLAIN = RegistryEntry(plain_http=True)
LOGIN = base64.b64encode(b"alice:secret").decode()
MANIFEST = "/v2/team/web/manifests/1.2"


@pytest.fixture
def remote() -> Iterator[FakeRegistry]:
    with FakeRegistry() as found:
        yield found


@pytest.fixture
def manager(place: Path, remote: FakeRegistry) -> Iterator[RunningManager]:
    with manager_thread(place) as made:
        made.pulls.apply(((f"127.0.0.1:{remote.port}", PLAIN),))
        yield made


@pytest.fixture
def client(manager: RunningManager) -> StoreClient:
    return client_of(manager)


@pytest.fixture
def store(manager: RunningManager) -> Iterator[Store]:
    with Store.create(manager.parts.modules.directory) as made:
        yield made


def address(remote: FakeRegistry, what: str = "team/web:1.2") -> str:
    return f"oci://127.0.0.1:{remote.port}/{what}"


def test_a_module_is_pulled_named_and_pinned_by_the_manifest_that_the_manager_read_itself(
    client: StoreClient, store: Store, remote: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "keepfleet.security")
    manifest = remote.put_module("1.2", WASM)
    shown: list[Pull] = []
    pulled = client.pull(Pulling(address(remote)), shown.append)
    assert shown[0].state is PullState.PULLING
    assert pulled.object is not None
    assert (pulled.object.digest, pulled.reference, pulled.received, pulled.size) == (DIGEST, "web:1.2", 8, 8)
    assert pulled.address == f"{address(remote)}@{manifest}"
    assert store.resolve("web:1.2") == DIGEST
    assert store.attached(DIGEST, ORIGIN) == pulled.address.encode()
    again = client.pull(Pulling(pulled.address, "pinned:1"))
    assert (again.object is not None and again.object.digest, again.reference) == (DIGEST, "pinned:1")
    lines = [record.getMessage() for record in caplog.records if record.name == "keepfleet.security"]
    assert any(line.startswith(f"pulling {address(remote)} as 'web:1.2'") for line in lines)
    assert any(line.startswith(f"pulled {DIGEST}, 8 bytes, from {pulled.address}") for line in lines)


def test_only_registries_that_the_configuration_names_are_asked(
    manager: RunningManager, client: StoreClient, remote: FakeRegistry
) -> None:
    manager.pulls.apply((("ghcr.io", RegistryEntry()),))
    error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert error.kind is ErrorKind.FORBIDDEN
    assert f"does not name 127.0.0.1:{remote.port} among its registries" in error.message
    assert (remote.asked, manager.pull_units.started) == ([], [])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("oci://ghcr.io/a/web:1", "ghcr.io:443"),
        ("oci://ghcr.io:5000/a/web:1", "ghcr.io:5000"),
        ("oci://GHCR.io/a/web:1", "ghcr.io"),
        ("oci://other.example/a/web:1", EVERY),
        ("oci://[::1]:5000/a/web:1", "[::1]"),
    ],
)
def test_a_registry_s_own_entry_counts_by_host_and_port_or_by_host(text: str, name: str) -> None:
    own = RegistryEntry(ca="/etc/own.pem")
    assert allowed(((name, own),), text)[1] is own
    every = {EVERY: PLAIN, name: own}
    assert allowed(tuple(every.items()), text)[1] is own


def test_what_the_file_of_a_registry_s_credentials_says_goes_to_it_and_into_no_command_line_environment_or_log(
    manager: RunningManager, client: StoreClient, remote: FakeRegistry, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    file = place / "auth.json"
    file.write_text(json.dumps({"auths": {f"127.0.0.1:{remote.port}": {"auth": LOGIN}}}))
    file.chmod(0o600)
    manager.pulls.apply(((EVERY, PLAIN.replace(credentials=str(file))),))
    remote.put_module("1.2", WASM)
    remote.login, remote.challenge = f"Basic {LOGIN}", 'Basic realm="registry"'
    said = place / "said"
    manager.pull_units.program = ("-I", "-S", "-c", _LOOKING, str(said), manager.pull_units.program[-1])
    assert client.pull(Pulling(address(remote))).object is not None
    assert (MANIFEST, f"Basic {LOGIN}") in remote.asked
    assert LOGIN not in said.read_text() and "alice" not in said.read_text()
    assert LOGIN not in caplog.text


_LOOKING = """
import os, runpy, sys
said, program = sys.argv[1:3]
open(said, "w").write(open("/proc/self/cmdline").read() + open("/proc/self/environ").read())
sys.argv = [program]
runpy.run_path(program, run_name="__main__")
"""
"""The real program, after it has noted its command line and its environment."""


def test_credentials_that_others_may_read_are_not_used(
    manager: RunningManager, client: StoreClient, remote: FakeRegistry, place: Path
) -> None:
    file = place / "auth.json"
    file.write_text(json.dumps({"auths": {"127.0.0.1": {"auth": LOGIN}}}))
    file.chmod(0o644)
    manager.pulls.apply(((EVERY, PLAIN.replace(credentials=str(file))),))
    error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert (error.kind, "others may read it" in error.message) == (ErrorKind.CONFIGURATION, True)
    assert remote.asked == []


def test_a_registry_that_the_credentials_do_not_name_is_not_asked(tmp_path: Path) -> None:
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {"other.example": {"auth": LOGIN}}}))
    file.chmod(0o600)
    entry = RegistryEntry(credentials=str(file))
    error = refusal(lambda: request_for(parse_address("oci://ghcr.io/a/web:1"), entry))
    assert error.message == f"cannot use {file}: it has no entry for ghcr.io:443"


def test_the_host_s_authorities_go_along_unless_the_registry_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "host.pem").write_text("host's")
    (tmp_path / "own.pem").write_text("own")
    where, defaults = parse_address("oci://ghcr.io/a/web:1"), (str(tmp_path / "none"), str(tmp_path / "host.pem"))
    assert request_for(where, RegistryEntry(), defaults).ca == "host's"
    assert request_for(where, RegistryEntry(ca=str(tmp_path / "own.pem")), defaults).ca == "own"
    assert "install ca-certificates" in refusal(lambda: request_for(where, RegistryEntry(), ())).message
    missing = refusal(lambda: request_for(where, RegistryEntry(ca="/none.pem"), defaults))
    assert missing.message == "cannot read /none.pem: there is no such file"


def _lie(remote: FakeRegistry) -> None:
    remote.answers[f"/v2/team/web/blobs/{DIGEST}"] = Answer(body=b"\0asmevil")


def _redirect(to: str) -> Callable[[FakeRegistry], None]:
    def change(remote: FakeRegistry) -> None:
        remote.answers[f"/v2/team/web/blobs/{DIGEST}"] = Answer(307, {"Location": to})

    return change


def _bomb(body: bytes) -> Callable[[FakeRegistry], None]:
    def change(remote: FakeRegistry) -> None:
        remote.answers[MANIFEST] = Answer(body=body)

    return change


HOSTILE: dict[str, tuple[Callable[[FakeRegistry], None], str]] = {
    "other bytes": (_lie, "which its manifest names; nothing was kept"),
    "a file": (_redirect("file:///etc/shadow"), "it redirects to :80 without TLS"),
    "another host without TLS": (_redirect("http://10.1.2.3/blob"), "it redirects to 10.1.2.3:80 without TLS"),
    "this host's own network": (_redirect("https://127.0.0.2:1/x"), "cannot pull from 127.0.0.2:1"),
    "itself, without end": (_redirect(f"/v2/team/web/blobs/{DIGEST}"), "again and again"),
    "no address": (_redirect("https://[::1/"), "it redirects to what is no address"),
    "a manifest without end": (_bomb(bytes(MAX_MANIFEST_BYTES + 1)), f"is over {MAX_MANIFEST_BYTES} bytes"),
    "deep nesting": (_bomb(b"[" * (MAX_MANIFEST_BYTES - 1)), "cannot read the manifest"),
    "many layers": (_bomb(b'{"layers": [' + b'{"mediaType": "application/wasm"},' * 7000 + b"{}]}"), "7000 of its"),
    "a number without end": (_bomb(b'{"layers": ' + b"9" * (MAX_MANIFEST_BYTES - 20) + b"}"), "cannot"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_registry_is_refused_with_its_reason_and_the_next_pull_works(
    client: StoreClient, store: Store, remote: FakeRegistry, name: str
) -> None:
    change, why = HOSTILE[name]
    remote.put_module("1.2", WASM)
    change(remote)
    error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert why in error.message, error
    assert left(store) == NOTHING
    remote.answers.clear()
    assert client.pull(Pulling(address(remote))).state is PullState.DONE


def test_a_body_without_end_is_refused_at_the_first_byte_too_many(
    client: StoreClient, store: Store, remote: FakeRegistry
) -> None:
    remote.put_module("1.2", WASM)
    remote.answers[f"/v2/team/web/blobs/{DIGEST}"] = Answer(body=WASM + b"!", headers={"Content-Length": "99999999"},
                                                           stall=True)  # fmt: skip
    error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert "of a module of 8 bytes it sent more than that" in error.message
    assert left(store) == NOTHING


# --- a program that was taken over -----------------------------------------------------------------------------------


def _manifest(digest: str, size: int) -> bytes:
    layer = {"mediaType": "application/wasm", "digest": digest, "size": size}
    return json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()


TAKEN_OVER: dict[str, tuple[str, str]] = {
    "nothing": ("", "what its unit passes on is no module"),
    "noise": ("w(os.urandom(100000))", "cannot "),
    "a line without end": ("while 1: w(b'x' * 65536)", "what its unit passes on is no module"),
    "another length": (f"m = {_manifest(DIGEST, 8)!r}; w(head([m], 9) + m + bytes(9))", "is no module"),
    "other bytes": (f"m = {_manifest(DIGEST, 8)!r}; w(head([m], 8) + m + bytes(8))", "which its manifest names"),
    "too few": (f"m = {_manifest(DIGEST, 8)!r}; w(head([m], 8) + m + bytes(7))", "it sent 7 bytes and not that"),
    "too many": (f"m = {_manifest(DIGEST, 8)!r}; w(head([m], 8) + m + bytes(9))", "it sent more than that"),
    "three manifests": ('w(b\'{"manifests": [1, 1, 1], "size": 1}\\n1111\')', "is no module"),
    "a manifest of a gigabyte": ('w(b\'{"manifests": [1073741824], "size": 1}\\n\')', "is no module"),
    "a killed program": ("os.kill(os.getpid(), 9)", "it was killed by signal 9"),
    "an odd end": ("os._exit(7)", "with the exit status 7"),
    "a forged error": (
        'os.write(2, b\'{"kind": "internal", "message": "\\\\u001b[2Jcannot x"}\\n\'); os._exit(1)',
        "?[2Jcannot x",
    ),
}


GO_ON = ("noise", "a line without end")
"""Those that do not end by themselves, since what they write is read no further; the others are to have the time."""


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_a_program_that_was_taken_over_hands_over_nothing_but_what_the_manifest_names(
    manager: RunningManager,
    client: StoreClient,
    store: Store,
    remote: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    code, why = TAKEN_OVER[name]
    manager.pull_units.program = ("-c", f"import os, sys\nsys.path.insert(0, {_ROOT!r})\n{_WRITING}{code}")
    monkeypatch.setattr(pulls, "END_SECONDS", 0.0 if name in GO_ON else 60.0)
    error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert why in error.message, error
    assert left(store) == NOTHING


def test_a_pinned_artifact_is_that_one_whatever_the_program_hands_over(
    manager: RunningManager, client: StoreClient, store: Store, remote: FakeRegistry
) -> None:
    manifest = _manifest(DIGEST, 8)
    manager.pull_units.program = (
        "-c",
        f"import os, sys\nsys.path.insert(0, {_ROOT!r})\n{_WRITING}m = {manifest!r}; w(head([m], 8) + m + {WASM!r})",
    )
    assert client.pull(Pulling(address(remote))).state is PullState.DONE, "without a digest it is believed"
    pinned = f"sha256:{sha256(b'another manifest').hexdigest()}"
    error = refusal(lambda: client.pull(Pulling(address(remote, f"team/web@{pinned}"), "pinned:1")))
    assert f"and {pinned} was asked for" in error.message
    assert store.reference_names() == ["web:1.2"]


_ROOT = str(Path(__file__).resolve().parents[3])
_WRITING = """
from module_pull.exchange import head
def w(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
"""


def test_what_comes_in_single_bytes_is_put_together() -> None:
    class Dripping:
        def __init__(self, data: bytes) -> None:
            self._left = data

        def read(self, size: int, /) -> bytes:
            data, self._left = self._left[:1], self._left[1:]
            return data

    manifest = _manifest(DIGEST, 8)
    incoming = Incoming(parse_address("oci://x/a:1"), Dripping(head([manifest], 8) + manifest + WASM))
    assert incoming.begin().digest == DIGEST
    body = incoming.body()
    assert b"".join(iter(lambda: body.read(100), b"")) == WASM


# --- who, how many, and how they end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.USER, Role.VIEWER])
def test_others_than_operators_pull_nothing_and_see_no_pulls(
    manager: RunningManager, remote: FakeRegistry, role: Role
) -> None:
    other = client_of(manager, "alice", role)
    assert refusal(lambda: other.pull(Pulling(address(remote)))).kind is ErrorKind.FORBIDDEN
    assert refusal(other.pulls).kind is ErrorKind.FORBIDDEN
    assert remote.asked == []
    assert len([route for route in ROUTES if "pulls" in route.path]) == 4


def test_a_caller_s_quota_holds_for_what_is_pulled(
    manager: RunningManager, client: StoreClient, store: Store, remote: FakeRegistry
) -> None:
    manager.quotas.apply({"operator": CallerEntry(quotas=Quotas(store_objects=1))})
    remote.put_module("1.2", WASM)
    remote.put_module("1.3", WASM + b"\0\1\0")
    client.pull(Pulling(address(remote)))
    error = refusal(lambda: client.pull(Pulling(address(remote, "team/web:1.3"))))
    assert (error.kind, "store_objects" in error.message) == (ErrorKind.TOO_MANY, True)
    assert [each.digest for each in store.objects()] == [DIGEST]


def test_a_full_disk_is_said_and_the_program_is_not_waited_for(
    client: StoreClient, store: Store, remote: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    remote.put_module("1.2", WASM)
    with monkeypatch.context() as patched:
        patched.setattr(Disk, "write", full)
        error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert (error.kind, "No space left on device" in error.message) == (ErrorKind.NO_SPACE, True)
    assert left(store) == NOTHING
    assert client.pull(Pulling(address(remote))).state is PullState.DONE


def stalled(remote: FakeRegistry) -> None:
    """The registry sends the beginning of a module and then nothing more."""
    remote.put_module("1.2", WASM)
    remote.answers[f"/v2/team/web/blobs/{DIGEST}"] = Answer(body=WASM[:4], headers={"Content-Length": "8"}, stall=True)


def until(asked: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not asked():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def begun(client: StoreClient, remote: FakeRegistry) -> tuple[threading.Thread, list[KeepfleetError]]:
    """A pull that waits for the rest of its module, and what it fails with."""
    failures: list[KeepfleetError] = []

    def pull() -> None:
        try:
            client.another().pull(Pulling(address(remote)))
        except KeepfleetError as error:
            failures.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    until(lambda: any(each.received == 4 for each in client.pulls()))
    return thread, failures


def test_a_pull_that_is_cancelled_ends_its_program_and_leaves_nothing(
    manager: RunningManager, client: StoreClient, store: Store, remote: FakeRegistry
) -> None:
    stalled(remote)
    thread, failures = begun(client, remote)
    (pull,) = client.pulls()
    assert (pull.state, pull.size) == (PullState.PULLING, 8)
    ended = client.cancel_pull(pull.id)
    thread.join()
    assert ended.state is PullState.FAILED
    assert ended.error is not None and "it was cancelled" in ended.error.message
    assert "it was cancelled" in failures[0].message
    assert left(store) == NOTHING
    assert all(process.returncode is not None for process in manager.pull_units.processes)
    assert refusal(lambda: client.cancel_pull("0" * 16)).kind is ErrorKind.NOT_FOUND


def test_a_program_that_stands_still_is_given_up(
    manager: RunningManager, client: StoreClient, store: Store, remote: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(pulls, "END_SECONDS", 0.1)
    manager.pull_units.program = ("-c", "import signal; signal.pause()")
    error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert (error.kind, "nothing came for 0.2 s" in error.message) == (ErrorKind.TOO_SLOW, True)
    assert left(store) == NOTHING
    assert manager.pull_units.processes[0].returncode == -signal.SIGKILL


def test_more_pulls_than_there_are_places_are_refused(
    client: StoreClient, remote: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "MAX_PULLS", 1)
    stalled(remote)
    thread, _ = begun(client, remote)
    error = refusal(lambda: client.pull(Pulling(address(remote))))
    assert (error.kind, "1 pulls are under way" in error.message) == (ErrorKind.TOO_MANY, True)
    client.cancel_pull(client.pulls()[0].id)
    thread.join()


def test_the_last_pulls_can_be_looked_at_and_the_others_are_forgotten(
    client: StoreClient, remote: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls, "KEPT", 2)
    remote.put_module("1.2", WASM)
    ids = [client.pull(Pulling(address(remote), f"web:{number}")).id for number in range(4)]
    assert [each.id for each in client.pulls()] == ids[-2:]


@pytest.mark.parametrize("text", ["", "http://x/y:1", "oci://x/y", "oci://x/y:1;rm", "oci://x:0/y:1"])
def test_what_is_no_address_is_refused_before_anything_is_begun(
    manager: RunningManager, client: StoreClient, text: str
) -> None:
    assert refusal(lambda: client.pull(Pulling(text))).kind is ErrorKind.BAD_REQUEST
    assert manager.pull_units.started == []


def test_a_name_that_is_none_here_has_to_be_given(client: StoreClient, remote: FakeRegistry) -> None:
    remote.put_module("1.2", WASM)
    error = refusal(lambda: client.pull(Pulling(address(remote, "team/_web_:1.2"))))
    assert "cannot call a module '_web_:1.2'" in error.message
    assert client.pull(Pulling(address(remote, "team/_web_:1.2"), "web:1")).reference == "web:1"


def test_nothing_is_left_open_after_pulls(client: StoreClient, remote: FakeRegistry) -> None:
    remote.put_module("1.2", WASM)
    client.pull(Pulling(address(remote)))
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        client.pull(Pulling(address(remote)))
        refusal(lambda: client.pull(Pulling(address(remote, "team/web:9"))))
    # The manager and the registry, each in a thread of its own, see a moment later that a connection has ended.
    until(lambda: len(set(os.listdir("/proc/self/fd")) - before) <= 1)
