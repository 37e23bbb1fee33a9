"""Output where something is at its limit: a manager's descriptors, a journal's disk, readers by the hundred, a time
without a manager, a ring that its loader damages."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import pytest

from keep_client.manager import ManagerClient
from keep_client.peer import ConnectionFailed
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.ring import STDOUT
from keep_protocol.states import State
from tests.system import modules
from tests.system.calls import refused
from tests.system.calm import MAX_GROWTH, no_readers_left, settled, undisturbed, usage_of
from tests.system.fixtures import module_s_fleet
from tests.system.fleet import FOLDERS, MANAGER, Fleet
from tests.system.host import message_of, until
from tests.system.life import SOON, Life, drop_in
from tests.system.output import written
from tests.system.test_exact_streams import copies
from tests.system.test_output import BLOCK, Output, outcome_of

pytestmark = pytest.mark.usefixtures("undisturbed_keeps")


MIB = 1 << 20
FOLLOWED = 12
"""Keeps that are followed together: what each costs the manager is a few descriptors, which so many make plain."""
REFUSED_SECONDS = 0.2
"""Until one that was refused asks again."""
A_THOUSAND = 1000
OF_ONE = 4
"""Descriptors that the unit file of the manager counts for a followed keep."""
READERS, STALLED, VANISHING = 64, 50, 10
"""As many as one keep may have; the others, of which two would do, read all of it."""
VANISH_AT = 2 * MIB
MOST_FOR_READER, MANAGER_BYTES = 2 * MIB, 100 * MIB
"""What a reader that stalls may cost its manager, and what one has without."""
FLOOD = 32 * MIB
"""Twice the ring; who reads all of it here is in this one process, with its one lock."""
JOURNALD = "systemd-journald.service"
JOURNALS = "/run/log/journal"
BLOCKS = 400
"""40 MB: more than waits in journald's socket, which is 512 entries of 48 KiB, and more than its pace lets through."""


@pytest.fixture(scope="module")
def fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """A manager that lets one caller have as many streams as one keep may have readers."""
    with installed_fleet.configured(callers='{"*": {quotas: {followers: 128}}}'):
        yield from module_s_fleet(installed_fleet)


@pytest.fixture
def undisturbed_keeps(fleet: Fleet) -> Iterator[None]:
    """After the test nothing of any keep is left."""
    yield
    fleet.clear()
    assert fleet.left_over() == []


TICKS = modules.repeats(b"tick\n", 3000, pause_ms=200)


def ticking(fleet: Fleet) -> Life:
    """A keep whose guest prints a line again and again, for longer than any test here takes."""
    life = Life.awaiting(fleet)
    assert life.upload(TICKS).status == 200
    return life


class Following:
    """One client that follows a keep, over as many managers as there are, also those that refuse it; it counts what it
    gets."""

    def __init__(self, client: ManagerClient, kuuid: int) -> None:
        self.lines = self.refusals = 0
        self._client, self._kuuid, self._over = client, kuuid, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        after = ""
        while not self._over.is_set():
            try:
                for line in self._client.lines(self._kuuid, follow=True, after=after, patient=True):
                    self.lines += line.text == "tick"
                    after = line.cursor
                return
            except (ConnectionFailed, KeepfleetError):
                self.refusals += 1
                self._over.wait(REFUSED_SECONDS)

    def end(self) -> None:
        """Its keep has ended, which it learns where it is served."""
        self._over.set()
        self._thread.join(6 * SOON)
        assert not self._thread.is_alive()


