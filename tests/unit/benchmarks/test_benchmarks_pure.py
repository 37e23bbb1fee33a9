"""The floor's units, modules of any size, and what the kernel's texts say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import dropin
from benchmarks.measuring import MeasurementFailed
from benchmarks.memory import own_bytes
from benchmarks.modules import leb128, padded
from benchmarks.transfer import Pace, peak_bytes

ROOT = Path(__file__).resolve().parents[3]
DROP_IN = (ROOT / "units/system/keep@.service.d/10-keepfleet.conf").read_text(encoding="utf-8")
BEFORE = (ROOT / "benchmarks/unit-before-roots.conf").read_text(encoding="utf-8")
VALUES = {"PYTHON_REAL": "/usr/bin/python3.11", "OPENSSL": "/usr/bin/openssl", "VERSIONS": "/opt/keepfleet/versions"}
TREE = "/var/lib/keepfleet/root-0123456789abcdef/tree"
SMALL = (ROOT / "examples/hello-wat/hello.wasm").read_bytes()


def directives(text: str) -> list[tuple[str, str]]:
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in pairs]


def sleeping(text: str) -> str:
    return dropin.sleeping(text, TREE, "/usr/bin/sleep")


def before_roots(text: str) -> str:
    return dropin.sleeping_without_a_root(text, VALUES, "/usr/bin/sleep")


@pytest.mark.parametrize(("text", "made", "more"), [(DROP_IN, sleeping(DROP_IN), 2), (BEFORE, before_roots(BEFORE), 0)])
def test_a_floor_has_every_directive_of_a_keep_but_those_of_its_notifier(text: str, made: str, more: int) -> None:
    of_keep = [name for name, _ in directives(text)]
    of_floor = [name for name, _ in directives(made)]
    assert of_floor[: len(of_floor) - more] == [n for n in of_keep if n not in ("NotifyAccess", "WatchdogSec")]
    assert [name for name, _ in directives(made)][len(of_floor) - more :] == ["RootDirectory", "BindReadOnlyPaths"][
        :more
    ]


def test_the_floor_differs_in_its_program_and_its_runtime_directory_alone() -> None:
    kept = directives(DROP_IN)
    changed = {name for name, value in directives(sleeping(DROP_IN)) if (name, value) not in kept}
    assert changed == {"ExecStart", "Type", "RuntimeDirectory", "NoExecPaths", "RootDirectory", "BindReadOnlyPaths"}


def test_the_floor_of_before_may_execute_its_own_program_in_the_place_of_the_interpreter() -> None:
    values = dict(directives(before_roots(BEFORE)))
    assert values["ExecStart"] == "/usr/bin/sleep infinity"
    assert values["ExecPaths"] == "/usr/bin/sleep /usr/bin/openssl /opt/keepfleet/versions /usr/lib -/usr/lib64"
    assert not re.search("@[A-Z_]+@", before_roots(BEFORE))


def test_the_other_floor_says_ready_and_no_other_process_may() -> None:
    values = dict(directives(dropin.notifying(DROP_IN, TREE)))
    assert values["Type"] == "notify"
    assert values["NotifyAccess"] == "main"
    assert values["RootDirectory"] == TREE
    assert values["ExecStart"].startswith('/keepfleet/python -I -S -c "')
    assert "%" not in values["ExecStart"], "systemd would expand it"
    assert "$" not in values["ExecStart"], "systemd would expand it"


@pytest.mark.parametrize("make", [sleeping, before_roots, lambda text: dropin.notifying(text, TREE)])
def test_something_else_than_a_keeps_drop_in_makes_no_floor(make: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match="cannot make a floor"):
        make("[Service]\nExecStart=/bin/true\n")


def test_an_older_drop_in_with_a_placeholder_that_is_not_known_makes_no_floor() -> None:
    with pytest.raises(ValueError, match="@OPENSSL@ has no value"):
        dropin.sleeping_without_a_root(BEFORE, {"PYTHON_REAL": "x", "VERSIONS": "y"}, "/usr/bin/sleep")


def test_directives_are_counted_without_comments_and_sections() -> None:
    assert dropin.directives("# A=1\n[Service]\nA=1\nB=\n") == 2


@given(st.integers(0, 2**32 - 1))
def test_leb128_reads_back(value: int) -> None:
    encoded = leb128(value)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == value
    assert encoded[-1] < 0x80


@given(st.integers(len(SMALL) + 10, len(SMALL) + 40_000))
def test_a_padded_module_has_exactly_the_size_asked_for_and_is_valid(size: int) -> None:
    module = b"".join(padded(SMALL, size, b"filler"))
    assert len(module) == size
    wasmtime.Module.validate(wasmtime.Engine(), module)


@pytest.mark.parametrize("room", [127 + 2, 128 + 2, 129 + 2, 16383 + 3, 16384 + 3, 16384 + 4])
def test_a_section_fits_where_its_length_needs_another_byte(room: int) -> None:
    module = b"".join(padded(SMALL, len(SMALL) + room, b"x"))
    assert len(module) == len(SMALL) + room
    wasmtime.Module.validate(wasmtime.Engine(), module)


def test_no_section_fits_a_few_bytes() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        list(padded(SMALL, len(SMALL) + 3, b"x"))


def test_own_memory_is_anonymous_and_its_share_of_what_is_shared() -> None:
    text = "00400000-7ffe [rollup]\nRss:  9000 kB\nPss:  900 kB\nPss_Anon:  210 kB\nPss_File:   690 kB\n"
    assert own_bytes(text) == 210 * 1024


def test_a_kernel_that_shows_no_anonymous_memory_is_no_zero() -> None:
    with pytest.raises(MeasurementFailed):
        own_bytes("Rss: 1 kB\n")


def test_peak_memory_is_read_from_a_status() -> None:
    assert peak_bytes("Name:\tpython\nVmHWM:\t   22100 kB\nVmRSS:\t 1 kB\n") == 22100 * 1024
    with pytest.raises(MeasurementFailed):
        peak_bytes("Name:\tpython\n")


def test_an_upload_is_watched_at_ten_equal_steps() -> None:
    seen = iter(range(100))
    pace = Pace(100, lambda: next(seen))
    assert b"".join(pace.over(iter([b"0123456789"] * 10))) == b"0123456789" * 10
    assert pace.seen == list(range(10))
    assert pace.rate > 0


def test_an_upload_that_was_cut_short_has_no_rate() -> None:
    pace = Pace(100)
    parts = pace.over(iter([b"0123456789"] * 10))
    next(parts)
    with pytest.raises(MeasurementFailed, match="not sent to its end"):
        _ = pace.rate
