"""What a keep's output and outcome hold under, on a real systemd: a journald that is killed, frozen, or stores nothing;
a full disk; managers and loaders that die or hang while something streams."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind
from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.system import modules
from tests.system.calls import refused
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import FOLDERS, MANAGER, Fleet
from tests.system.host import until
from tests.system.life import SOON, Life, drop_in
from tests.system.output import lines, written
from tests.system.test_output import BLOCK, entries_of, outcome_of

pytestmark = pytest.mark.usefixtures("undisturbed")
fleet = pytest.fixture(scope="module")(module_s_fleet)

JOURNALD = "systemd-journald.service"
FROZEN_SECONDS = 8
TICKS = 400
SETTINGS = "/run/systemd/journald.conf.d/90-test.conf"
MIB = 1 << 20


def ticks(count: int = TICKS, pause_ms: int = 5) -> tuple[bytes, bytes]:
    """A module that prints numbered lines one by one, and what it prints."""
    texts = [b"tick %d\n" % number for number in range(count)]
    return modules.says(*texts, pause_ms=pause_ms), b"".join(texts)


@contextlib.contextmanager
def journald(fleet: Fleet, settings: str) -> Iterator[None]:
    """A journald with these settings."""
    fleet.host.write(SETTINGS, f"[Journal]\n{settings}\n")
    fleet.host.systemctl("restart", JOURNALD)
    try:
        yield
    finally:
        fleet.host.remove(SETTINGS)
        fleet.host.systemctl("restart", JOURNALD)


def pid_of(fleet: Fleet, unit: str) -> str:
    return fleet.host.show(unit, "MainPID")["MainPID"]


@pytest.mark.parametrize("command", [["restart"], ["kill", "--signal=KILL"]])
def test_a_journald_that_dies_again_and_again_gets_every_line_once(fleet: Fleet, command: list[str]) -> None:
    """What is killed can have taken one line that it had not written: nobody but itself knows of that."""
    life, deaths = Life.awaiting(fleet), (50, 150, 250)
    module, text = ticks()
    assert life.upload(module).status == 200
    for at in deaths:
        life.line(f"tick {at}")
        fleet.host.systemctl("reset-failed", JOURNALD, check=False)  # its start limit is another matter
        fleet.host.systemctl(*command, JOURNALD)
    outcome = outcome_of(life)
    assert (outcome.output_bytes, outcome.lost_bytes, outcome.journal_skipped_bytes) == (len(text), 0, 0)
    there, all_lines = entries_of(life, "stdout"), text[:-1].split(b"\n")
    assert there == [line for line in all_lines if line in set(there)], "each once, in order"
    assert len(all_lines) - len(there) <= (len(deaths) if "kill" in command else 0)
    life.remove()


@pytest.mark.rare
def test_a_journald_that_is_frozen_for_eight_seconds_gets_every_line_afterwards(fleet: Fleet) -> None:
    life = Life.awaiting(fleet, log_lines_per_second=300)
    module, text = ticks(5000, 2)
    assert life.upload(module).status == 200
    life.line("tick 50")
    began = time.monotonic()
    pid = pid_of(fleet, JOURNALD)
    fleet.host.run(["kill", "-STOP", pid])
    try:
        assert written(fleet, life.kuuid)[0].startswith(b"tick 0\n"), "readers are served meanwhile"
        threading.Event().wait(FROZEN_SECONDS - (time.monotonic() - began))
    finally:
        fleet.host.run(["kill", "-CONT", pid])
    outcome = outcome_of(life)
    assert (outcome.output_bytes, outcome.lost_bytes, outcome.journal_skipped_bytes) == (len(text), 0, 0)
    assert entries_of(life, "stdout") == text[:-1].split(b"\n")
    life.remove()


def said(fleet: Fleet, file: str, text: str) -> None:
    """Waits until that is in the host's file."""
    with fleet.host.popen(["tail", "--lines=+1", "--follow=name", "--retry", file]) as follower:
        alarm = threading.Timer(SOON, follower.kill)
        alarm.start()
        try:
            assert any(text in line for line in follower.stdout or ()), f"{file} does not say: {text}"
        finally:
            alarm.cancel()


