"""Which engine a root has, as one word: anything that could make its code another makes the word another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.engine import engine_of, features

CPUINFO = "processor\t: 0\nflags\t\t: fpu sse2 avx\n\nprocessor\t: 1\nflags\t\t: avx fpu sse2\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    packages = tmp_path / "root/keepfleet/packages"
    for name, text in (("wasmtime/linux-x86_64/_libwasmtime.so", "library"), ("app_loader/engine/settings.py", "OFF")):
        (packages / name).parent.mkdir(parents=True)
        (packages / name).write_text(text)
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    return tmp_path


def word(root: Path) -> str:
    return engine_of(str(root / "root"), str(root / "cpuinfo"))


def test_the_same_engine_has_the_same_word_wherever_its_root_lies(root: Path) -> None:
    before = word(root)
    (root / "root").rename(root / "other")
    assert engine_of(str(root / "other"), str(root / "cpuinfo")) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "root/keepfleet/packages/wasmtime/linux-x86_64/_libwasmtime.so").write_text("librarY"),
        lambda root: (root / "root/keepfleet/packages/app_loader/engine/settings.py").write_text("ON"),
        lambda root: (root / "cpuinfo").write_text(CPUINFO.replace("avx", "avx avx2")),
    ],
    ids=["library", "settings", "processor"],
)
def test_another_library_setting_or_processor_is_another_engine(root: Path, change: Callable[[Path], object]) -> None:
    before = word(root)
    change(root)
    for path in (root / "root").rglob("*"):
        if path.is_file():
            os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))  # within one tick of the clock, too
    assert word(root) != before


def test_the_order_of_a_processor_s_features_says_nothing(root: Path) -> None:
    assert features(str(root / "cpuinfo")) == "avx fpu sse2"
    assert features(str(root / "nothing")) == ""


def test_a_root_without_an_engine_is_a_fault_of_the_installation(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="run: keepctl install") as caught:
        engine_of(str(tmp_path))
    assert caught.value.kind is ErrorKind.CONFIGURATION