def test_a_manager_that_is_killed_follows_all_keeps_again_that_were_followed_for_four_descriptors_each(
    fleet: Fleet,
) -> None:
    with ThreadPoolExecutor(8) as pool:
        lives = list(pool.map(lambda _: ticking(fleet), range(FOLLOWED)))
    usage_of(fleet.host, fleet.manager_pid)
    fleet.restart()
    until(lambda: len(fleet.client().keeps()) == FOLLOWED, lambda: "not all keeps are there")
    before = usage_of(fleet.host, fleet.manager_pid).descriptors
    followers = [Following(fleet.client(), life.kuuid) for life in lives]
    for killed in (True, False):
        counts = [one.lines for one in followers]
        until(
            lambda seen=counts: all(one.lines > old for one, old in zip(followers, seen, strict=True)),  # type: ignore[misc]
            lambda: "not all are followed",
            3 * SOON,
        )
        until(lambda: len(fleet.readers()) == FOLLOWED, lambda: "not all rings are read")
        taken = usage_of(fleet.host, fleet.manager_pid).descriptors - before
        assert taken <= OF_ONE * FOLLOWED
        limit = int(fleet.host.show(MANAGER, "LimitNOFILE")["LimitNOFILE"])
        assert before + OF_ONE * A_THOUSAND < limit / 2
        if killed:
            fleet.kill()
    stop_all(fleet, lives, followers)


def stop_all(fleet: Fleet, lives: list[Life], followers: list[Following]) -> None:
    """Ends them all, and so those who follow."""
    for life in lives:
        fleet.client().stop(life.kuuid)
    for one in followers:
        one.end()


def test_a_manager_without_descriptors_for_all_who_follow_finds_every_keep_and_serves_those_it_can(
    fleet: Fleet,
) -> None:
    with ThreadPoolExecutor(8) as pool:
        lives = list(pool.map(lambda _: ticking(fleet), range(FOLLOWED)))
    few = usage_of(fleet.host, fleet.manager_pid).descriptors + FOLLOWED // 4 * OF_ONE  # which is most that one takes
    with drop_in(fleet.host, MANAGER, f"[Service]\nLimitNOFILE={few}\n"):
        fleet.restart()
        followers = [Following(fleet.client(), life.kuuid) for life in lives]
        until(lambda: any(one.lines for one in followers), lambda: "nobody is served")
        pid = fleet.manager_pid
        counts = [one.lines for one in followers]
        until(
            lambda: sum(one.lines > old for one, old in zip(followers, counts, strict=True)) >= FOLLOWED // 6,
            lambda: "too few go on",
            3 * SOON,
        )
        assert fleet.manager_pid == pid, "it has ended"
        until(lambda: any(one.refusals for one in followers), lambda: "it can serve all of them")
    fleet.restart()
    assert {keep.kuuid for keep in fleet.client().keeps()} == {life.kuuid for life in lives}
    assert all(keep.state is State.STARTED for keep in fleet.client().keeps())
    counts = [one.lines for one in followers]
    until(
        lambda: all(one.lines > old for one, old in zip(followers, counts, strict=True)),
        lambda: "not all are back",
        3 * SOON,
    )
    stop_all(fleet, lives, followers)


def test_a_manager_that_may_open_nothing_for_a_while_goes_on_afterwards_and_has_missed_nothing(fleet: Fleet) -> None:
    """The limit is lowered below every number it could get: each attempt to open, accept or pass anything fails."""
    lives = [ticking(fleet) for _ in range(4)]
    followers = [Following(fleet.client(), life.kuuid) for life in lives[:2]]
    until(lambda: all(one.lines for one in followers), lambda: "not all are followed")
    pid, cursor = fleet.manager_pid, fleet.host.cursor()
    before = limited(fleet, pid, "3")
    fleet.host.systemctl("kill", "--kill-whom=main", "--signal=SIGHUP", MANAGER)
    fleet.host.run(["pkill", "-KILL", "-u", fleet.host.show(lives[2].unit, "UID")["UID"], "-f", "."], check=False)
    fleet.host.systemctl("stop", lives[3].unit)
    with contextlib.suppress(ConnectionFailed, KeepfleetError):
        fleet.client().keeps()
    fleet.host.wait_journal(lambda entry: "Too many open files" in message_of(entry), MANAGER, cursor)
    limited(fleet, pid, before)
    until(
        lambda: {keep.kuuid for keep in fleet.client().keeps()} == {one.kuuid for one in lives[:3]}, lambda: "not seen"
    )
    assert fleet.client().ended(lives[2].kuuid).outcome is not None
    counts = [one.lines for one in followers]
    until(
        lambda: all(one.lines > old for one, old in zip(followers, counts, strict=True)),
        lambda: "not all go on",
        3 * SOON,
    )
    assert fleet.manager_pid == pid
    stop_all(fleet, lives[:2], followers)


