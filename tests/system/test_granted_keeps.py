"""The manager's part of a granted workload on a real systemd: what its unit lets it open, report, and clear away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keep_client.manager import ManagerClient
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from tests.system import hostile
from tests.system.fleet import MANAGER, Fleet, free_port
from tests.system.life import Bystanders, Life, example

ROOT = "/run/granted"
CALLERS = f'{{"*": {{grant_roots: [{{path: {ROOT}}}, {{path: {ROOT}/out, writable: true}}]}}}}'


@pytest.fixture
def granting(fleet: Fleet) -> Iterator[Fleet]:
    """A fleet whose manager may grant from ROOT."""
    script = f"mkdir -p {ROOT}/out; echo hello >{ROOT}/in; echo s3cret >{ROOT}/token; ln -s /etc {ROOT}/link"
    fleet.host.run(["sh", "-ec", f"{script}; chmod 0700 {ROOT}; chown 5000:5000 {ROOT}/out"])
    try:
        with fleet.configured(callers=CALLERS):
            yield fleet
    finally:
        fleet.host.run(["rm", "-r", ROOT])


MAKES = hostile.module(
    """(i32.store (i32.const 0) (i32.const 600)) (i32.store (i32.const 4) (i32.const 7))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (loop $again
      (local.set $n (call $path_create_directory (i32.const 3) (i32.const 600) (i32.const 3)))
      (br_if $again (i32.or (i32.eqz (local.get $n)) (i32.eq (local.get $n) (i32.const 20)))))
    (call $proc_exit (local.get $n))""",
    more='(data (i32.const 600) "making\\n")',
)
"""Makes a directory in its first granted one again and again; exits with the first error but EXIST."""
NOENT = 44


def given(**more: object) -> dict[str, object]:
    return {"stdin": {"file": f"{ROOT}/in"}, "secrets": [{"name": "token", "file": f"{ROOT}/token"}], **more}


def test_the_manager_s_unit_can_grant_and_the_keep_runs_with_it(granting: Fleet) -> None:
    client, life = granting.client(), Life.create(granting)
    directories = [
        {"host": ROOT, "guest": "/all"},
        {"host": f"{ROOT}/out", "guest": "/out", "writable": True},
    ]
    workload = given(directories=directories, arguments=["-v"], environment={"A": "b"})
    life.info = client.start(life.kuuid, "127.0.0.1", free_port(), (), workload)
    assert life.info.state is State.STARTED
    assert life.upload(example("hello-c/hello")).status == 200
    lines = list(client.lines(life.kuuid, follow=True, everything=True))
    assert "Hello from C, inside a keep!" in [line.text for line in lines if line.source == "stdout"]
    assert lines[-1].source == "keep"
    assert life.look().state is State.COMPLETE


def test_a_directory_removed_while_it_is_used_is_an_error_of_that_guest_alone(granting: Fleet) -> None:
    client, bystanders = granting.client(), Bystanders(granting)
    granting.host.run(["sh", "-ec", f"mkdir {ROOT}/out/used; chown 5000:5000 {ROOT}/out/used"])
    life = Life.create(granting)
    workload: dict[str, object] = {"directories": [{"host": f"{ROOT}/out/used", "guest": "/used", "writable": True}]}
    life.info = client.start(life.kuuid, "127.0.0.1", free_port(), (), workload)
    assert life.upload(MAKES).status == 200
    life.line("making")
    granting.host.run(["sh", "-c", f"until rm -r {ROOT}/out/used; do :; done"])
    outcome = life.until(State.STARTED, State.COMPLETE).outcome
    assert outcome is not None
    assert (outcome.text, outcome.exit_code) == (f"exited {NOENT}", NOENT)
    bystanders.check()
    life.remove()


@pytest.mark.parametrize("path", ["/etc/passwd", f"{ROOT}/link/passwd", "/proc/self/fd/0"])
def test_what_lies_outside_is_forbidden_and_the_keep_can_start_without_it(granting: Fleet, path: str) -> None:
    client, life = granting.client(), Life.create(granting)
    with pytest.raises(KeepfleetError) as caught:
        client.start(life.kuuid, "127.0.0.1", free_port(), (), given(stdin={"file": path}))
    assert caught.value.kind is ErrorKind.FORBIDDEN
    assert client.start(life.kuuid, "127.0.0.1", free_port()).state is State.STARTED


def _stopped(client: ManagerClient, fleet: Fleet) -> Life:
    life = Life.awaiting(fleet)
    life.info = client.stop(life.kuuid)
    assert life.info.outcome is not None
    assert life.info.outcome.by == "admin"
    return life


def test_a_keep_that_ended_is_removed_in_time_even_when_the_manager_was_killed(fleet: Fleet) -> None:
    life = _stopped(fleet.client(), fleet)
    other = Life.create(fleet)
    with fleet.configured():
        cursor = fleet.host.cursor()
        fleet.configure(retention_seconds=3)  # for the manager that follows: this one is to remove nothing before
        fleet.kill()
        fleet.host.wait_journal(f"{life.unit}: removed by the manager", MANAGER, cursor)
        assert fleet.keep_units() == [other.unit]
