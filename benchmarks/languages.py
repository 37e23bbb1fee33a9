"""What a script in each language, and a call of a host function, costs: processor time in one process, in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.asking import engines
from benchmarks.figures import Figure, Goal
from benchmarks.host import Host
from benchmarks.measuring import MS, Effort, report
from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.interface import Limits, Result, Script, World
from script_pool.engine.languages import Languages

SANDBOX = b'{"x":[1,2,3,4,5]}'
SOURCES = {"js": "y = x.map((v) => v * 2)", "micropython": "y = [v * 2 for v in x]"}
SOURCES["python"] = SOURCES["micropython"]
GOALS = {"js": Goal(0.45), "micropython": Goal(0.8), "python": Goal(3.5)}
CALL, CALLS = Goal(0.05), 300
"""Of a host function: the guest stops, its call is read, the answer given, and it goes on."""


def measure(host: Host, effort: Effort) -> list[Figure]:
    """The figures of languages."""
    with ExitStack() as held:
        sources = dict(SOURCES)
        if cpython.can_make():
            cache = held.enter_context(tempfile.TemporaryDirectory())
            cpython.make(Artifacts(cache))
        else:
            cache = held.enter_context(engines())
            del sources["python"]
            report("languages: componentize-py is not installed, so that python is not measured")
        engine = Languages(cache)
        engine.warm()
        engine.begin()
        limits = Limits(wall_seconds=20)
        scripts = {language: engine.prepare("bench", source, language, limits) for language, source in sources.items()}
        asks = f"for (let i = 0; i < {CALLS}; i++) await f(i)"
        asking = engine.prepare("asking", asks, "js", limits, ("f",))
        taken: dict[str, list[float]] = {language: [] for language in sources}
        calls, sessions = list[float](), list[float]()
        for _ in range(effort.rounds):
            for language, script in scripts.items():
                taken[language].append(_taken(lambda script=script: _run(engine, script, limits), 50))  # type: ignore[misc]
            sessions.append(_taken(lambda: _in_session(engine, scripts["js"], limits), 10))
            calls.append(_of_calls(engine, asking, limits))
    return [
        *(
            Figure(f"a fresh call in {language}: processor time", "ms", tuple(samples), GOALS[language])
            for language, samples in taken.items()
        ),
        Figure("two calls of a session: processor time", "ms", tuple(sessions)),
        Figure("a call of a host function: processor time", "ms", tuple(calls), CALL),
    ]


def _taken(do: Callable[[], object], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        do()
    return MS * (time.process_time() - began) / times


def _run(engine: Languages, script: Script, limits: Limits) -> None:
    engine.run(script, SANDBOX, limits, None)
    engine.settle()


def _in_session(engine: Languages, script: Script, limits: Limits) -> None:
    first = engine.run(script, SANDBOX, limits, None, World(keep=True))
    assert isinstance(first, Result)
    engine.run(script, SANDBOX, limits, None, World(keep=True, session=first.session))
    engine.settle()


def _of_calls(engine: Languages, script: Script, limits: Limits) -> float:
    run = engine.run(script, b"{}", limits, None)
    began, answered = time.process_time(), 0
    while not isinstance(run, Result):
        answered += 1
        run = run.answer(b'[[%d,true,{"n":5}]]' % answered)
    engine.settle()
    return MS * (time.process_time() - began) / CALLS