def limited(fleet: Fleet, pid: int, most: str) -> str:
    """Sets how many descriptors the process may have from now on; how many it was."""
    before = fleet.host.run(["prlimit", f"--pid={pid}", "--nofile", "--output=SOFT", "--noheadings"]).stdout.strip()
    fleet.host.run(["prlimit", f"--pid={pid}", f"--nofile={most}:"])
    return before


@contextlib.contextmanager
def full_disk_of_the_journal(fleet: Fleet, *, before: bool) -> Iterator[None]:
    """journald's files on a disk that something else has filled up: before it was started, which it then cannot be, or
    after that."""
    host = fleet.host
    fills = ["sh", "-c", f"cat /dev/zero >{JOURNALS}/filler"]
    host.run(["mkdir", "-p", JOURNALS])
    host.run(["mount", "-t", "tmpfs", "-o", "size=16M,mode=2755", "full", JOURNALS])
    try:
        if before:
            host.run(fills, check=False)
        host.systemctl("restart", JOURNALD, check=False)
        if not before:
            host.run(fills, check=False)
        yield
    finally:
        host.run(["umount", "-l", JOURNALS])
        host.systemctl("reset-failed", JOURNALD, check=False)
        host.systemctl("restart", JOURNALD)
        fleet.restart()  # whose log is read by the next tests, in the journal that is there now


@pytest.mark.parametrize("before", [True, False])
def test_a_journal_whose_disk_is_full_costs_readers_nothing_and_what_it_was_not_given_is_counted(
    fleet: Fleet, before: bool
) -> None:
    lines = b"".join(b"line %d of a block\n" % number for number in range(5000))
    with full_disk_of_the_journal(fleet, before=before):
        life = Life.awaiting(fleet)
        output = Output(life)
        assert life.upload(modules.repeats(lines, BLOCKS)).status == 200
        assert output.streams()[STDOUT] == lines * BLOCKS
        outcome = outcome_of(life)
        assert (outcome.kind, outcome.lost_bytes) == (OutcomeKind.EXITED, 0)
        assert outcome.journal_skipped_bytes != 0, "a number, or None where the manager has found out before"


def test_readers_by_the_hundred_of_a_flood_get_all_stall_or_vanish_and_leave_nothing(fleet: Fleet) -> None:
    flooded(fleet)  # what the manager's allocator has had, it keeps
    pid, before = fleet.manager_pid, usage_of(fleet.host, fleet.manager_pid)
    flooded(fleet)
    after = settled(fleet.host, pid, before)
    assert (fleet.manager_pid, after.descriptors <= before.descriptors) == (pid, True)
    assert after.memory < before.memory + MAX_GROWTH
    assert after.memory < READERS * MOST_FOR_READER + MANAGER_BYTES


