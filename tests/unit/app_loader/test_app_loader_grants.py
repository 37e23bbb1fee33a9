"""What a guest is given, in real processes: words, input, directories, secrets; and that it reaches nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_loader.run.context import SecretFiles
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.reports import ReportType
from keep_protocol.spec import RestartPolicy
from keep_protocol.workload import MAX_SECRET_BYTES, Directory, Workload
from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import AppLoaderProcess, as_root, ask, granted, put, run, wasm
from tests.unit.app_loader.guests import CREATE, ECHO, PERM, REFUSED, SUCCESS, TRUNCATE, WORDS, WRITE, Attempts


@contextlib.contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    """The paths open as the manager opens them."""
    descriptors = [os.open(path, (os.O_PATH | os.O_DIRECTORY) if path.is_dir() else os.O_RDONLY) for path in paths]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextlib.contextmanager
def waiting(
    directory: Directory, path: Path, keep: Path, authority: Authority, client: Path, attempts: Attempts
) -> Iterator[tuple[AppLoaderProcess, socket.socket]]:
    """A runner whose guest has this directory, and waits for the end of its input, which the socket's is."""
    ours, theirs = socket.socketpair()
    workload = Workload(stdin=True, directories=(directory,))
    with (
        ours,
        theirs,
        opened(path) as grants,
        granted(keep, authority, workload, [theirs.fileno(), *grants]) as process,
    ):
        assert ask(process, client, put(attempts.module())).status == 200
        process.expect(ReportType.RECEIVING, ReportType.ACCEPTED, ReportType.RUNNING)
        yield process, ours


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    """The keep's own directory; what is granted lies next to it."""
    (tmp_path / "keep").mkdir()
    return tmp_path / "keep"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file no guest is given, in the directory above the granted one."""
    (tmp_path / "outside.txt").write_text("secret of the host")
    return tmp_path / "outside.txt"


@pytest.fixture
def data(tmp_path: Path, outside: Path) -> Path:
    """A directory to grant, with ways out of it that the host has laid."""
    directory = tmp_path / "data"
    (directory / "sub").mkdir(parents=True)
    (directory / "in.txt").write_text("given")
    for name, target in (("up", "../outside.txt"), ("absolute", str(outside)), ("root", "/"), ("proc", "/proc/self")):
        (directory / name).symlink_to(target)
    (directory / "loop").symlink_to("loop")
    (directory / "inside").symlink_to("in.txt")
    return directory


def outcome_and_output(process: AppLoaderProcess, client: Path, module: bytes) -> tuple[Outcome, bytes]:
    outcome = run(process, client, module)
    process.end()
    return outcome, process.output


def test_arguments_and_environment_arrive_as_they_were_given(keep: Path, authority: Authority, client: Path) -> None:
    workload = Workload(("one", "", "zwei drei\n", "ü"), (("A", "1"), ("EMPTY", ""), ("B", "a=b")))
    with granted(keep, authority, workload) as process:
        _, output = outcome_and_output(process, client, WORDS)
    words = ["workload.wasm", "one", "", "zwei drei\n", "ü", "A=1", "EMPTY=", "B=a=b"]
    assert output.decode().split("\0")[:-1] == words


def test_arguments_of_two_megabytes_arrive_whole(keep: Path, authority: Authority, client: Path) -> None:
    with granted(keep, authority, Workload(tuple("x" * 65535 for _ in range(31)))) as process:
        _, output = outcome_and_output(process, client, WORDS)
    assert output.count(b"x") == 31 * 65535


def test_a_file_as_standard_input_is_read_from_its_beginning(
    tmp_path: Path, keep: Path, authority: Authority, client: Path
) -> None:
    (tmp_path / "input").write_bytes(b"line one\nline two\n" * 1000)
    with opened(tmp_path / "input") as grants, granted(keep, authority, Workload(stdin=True), grants) as process:
        os.lseek(grants[0], 9, os.SEEK_SET)
        _, output = outcome_and_output(process, client, ECHO)
    assert output == b"line one\nline two\n" * 1000


def test_a_stream_as_standard_input_is_read_to_its_end(keep: Path, authority: Authority, client: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, granted(keep, authority, Workload(stdin=True), [theirs.fileno()]) as process:
        assert ask(process, client, put(ECHO)).status == 200
        process.expect(ReportType.RECEIVING, ReportType.ACCEPTED, ReportType.RUNNING)
        ours.sendall(b"while it runs")
        ours.shutdown(socket.SHUT_WR)
        process.expect(ReportType.ENDED)
        process.end()
        assert process.output == b"while it runs"


def test_a_guest_reads_and_writes_in_its_directory(data: Path, keep: Path, authority: Authority, client: Path) -> None:
    attempts = Attempts()
    attempts.show("in.txt")
    attempts.show("inside")
    attempts.open("sub/new", flags=CREATE | TRUNCATE, rights=WRITE)
    attempts.make_directory("made")
    attempts.rename("sub/new", "made/new")
    attempts.link("made/new", "made/linked")
    attempts.symlink("new", "made/soft")
    attempts.open("made/soft")
    attempts.unlink("made/linked")
    with (
        opened(data) as grants,
        granted(keep, authority, Workload(directories=(Directory("/d", True),)), grants) as process,
    ):
        _, output = outcome_and_output(process, client, attempts.module())
    assert output == b"\0given\n\0given\n" + bytes(7)
    assert sorted(path.name for path in (data / "made").iterdir()) == ["new", "soft"]


def test_nothing_is_written_to_a_read_only_directory(
    data: Path, keep: Path, authority: Authority, client: Path
) -> None:
    attempts = Attempts()
    attempts.show("in.txt")
    attempts.open("new", flags=CREATE, rights=WRITE)
    attempts.open("in.txt", rights=WRITE)
    attempts.open("in.txt", flags=TRUNCATE)
    attempts.make_directory("made")
    attempts.link("in.txt", "linked")
    attempts.symlink("in.txt", "soft")
    attempts.rename("in.txt", "moved")
    attempts.unlink("in.txt")
    before = sorted(path.name for path in data.iterdir())
    with opened(data) as grants, granted(keep, authority, Workload(directories=(Directory("/d"),)), grants) as process:
        _, output = outcome_and_output(process, client, attempts.module())
    assert output == b"\0given\n" + bytes([PERM] * 8)
    assert sorted(path.name for path in data.iterdir()) == before
    assert (data / "in.txt").read_text() == "given"


RESTRICTED = """
import errno, os, sys
from keep_isolation import filters
machine = os.uname().machine
number = filters.BENEATH["openat2"][filters.MACHINES.index(machine)]
rule = filters.only_if(number, [filters.refuse(errno.ENOSYS)])
filters.install([*filters.begin(machine), *rule, (filters.RETURN, 0, 0, filters.ALLOW)])
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What RestrictSUIDSGID= does in a system's keep: no openat2 there, so that wasmtime walks a path step by step."""


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("writable", [False, True])
def test_no_path_leads_out_of_a_granted_directory(
    writable: bool, restricted: bool, data: Path, outside: Path, keep: Path, authority: Authority, client: Path
) -> None:
    attempts = Attempts()
    paths = ["../outside.txt", "sub/../../outside.txt", "sub/../../data/in.txt", "..", str(outside), "/etc/passwd"]
    paths += ["up", "absolute", "root/etc/passwd", "proc/environ", "proc/root/etc/passwd", "proc/fd/3", "loop"]
    paths += ["up/", "./../outside.txt", "in.txt/../../outside.txt", "root/proc/self/mem"]
    for path in paths:
        attempts.open(path)
    for root in (0, 1, 2):
        attempts.open("in.txt", root=root)
    if writable:
        attempts.link("../outside.txt", "stolen")
        attempts.rename("../outside.txt", "stolen")
        attempts.rename("in.txt", "../stolen")
        attempts.symlink("../outside.txt", "own")
        attempts.open("own")
        attempts.symlink("/etc/passwd", "own-absolute")
        attempts.open("own-absolute")
        attempts.open("../new", flags=CREATE, rights=WRITE)
        attempts.unlink("../outside.txt")
        attempts.make_directory("../made")
    workload = Workload(directories=(Directory("/d", writable),))
    before = (sys.executable, "-c", RESTRICTED) if restricted else ()
    with opened(data) as grants, granted(keep, authority, workload, grants, before) as process:
        _, output = outcome_and_output(process, client, attempts.module())
    assert len(output) == len(paths) + 3 + (10 if writable else 0)
    own_links = {len(paths) + 6, len(paths) + 8}
    got_through = [number for number, byte in enumerate(output) if byte == SUCCESS and number not in own_links]
    assert not got_through, output
    assert set(output[: len(paths) - 4]) <= REFUSED, list(output)
    assert outside.read_text() == "secret of the host"
    assert not (data.parent / "made").exists() and not (data.parent / "new").exists()


