"""Compiled code for who asks: from the cache, or made once for all, with progress, in turns, again where it must."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from keep_manager.compilation import Progress, Stage, Wanted
from keep_manager.compilations import MAX_COMPILING, Compilations
from keep_manager.tasks import Group
from keep_protocol.compiling import Job
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import Compiler, Profile
from module_store.artifacts import Artifact, Artifacts
from module_store.store import Store
from tests.fakes.local_compile_units import LocalCompileUnits
from tests.system.hostile import BOMBS

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"


class Parts:
    """Compilations over a real store, a real cache and the real compiler, and what they are made of."""

    def __init__(self, tasks: Group, place: Path) -> None:
        import wasmtime

        packages = place / "root/keepfleet/packages"
        if not packages.exists():
            packages.mkdir(parents=True)
            (packages / "wasmtime").symlink_to(Path(wasmtime.__file__).parent)
            (packages / "app_loader").symlink_to(ROOT / "app_loader")
        self.root = str(place / "root")
        self.store = Store.create(str(place / "store"))
        self.artifacts = Artifacts(str(place / "artifacts"))
        self.units = LocalCompileUnits()
        self.compilations = Compilations(tasks, self.artifacts, self.store.open_object, self.units, self._root)

    async def _root(self) -> str:
        return self.root

    def add(self, module: bytes) -> str:
        return self.store.add(io.BytesIO(module)).digest

    def example(self, name: str = "hello-c/hello") -> str:
        return self.add((EXAMPLES / f"{name}.wasm").read_bytes())

    async def get(self, wanted: Wanted) -> Artifact:
        artifact = await self.compilations.get(wanted)
        os.close(artifact.descriptor)
        return artifact


P = TypeVar("P", bound=Parts)


@asynccontextmanager
async def parts_in(place: Path, kind: Callable[[Group, Path], P]) -> AsyncIterator[P]:
    async with Group() as tasks:
        made = kind(tasks, place)
        yield made
        made.artifacts.close()
        made.store.close()


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts_in(tmp_path, Parts) as made:
        yield made


def change_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(0o444)


def upgrade_engine(root: Path) -> None:
    """Another version of our settings of the engine."""
    package = root / "keepfleet/packages/app_loader"
    package.unlink()
    (package / "engine").mkdir(parents=True)
    (package / "engine/settings.py").write_text("another engine")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_module_is_compiled_when_it_is_first_asked_for_and_never_again(parts: Parts) -> None:
    wanted = Wanted(parts.example())
    first = await parts.get(wanted)
    assert first.size > 100_000
    assert (await parts.get(wanted)).size == first.size
    assert len(parts.units.started) == 1


async def test_another_manager_finds_what_was_compiled(tmp_path: Path) -> None:
    for runs in (1, 0):
        async with parts_in(tmp_path, Parts) as parts:
            await parts.get(Wanted(parts.example()))
            assert len(parts.units.started) == runs


async def test_ten_requests_for_one_module_compile_it_once_and_each_has_a_descriptor(parts: Parts) -> None:
    wanted, before = Wanted(parts.example()), descriptors()
    parts.units.hold()
    reported: list[Progress] = []
    asked = [asyncio.create_task(parts.compilations.get(wanted, reported.append)) for _ in range(10)]
    await parts.units.until_started(1)
    parts.units.let_go()
    got = await asyncio.gather(*asked)
    assert len(parts.units.started) == 1
    assert len({artifact.descriptor for artifact in got}) == 10
    assert {progress.stage for progress in reported} == {Stage.QUEUED, Stage.COMPILING}
    assert re.fullmatch(r"compiling the module, [0-9]+ s", reported[-1].text)
    for artifact in got:
        assert os.pread(artifact.descriptor, 4, 0) == b"\x7fELF"
        os.close(artifact.descriptor)
    assert descriptors() == before


async def test_one_who_gives_up_does_not_take_it_from_the_others(parts: Parts) -> None:
    wanted, before = Wanted(parts.example()), descriptors()
    parts.units.hold()
    first, second = [asyncio.create_task(parts.get(wanted)) for _ in range(2)]
    await parts.units.until_started(1)
    first.cancel()
    parts.units.let_go()
    assert (await second).size > 0
    assert first.cancelled()
    assert descriptors() == before


async def test_what_is_not_waited_for_any_more_is_compiled_for_the_next_who_asks(parts: Parts) -> None:
    wanted, before = Wanted(parts.example()), descriptors()
    parts.units.hold()
    only = asyncio.create_task(parts.get(wanted))
    await parts.units.until_started(1)
    only.cancel()
    await asyncio.wait({only})
    parts.units.let_go()
    await parts.get(wanted)
    assert len(parts.units.started) == 1
    assert descriptors() == before


@pytest.mark.parametrize(
    ("job", "count"),
    [(Job(), 0), (Job(seconds=60), 0), (Job(profile=Profile.STRICT), 1), (Job(compiler=Compiler.FAST), 1)],
)
async def test_settings_that_make_other_code_compile_it_again_and_limits_do_not(
    parts: Parts, job: Job, count: int
) -> None:
    digest = parts.example()
    await parts.get(Wanted(digest))
    await parts.get(Wanted(digest, job))
    assert len(parts.units.started) == 1 + count


async def test_a_module_that_is_refused_is_refused_to_all_who_ask_and_compiled_once(parts: Parts) -> None:
    wanted, before = Wanted(parts.example("unknown-import/unknown-import")), descriptors()
    found = await asyncio.gather(*[parts.get(wanted) for _ in range(3)], return_exceptions=True)
    assert {getattr(error, "kind", None) for error in found} == {ErrorKind.INVALID_MODULE}
    with pytest.raises(KeepfleetError, match="imports what a keep does not have: 'env' 'open_the_door'"):
        await parts.get(wanted)
    assert len(parts.units.started) == 1
    assert descriptors() == before


@pytest.mark.parametrize(
    ("bomb", "job", "words"),
    [
        ("200 variables in 1,000 loops", Job(seconds=1), "takes more than 1 s of processor time"),
        ("a million nested blocks", Job(memory_bytes=256 << 20), "takes more than 256 MiB of memory"),
    ],
)
async def test_a_compile_bomb_is_refused_for_its_time_or_its_memory_and_not_tried_again(
    parts: Parts, bomb: str, job: Job, words: str
) -> None:
    wanted = Wanted(parts.add(BOMBS[bomb]()), job)
    for _ in range(2):
        with pytest.raises(KeepfleetError, match=words) as caught:
            await parts.get(wanted)
        assert caught.value.kind is ErrorKind.TOO_COMPLEX
    assert len(parts.units.started) == 1


async def test_a_module_that_is_not_in_the_store_is_not_compiled(parts: Parts) -> None:
    with pytest.raises(KeepfleetError) as caught:
        await parts.get(Wanted("sha256:" + "0" * 64))
    assert caught.value.kind is ErrorKind.NOT_FOUND
    assert parts.units.started == []


async def test_compiled_code_that_was_changed_is_compiled_again(parts: Parts) -> None:
    wanted = Wanted(parts.example())
    artifact = await parts.get(wanted)
    change_one_bit(Path(parts.artifacts.path, artifact.key.name))
    assert (await parts.get(wanted)).size == artifact.size
    assert len(parts.units.started) == 2


async def test_code_that_an_engine_did_not_take_is_compiled_again_once(parts: Parts) -> None:
    wanted = Wanted(parts.example())
    await parts.get(wanted)
    assert await parts.compilations.discard(wanted, "the engine did not take it")
    await parts.get(wanted)
    assert len(parts.units.started) == 2
    assert not await parts.compilations.discard(wanted, "the engine did not take it")
    await parts.get(wanted)
    assert len(parts.units.started) == 2, "what does not fit twice will not the third time"


async def test_no_more_compile_concurrently_than_there_is_room_for(parts: Parts) -> None:
    parts.units.hold()
    names = ("hello-c/hello", "words-rust/words", "gcd-wat/gcd", "filter-c/filter", "primes-as/primes")
    asked = [asyncio.create_task(parts.get(Wanted(parts.example(name)))) for name in names]
    await parts.units.until_started(MAX_COMPILING)
    parts.units.let_go()
    await asyncio.gather(*asked, return_exceptions=True)
    assert parts.units.most == MAX_COMPILING
    assert len(parts.units.started) == 5


async def test_after_an_upgrade_what_is_needed_is_compiled_in_the_background_once(parts: Parts, tmp_path: Path) -> None:
    wanted = [Wanted(parts.example()), Wanted(parts.example("words-rust/words")), Wanted("sha256:" + "0" * 64)]
    await parts.get(wanted[0])
    assert await parts.compilations.missing(wanted) == wanted[1:]
    upgrade_engine(tmp_path / "root")
    assert await parts.compilations.missing(wanted) == wanted
    await parts.compilations.prepare(wanted)
    assert parts.units.background == [False, True, True]
    assert await parts.compilations.missing(wanted) == wanted[2:]
    await parts.get(wanted[1])
    assert len(parts.units.started) == 3


async def test_who_asks_for_what_compiles_in_the_background_gets_it_hurried(parts: Parts) -> None:
    wanted = Wanted(parts.example())
    parts.units.hold()
    prepared = asyncio.create_task(parts.compilations.prepare([wanted]))
    await parts.units.until_started(1)
    asked = asyncio.create_task(parts.get(wanted))
    await parts.units.until_hurried()
    parts.units.let_go()
    await asyncio.gather(prepared, asked)
    assert parts.units.hurried == parts.units.started


async def test_who_waits_does_not_wait_behind_the_background(parts: Parts) -> None:
    parts.units.hold()
    prepared = asyncio.create_task(parts.compilations.prepare([Wanted(parts.example("words-rust/words"))]))
    await parts.units.until_started(1)
    asked = asyncio.create_task(parts.get(Wanted(parts.example())))
    await parts.units.until_started(2)
    assert parts.units.background == [True, False]
    parts.units.let_go()
    await asyncio.gather(prepared, asked)


async def test_a_cache_without_room_says_so_and_leaves_nothing(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(parts.artifacts._disk, "write", full, raising=False)
        with pytest.raises(KeepfleetError) as caught:
            await parts.get(Wanted(parts.example()))
    assert caught.value.kind is ErrorKind.NO_SPACE
    assert os.listdir(parts.artifacts.path) == ["key"]
    assert (await parts.get(Wanted(parts.example()))).size > 0
    assert descriptors() == before
