"""The main job: a keep is made, listens, takes one module, runs it, says so in the journal, and leaves no trace."""

from __future__ import annotations

import hashlib
import json
import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from keep_protocol.constants import slice_name
from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.system import modules
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import message_of
from tests.system.life import SOON, Life, example
from tests.system.output import lines


def ran(fleet: Fleet, module: bytes) -> Life:
    """A keep whose workload has ended, well or not."""
    life = Life.awaiting(fleet)
    assert life.upload(module).status == 200
    life.info = fleet.client().changed(life.kuuid, State.STARTED, SOON)
    return life


def guest_entries(life: Life) -> list[dict[str, object]]:
    """The journal's entries of what the workload printed."""
    return [entry for entry in life.entries() if "KEEP_STREAM" in entry]


def guest_lines(life: Life) -> list[str]:
    """The workload's output, line by line."""
    return [message_of(entry) for entry in guest_entries(life)]


def test_a_keep_goes_from_its_creation_over_its_start_and_its_workload_to_its_outcome(fleet: Fleet) -> None:
    life = Life.create(fleet)
    assert (life.info.state, life.info.detail, life.info.port) == (State.LISTENING, "ready for a start", 0)
    assert life.info.isolation_failures == ()
    life.start()
    assert (life.info.state, life.info.detail) == (State.STARTED, "awaiting workload")
    module = example("hello-wat/hello")
    reply = life.upload(module)
    assert (reply.status, reply.object()) == (
        200,
        {"sha256": hashlib.sha256(module).hexdigest(), "size": len(module)},
    )
    life.until(State.STARTED, State.COMPLETE)
    outcome = life.info.outcome
    assert outcome is not None
    assert (outcome.kind, outcome.exit_code, outcome.text) == (OutcomeKind.EXITED, 0, "exited 0")
    assert outcome.wall_seconds and outcome.cpu_seconds and outcome.peak_bytes
    assert outcome.output_bytes == len("Hello from WAT, inside a keep!\n")
    assert guest_lines(life) == ["Hello from WAT, inside a keep!"]
    life.remove()
    assert fleet.left_over() == []