def test_a_directory_swapped_for_a_link_while_it_is_granted_stays_what_it_was(
    data: Path, keep: Path, authority: Authority, client: Path
) -> None:
    attempts = Attempts()
    attempts.wait()
    attempts.show("in.txt")
    attempts.open("passwd")
    with waiting(Directory("/d"), data, keep, authority, client, attempts) as (process, ours):
        data.rename(data.parent / "moved")
        data.symlink_to("/etc")
        ours.close()
        process.expect(ReportType.ENDED)
        process.end()
        assert process.output.startswith(b"\0\0given\n") and process.output[-1] != SUCCESS


def test_a_removed_directory_is_an_error_of_the_guests(
    data: Path, keep: Path, authority: Authority, client: Path
) -> None:
    attempts = Attempts()
    attempts.wait()
    attempts.open("new", flags=CREATE, rights=WRITE)
    empty = data.parent / "empty"
    empty.mkdir()
    with waiting(Directory("/d", True), empty, keep, authority, client, attempts) as (process, ours):
        empty.rmdir()
        ours.close()
        report = process.expect(ReportType.ENDED)
        assert report.outcome is not None and report.outcome.text == "exited 0"
        process.end()
        assert process.output[0] == SUCCESS and process.output[1] != SUCCESS


def test_secrets_are_files_of_the_guest_and_gone_at_its_end(
    tmp_path: Path, keep: Path, authority: Authority, client: Path
) -> None:
    (tmp_path / "token").write_bytes(b"hunter2")
    (tmp_path / "key").write_bytes(b"\x00\xff")
    attempts = Attempts()
    attempts.show("token")
    attempts.show("api.key")
    attempts.open("token", rights=WRITE)
    attempts.open("../ca.pem")
    attempts.open("new", flags=CREATE, rights=WRITE)
    with (
        opened(tmp_path / "token", tmp_path / "key") as grants,
        granted(keep, authority, Workload(secrets=("token", "api.key")), grants) as process,
    ):
        outcome, output = outcome_and_output(process, client, attempts.module())
        assert output == b"\0hunter2\n\0\x00\xff\n" + bytes([PERM, PERM, PERM])
        assert outcome.text == "exited 0"
        assert not list((keep / "secrets").iterdir())


