"""The compiled code of stored modules for starts of keeps: shared, waited for with patience, or left to the keep."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keep_manager.compiled import PAUSE_SECONDS, SHARED_SECONDS, Compiled, NotKept, wanted_by
from keep_manager.keeps.view import View
from keep_manager.model import Answer
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepReport
from keep_protocol.spec import Compiler, KeepSpec
from keep_protocol.states import State
from tests.unit.manager.test_manager_compilation import Parts, change_one_bit, descriptors, parts_in, upgrade_engine


class CompiledParts(Parts):
    """The same, as starts use them, by a clock that the test moves."""

    def __init__(self, tasks: Group, place: Path) -> None:
        super().__init__(tasks, place)
        self.now = 1000.0
        self.compiled = Compiled(tasks, self.compilations, self.artifacts, lambda: self.now)

    def spec(self, name: str = "hello-c/hello") -> KeepSpec:
        return KeepSpec(digest=self.example(name))

    async def look(self, spec: KeepSpec, patience: float | None = None) -> bytes | None:
        """How the code begins that a keep is given, or None."""
        async with self.compiled.held(spec, patience) as file:
            return None if file is None else os.pread(file, 4, 0)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[CompiledParts]:
    async with parts_in(tmp_path, CompiledParts) as made:
        yield made


def break_disk(parts: CompiledParts, patched: pytest.MonkeyPatch, number: int) -> None:
    def broken(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    patched.setattr(parts.artifacts._disk, "write", broken, raising=False)


async def test_starts_that_go_on_concurrently_share_one_compilation_and_have_descriptors_of_their_own(
    parts: CompiledParts,
) -> None:
    spec, before = parts.spec(), descriptors()
    async with parts.compiled.held(spec) as first, parts.compiled.held(spec) as second:
        assert first is not None and second is not None
        assert first != second
        assert os.path.samestat(os.fstat(first), os.fstat(second))
        os.lseek(first, 9, os.SEEK_SET)
        assert os.lseek(second, 0, os.SEEK_CUR) == 0
    assert len(parts.units.started) == 1
    assert descriptors() == before


async def test_who_has_no_patience_hears_how_far_it_is_and_finds_it_done_later(parts: CompiledParts) -> None:
    spec, before = parts.spec(), descriptors()
    parts.units.hold()
    waiting = asyncio.create_task(parts.look(spec))
    await parts.units.until_started(1)
    with pytest.raises(
        KeepfleetError, match=r"cannot run the module yet: compiling the module, [0-9]+ s; ask again"
    ) as refused:
        await parts.look(spec, 0.0)
    assert refused.value.kind is ErrorKind.COMPILING
    assert refused.value.evidence[0].startswith("compiling the module, ")
    parts.units.let_go()
    assert await waiting == b"\x7fELF"
    assert await parts.look(spec) == b"\x7fELF"
    assert len(parts.units.started) == 1
    assert descriptors() == before


async def test_a_compilation_goes_on_though_no_request_waits_between_two_requests(parts: CompiledParts) -> None:
    spec, before = parts.spec(), descriptors()
    parts.units.hold()
    with pytest.raises(KeepfleetError):
        await parts.look(spec, 0.0)
    await parts.units.until_started(1)
    parts.units.let_go()
    assert await parts.look(spec) == b"\x7fELF"
    assert len(parts.units.started) == 1
    assert descriptors() == before


async def test_a_module_that_is_refused_is_refused_to_each_and_holds_nothing(parts: CompiledParts) -> None:
    spec = parts.spec("unknown-import/unknown-import")
    found = await asyncio.gather(*[parts.look(spec) for _ in range(3)], return_exceptions=True)
    assert [getattr(error, "kind", None) for error in found] == [ErrorKind.INVALID_MODULE] * 3
    assert len({id(error) for error in found}) == 3
    assert not parts.compiled._uses


async def test_another_compiler_is_other_code(parts: CompiledParts) -> None:
    spec = parts.spec()
    assert await parts.look(spec) == await parts.look(spec.replace(compiler=Compiler.FAST)) == b"\x7fELF"
    assert len(parts.units.started) == 2


@pytest.mark.parametrize("number", [28, 13], ids=["a full disk", "a folder that cannot be written"])
async def test_what_cannot_be_kept_is_left_to_the_keep_for_a_while_and_then_tried_again(
    parts: CompiledParts, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    spec, before = parts.spec(), descriptors()
    with monkeypatch.context() as patched:
        break_disk(parts, patched, number)
        assert await parts.look(spec) is None
    assert await parts.look(spec) is None
    assert len(parts.units.started) == 1, "each try would cost a whole compilation"
    parts.now += PAUSE_SECONDS
    assert await parts.look(spec) == b"\x7fELF"
    assert descriptors() == before


async def test_a_disk_that_fails_in_another_way_is_an_error(
    parts: CompiledParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parts.spec()
    with monkeypatch.context() as patched:
        break_disk(parts, patched, 5)
        with pytest.raises(KeepfleetError, match="Input/output error"):
            await parts.look(spec)
    assert await parts.look(spec) == b"\x7fELF"


async def test_what_was_checked_long_ago_is_checked_again_for_the_next_start(parts: CompiledParts) -> None:
    spec = parts.spec()
    async with parts.compiled.held(spec):
        key = await parts.compilations.key_of(wanted_by(spec))
        change_one_bit(Path(parts.artifacts.path, key.name))
        await parts.look(spec)
        assert len(parts.units.started) == 1
        parts.now += SHARED_SECONDS + 1
        await parts.look(spec)
        assert len(parts.units.started) == 2, "the bit was found, and the module compiled again"


async def test_after_an_upgrade_what_keeps_run_and_what_was_compiled_before_is_compiled_in_the_background(
    parts: CompiledParts, tmp_path: Path
) -> None:
    before, running = parts.spec(), parts.spec("words-rust/words")
    await parts.look(before)
    upgrade_engine(tmp_path / "root")
    await parts.compiled.prepare([running, KeepSpec()])
    assert parts.units.background == [False, True, True]
    assert await parts.look(before) == await parts.look(running) == b"\x7fELF"
    assert len(parts.units.started) == 3


async def test_without_a_cache_every_keep_compiles_its_own() -> None:
    async with NotKept().held(KeepSpec(digest="sha256:" + "1" * 64)) as file:
        assert file is None
    await NotKept().prepare([])


async def test_what_a_keep_s_engine_did_not_take_is_compiled_again_in_the_background_once(parts: CompiledParts) -> None:
    spec, before = parts.spec(), descriptors()
    async with parts.compiled.held(spec) as held:
        assert held is not None
        parts.compiled.unfit(spec)
        await parts.units.until_started(2)
        assert parts.units.background == [False, True]
        assert os.pread(held, 4, 0) == b"\x7fELF", "who has it open goes on"
    assert await parts.look(spec) == b"\x7fELF"
    for _ in range(3):  # a keep that is a stranger's may say so as often as it likes
        parts.compiled.unfit(spec)
    assert await parts.look(spec) == b"\x7fELF"
    assert len(parts.units.started) == 2
    parts.compiled.unfit(KeepSpec())
    assert descriptors() == before


def test_a_keep_that_says_so_is_heard_once_whatever_else_it_says() -> None:
    view = View()
    heard: list[KeepSpec] = []
    view.on_unfit = heard.append
    spec = KeepSpec(digest="sha256:" + "0" * 64)
    view.begin(7, spec)
    report = KeepReport(State.STARTED, 7)
    for unfit in (False, True, True):
        view.answered(7, Answer(report.replace(unfit=unfit), KeepSpec()))
    view.recorded(7, report.replace(unfit=True), None)
    assert heard == [spec]