def test_the_original_s_json_upload_runs_and_is_answered_in_its_words(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    reply = life.upload_numbers(example("return-1/return-1"))
    assert (reply.status, reply.text) == (200, "Payload received")
    life.until(State.STARTED, State.COMPLETE)
    assert guest_lines(life) == ["returned: [1]"]


def test_the_original_s_commands_do_the_main_job(fleet: Fleet) -> None:
    client = fleet.client()
    made = client.legacy({"command": "new-keep", "keep-arch": "wasi", "auth-token": "a"}).object()
    assert (made["state"], made["app_loader_bind_port"], made["bindaddress"]) == (1, 0, "")
    started = client.legacy(
        {"command": "start-keep", "kuuid": str(made["kuuid"]), "keep-addr": "127.0.0.1", "keep-port": "3031"}
    ).object()
    assert (started["state"], started["bindaddress"]) == (2, "127.0.0.1")
    assert client.legacy({"command": "list-keeps"}).object() == {"klvec": [started]}
    life = Life(fleet, int(str(made["kuuid"])))
    assert life.upload_numbers(example("hello-wat/hello")).status == 200
    life.until(State.STARTED, State.COMPLETE)


def test_a_client_that_waits_for_a_change_sees_each_state_on_the_way(fleet: Fleet) -> None:
    life = Life.create(fleet)
    seen = queue.SimpleQueue[State]()

    def following() -> None:
        client = fleet.client()
        state = client.keep(life.kuuid).state
        seen.put(state)
        while state not in (State.COMPLETE, State.ERROR):
            state = client.changed(life.kuuid, state, SOON).state
            seen.put(state)

    with ThreadPoolExecutor(1) as pool:
        followed = pool.submit(following)
        assert seen.get(timeout=SOON) is State.LISTENING
        life.start()
        assert seen.get(timeout=SOON) is State.STARTED
        life.upload(modules.says(b"seen\n"))
        followed.result()
    assert [seen.get(), seen.empty()] == [State.COMPLETE, True]


def test_systemctl_status_says_each_state_in_a_sentence(fleet: Fleet) -> None:
    life = Life.create(fleet)
    assert life.status("listening") == "listening: ready for a start"
    life.start()
    at = f"on 127.0.0.1:{life.info.port}, {life.info.fingerprint[:19]}…"
    assert life.status("awaiting") == f"started: awaiting workload {at}"
    assert f'Status: "started: awaiting workload {at}"' in fleet.host.systemctl("status", life.unit)
    life.upload(modules.sleeps())
    assert life.status("running the workload") == "started: running the workload"
    fleet.client().stop(life.kuuid)
    assert life.status("complete").startswith("complete: stopped by admin")
    assert fleet.host.show(MANAGER, "StatusText")["StatusText"].endswith("keeps")


@pytest.mark.parametrize(
    ("name", "state", "kind", "text", "lines"),
    [
        ("hello-wat/hello", State.COMPLETE, OutcomeKind.EXITED, "exited 0", ["Hello from WAT, inside a keep!"]),
        ("return-1/return-1", State.COMPLETE, OutcomeKind.EXITED, "exited 0", ["returned: [1]"]),
        ("exit-3/exit-3", State.COMPLETE, OutcomeKind.EXITED, "exited 3", []),
        ("trap-wat/trap", State.ERROR, OutcomeKind.TRAPPED, "out of bounds memory access", []),
    ],
)
def test_each_example_ends_as_its_source_says(
    fleet: Fleet, name: str, state: State, kind: OutcomeKind, text: str, lines: list[str]
) -> None:
    life = ran(fleet, example(name))
    assert life.info.state is state
    assert life.info.outcome is not None
    assert life.info.outcome.kind is kind
    assert text in life.info.outcome.text
    assert bool(life.info.outcome.backtrace) is (kind is OutcomeKind.TRAPPED)
    assert guest_lines(life) == lines


def test_the_c_example_greets_and_cannot_open_the_host_s_files(fleet: Fleet) -> None:
    life = ran(fleet, example("hello-c/hello"))
    assert life.info.outcome is not None
    assert life.info.outcome.exit_code == 0
    first, time, files = guest_lines(life)
    assert first == "Hello from C, inside a keep!"
    assert time.startswith("It is ")
    assert files.startswith("I cannot open /etc/passwd")


def test_the_example_that_never_ends_is_ended_by_stop(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    cursor = fleet.host.cursor()
    life.upload(example("spin-wat/spin"))
    life.line("spinning until stopped", cursor)
    stopped = fleet.client().stop(life.kuuid)
    assert (stopped.state, stopped.outcome and stopped.outcome.kind) == (State.COMPLETE, OutcomeKind.STOPPED)


def test_the_example_with_an_unknown_import_is_refused_and_the_keep_goes_on_waiting(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    reply = life.upload(example("unknown-import/unknown-import"))
    assert reply.status == 422
    assert "open_the_door" in reply.error().message
    assert life.look().state is State.STARTED
    assert life.upload(example("hello-wat/hello")).status == 200
    life.until(State.STARTED, State.COMPLETE)


def test_each_line_of_output_is_an_entry_with_the_keep_s_id_unit_and_name(fleet: Fleet) -> None:
    life = ran(fleet, modules.says(b"one\ntwo\n", b"th", b"ree\n", "four: Ünïcødé\n".encode()))
    entries = guest_entries(life)
    assert [message_of(entry) for entry in entries] == ["one", "two", "three", "four: Ünïcødé"]
    for entry in entries:
        assert entry["KEEP_ID"] == str(life.kuuid)
        assert entry["_SYSTEMD_UNIT"] == life.unit
        assert entry["SYSLOG_IDENTIFIER"] == f"keep-{life.kuuid}"


def test_standard_error_is_in_the_journal_too(fleet: Fleet) -> None:
    assert guest_lines(ran(fleet, modules.says(b"trouble\n", fd=2))) == ["trouble"]


def test_output_without_a_newline_at_its_end_is_not_lost(fleet: Fleet) -> None:
    assert guest_lines(ran(fleet, modules.says(b"whole\n", b"without"))) == ["whole", "without"]


def test_a_workload_cannot_choose_its_lines_priority_unit_or_keep(fleet: Fleet) -> None:
    forged = [b"<0>the host is on fire\n", b"\nPRIORITY=0\nKEEP_ID=1\n", b"\x1b[31mred\n"]
    life = ran(fleet, modules.says(*forged))
    entries = guest_entries(life)
    assert {entry["PRIORITY"] for entry in entries} == {"6"}
    assert "<0>the host is on fire" in guest_lines(life)
    assert "PRIORITY=0" in guest_lines(life)
    assert {entry["KEEP_ID"] for entry in entries} == {str(life.kuuid)}


def dynamic_user(fleet: Fleet, uid: str) -> str:
    """The name systemd knows the user by; the C library only knows it where libnss-systemd is installed."""
    name = "org.freedesktop.systemd1"
    call = ["busctl", "call", name, "/org/freedesktop/systemd1", f"{name}.Manager", "LookupDynamicUserByUID", "u", uid]
    return fleet.host.run(call).stdout.split('"')[1]


def test_each_keep_has_a_user_a_control_group_and_a_certificate_of_its_own(fleet: Fleet) -> None:
    lives = [Life.awaiting(fleet) for _ in range(3)]
    uids = [fleet.host.run(["stat", "--format=%u", f"/proc/{life.endpoint_pid}"]).stdout.strip() for life in lives]
    assert len(set(uids)) == 3
    assert [dynamic_user(fleet, uid) for uid in uids] == [f"keep-{life.kuuid}" for life in lives]
    assert all(61184 <= int(uid) <= 65519 for uid in uids), "systemd's range of dynamic users"
    for life, uid in zip(lives, uids, strict=True):
        group = fleet.host.run(["cat", f"/proc/{life.endpoint_pid}/cgroup"]).stdout
        assert f"/{slice_name(life.kuuid)}/{life.unit}" in group
        mode = fleet.host.run(["stat", "--format=%a %u", f"/run/keepfleet/{life.kuuid}"]).stdout.split()
        assert mode == ["700", uid]
    assert len({life.info.fingerprint for life in lives}) == 3


def test_a_keep_s_endpoint_is_closed_and_its_port_free_once_its_workload_is_accepted(fleet: Fleet) -> None:
    life = Life.running(fleet)
    with pytest.raises(ConnectionRefusedError):
        life.connect()
    with socket.create_server(("127.0.0.1", life.info.port)):
        assert life.look().state is State.STARTED


@pytest.mark.parametrize("make", [Life.create, Life.awaiting, Life.running, Life.ended])
def test_a_removed_keep_leaves_nothing_in_whatever_state_it_was(fleet: Fleet, make: object) -> None:
    life: Life = make(fleet)  # type: ignore[operator] # one of Life's own constructors
    loader = life.loader_pid  # none, where it has ended
    uid = fleet.host.run(["stat", "--format=%u", f"/proc/{loader}"]).stdout.strip() if loader else "no user"
    fleet.client().remove(life.kuuid)
    assert fleet.left_over() == []
    assert fleet.client().keeps() == ()
    assert not loader or fleet.host.run(["pgrep", "--uid", uid], check=False).stdout == ""
    assert str(life.kuuid) not in fleet.host.run(["cat", "/proc/net/unix"]).stdout
    assert fleet.host.run(["ipcs"]).stdout.count(uid) == 0
    if life.info.port:
        socket.create_server(("127.0.0.1", life.info.port)).close()


def test_the_manager_tidies_up_after_a_keep_that_it_did_not_stop_itself(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    fleet.host.systemctl("stop", life.unit)
    fleet.settle()
    assert fleet.left_over() == []


def test_a_keep_is_the_same_in_every_view_of_it(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    assert fleet.client().keeps() == (life.look(),)
    inspected = fleet.host.run(["keepctl", "inspect", "--manager", f"127.0.0.1:{fleet.port}", str(life.kuuid)]).stdout
    assert json.loads(inspected) == life.info.to_wire()


def test_the_lines_of_a_workload_are_distinguished_from_those_of_the_keep_s_own_processes(fleet: Fleet) -> None:
    """All are forks of one loader, whose command line they bear; and a guest writes what it likes."""
    life = Life.awaiting(fleet)
    assert life.upload(b"no module").status == 422
    assert life.upload(modules.says(b"booting -> idle (ready)\n", b"app-loader: refused\n")).status == 200
    life.until(State.STARTED, State.COMPLETE)
    assert lines(fleet, life.kuuid) == [("stdout", "booting -> idle (ready)"), ("stdout", "app-loader: refused")]
    own = [text for source, text in lines(fleet, life.kuuid, "?all=true") if source == "keep"]
    assert any("refused" in text for text in own), own
