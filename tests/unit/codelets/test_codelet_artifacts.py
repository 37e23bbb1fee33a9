"""Compiled codelets on disk: what another process has compiled is loaded, and nothing else is trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from codelets import Runtime
from codelets.artifacts import Compiled, open_cache
from codelets.engine import Engine, shared_engine
from keep_protocol.errors import KeepfleetError
from module_store.artifacts import Artifacts
from module_store.sealing import Key
from tests.unit.codelets.application import COUNTER, Application, codelet, packet

DIGEST = "sha256:" + "a" * 64


class Watched(Engine):
    """Counts what it compiles, of the process's engine."""

    def __init__(self) -> None:
        self.wasmtime, self.compiled, self.version = shared_engine().wasmtime, 0, ""

    @property
    def name(self) -> str:
        return super().name + self.version

    def compile(self, wasm: bytes) -> Any:
        self.compiled += 1
        return super().compile(wasm)


def module_of(engine: Engine, place: Path, wasm: bytes = COUNTER, digest: str = DIGEST) -> Any:
    """What a new process would get."""
    compiled = Compiled(engine, open_cache(str(place)))
    try:
        return compiled.module(digest, wasm)
    finally:
        compiled.close()


def artifact_in(place: Path) -> Path:
    [found] = [each for each in place.iterdir() if each.name != "key"]
    return found


def test_the_next_process_loads_what_this_one_compiled(tmp_path: Path) -> None:
    first, second = Watched(), Watched()
    module_of(first, tmp_path / "cache")
    assert [each.name for each in module_of(second, tmp_path / "cache").exports] == ["codelet_main"]
    assert (first.compiled, second.compiled) == (1, 0)


@pytest.mark.parametrize("at", [0, 100, -1, -50])
def test_code_that_was_changed_on_disk_is_compiled_again(tmp_path: Path, at: int) -> None:
    engine, place = Watched(), tmp_path / "cache"
    module_of(engine, place)
    file = artifact_in(place)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    file.chmod(0o444)
    module_of(engine, place)
    assert engine.compiled == 2
    module_of(engine, place)
    assert engine.compiled == 2


def test_code_of_another_cache_is_not_accepted(tmp_path: Path) -> None:
    engine = Watched()
    module_of(engine, tmp_path / "theirs")
    module_of(engine, tmp_path / "ours")
    ours, theirs = artifact_in(tmp_path / "ours"), artifact_in(tmp_path / "theirs")
    assert ours.name == theirs.name
    os.replace(theirs, ours)
    module_of(engine, tmp_path / "ours")
    assert engine.compiled == 3


def test_code_for_another_module_or_engine_is_not_used(tmp_path: Path) -> None:
    engine, place = Watched(), tmp_path / "cache"
    module_of(engine, place)
    module_of(engine, place, codelet("(i64.const 1)"), "sha256:" + "b" * 64)
    engine.version = " later"
    module_of(engine, place)
    assert engine.compiled == 3


def test_code_that_the_engine_does_not_take_is_removed(tmp_path: Path) -> None:
    engine, place = Watched(), tmp_path / "cache"
    with Artifacts(str(place)) as cache, cache.scratch() as file:
        os.write(file, b"of a build of the engine that calls itself the same")
        os.close(cache.put(Key(DIGEST, engine.name), file).descriptor)
    module_of(engine, place)
    module_of(engine, place)
    assert engine.compiled == 1


def test_a_full_or_broken_disk_does_not_keep_a_codelet_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Watched()
    compiled = Compiled(engine, Artifacts(str(tmp_path / "cache"), limit=10))
    assert compiled.module(DIGEST, COUNTER)
    assert "will be compiled again by the next process" in caplog.text
    compiled.close()
    assert compiled.module("sha256:" + "b" * 64, COUNTER)
    assert engine.compiled == 2


def test_a_runtime_keeps_its_codelets_in_the_directory_it_is_given(application: Application, tmp_path: Path) -> None:
    application.add("counter", COUNTER)
    for _ in range(2):
        with Runtime(str(tmp_path / "store"), in_c=False, cache=str(tmp_path / "cache")) as runtime:
            choose = runtime.control_hook("choose", 16, default=-1)
            descriptor = "{codeletset_id: a, codelet_descriptor: [{codelet_name: c, codelet_path: 'counter:1',"
            runtime.load(descriptor + " hook_name: choose}]}")
            assert choose(packet()) == 1
            artifact = artifact_in(tmp_path / "cache")
    assert stat.S_IMODE(artifact.stat().st_mode) == 0o444
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_a_directory_that_others_may_change_is_refused(tmp_path: Path, application: Application) -> None:
    place = tmp_path / "cache"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    with pytest.raises(KeepfleetError, match="others"):
        Runtime(str(tmp_path / "store"), cache=str(place))
    assert open_cache(None) is None


def test_where_the_user_has_no_cache_codelets_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, application: Application
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_cache("") is None
    with Runtime(str(tmp_path / "store"), in_c=False) as runtime:
        assert runtime.sets() == ()
