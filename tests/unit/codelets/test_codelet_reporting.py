"""What is counted of hooks, and the hook that codelets read it at."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest

from codelets import HookStatistics
from codelets.interface import MAX_HOOKS
from codelets.reporting import statistics_of
from codelets.states import HookState
from keep_protocol.errors import KeepfleetError
from tests.unit.codelets.application import COUNTER, Application, codelet, function, one, packet

STREAM = "00112233445566778899aabbccddeeff"
OUT = f'out_io_channel: [{{name: samples, stream_id: "{STREAM}"}}]'
SIZE = ctypes.sizeof(HookStatistics)
PASSES_ON = codelet(
    f"(i64.extend_i32_s (call $send (local.get $context) (i32.const {SIZE})))",
    function(f"output:{SIZE}:64", "samples.send", "(param i32 i32) (result i32)"),
)
"""Sends each report."""
SENDER = codelet(
    "(i64.extend_i32_s (call $send (local.get $context) (i32.const 8)))",
    function("output:8:4", "samples.send", "(param i32 i32) (result i32)"),
)


def reports(application: Application) -> dict[bytes, HookStatistics]:
    """What the codelet PASSES_ON has sent, by the hook's name."""
    found: dict[bytes, HookStatistics] = {}

    def receive(stream: bytes, message: bytes) -> None:
        each = HookStatistics.from_buffer_copy(message)
        found[each.hook_name] = each

    application.runtime.on_output(STREAM, receive)
    application.runtime.deliver()
    return found


def test_nothing_is_reported_where_it_is_not_asked_for(application: Application) -> None:
    application.load("counter", COUNTER)
    assert application.runtime.report() == 0


def test_a_codelet_on_report_stats_sees_every_hooks_counts(application: Application) -> None:
    application.load("counter", COUNTER)
    application.load("faulty", codelet("unreachable"), "seen")
    for _ in range(20):
        application.choose(packet())
    for _ in range(3):
        application.seen(packet())
    application.load("reporter", PASSES_ON, "report_stats", OUT)
    assert application.runtime.report() == 5
    found = reports(application)
    assert list(found) == [b"seen", b"changed", b"choose", b"data", b"report_stats"]
    assert [each.number for each in found.values()] == [0, 1, 2, 3, 4]
    choose, seen = found[b"choose"], found[b"seen"]
    assert (choose.calls, choose.faults, choose.overruns, choose.drops, choose.codelets) == (20, 0, 0, 0, 1)
    assert sum(choose.times) == 2
    assert 0 < choose.median_ns <= choose.p99_ns
    assert (seen.calls, seen.faults, found[b"changed"].calls) == (3, 3, 0)


def test_drops_are_what_the_codelets_of_a_hook_lost(application: Application) -> None:
    application.load("sender", SENDER, more=OUT)
    for _ in range(6):
        application.choose(packet())
    assert {each.name: each.drops for each in application.runtime.stats()}["choose"] == 2


def test_counts_stay_when_a_set_is_unloaded(application: Application) -> None:
    application.load("sender", SENDER, more=f"runtime_threshold: 1\n{OUT}")
    for _ in range(6):
        application.choose(packet())
    application.runtime.unload("sender")
    [state] = [each for each in application.runtime.stats() if each.name == "choose"]
    lost = 2 + 4  # two found no room, and four were in the channel, which was not read
    assert (state.calls, state.overruns, state.drops, sum(state.times), state.codelets) == (6, 6, lost, 6, ())
    application.load("counter", COUNTER)
    application.choose(packet())
    [state] = [each for each in application.runtime.stats() if each.name == "choose"]
    assert (state.calls, state.overruns, state.drops, sum(state.times)) == (7, 6, lost, 7)


def test_the_thread_that_delivers_reports(application: Application) -> None:
    came = threading.Event()
    application.runtime.on_output(STREAM, lambda stream, message: came.set())
    application.load("reporter", PASSES_ON, "report_stats", OUT)
    application.runtime.start_delivering(60, report_seconds=0.01)
    assert came.wait(20)
    application.runtime.close()


def test_a_codelet_on_report_stats_that_fails_is_unloaded_as_others_are(application: Application) -> None:
    application.load("faulty", codelet("unreachable"), "report_stats")
    for _ in range(4):
        application.runtime.report()
    assert [each.loaded for each in application.runtime.sets()] == [False]
    assert application.runtime.report() == 0


def test_report_stats_is_the_runtimes_own(application: Application) -> None:
    with pytest.raises(KeepfleetError, match="there is one"):
        application.runtime.hook("report_stats", 4)
    for number in range(MAX_HOOKS - len(application.runtime.interface.hooks)):
        application.runtime.hook(f"hook{number}", 4)
    with pytest.raises(KeepfleetError, match=f"there are {MAX_HOOKS}"):
        application.runtime.hook("one_more", 4)
    assert application.runtime.interface.hooks[-1].context_bytes == SIZE


def test_the_layout_of_a_report_is_as_documented() -> None:
    state = HookState("h" * 40, 1, 2, 3, (0, 0, 7, *[0] * 46), ("a.b",), 4)
    packed = struct.pack("<32s6Q2I49Q", b"h" * 32, 1, 2, 3, 4, 4, 4, 9, 1, 0, 0, 7, *[0] * 46)
    assert bytes(statistics_of(9, state)) == packed


def test_sets_on_report_stats_are_verified_for_it(application: Application) -> None:
    application.add("counter", COUNTER)
    assert application.runtime.load(one("counter", "report_stats")) == "counter"
