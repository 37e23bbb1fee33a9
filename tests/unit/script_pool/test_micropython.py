"""Scripts in MicroPython: what one sees and leaves, each way it ends, and its calls of host functions."""

from __future__ import annotations

import json

import pytest

from script_pool.client import Pool, ScriptError
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.interface import Fault, Limits, Reason, World
from script_pool.engine.micropython import MicroPython
from tests.script_runs import fault, ran
from tests.unit.script_pool.test_script_service import PATIENT


@pytest.fixture(scope="module")
def engine(scripts_cache: str) -> MicroPython:
    made = MicroPython(Artifacts(scripts_cache))
    made.warm()
    made.begin()
    return made


def test_the_inputs_members_are_globals_and_what_has_json_is_the_output(engine: MicroPython) -> None:
    source = "import math\nc = [a + b, {'x': None}]\ndel a\ndef f(): pass\nclass K: pass\n_h = 1\nprint('pi', math.pi)"
    result = ran(engine, source, '{"a": 1, "b": 2.5, "s": "é\\u0000\\n"}')
    assert json.loads(result.output_text) == {"b": 2.5, "s": "é\0\n", "c": [3.5, {"x": None}]}
    assert result.console == ("pi 3.141592653589793",)


def test_an_exception_has_the_scripts_own_lines(engine: MicroPython) -> None:
    thrown = fault(engine, "print('before')\ndef f():\n    raise ValueError('why')\nf()")
    assert (thrown.reason, thrown.name, thrown.message) == (Reason.EXCEPTION, "ValueError", "why")
    assert thrown.stack == ("at f (script:3)", "at <module> (script:4)")
    assert thrown.console == ("before",)


def test_a_syntax_error_is_found_as_it_is_prepared_and_nothing_runs(engine: MicroPython) -> None:
    with pytest.raises(Fault) as caught:
        engine.prepare("script", "x = 1\ny = = 2", "micropython", Limits(wall_seconds=20))
    assert (caught.value.reason, caught.value.stack) == (Reason.SYNTAX_ERROR, ("at <module> (script:2)",))
    engine.prepare("script", "while True: pass", "micropython", Limits(wall_seconds=20))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("while True: pass", Reason.TIME_LIMIT),
        ("def f(x):\n    while True: pass\nsorted([2, 1], key=f)", Reason.TIME_LIMIT),
        ("a = []\nwhile True: a.append(bytes(100000))", Reason.MEMORY_LIMIT),
        ("x = {1, 2}", Reason.NOT_SERIALISABLE),
        ("x = float('nan')", Reason.NOT_SERIALISABLE),
        ("x = []\nx.append(x)", Reason.NOT_SERIALISABLE),
        ("def f(): f()\nf()", Reason.EXCEPTION),
        ("open('/etc/passwd')", Reason.EXCEPTION),
        ("import time\ntime.sleep(100)", Reason.EXCEPTION),
        ("x = 'x' * 2000", Reason.OUTPUT_TOO_LARGE),
    ],
)
def test_each_way_to_fail_has_its_reason(engine: MicroPython, source: str, reason: Reason) -> None:
    seconds = 0.5 if reason is Reason.TIME_LIMIT else 20.0
    limits = Limits(wall_seconds=seconds, memory_bytes=16 << 20, output_bytes=1000)
    assert fault(engine, source, limits=limits).reason is reason


def test_a_host_function_is_a_plain_call(engine: MicroPython) -> None:
    source = "x = twice(x)\ntry:\n    other('a')\nexcept Exception as e:\n    t = [type(e).__name__, str(e)]"
    result = ran(engine, source, '{"x": 21}', functions=("twice", "other"))
    assert json.loads(result.output_text) == {"x": 42, "t": ["HostCallError", "not now"]}
    assert fault(engine, "\nrefused()", functions=("refused",)).reason is Reason.HOST_CALL_REFUSED
    assert fault(engine, "twice(1)").name == "NameError"


def test_nothing_of_one_run_is_visible_to_the_next(engine: MicroPython) -> None:
    ran(engine, "import sys, json\nsys.modules['left'] = json\nleft = 1")
    assert json.loads(ran(engine, "import sys\nx = ['left' in sys.modules, 'left' in globals()]").output_text) == {
        "x": [False, False]
    }


def test_the_console_is_bounded_and_the_clock_can_be_set(engine: MicroPython) -> None:
    result = ran(engine, "for i in range(2000): print('x' * 100)", limits=Limits(wall_seconds=20, console_bytes=1000))
    assert sum(map(len, result.console)) <= 1000
    late = ran(engine, "import time\nt = time.time()", world=World(clock=1.8e12))
    assert 1.8e9 <= json.loads(late.output_text)["t"] < 1.8e9 + 60


async def test_it_runs_in_a_pool_and_calls_the_application(scripts_cache: str) -> None:
    async with Pool(options=("--max=1", *PATIENT, f"--cache={scripts_cache}")) as pool:

        @pool.host_function
        async def lookup(key: str) -> dict[str, str]:
            return {"key": key}

        await pool.add("rule", "found = [lookup(k)['key'] for k in keys]", "micropython", functions=["lookup"])
        assert await pool.run("rule", {"keys": ["a", "b"]}) == {"keys": ["a", "b"], "found": ["a", "b"]}
        await pool.add("js", "x = 1")
        assert await pool.run("js", {}) == {"x": 1}
        with pytest.raises(ScriptError, match="have no sessions"):
            await pool.session().run("rule", {"keys": []})
        with pytest.raises(ScriptError, match="not installed: CPython is not made yet"):
            await pool.add("p", "x = 1", "python")
