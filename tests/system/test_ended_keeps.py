"""Keeps that have ended: their unit says how, no process is left of them, and their output and outcome stay until they
are removed: over managers, and over the unit's own end."""

from __future__ import annotations

import signal

import pytest

from keep_protocol.errors import ErrorKind
from keep_protocol.keep import OutcomeKind
from keep_protocol.sse import EventType
from keep_protocol.states import State
from tests.system import modules
from tests.system.calls import refused
from tests.system.fleet import FOLDERS, MANAGER, Fleet
from tests.system.host import message_of
from tests.system.life import SOON, Life, drop_in, example
from tests.system.output import frames, lines, written

BYTES = b"a\0b\r\n\n  trailing \t\n\xff\xfe no end"


def ended(fleet: Fleet, module: bytes, name: str = "") -> Life:
    """A keep whose workload has ended, once its unit has no process any more."""
    life = Life(fleet, fleet.client().create(name=name).kuuid)
    life.start()
    assert life.upload(module).status == 200
    life.info = fleet.client().changed(life.kuuid, State.STARTED, SOON)
    while life.loader_pid:
        continue
    return life


def unit_of(life: Life) -> tuple[str, str, str]:
    shown = life.host.show(life.unit, "ActiveState", "SubState", "ExecMainStatus")
    return shown["ActiveState"], shown["SubState"], shown["ExecMainStatus"]


@pytest.mark.parametrize(
    ("module", "unit", "text"),
    [
        (modules.says(BYTES), ("active", "exited", "0"), "exited 0"),
        (modules.says(BYTES, code=42), ("failed", "failed", "42"), "exited 42"),
        (modules.says(BYTES, code=75), ("failed", "failed", "1"), "exited 75"),
    ],
)
def test_a_unit_ends_as_its_workload_did_and_every_byte_stays(
    fleet: Fleet, module: bytes, unit: tuple[str, str, str], text: str
) -> None:
    life = ended(fleet, module)
    assert unit_of(life) == unit
    for _ in range(2):
        assert life.look().detail == text
        assert written(fleet, life.kuuid) == (BYTES, b"")
        assert lines(fleet, life.kuuid, "?lines=2") == [("stdout", "  trailing \t"), ("stdout", "\ufffd\ufffd no end")]
        fleet.kill()
    assert life.info.outcome is not None
    assert life.info.outcome.output_bytes == len(BYTES)
    assert fleet.client().stop(life.kuuid) == life.info, "it has ended already"
    life.remove()


def test_a_keep_that_failed_is_failed_to_systemd_by_name_and_owner(fleet: Fleet) -> None:
    unit = "[Service]\nType=oneshot\nExecStart=/bin/echo noticed $MONITOR_UNIT\n"
    fleet.host.run(["tee", "/run/systemd/system/noticed@.service"], input=unit)
    with drop_in(fleet.host, "keep@.service", "[Unit]\nOnFailure=noticed@%i.service\n"):
        life = ended(fleet, example("trap-wat/trap"), "primes")
        fleet.host.wait_journal(f"noticed {life.unit}", seconds=SOON)
    assert unit_of(life) == ("failed", "failed", "134")
    assert fleet.host.systemctl("is-failed", life.unit) == "failed"
    assert "Keep primes of admin" in fleet.host.systemctl("list-units", "--failed", life.unit)
    assert "trapped: " in life.show("StatusText")
    assert life.info.outcome is not None
    assert life.info.outcome.kind is OutcomeKind.TRAPPED
    again = fleet.client().create(name="primes")
    assert again.kuuid != life.kuuid, "its name is free"
    life.remove()
    assert fleet.host.systemctl("list-units", "--failed", "--no-legend", "keep@*") == ""


def test_an_ended_keep_costs_no_process_and_no_connection(fleet: Fleet) -> None:
    life = ended(fleet, modules.says(b"x\n", code=1))
    assert fleet.host.run(["pgrep", "--full", str(life.kuuid)], check=False).stdout == ""
    assert fleet.readers() == []


def test_a_stopped_keep_is_no_failure(fleet: Fleet) -> None:
    life = Life.running(fleet)
    assert fleet.client().stop(life.kuuid).state is State.COMPLETE
    while life.loader_pid:
        continue
    assert unit_of(life)[:2] == ("active", "exited")
    assert written(fleet, life.kuuid) == (b"asleep\n", b"")


def test_a_keep_that_ended_while_there_was_no_manager_is_found_as_it_ended(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    fleet.host.systemctl("stop", MANAGER)
    assert life.upload(modules.says(BYTES, code=3)).status == 200
    while life.loader_pid:
        continue
    fleet.host.systemctl("start", MANAGER)
    assert life.look().detail == "exited 3"
    assert life.told(EventType.ENDED).keep.detail == "exited 3"
    assert written(fleet, life.kuuid) == (BYTES, b"")


def test_a_keep_whose_loader_is_killed_again_and_again_is_lost_and_its_output_stays(fleet: Fleet) -> None:
    with drop_in(fleet.host, "keep@.service", "[Unit]\nStartLimitBurst=1\n"):
        life = Life.running(fleet)
        life.signal(life.loader_pid, signal.SIGKILL)
        life.becomes(State.ERROR)
        while unit_of(life)[0] != "failed":
            continue
        fleet.kill()
        outcome = life.look().outcome
        assert outcome is not None
        assert outcome.kind is OutcomeKind.LOST
        assert written(fleet, life.kuuid)[0] == b"asleep\n"
        life.remove()


def test_an_ended_keep_whose_unit_is_stopped_by_hand_goes_with_its_files(fleet: Fleet) -> None:
    life = ended(fleet, modules.says(b"x\n"))
    fleet.host.systemctl("stop", life.unit)
    fleet.kill()
    assert "cannot find keep" in refused(life.look, ErrorKind.NOT_FOUND)
    assert fleet.left_of(life.kuuid) == []
    assert life.told(EventType.REMOVED).keep.kuuid == life.kuuid


def test_what_is_printed_at_once_is_there_to_the_last_line(fleet: Fleet) -> None:
    module = modules.says(b"".join(b"line %d\n" % number for number in range(20_000)))
    life = ended(fleet, module)
    assert [text for _, text in lines(fleet, life.kuuid)] == [f"line {number}" for number in range(20_000)]
    assert life.info.outcome is not None
    assert (life.info.outcome.lost_bytes, life.info.outcome.journal_skipped_bytes) == (0, 0)
    stored = "\n".join(message_of(entry) for entry in life.entries() if "KEEP_STREAM" in entry)
    assert stored.count("line ") == 20_000


def test_a_reader_goes_on_where_it_was_at_the_next_manager(fleet: Fleet) -> None:
    life = Life.running(fleet)
    first, *_ = frames(fleet, life.kuuid)
    fleet.kill()
    rest = frames(fleet, life.kuuid, f"?from={first.end}")
    assert [one.data for one in rest[:-1]] == [one.data for one in frames(fleet, life.kuuid)[1:-1]]


def test_the_files_of_a_keep_are_root_s_alone(fleet: Fleet) -> None:
    life = Life.awaiting(fleet)
    found = fleet.host.run(["find", f"{FOLDERS}/{life.kuuid}", "-printf", "%f %m %u\n"]).stdout.splitlines()
    assert sorted(found) == [f"{life.kuuid} 700 root", "output 600 root", "record 600 root", "spec 600 root"]
