"""`keepctl run` is as faithful as running the program: what goes in and what comes out are compared byte by byte."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from keep_protocol.keep import OutcomeKind
from tests.system.fleet import Fleet

SECONDS = 120
MEGABYTES = 40
"""Several times what a keep's output holds; `test_output.py` has a hundred reach a client of its own."""
_WRITES = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") {pages})
  {data}
  (func $write (param $fd i32) (param $at i32) (param $left i32)
    (loop $more
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $left))
      (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
      (local.set $left (i32.sub (local.get $left) (i32.load (i32.const 8))))
      (br_if $more (local.get $left))))
  (func (export "_start") (local $n i32)
    {body}))
"""
_CAT = """(loop $next
      (i32.store (i32.const 0) (i32.const 1024))
      (i32.store (i32.const 4) (i32.const {size}))
      (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (local.set $n (i32.load (i32.const 8)))
      (if (local.get $n) (then (call $write (i32.const 1) (i32.const 1024) (local.get $n)) {again})))"""


def writes(*parts: tuple[int, bytes], times: int = 1) -> bytes:
    """A program that writes each of `parts` to its descriptor, all of them `times` over."""
    body, place = [], 1024
    for descriptor, data in parts:
        body.append(f"(call $write (i32.const {descriptor}) (i32.const {place}) (i32.const {len(data)}))")
        place += len(data)
    whole = "".join(f"\\{byte:02x}" for _, data in parts for byte in data)
    loop = f"""(local.set $n (i32.const {times}))
    (loop $again {" ".join(body)}
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"""
    texts = f'(data (i32.const 1024) "{whole}")'
    return bytes(wasmtime.wat2wasm(_WRITES.format(pages=1 + place // 65536, data=texts, body=loop)))


def copies(size: int = 65536, once: bool = False) -> bytes:
    """cat(1), or, where it reads but once, `head -c SIZE`."""
    body = _CAT.format(size=size, again="" if once else "(br $next)")
    return bytes(wasmtime.wat2wasm(_WRITES.format(pages=3, data="", body=body)))


@pytest.fixture
def place(fleet: Fleet) -> Iterator[Path]:
    """A directory that is the same inside the host."""
    path = fleet.host.path / "exact"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def typed(fleet: Fleet, place: Path, script: str) -> str:
    done = fleet.host.run(
        ["bash", "-uo", "pipefail", "-c", f"cd {place} || exit\n{script}"],
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"},
        timeout=SECONDS,
    )
    return done.stdout


ODD = (
    (1, b"first\n"),
    (1, b"\n\n"),
    (2, b"\n"),
    (1, b"trailing spaces   \n"),
    (1, b"\ttabs\t\t\n\r\n50%\r60%\r"),
    (2, b"a\0b\0\n\xff\xfe \xe2\x82\n"),
    (1, b"\x1b[31mred\x1b[0m \x07 <0>emergency\n"),
    (1, b"x" * 300_000 + b"\n"),
    (2, b"error, without an end"),
    (1, b"last, without an end"),
)


def test_each_byte_arrives_on_its_own_stream_and_is_in_the_log_afterwards(fleet: Fleet, place: Path) -> None:
    (place / "odd.wasm").write_bytes(writes(*ODD))
    said = typed(
        fleet,
        place,
        """
keepctl run --name odd odd.wasm >out 2>err; echo "exit $?"
keepctl logs --stdout odd >logged-out; keepctl logs --stderr odd >logged-err; keepctl logs odd >logged
keepctl rm odd
""",
    )
    assert said.startswith("exit 0\n")
    out, err = (b"".join(data for to, data in ODD if to == descriptor) for descriptor in (1, 2))
    assert (place / "out").read_bytes() == (place / "logged-out").read_bytes() == out
    assert (place / "err").read_bytes() == (place / "logged-err").read_bytes() == err
    assert sorted((place / "logged").read_bytes()) == sorted(out + err)


def test_twenty_thousand_lines_printed_in_one_burst_arrive_all(fleet: Fleet, place: Path) -> None:
    lines = b"".join(b"line %05d\n" % number for number in range(20_000))
    (place / "lines.wasm").write_bytes(writes((1, lines)))
    typed(fleet, place, "keepctl run --rm lines.wasm >out")
    assert (place / "out").read_bytes() == lines


def test_standard_input_goes_through_a_guest_unchanged_and_ends_where_it_ends(fleet: Fleet, place: Path) -> None:
    (place / "cat.wasm").write_bytes(copies())
    data = random.Random(7).randbytes(3_000_000)
    (place / "in").write_bytes(data)
    said = typed(
        fleet,
        place,
        """
cat in | keepctl run -i --rm cat.wasm >streamed; echo "exit $?"
cat in | keepctl run --rm cat.wasm >piped; echo "exit $?"
keepctl run --rm cat.wasm <in >file; echo "exit $?"
keepctl run -i --rm cat.wasm </dev/null >nothing; echo "exit $?"
keepctl run --rm cat.wasm <&- >closed; echo "exit $?"
""",
    )
    assert said == "exit 0\n" * 5
    same = [(place / name).read_bytes() == data for name in ("streamed", "piped", "file")]
    assert same == [True] * 3  # 3 MB, not shown
    assert (place / "nothing").read_bytes() == (place / "closed").read_bytes() == b""


def test_a_guest_that_reads_no_more_ends_its_input_without_a_fault(fleet: Fleet, place: Path) -> None:
    (place / "head.wasm").write_bytes(copies(10, once=True))
    said = typed(fleet, place, 'yes | keepctl run -i --rm head.wasm; echo "exit ${PIPESTATUS[1]}"')
    assert said == "y\ny\ny\ny\ny\nexit 0\n"


def test_a_guest_does_not_take_an_input_that_was_cut_for_all_of_it(fleet: Fleet, place: Path) -> None:
    (place / "cat.wasm").write_bytes(copies())
    typed(
        fleet,
        place,
        """
mkfifo pipe out
keepctl run -i --name cut cat.wasm <pipe >out & exec 3>pipe 4<out
echo half >&3
read -r line <&4
kill -9 $!
wait
""",
    )
    keep = next(keep for keep in fleet.client().keeps() if keep.name == "cut")
    outcome = fleet.client().ended(keep.kuuid).outcome
    assert outcome is not None
    assert (outcome.kind, outcome.text) == (OutcomeKind.LOST, "lost: its input was cut")
    fleet.client().remove(keep.kuuid)


def test_an_input_that_cannot_be_read_ends_the_guest_and_says_why(fleet: Fleet, place: Path) -> None:
    (place / "cat.wasm").write_bytes(copies())
    said = typed(fleet, place, 'keepctl run -i --rm cat.wasm 2>&1 0>written; echo "exit $?"')
    assert "keepctl: cannot read standard input: Bad file descriptor\n" in said
    assert said.endswith("exit 125\n")


def test_a_module_comes_from_a_pipe(fleet: Fleet, place: Path) -> None:
    (place / "m.wasm").write_bytes(writes((1, b"piped\n")))
    assert typed(fleet, place, "cat m.wasm | keepctl run --rm -") == "piped\n"


def test_a_manager_that_is_killed_meanwhile_loses_and_repeats_no_byte(fleet: Fleet, place: Path) -> None:
    (place / "cat.wasm").write_bytes(copies())
    lines = b"".join(b"line %06d of a flood\n" % number for number in range(2_000))
    (place / "lines.wasm").write_bytes(writes((1, lines), times=200))
    typed(
        fleet,
        place,
        """
mkfifo pipe
{ keepctl run --rm lines.wasm >pipe; echo $? >code; } & exec 3<pipe
head -c 10000 <&3 >out
systemctl kill --signal=9 keep-manager
cat <&3 >>out
wait
""",
    )
    fleet.host.systemctl("start", "keep-manager")
    assert (place / "out").read_bytes() == lines * 200
    assert (place / "code").read_text() == "0\n"


@pytest.mark.rare
def test_many_megabytes_arrive_in_a_file_and_go_through_a_guest(fleet: Fleet, place: Path) -> None:
    block = random.Random(8).randbytes(65536)
    (place / "blocks.wasm").write_bytes(writes((1, block), times=MEGABYTES * 16))
    (place / "cat.wasm").write_bytes(copies())
    typed(
        fleet,
        place,
        """
keepctl run --rm blocks.wasm >out
cat out | keepctl run -i --rm cat.wasm >through
""",
    )
    whole = block * MEGABYTES * 16
    assert (place / "out").read_bytes() == whole
    assert (place / "through").read_bytes() == whole