def test_secrets_are_for_the_keep_alone_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "secrets" / "left").write_text("of a former run")
    (tmp_path / "source").write_bytes(b"x")
    with opened(tmp_path / "source") as grants:
        files = SecretFiles(str(tmp_path), [("one", grants[0])])
        assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["one"]
        assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "secrets" / "one").stat().st_mode & 0o777 == 0o400
        os.close(files.descriptor)
        (tmp_path / "source").write_bytes(bytes(MAX_SECRET_BYTES + 1))
        with pytest.raises(KeepfleetError, match="secret one: it is over 1 MiB"):
            SecretFiles(str(tmp_path), [("one", grants[0])])


NOTHING = wasm('(module (func (export "_start")))')


def test_a_grant_that_was_not_passed_is_an_error_in_words(keep: Path, authority: Authority, client: Path) -> None:
    with granted(keep, authority, Workload(stdin=True)) as process:
        assert ask(process, client, put(NOTHING)).status == 200
        outcome = process.expect(ReportType.RECEIVING, ReportType.ACCEPTED, ReportType.ENDED).outcome
        assert outcome is not None and "descriptor 'stdin' was not passed" in outcome.text


def test_a_description_that_is_none_is_an_error_in_words(keep: Path, authority: Authority) -> None:
    with granted(keep, authority, Workload()) as process:
        (keep / "workload.json").write_text('{"arguments": 3}')
        with socket.create_connection(("127.0.0.1", process.port)):
            report = process.expect(ReportType.FAILED)
        assert report.error is not None and "invalid workload description" in report.error.message


OPENS = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (data (i32.const 1024) "in.txt")
  (func (export "_start") (local $error i32)
    (loop $more
      (local.set $error (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 6) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))
      (br_if $more (i32.eqz (local.get $error))))
    (call $exit (local.get $error))))"""
"""Opens a file again and again, and exits with the first error."""


def test_a_guest_that_opens_too_many_files_ends_with_that_limit_in_its_outcome(
    data: Path, keep: Path, authority: Authority, client: Path
) -> None:
    workload = Workload(directories=(Directory("/d"),))
    before = ["/usr/bin/prlimit", "--nofile=64:64"]
    with opened(data) as grants, granted(keep, authority, workload, grants, before) as process:
        outcome = run(process, client, wasm(OPENS))
        assert outcome.exit_code == 29, "WASI's EIO"
        assert outcome.text == "exited 29; it had all files open that a keep may, 64 (LimitNOFILE=)"


@as_root
def test_a_running_guest_has_its_grants_open_and_nothing_else(
    data: Path, keep: Path, authority: Authority, client: Path
) -> None:
    attempts = Attempts()
    attempts.wait()
    with waiting(Directory("/d"), data, keep, authority, client, attempts) as (process, _):
        names = [name for name in process.descriptors().values() if str(keep.parent) in name]
        assert names == [str(data)]


AGAIN = wasm("""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (func (export "_start") (call $exit (i32.const 3))))""")


def test_a_workload_to_be_repeated_is_passed_to_the_loader_and_runs_again_from_that(
    tmp_path: Path, data: Path, keep: Path, authority: Authority, client: Path
) -> None:
    (tmp_path / "input").write_bytes(b"again")
    workload = Workload(
        stdin=True, directories=(Directory("/d"),), secrets=("token",), restart=RestartPolicy.ON_FAILURE
    )
    paths = (tmp_path / "input", data, data / "in.txt")
    with opened(*paths) as grants, granted(keep, authority, workload, grants) as process:
        assert run(process, client, ECHO).text == "exited 0"
        process.end()
        assert set(process.parked) == {"compiled", "module"}
        for _ in range(2):
            process.run_again()
            outcome = process.outcome()
            assert (outcome.kind, outcome.exit_code) == (OutcomeKind.EXITED, 0)
            assert process.end() == 0
        assert process.output == b"again" * 3


def test_a_workload_that_is_not_repeated_is_not_passed_to_the_loader(
    keep: Path, authority: Authority, client: Path
) -> None:
    with granted(keep, authority, Workload()) as process:
        assert run(process, client, AGAIN).exit_code == 3
        assert process.parked == {}