def flooded(fleet: Fleet) -> None:
    """A keep's flood, and as many readers of it as there may be, which go with it."""
    life = Life.awaiting(fleet)
    times = FLOOD // len(BLOCK)
    whole = [Output(life) for _ in range(READERS - STALLED - VANISHING)]
    stalled = [Output(life) for _ in range(STALLED)]  # the guest waits for each of them for ten seconds at most
    vanishing = [Output(life) for _ in range(VANISHING)]
    client = fleet.client()
    refused(lambda: list(client.lines(life.kuuid, follow=True)), ErrorKind.TOO_MANY)
    assert life.upload(modules.repeats(BLOCK, times)).status == 200

    def size(output: Output) -> int:
        """Of what it gets."""
        return sum(len(frame.data) for frame in output.frames() if frame.stream == STDOUT)

    def some(output: Output) -> None:
        for frame in output.frames():
            if frame.position > VANISH_AT:
                output.close()
                return

    with ThreadPoolExecutor(READERS) as pool:
        gone = [pool.submit(some, one) for one in vanishing]
        sizes = [pool.submit(size, one) for one in whole]
        both: list[Future[Any]] = [*gone, *sizes]
        for _ in as_completed(both):
            with contextlib.suppress(ConnectionFailed):  # a handshake may take over 5 s where others burn, too
                assert client.keep(life.kuuid).kuuid == life.kuuid
    assert {one.result() for one in sizes} == {times * len(BLOCK)}
    outcome = outcome_of(life)
    assert (outcome.output_bytes, outcome.lost_bytes) == (times * len(BLOCK), 0)
    for one in stalled:
        one.close()
    no_readers_left(fleet)
    life.remove()


FLOODING, READ_BY = 3, 2
"""Keeps that write without end, and readers of each, all of them waited for."""
ANSWERS = 5
"""Lists that other clients are given meanwhile, one after the other; at the end the keeps are stopped, in the flood."""
SHARE = 512 * MIB
"""Of the flood, what readers may get for one of those answers: they never have enough, so that a manager that serves
them alone is found out, and six of them share one process with the client that asks here."""


def test_other_clients_are_answered_while_several_keeps_flood_several_readers(fleet: Fleet) -> None:
    lives = [Life.awaiting(fleet) for _ in range(FLOODING)]
    outputs = [Output(life) for life in lives for _ in range(READ_BY)]
    taken = [0] * len(outputs)

    def read(place: int) -> None:
        with contextlib.suppress(*BROKEN):
            for frame in outputs[place].frames():
                taken[place] += len(frame.data)

    threads = [threading.Thread(target=read, args=(place,), daemon=True) for place in range(len(outputs))]
    for thread in threads:
        thread.start()
    for life in lives:
        assert life.upload(modules.repeats(BLOCK, 1 << 30)).status == 200
    until(lambda: all(taken), lambda: "not all are read")
    most = 0
    with fleet.client() as client:  # one connection: a handshake has five seconds, and this one process reads it all
        for _ in range(ANSWERS):
            before = sum(taken)
            assert {life.kuuid for life in lives} <= {keep.kuuid for keep in client.keeps()}
            most = max(most, sum(taken) - before)
    counts = list(taken)
    until(lambda: all(now > old for now, old in zip(taken, counts, strict=True)), lambda: "a reader gets nothing more")
    for life in lives:
        client.stop(life.kuuid)
    for thread in threads:
        thread.join(6 * SOON)
    assert most < SHARE


def test_keepctl_says_which_keep_it_leaves_where_its_manager_stays_away_for_longer_than_it_may(fleet: Fleet) -> None:
    (fleet.host.path / "leaves.wasm").write_bytes(TICKS)
    out = fleet.host.path / "leaves.out"
    out.unlink(missing_ok=True)
    options = "--reconnect-for 2s --name leaves"
    script = f"keepctl run {options} {fleet.host.path}/leaves.wasm >{out} 2>{out}.err; echo $?"
    done: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: done.append(keepctl(fleet, script)))
    thread.start()
    until(lambda: out.exists() and b"tick\n" in out.read_bytes(), lambda: "it does not begin")
    fleet.host.systemctl("stop", MANAGER)
    thread.join(6 * SOON)
    fleet.host.systemctl("start", MANAGER)
    said = (fleet.host.path / "leaves.out.err").read_text()
    assert done[0].stdout == "125\n"
    assert "; it was waited for for 2 seconds" in said
    assert "left it running; see: keepctl logs -f" in said
    (keep,) = [keep for keep in fleet.client().keeps() if keep.name == "leaves"]
    fleet.client().stop(keep.kuuid)


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.heavy)])
def test_a_time_without_a_manager_costs_no_byte_and_no_exit_code(fleet: Fleet, seconds: int) -> None:
    """keepctl waits for it, first in growing pauses and then in equal ones, and goes on where it was."""
    texts = [b"tick %d\n" % number for number in range(100 + 10 * seconds)]
    (fleet.host.path / "away.wasm").write_bytes(modules.says(*texts, pause_ms=100, code=7))
    out = fleet.host.path / "away.out"
    out.unlink(missing_ok=True)
    script = f"keepctl run --name away {fleet.host.path}/away.wasm >{out} 2>{out}.err; echo $?"
    done: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: done.append(keepctl(fleet, script)))
    thread.start()
    until(lambda: out.exists() and b"tick 20\n" in out.read_bytes(), lambda: "it does not begin")
    fleet.host.systemctl("stop", MANAGER)
    threading.Event().wait(seconds)
    fleet.host.systemctl("start", MANAGER)
    thread.join()
    assert done[0].stdout == "7\n"
    assert out.read_bytes() == b"".join(texts)
    assert keepctl(fleet, "keepctl wait away; echo $?").stdout.endswith("7\n")


