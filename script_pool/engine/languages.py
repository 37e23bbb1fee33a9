"""All the languages of a pool, as one engine: each script is prepared and run by that of its language.

What is not installed is named when a script in it is added, and costs nothing before.
"""

from __future__ import annotations

from script_pool.engine.artifacts import Artifacts
from script_pool.engine.cpython import CPython
from script_pool.engine.interface import (
    Engine,
    Fault,
    HostCall,
    Limits,
    Reason,
    Result,
    Script,
    Suspended,
    World,
)
from script_pool.engine.micropython import MicroPython
from script_pool.engine.quickjs import QuickJS


class Languages:
    """The engine of engines."""

    def __init__(self, cache: str | None = None) -> None:
        """cache: a directory of this user's alone, where compiled code is kept."""
        self._javascript, self._cache = QuickJS(cache), cache
        self._engines: dict[str, Engine] = {"js": self._javascript, "ts": self._javascript}
        self._missing: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Languages({', '.join(self._engines)})"

    def warm(self) -> None:
        """Loads each engine. JavaScript's must be there; what another lacks is said when it is asked for."""
        self._javascript.warm()
        artifacts = Artifacts(self._cache)
        more: dict[str, MicroPython | CPython] = {"micropython": MicroPython(artifacts), "python": CPython(artifacts)}
        for language, engine in more.items():
            try:
                engine.warm()
            except ImportError as error:
                self._missing[language] = str(error)
            else:
                self._engines[language] = engine

    def begin(self) -> None:
        """Starts each engine."""
        for engine in dict.fromkeys(self._engines.values()):
            engine.begin()

    def prepare(self, name: str, source: str, language: str, limits: Limits, functions: tuple[str, ...] = ()) -> Script:
        """By the engine of its language. Raises Fault."""
        if language not in self._engines:
            raise Fault(Reason.NOT_INSTALLED, "", self._missing.get(language, f"there is no engine for {language}"))
        return self._engines[language].prepare(name, source, language, limits, functions)

    def run(
        self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None, world: World | None = None
    ) -> Result | Suspended:
        """By the engine of its language. Raises Fault."""
        return self._engines[script.language].run(script, input_text, limits, host, world)

    def resume(self, script: Script, parked: bytes, answers: bytes, limits: Limits, world: World) -> Result | Suspended:
        """By the engine of its language. Raises Fault."""
        return self._engines[script.language].resume(script, parked, answers, limits, world)

    def settle(self) -> None:
        """Lets each engine do so."""
        for engine in dict.fromkeys(self._engines.values()):
            engine.settle()
