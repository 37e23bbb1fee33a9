"""The scripts of a pool, by name: what each stands for from one request on, and how much all of them take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from script_pool import frames
from script_pool.engine.interface import Script
from script_pool.frames import Frame, FrameError, Kind
from script_pool.hostcalls import Allowance
from script_pool.protocol import DONE, TOO_MANY_SCRIPTS, Answer
from script_pool.versions import Version

MAX_SCRIPTS = 10_000
"""Names; one is some 50 KB in the pool's process, and in each child that has run it."""
MAX_SCRIPT_BYTES = 512 * 1024 * 1024
"""Of all prepared scripts together."""


class Names(Mapping[str, Version]):
    """`dropped`: called with the number of a version that no later request will run."""

    def __init__(self, dropped: Callable[[int], None]) -> None:
        self._known: dict[str, Version] = {}
        self._bytes, self._dropped = 0, dropped

    def __repr__(self) -> str:
        return f"Names({len(self._known)}, {self._bytes} bytes)"

    def __getitem__(self, name: str) -> Version:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, number: int, name: str, language: str, functions: Mapping[str, Allowance] | None) -> Version | None:
        """Makes `name` stand for what is to be prepared; None where there are too many already."""
        before = self._known.get(name)
        if (before is None and len(self._known) >= MAX_SCRIPTS) or self._bytes >= MAX_SCRIPT_BYTES:
            return None
        version = self._known[name] = Version(number, name, language, before, functions)
        return version

    def remove(self, number: int, before: Version, removed: Callable[[bool], None]) -> None:
        """Makes its name stand for nothing. `removed`: called, once it is certain, with whether there was a script."""
        gone = self._known[before.name] = Version(number, before.name)

        def settled() -> None:
            known = before.script is not None
            gone.become(None)
            self.forget(gone)
            self._drop(before)
            removed(known)

        before.when_settled(settled)

    def prepared(self, version: Version, frame: Frame) -> Answer:
        """What was prepared is what `version` stands for, of whatever name it is the last by now. Raises FrameError."""
        if frame.kind is Kind.FAULT:
            return Answer.of(frames.fault_of(frame))
        if frame.kind is not Kind.PREPARED:
            raise FrameError("it answered a preparation with something else")
        made = frames.script_of(frame)
        if self._bytes + len(made.image) > MAX_SCRIPT_BYTES:
            return Answer(TOO_MANY_SCRIPTS, message=f"all scripts take {MAX_SCRIPT_BYTES} bytes; remove some")
        self._bytes += len(made.image)
        # Of what a child says, the image, the digest and the imports alone are its own to say.
        functions = tuple(version.functions)
        script = Script(version.name, version.language, made.image, made.digest, made.imports, functions)
        before = version.become(script)
        if before is not None:
            before.when_settled(lambda: self._drop(before))
        return DONE

    def forget(self, version: Version) -> None:
        """A name that stands for nothing is no name."""
        if version.script is None and self._known.get(version.name) is version:
            del self._known[version.name]

    def _drop(self, version: Version) -> None:
        """Its script is nothing that a later request will run; those that are to run it already have it."""
        if version.script is not None:
            version.dropped = True
            self._bytes -= len(version.script.image)
            self._dropped(version.number)
