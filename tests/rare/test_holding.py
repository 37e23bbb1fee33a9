"""Invariants under load: all limits together, a flood, vanishing clients, the largest words, removal in between."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from functools import partial

import pytest

from keep_client.peer import ConnectionFailed
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from keep_protocol.workload import MAX_STRINGS_BYTES
from tests.system import hostile, modules
from tests.system.calls import both, refused
from tests.system.calm import no_readers_left, undisturbed, usage_of
from tests.system.fleet import Fleet, free_port
from tests.system.life import Bystanders, Life, example

SHORT = {"wall_seconds": 1}
MISBEHAVING: list[tuple[bytes, dict[str, int], str]] = [
    (example("spin-wat/spin"), {"cpu_seconds": 1}, "over its processor time limit of 1 s"),
    (example("spin-wat/spin"), SHORT, "over its time limit of 1 s"),
    (example("sleep-wat/sleep"), SHORT, "over its time limit of 1 s"),
    (example("flood-wat/flood"), {**SHORT, "log_lines_per_second": 100}, "over its time limit of 1 s"),
    (example("grow-wat/grow"), {"memory_bytes": 8 << 20}, "exited 12"),
    (example("big-wat/big"), {"memory_bytes": 16 << 20}, "over its memory limit of 16 MiB"),
    (example("recurse-wat/recurse"), {"stack_bytes": 128 << 10}, "trapped: call stack exhausted"),
    (example("trap-wat/trap"), {}, "trapped: out of bounds memory access"),
    (hostile.spins("the start section"), SHORT, "over its time limit of 1 s"),
    (hostile.asks_much(), {}, "exited"),
]
"""A module, the keep's limits, and how its end begins."""
UPLOAD_TRIES = 6
PAUSE_SECONDS = 0.2
"""Between two requests of a client that the ends of others must not disturb."""
END_SECONDS = 60
FLOOD_BYTES = 100_000_000
FLOOD = f"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 17)
  (func (export "_start") (local $left i32) (local $at i32)
    (memory.fill (i32.const 1024) (i32.const 120) (i32.const 1000000))
    (loop $line
      (i32.store8 (i32.add (i32.const 2023) (local.get $at)) (i32.const 10))
      (local.set $at (i32.add (local.get $at) (i32.const 1000)))
      (br_if $line (i32.lt_u (local.get $at) (i32.const 1000000))))
    (local.set $at (i32.const 0))
    (local.set $left (i32.const {FLOOD_BYTES}))
    (loop $write
      (i32.store (i32.const 0) (i32.add (i32.const 1024) (local.get $at)))
      (i32.store (i32.const 4) (i32.sub (i32.const 1000000) (local.get $at)))
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 8))))
      (local.set $at (i32.rem_u (i32.add (local.get $at) (i32.load (i32.const 8))) (i32.const 1000000)))
      (br_if $write (i32.gt_s (local.get $left) (i32.const 0))))))"""
"""Writes 100 MB in lines of 999 characters, as fast as they are taken."""
TICKS = modules.repeats(b"tick\n", 6000, pause_ms=20)
VANISHING = 20
"""Clients one after another; of those that go while lines are sent, one in five met a manager that read no more."""
MAX_GROWTH = 20 << 20
"""What a process may have more of after 100 MB went past it."""
COUNTS = hostile.module(
    """(drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
    (drop (call $environ_sizes_get (i32.const 8) (i32.const 12)))
    (call $proc_exit (i32.add (i32.load (i32.const 4)) (i32.load (i32.const 12))))"""
)
"""Exits with the number of bytes of its arguments and its environment, each string's NUL included."""


def limited(fleet: Fleet, **limits: int) -> Life:
    """A keep with these limits that awaits its workload."""
    life = Life(fleet, fleet.client().create(limits=limits).kuuid)
    life.start()
    return life


def ended(life: Life) -> KeepInfo:
    """The keep once its workload has ended."""
    info = life.fleet.client().changed(life.kuuid, State.STARTED, END_SECONDS)
    assert info.outcome is not None, info
    return info


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_every_limit_together_ends_each_keep_with_its_own_words(fleet: Fleet, times: int) -> None:
    bystanders = Bystanders(fleet)
    cases = MISBEHAVING * times
    lives = [limited(fleet, **limits) for _, limits, _ in cases]

    def taken(life: Life, module: bytes) -> int:
        for _ in range(UPLOAD_TRIES - 1):
            with suppress(ConnectionFailed):  # a handshake may take over 5 s among so many that burn
                return life.upload(module).status
        return life.upload(module).status

    def end(life: Life, module: bytes) -> str:
        assert taken(life, module) == 200
        outcome = ended(life).outcome
        assert outcome is not None
        return outcome.text

    with undisturbed(fleet), ThreadPoolExecutor(len(cases)) as pool:
        ends = [pool.submit(end, life, module) for life, (module, _, _) in zip(lives, cases, strict=True)]
        client, answers = fleet.client(), 0
        while wait(ends, PAUSE_SECONDS).not_done:
            assert len(client.keeps()) == len(cases) + len(bystanders.units)
            answers += 1
        assert answers
    reported = [(case[2], one.result()) for case, one in zip(cases, ends, strict=True)]
    assert [pair for pair in reported if not pair[1].startswith(pair[0])] == []
    bystanders.check()
    for life in lives:
        life.remove()


def test_100_mb_of_output_cost_no_other_keep_a_line_and_the_manager_no_memory(fleet: Fleet) -> None:
    flood, neighbour = limited(fleet), limited(fleet)
    texts = [f"neighbour {number}\n".encode() for number in range(200)]
    before = usage_of(fleet.host, fleet.manager_pid).memory
    assert flood.upload(hostile.wat(FLOOD)).status == 200
    assert neighbour.upload(modules.says(*texts, pause_ms=2)).status == 200
    lines = list(fleet.client().lines(flood.kuuid, follow=True))
    ended(neighbour)
    assert usage_of(fleet.host, fleet.manager_pid).memory - before <= MAX_GROWTH
    said = [line.text for line in fleet.client().lines(neighbour.kuuid)]
    assert said == [text.decode().rstrip() for text in texts]
    outcome = ended(flood).outcome
    assert outcome is not None
    assert outcome.text == "exited 0"
    assert outcome.output_bytes == FLOOD_BYTES
    gaps = [int(line.text.partition(" ")[0]) for line in lines if line.source == "gap"]
    followed = sum(len(line.text) + 1 for line in lines if line.source == "stdout")
    assert abs(followed + sum(gaps) - FLOOD_BYTES) <= len(gaps), "a line that a gap has cut has no end"
    for life in (flood, neighbour):
        life.remove()


@contextmanager
def printing(fleet: Fleet) -> Iterator[Life]:
    """A keep whose workload prints a line again and again; it is as it was at the end of the block."""
    life = limited(fleet)
    assert life.upload(TICKS).status == 200
    life.line("tick")
    runner = life.runner_pid
    yield life
    assert life.look().state is State.STARTED
    assert life.runner_pid == runner
    life.remove()


def test_clients_that_vanish_while_they_follow_leave_nothing_in_the_manager(fleet: Fleet) -> None:
    with printing(fleet) as life, undisturbed(fleet):
        for _ in range(5):
            with closing(fleet.client().lines(life.kuuid, follow=True)) as lines:
                next(line for line in lines if line.text == "tick")
        command = ["keepctl", "logs", "-f", str(life.kuuid)]
        with fleet.host.popen(command, env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}) as follower:
            assert any("tick" in line for line in follower.stdout or ())
    no_readers_left(fleet)


