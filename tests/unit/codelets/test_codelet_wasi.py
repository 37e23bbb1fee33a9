"""WASI for codelets: what a hook grants and nothing else, and no pointer that leaves the codelet's memory."""

from __future__ import annotations

import logging
import struct
import time

import pytest

from codelets import CodeletError
from codelets.interface import WASI
from codelets.wasi import FAULT, INVAL, MODULE, signature
from keep_protocol.errors import KeepfleetError
from tests.unit.codelets.application import PACKET, Application, codelet, function, packet


def imported(*names: str) -> str:
    """Imports of these functions."""
    found = ""
    for name in names:
        parameters, results = signature(name)
        kind = f"(param {' '.join(parameters)})" + (f" (result {' '.join(results)})" if results else "")
        found += function(MODULE, name, kind)
    return found


def load(application: Application, body: str, *names: str, rest: str = "") -> None:
    """A codelet on the hook `granted`, which grants everything."""
    application.load("asks", codelet(body, imported(*names), rest), hook="granted")


@pytest.fixture
def application(application: Application) -> Application:
    application.granted = application.runtime.control_hook("granted", PACKET, default=-1, wasi=WASI)  # type: ignore[attr-defined]
    return application


def call(application: Application) -> int:
    found: int = application.granted(packet())  # type: ignore[attr-defined]
    return found


def test_a_hook_that_grants_nothing_refuses_all_of_it(application: Application) -> None:
    module = codelet("(i64.const 0)", imported("random_get"))
    with pytest.raises(CodeletError, match="cannot load") as caught:
        application.load("asks", module, hook="choose")
    assert any("its hook grants nothing of WASI" in line for line in caught.value.evidence)


def test_a_hook_grants_by_name(application: Application) -> None:
    application.runtime.hook("one", PACKET, wasi=("random_get",))
    application.load("random", codelet("(i64.const 0)", imported("random_get")), hook="one")
    with pytest.raises(CodeletError) as caught:
        application.load("clock", codelet("(i64.const 0)", imported("clock_time_get")), hook="one")
    assert any("its hook grants random_get of WASI" in line for line in caught.value.evidence)
    with pytest.raises(KeepfleetError, match="invalid hook"):
        application.runtime.hook("two", PACKET, wasi=("path_open",))


def test_a_function_of_another_type_is_refused(application: Application) -> None:
    module = codelet("(i64.const 0)", function(MODULE, "random_get", "(param i64)"))
    with pytest.raises(CodeletError) as caught:
        application.load("asks", module, hook="granted")
    assert any("its type is" in line for line in caught.value.evidence)


def test_clocks_random_numbers_and_the_log(application: Application, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    body = """
      (drop (call $random_get (i32.const 64) (i32.const 8)))
      (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 2))
      (i32.store (i32.const 8) (i32.const 18)) (i32.store (i32.const 12) (i32.const 3))
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 32)))
      (if (i32.ne (i32.load (i32.const 32)) (i32.const 5)) (then unreachable))
      (if (i64.eqz (i64.load (i32.const 64))) (then unreachable))
      (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 40)))
      (i64.load (i32.const 40))"""
    load(application, body, "random_get", "fd_write", "clock_time_get", rest='(data (i32.const 16) "hello")')
    before = time.monotonic_ns()
    assert before <= call(application) <= time.monotonic_ns()
    assert "hello" in caplog.text


@pytest.mark.parametrize(
    ("body", "name", "number"),
    [
        ("(call $random_get (i32.const 65530) (i32.const 0x7fffffff))", "random_get", FAULT),
        ("(call $random_get (i32.const -1) (i32.const 1))", "random_get", FAULT),
        ("(call $clock_time_get (i32.const 0) (i64.const 0) (i32.const -4))", "clock_time_get", FAULT),
        ("(call $clock_time_get (i32.const 9) (i64.const 0) (i32.const 0))", "clock_time_get", INVAL),
        ("(call $fd_write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0))", "fd_write", FAULT),
        ("(call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const -1))", "fd_write", FAULT),
        ("(call $fd_write (i32.const 1) (i32.const 0) (i32.const 0x20000000) (i32.const 0))", "fd_write", INVAL),
        ("(call $fd_write (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0))", "fd_write", 8),
    ],
)
def test_a_wild_pointer_or_number_is_an_error_of_the_call(
    application: Application, body: str, name: str, number: int
) -> None:
    load(application, f"(i64.extend_i32_u {body})", name)
    assert call(application) == number
    assert application.runtime.sets()[0].codelets[0].faults == 0


def test_an_exit_ends_the_call_and_is_a_fault(application: Application) -> None:
    load(application, "(call $proc_exit (i32.const 3)) (i64.const 1)", "proc_exit")
    assert call(application) == -1
    assert "it called proc_exit(3)" in application.runtime.sets()[0].codelets[0].last_fault


def test_it_runs_on_the_codelets_fuel(application: Application) -> None:
    load(
        application,
        "(loop $l (drop (call $random_get (i32.const 0) (i32.const 65536))) (br $l)) unreachable",
        "random_get",
    )
    assert call(application) == -1
    assert "fuel" in application.runtime.sets()[0].codelets[0].last_fault


def test_what_a_hook_grants_is_in_the_interface(application: Application) -> None:
    [found] = [each for each in application.runtime.interface.hooks if each.name == "granted"]
    assert found.wasi == WASI
    assert struct.calcsize(PACKET) == found.context_bytes