@contextlib.contextmanager
def small_disk(fleet: Fleet, size: str) -> Iterator[None]:
    """The keeps' folders on a file system of so little room, for a manager of its own."""
    mounted = f"[Service]\nTemporaryFileSystem={FOLDERS}:size={size},mode=0700\n"
    with drop_in(fleet.host, MANAGER, mounted):
        fleet.restart()
        yield
        for keep in fleet.client().keeps():
            if not keep.outcome and keep.state is State.LISTENING:
                fleet.client().remove(keep.kuuid)
    fleet.restart()


def test_without_room_nothing_starts_and_the_start_can_be_repeated_and_a_guest_that_fills_the_disk_goes_on(
    fleet: Fleet,
) -> None:
    life = Life.create(fleet)
    filler = f"/proc/{{pid}}/root{FOLDERS}/filler"
    with small_disk(fleet, "4M"):
        place = filler.format(pid=fleet.manager_pid)
        fleet.host.run(["sh", "-c", f"cat /dev/zero > {place}"], check=False)
        error = refused(life.start, ErrorKind.NO_SPACE)
        assert "make room there" in error
        assert life.look().state is State.LISTENING
        fleet.host.run(["rm", place])
        life.start()
        assert life.upload(modules.says(b"now\n")).status == 200
        outcome_of(life)
        assert written(fleet, life.kuuid)[0] == b"now\n"
        life.remove()
        life, times = Life.awaiting(fleet), 12 * MIB // len(BLOCK)
        assert life.upload(modules.repeats(BLOCK, times)).status == 200
        outcome = outcome_of(life)
        assert outcome.kind is OutcomeKind.EXITED
        assert outcome.output_bytes == times * len(BLOCK)
        assert outcome.lost_bytes is not None and 6 * MIB < outcome.lost_bytes <= outcome.output_bytes, "counted"
        life.remove()