def keepctl(fleet: Fleet, script: str) -> subprocess.CompletedProcess[str]:
    env = {"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}
    return fleet.host.run(["bash", "-c", script], env=env, check=False, timeout=200)


DAMAGES = {
    "is cut off": "truncate -s 5000 {ring}",
    "is emptied": "truncate -s 0 {ring}",
    "has positions beyond all": "printf '\\377%.0s' $(seq 64) | dd of={ring} bs=1 seek=16 conv=notrunc",
    "has frames of nothing": "dd if=/dev/zero of={ring} bs=4096 seek=1 count=64 conv=notrunc",
    "has frames of chance": "dd if=/dev/urandom of={ring} bs=4096 seek=1 count=64 conv=notrunc",
}
"""What a loader that was taken over can do to its ring, and only to that."""
BROKEN = (AssertionError, KeepfleetError, http.client.HTTPException, OSError)
"""How the answer ends, or is not one, where a ring cannot be read on."""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_ring_that_its_loader_damages_disturbs_no_other(fleet: Fleet, damage: str) -> None:
    neighbour, life = ticking(fleet), ticking(fleet)
    following = Following(fleet.client(), neighbour.kuuid)
    with undisturbed(fleet):
        output = Output(life)
        fleet.host.run(["sh", "-c", damage.format(ring=f"{FOLDERS}/{life.kuuid}/output")])
        before = following.lines
        with contextlib.suppress(*BROKEN):
            written(fleet, life.kuuid)
        until(lambda: following.lines > before, lambda: "the neighbour's reader gets nothing")
        fleet.client().stop(life.kuuid)
        assert fleet.client().ended(life.kuuid).outcome is not None
        with contextlib.suppress(*BROKEN):
            output.streams()
        output.close()
    stop_all(fleet, [neighbour], [following])


def test_a_manager_s_death_in_the_middle_of_an_input_is_no_end_of_it(fleet: Fleet) -> None:
    """The guest counts what it reads, and would say so at the end."""
    (fleet.host.path / "copies.wasm").write_bytes(copies())
    out = fleet.host.path / "copies.out"
    out.unlink(missing_ok=True)
    script = (
        f"yes | keepctl run -i --name cut {fleet.host.path}/copies.wasm >{out} 2>{out}.err; echo ${{PIPESTATUS[1]}}"
    )
    done: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: done.append(keepctl(fleet, script)))
    thread.start()
    until(lambda: out.exists() and out.stat().st_size > MIB, lambda: "it does not begin")
    fleet.kill()
    thread.join()
    (keep,) = [keep for keep in fleet.client().keeps() if keep.name == "cut"]
    outcome = fleet.client().ended(keep.kuuid).outcome
    assert outcome is not None
    assert (outcome.kind, outcome.text) == (OutcomeKind.LOST, "lost: its input was cut")
    assert done[0].stdout != "0\n"
    data = out.read_bytes()
    assert data == (b"y\n" * (len(data) // 2 + 1))[: len(data)]