def test_clients_that_vanish_in_the_midst_of_a_torrent_leave_nothing_in_the_manager(fleet: Fleet) -> None:
    life = limited(fleet)
    assert life.upload(modules.says(*[b"x" * 999 + b"\n"] * 900)).status == 200
    ended(life)
    with undisturbed(fleet):
        for _ in range(VANISHING):
            with closing(fleet.client().lines(life.kuuid, follow=True)) as lines:
                for _ in range(10):
                    next(lines)
    no_readers_left(fleet)
    life.remove()


def test_a_run_that_is_killed_leaves_its_workload_running(fleet: Fleet) -> None:
    module = fleet.host.path / "ticks.wasm"
    module.write_bytes(TICKS)
    with undisturbed(fleet):
        command = ["sh", "-c", f"exec keepctl run --rm {module} </dev/null"]  # who still sends input cuts it by dying
        with fleet.host.popen(command, env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}) as run:
            assert any("tick" in line for line in run.stdout or ())
            run.kill()
            run.wait()  # before its pipe is closed, in which it would see a reader that has gone, and stop the workload
        (info,) = fleet.client().keeps()
        life = Life(fleet, info.kuuid)
        life.line("tick", fleet.host.cursor())
        assert life.look().state is State.STARTED
        life.remove()


def filled(size: int) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of `size` bytes each, NULs included, in strings of 64 KiB at most."""
    piece, rest = divmod(size, 1 << 16)
    texts = ["a" * 65535] * piece + (["a" * (rest - 1)] if rest else [])
    named = {f"N{number:04}": text[6:] for number, text in enumerate(texts)}
    return texts, named


def test_arguments_and_environment_of_the_kernel_s_size_arrive_whole(fleet: Fleet) -> None:
    client, sizes = fleet.client(), []
    for size in (0, MAX_STRINGS_BYTES - 65536):
        arguments, environment = filled(size)
        life = Life.create(fleet)
        given: dict[str, object] = {"arguments": arguments, "environment": environment}
        life.info = client.start(life.kuuid, "127.0.0.1", free_port(), (), given)
        assert life.upload(COUNTS).status == 200
        outcome = ended(life).outcome
        assert outcome is not None
        sizes.append(outcome.exit_code)
        life.remove()
    assert sizes[0] is not None
    assert sizes[1] == sizes[0] + 2 * (MAX_STRINGS_BYTES - 65536)


def test_more_arguments_than_the_kernel_takes_are_refused_and_the_keep_stays_idle(fleet: Fleet) -> None:
    arguments, _ = filled(MAX_STRINGS_BYTES + 1)
    life = Life.create(fleet)
    given: dict[str, object] = {"arguments": arguments}
    refused(lambda: fleet.client().start(life.kuuid, "127.0.0.1", free_port(), (), given), ErrorKind.TOO_LARGE)
    assert life.look().state is State.LISTENING
    life.remove()


def test_removal_while_starting_with_grants_leaves_no_descriptor_in_the_manager(fleet: Fleet) -> None:
    root = fleet.host.path / "granted"
    root.mkdir()
    (root / "in").write_text("x")
    given: dict[str, object] = {
        "stdin": {"file": f"{root}/in"},
        "directories": [{"host": str(root), "guest": f"/{number}"} for number in range(8)],
        "secrets": [{"name": f"s{number}", "file": f"{root}/in"} for number in range(8)],
    }

    with fleet.configured(callers=f'{{"*": {{grant_roots: [{{path: {root}}}]}}}}'), undisturbed(fleet):
        client = fleet.client()
        for _ in range(6):
            kuuid = client.create().kuuid
            start = partial(client.start, kuuid, "127.0.0.1", free_port(), (), given)
            started, removed = both(start, partial(client.remove, kuuid))
            assert removed is None
            assert isinstance(started, KeepInfo | KeepfleetError)
        assert not client.keeps()
        assert fleet.left_over() == []
