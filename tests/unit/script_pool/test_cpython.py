"""Scripts in CPython: what one sees and leaves, each way it ends, its limits, and that nothing of one call is left."""

from __future__ import annotations

import json
import os
import time

import pytest

from script_pool.client import Pool, ScriptError
from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.cpython import CPython
from script_pool.engine.interface import Fault, Limits, Reason, World
from tests.script_runs import fault, output, ran


@pytest.fixture(scope="module")
def engine(python_cache: str) -> CPython:
    made = CPython(Artifacts(python_cache))
    made.warm()
    made.begin()
    return made


def test_the_inputs_members_are_globals_and_what_has_json_is_the_output(engine: CPython) -> None:
    source = (
        "import math, sys\nc = [a + b, {'x': None}]\ndel a\ndef f(): pass\nclass K: pass\n_h = 1\n"
        "print('pi', math.pi)\nprint('on stderr', file=sys.stderr)\nsys.stdout.write('no end')"
    )
    result = ran(engine, source, '{"a": 1, "b": 2.5, "s": "é\\u0000\\n"}')
    assert json.loads(result.output_text) == {"b": 2.5, "s": "é\0\n", "c": [3.5, {"x": None}]}
    assert result.console == ("pi 3.141592653589793", "on stderr", "no end")


def test_the_language_is_todays_and_the_library_is_there(engine: CPython) -> None:
    source = """
import asyncio, base64, collections, csv, dataclasses, datetime, decimal, enum, functools, hashlib, io, itertools
import json as j, pathlib, random, re, statistics, string, textwrap, tomllib, typing, urllib.parse, uuid, zlib
import xml.etree.ElementTree as xml
@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
match Point(1):
    case Point(x=1, y=point): pass
async def later(value):
    await asyncio.sleep(0.001)
    return value
async def both(): return await asyncio.gather(later(1), later(2))
together = asyncio.run(both())
week = str(datetime.date(2026, 11, 30) - datetime.timedelta(days=7))
digest = hashlib.sha256(b"a").hexdigest()[:8]
median = statistics.median([3, 1, 2])
table = list(csv.reader(io.StringIO("a,b\\n1,2")))
cents = str(decimal.Decimal("0.1") + decimal.Decimal("0.2"))
found = xml.fromstring("<a><b/></a>")[0].tag
query = urllib.parse.parse_qs("a=1&a=2")
chance = [0 <= random.random() < 1, len(str(uuid.uuid4()))]
del xml
"""
    assert output(engine, source) == {
        "point": 2,
        "together": [1, 2],
        "week": "2026-11-23",
        "digest": "ca978112",
        "median": 2,
        "table": [["a", "b"], ["1", "2"]],
        "cents": "0.3",
        "found": "b",
        "query": {"a": ["1", "2"]},
        "chance": [True, 36],
    }


def test_an_exception_has_the_scripts_own_lines(engine: CPython) -> None:
    error = fault(engine, "def f(x):\n    return 1 / x\n\nprint('before')\nf(0)\n")
    assert (error.reason, error.name, error.message) == (Reason.EXCEPTION, "ZeroDivisionError", "division by zero")
    assert error.stack == ("at f (script:2)", "at <module> (script:5)")
    assert error.console == ("before",)


def test_a_syntax_error_is_found_when_the_script_is_added(engine: CPython) -> None:
    with pytest.raises(Fault) as caught:
        engine.prepare("script", "x = 1\ndef f(:\n", "python", Limits(wall_seconds=20))
    assert (caught.value.reason, caught.value.name) == (Reason.SYNTAX_ERROR, "SyntaxError")
    assert caught.value.stack == ("at <module> (script:2)",)
    for source in ("x = '\0'", "x = '\ud800'"):
        with pytest.raises(Fault) as caught:
            engine.prepare("script", source, "python", Limits(wall_seconds=20))
        assert caught.value.reason is Reason.SYNTAX_ERROR


@pytest.mark.parametrize(
    ("source", "reason", "name"),
    [
        ("x = b'1'", Reason.NOT_SERIALISABLE, "TypeError"),
        ("x = float('nan')", Reason.NOT_SERIALISABLE, "ValueError"),
        ("x = []\nx.append(x)", Reason.NOT_SERIALISABLE, "ValueError"),
        ("x = {(1, 2): 3}", Reason.NOT_SERIALISABLE, "TypeError"),
        ("x = 1\nfor _ in range(600): x = [x]", Reason.NESTED_TOO_DEEPLY, ""),
        ("eval('(' * 5000 + ')' * 5000)", Reason.NESTED_TOO_DEEPLY, "MemoryError"),
        ("def f(): f()\nf()", Reason.EXCEPTION, "RecursionError"),
        ("x = 'a' * 10**9", Reason.MEMORY_LIMIT, "MemoryError"),
        ("x = []\nwhile True: x.append('y' * 100_000)", Reason.MEMORY_LIMIT, "MemoryError"),
        ("import ctypes", Reason.EXCEPTION, "ModuleNotFoundError"),
        ("import socket", Reason.EXCEPTION, "ModuleNotFoundError"),
        ("open('/etc/passwd')", Reason.EXCEPTION, "FileNotFoundError"),
        ("open('/tmp/x', 'w')", Reason.EXCEPTION, "FileNotFoundError"),
        ("import os\nos.listdir('/')", Reason.EXCEPTION, "FileNotFoundError"),
        ("import os\nos.environ['HOME']", Reason.EXCEPTION, "KeyError"),
        ("import threading\nthreading.Thread(target=print).start()", Reason.EXCEPTION, "RuntimeError"),
        ("input()", Reason.EXCEPTION, "EOFError"),
        ("import os\nos._exit(3)", Reason.EXCEPTION, "SystemExit"),
        ("import os\nos.abort()", Reason.CRASHED, ""),
        ("x = 'y' * (6 << 20)", Reason.OUTPUT_TOO_LARGE, ""),
    ],
)
def test_each_way_to_fail_has_its_reason(engine: CPython, source: str, reason: Reason, name: str) -> None:
    error = fault(engine, source)
    assert (error.reason, error.name) == (reason, name)


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
        "x = 10 ** (10 ** 8)",
        "sorted(range(10), key=lambda x: [1 for _ in iter(int, 1)])",
        "class K:\n    def __del__(self):\n        while True: pass\n_k = K()\ndel _k",
        "import time\ntime.sleep(1000)",
        "import asyncio\nasyncio.run(asyncio.sleep(1000))",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ],
)
def test_what_does_not_end_is_ended(engine: CPython, source: str) -> None:
    began = time.monotonic()
    assert fault(engine, source, limits=Limits(wall_seconds=0.2)).reason is Reason.TIME_LIMIT
    assert time.monotonic() - began < 20