def keepctl(fleet: Fleet, script: str) -> subprocess.CompletedProcess[str]:
    env = {"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}
    return fleet.host.run(["bash", "-c", script], env=env, check=False, timeout=90)


def test_run_goes_on_exactly_where_it_was_when_its_manager_is_killed_and_back(fleet: Fleet) -> None:
    """The guest waits for its reader until the manager has gone, and for no one after that: the ring has it all."""
    module, text = ticks(1000)
    (fleet.host.path / "ticks.wasm").write_bytes(module)
    out = fleet.host.path / "ticks.out"
    out.unlink(missing_ok=True)
    done: list[subprocess.CompletedProcess[str]] = []
    script = f"keepctl run --rm --name ticks {fleet.host.path}/ticks.wasm > {out} 2> {out}.err; echo $?"
    thread = threading.Thread(target=lambda: done.append(keepctl(fleet, script)))
    thread.start()
    until(lambda: out.exists() and b"tick 0\n" in out.read_bytes(), lambda: "nothing comes")
    (info,) = [keep for keep in fleet.client().keeps() if keep.name == "ticks"]
    life = Life(fleet, info.kuuid)
    guest = life.runner_pid
    life.signal(guest, signal.SIGSTOP)  # it has more to write, however long the manager takes to go
    assert out.stat().st_size < len(text)
    fleet.host.systemctl("kill", "--signal=KILL", MANAGER)
    fleet.host.systemctl("stop", MANAGER)
    life.signal(guest, signal.SIGCONT)
    fleet.host.systemctl("start", MANAGER)
    thread.join()
    assert done[0].stdout == "0\n", Path(f"{out}.err").read_text()
    assert out.read_bytes() == text


def test_an_input_whose_loader_is_killed_is_no_end_to_its_guest(fleet: Fleet) -> None:
    (fleet.host.path / "cat.wasm").write_bytes(_cat())
    out = fleet.host.path / "cat.out"
    out.unlink(missing_ok=True)
    done: list[subprocess.CompletedProcess[str]] = []
    script = (
        f"yes | keepctl run -i --name feeds {fleet.host.path}/cat.wasm > {out} 2> {out}.err; echo ${{PIPESTATUS[1]}}"
    )
    thread = threading.Thread(target=lambda: done.append(keepctl(fleet, script)))
    thread.start()
    until(lambda: out.exists() and out.stat().st_size >= MIB, lambda: "nothing comes")
    (info,) = [keep for keep in fleet.client().keeps() if keep.name == "feeds"]
    life = Life(fleet, info.kuuid)
    fleet.host.systemctl("kill", "--kill-whom=main", "--signal=KILL", life.unit)
    thread.join()
    assert done[0].stdout != "0\n"
    outcome = life.look().outcome
    assert outcome is not None
    assert outcome.kind is OutcomeKind.LOST
    assert set(out.read_bytes()) == {ord("y"), ord("\n")}
    life.remove()


@pytest.mark.rare
def test_a_loader_that_hangs_while_input_streams_holds_no_other_up_and_is_ended_by_the_watchdog(
    fleet: Fleet,
) -> None:
    (fleet.host.path / "cat.wasm").write_bytes(_cat())
    out = fleet.host.path / "hung.out"
    done: list[subprocess.CompletedProcess[str]] = []
    script = (
        f"yes | keepctl run -i --name hangs {fleet.host.path}/cat.wasm > {out} 2> {out}.err; echo ${{PIPESTATUS[1]}}"
    )
    with drop_in(fleet.host, "keep@.service", "[Service]\nWatchdogSec=3\n"):
        thread = threading.Thread(target=lambda: done.append(keepctl(fleet, script)))
        thread.start()
        until(lambda: out.exists() and out.stat().st_size >= MIB, lambda: "nothing comes")
        (info,) = [keep for keep in fleet.client().keeps() if keep.name == "hangs"]
        life = Life(fleet, info.kuuid)
        life.signal(life.loader_pid, signal.SIGSTOP)
        other = Life.ended(fleet, 0)  # from its creation to its end, meanwhile
        other.remove()
        thread.join()
    assert done[0].stdout != "0\n"
    assert life.becomes(State.ERROR).outcome is not None
    life.remove()


def _cat() -> bytes:
    import wasmtime

    return bytes(
        wasmtime.wat2wasm(
            """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (loop $again
      (i32.store (i32.const 0) (i32.const 1024))
      (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
      (br_if $again (i32.load (i32.const 8))))))"""
        )
    )


def test_a_failed_workload_is_a_failed_unit_that_runs_its_on_failure_unit(fleet: Fleet) -> None:
    said = "/run/on-failure-said"
    unit = f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'env | grep ^MONITOR_ > {said}'\n"
    fleet.host.write("/run/systemd/system/report@.service", unit)
    place = Path(f"{fleet.host.root}{said}")

    def heard() -> str:
        return place.read_text() if place.exists() else ""

    # Of a unit that several others name, systemd 252 informs none of them: one for each keep.
    with drop_in(fleet.host, "keep@.service", "[Unit]\nOnFailure=report@%i.service\n"):
        well = Life.ended(fleet, 0)
        well.without_process()
        assert not place.exists()
        ill = Life.ended(fleet, 42)
        until(lambda: "MONITOR_EXIT_STATUS=42" in heard(), heard)
        shown = heard()
        assert f"MONITOR_UNIT={ill.unit}" in shown
        assert fleet.host.systemctl("is-failed", ill.unit, well.unit, check=False).split() == ["failed", "active"]
        listed = fleet.host.systemctl("list-units", "--failed", "--plain", "--no-legend", "keep@*")
        assert [line.split()[0] for line in listed.splitlines()] == [ill.unit]
        assert "exited 42" in fleet.host.show(ill.unit, "StatusText")["StatusText"]
        for life in (well, ill):
            life.remove()
    fleet.host.run(["rm", said, "/run/systemd/system/report@.service"])
    fleet.host.daemon_reload()


def test_a_name_is_free_once_its_keep_has_failed_and_both_outputs_stand(fleet: Fleet) -> None:
    kept: list[Life] = []
    for text in (b"first\n", b"second\n"):
        life = Life(fleet, fleet.client().create(name="again").kuuid)
        life.start()
        assert life.upload(modules.says(text, code=3)).status == 200
        outcome_of(life)
        kept.append(life)
    fleet.kill()
    assert [lines(fleet, life.kuuid) for life in kept] == [[("stdout", "first")], [("stdout", "second")]]
    for life in kept:
        life.remove()


def memory_max(life: Life, bytes_: int) -> None:
    """Waits until systemd and the kernel hold the keep to that."""
    until(lambda: life.show("MemoryMax") == str(bytes_), lambda: life.show("MemoryMax"))


def test_a_keep_has_memory_for_compiling_until_its_guest_runs_and_over_a_manager_that_was_dead_then(
    fleet: Fleet,
) -> None:
    life = Life.awaiting(fleet, memory_bytes=64 * MIB, compile_memory_bytes=1024 * MIB)
    memory_max(life, (1024 + 256) * MIB)
    fleet.host.systemctl("stop", MANAGER)
    assert life.upload(modules.sleeps()).status == 200
    life.line("asleep")
    memory_max(life, (1024 + 256) * MIB)
    fleet.host.systemctl("start", MANAGER)
    memory_max(life, (64 + 256) * MIB)
    fleet.host.daemon_reload()
    assert life.show("MemoryMax") == str((64 + 256) * MIB)
    assert life.look().state is State.STARTED
    life.remove()


def test_an_operator_s_lower_limit_is_not_widened(fleet: Fleet) -> None:
    with drop_in(fleet.host, "keep@.service", "[Service]\nMemoryMax=200M\n"):
        life = Life.running(fleet)
        assert life.show("MemoryMax") == str(200 * MIB)
        life.remove()


SAID = "/run/manager-said"


@pytest.fixture(scope="module")
def elsewhere(fleet: Fleet) -> Iterator[None]:
    """The manager, from its next start on, says what it says in a file. For the last tests here."""
    with drop_in(fleet.host, MANAGER, f"[Service]\nStandardError=append:{SAID}\n"):
        yield
    fleet.host.run(["rm", "-f", SAID])
    fleet.restart()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("settings", ["Storage=none", "MaxLevelStore=notice"])
def test_output_reaches_its_owner_where_journald_stores_nothing_and_the_manager_says_so(
    fleet: Fleet, settings: str
) -> None:
    fleet.host.run(["rm", "-f", SAID])
    with journald(fleet, settings):
        fleet.restart()
        said(fleet, SAID, "the journal shows nothing of priority info")
        life = Life.awaiting(fleet)
        assert life.upload(modules.says(b"for its owner\n", b"in full\n")).status == 200
        outcome = outcome_of(life)
        assert written(fleet, life.kuuid) == (b"for its owner\nin full\n", b"")
        assert (outcome.lost_bytes, outcome.journal_skipped_bytes) == (0, None), "journald has taken all of it"
        life.remove()
    said(fleet, SAID, "the journal stores what it is given again")


@pytest.mark.usefixtures("elsewhere")
def test_another_journald_that_stores_nothing_is_found_out_by_the_manager_that_runs(fleet: Fleet) -> None:
    life = Life.running(fleet)
    fleet.host.run(["truncate", "--size=0", SAID])
    with journald(fleet, "Storage=none"):
        said(fleet, SAID, "the journal shows nothing of priority info")
    said(fleet, SAID, "the journal stores what it is given again")
    fleet.client().stop(life.kuuid)
    assert outcome_of(life).journal_skipped_bytes is None
    life.remove()
    life = Life.ended(fleet)
    assert life.info.outcome is not None
    assert life.info.outcome.journal_skipped_bytes == 0
    life.remove()