def test_a_script_that_exits_is_done(engine: CPython) -> None:
    assert output(engine, "x = 1\nraise SystemExit(3)\nx = 2") == {"x": 1}


def test_nothing_of_one_call_is_visible_to_the_next(engine: CPython) -> None:
    output(engine, "import builtins, json, sys\nbuiltins.len = None\njson.loads = None\nsys.kept = 1\nkept = 1")
    source = "import json, sys, random\nseen = [hasattr(sys, 'kept'), 'kept' in globals(), len('ab'), json.loads('1')]"
    assert output(engine, source) == {"seen": [False, False, 2, 1]}
    chance = {
        json.dumps(output(engine, "import os, random\nx = [random.random(), os.urandom(8).hex()]")) for _ in "abc"
    }
    assert len(chance) == 3


def test_host_functions_are_plain_calls(engine: CPython) -> None:
    source = (
        "x = twice(21)\n"
        "try: fails()\nexcept HostCallError as error: why = [str(error), isinstance(error, HostCallRefused)]\n"
        "try: twice(object())\nexcept TypeError as error: kind = 'TypeError'\n"
    )
    expected = {"x": 42, "why": ["not now", False], "kind": "TypeError"}
    assert output(engine, source, functions=("twice", "fails")) == expected
    assert fault(engine, "refused()", functions=("refused",)).reason is Reason.HOST_CALL_REFUSED
    assert fault(engine, "twice(1)").name == "NameError"
    sly = "import wit_world, json\nx = json.loads(wit_world.host('call', '[\"twice\", [1]]'))"
    assert output(engine, sly)["x"][0] is False


def test_the_clock_can_be_set_and_is_coarse(engine: CPython) -> None:
    source = "import datetime, time\nx = [str(datetime.datetime.now())[:16], round(time.time() * 1000) % 10]"
    assert output(engine, source, world=World(clock=0.0)) == {"x": ["1970-01-01 00:00", 0]}


def test_the_console_is_bounded(engine: CPython) -> None:
    result = ran(engine, "print('x' * 100)\nprint('y')", limits=Limits(wall_seconds=20, console_bytes=50))
    assert result.console == ("x" * 50,)


def test_a_session_and_a_damaged_script_are_refused(engine: CPython) -> None:
    assert "no sessions" in fault(engine, "x = 1", world=World(keep=True)).message
    script = engine.prepare("script", "x = 1", "python", Limits(wall_seconds=20))
    damaged = type(script)(script.name, script.language, script.image[: len(script.image) // 2], script.digest)
    with pytest.raises(Fault):
        engine.run(damaged, b"{}", Limits(wall_seconds=20), None)


def test_what_is_not_made_is_named_with_what_makes_it(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(ImportError, match="--make-python"):
        CPython(Artifacts(os.fspath(tmp_path))).warm()


def test_what_was_kept_damaged_is_not_used(python_cache: str, tmp_path: os.PathLike[str]) -> None:
    artifacts = Artifacts(os.fspath(tmp_path))
    path = artifacts.keep_mapped("cpython", cpython.sources(), b"code")
    assert artifacts.mapped("cpython", cpython.sources()) == path
    with open(path, "r+b") as file:
        file.write(b"x")
    assert artifacts.mapped("cpython", cpython.sources()) is None
    os.chmod(path, 0o666)  # noqa: S103 - what is refused
    with pytest.raises(PermissionError, match="no one else may write it"):
        artifacts.mapped("cpython", cpython.sources())


async def test_a_pool_runs_it_in_locked_children(python_cache: str) -> None:
    options = ("--min=2", "--max=2", "--time=5", "--deadline=60", f"--cache={python_cache}")
    async with Pool(options=options) as pool:

        @pool.host_function
        async def lookup(key: str) -> dict[str, int]:
            return {"of": len(key)}

        code = "import uuid\nid = str(uuid.uuid4())\nfound = lookup('abc')['of'] + given"
        await pool.add("ask", code, language="python", functions=["lookup"])
        answers = [await pool.run("ask", {"given": number}) for number in range(6)]
        assert [answer["found"] for answer in answers] == [3, 4, 5, 6, 7, 8]
        assert len({answer["id"] for answer in answers}) == 6
        await pool.add("fails", "def f():\n    raise ValueError('no')\nf()", language="python")
        with pytest.raises(ScriptError) as caught:
            await pool.run("fails", {})
        assert caught.value.stack == ("at f (script:2)", "at <module> (script:3)")
        await pool.add("loop", "while True: pass", language="python")
        with pytest.raises(ScriptError) as caught:
            await pool.run("loop", {})
        assert caught.value.reason == "time limit exceeded"
        assert (await pool.run("ask", {"given": 1}))["found"] == 4
