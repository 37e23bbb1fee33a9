"""What `./run test` runs the tests in: forked workers, of which each may fail, die or be ended."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CONFTEST = """
import os, pytest

pytest_plugins = ("tests.workers",)

@pytest.fixture(scope="session")
def worker(request):
    yield os.getpid()
    open(f"{request.config.rootpath}/ended-{os.getpid()}", "w").close()
"""
WAITS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)

def test_waits(worker, request):
    with open(f"{request.config.rootpath}/waiting", "wb") as waiting:
        waiting.write(b".")
    while True:
        time.sleep(0.01)  # pause would miss what comes right before it
"""
FAILS = """
def test_fails(request):
    with open(f"{request.config.rootpath}/waiting", "rb") as waiting:
        assert waiting.read(1) == b""
"""
HAS_ALL = {
    "test_shared": """
import os, pytest, sys

def test_what_was_standard_error_at_the_import_is_open(err=sys.stderr):
    print("said to it", file=err)
    assert err.fileno() > 2

@pytest.fixture(scope="module")
def process(worker, tmp_path_factory):
    yield os.getpid()
    print("the module has ended")

@pytest.mark.parametrize("number", range(3))
def test_one_process(process, worker, number):
    assert os.getpid() == process == worker

def test_fails(process):
    print("printed before")
    assert process == 0
""",
    "test_dies": """
import os, signal, pytest

@pytest.mark.parametrize("number", range(4))
def test_dies(worker, number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        os._exit(3)
""",
    "test_says": """
import warnings, pytest

def test_warns():
    warnings.warn("it is late", DeprecationWarning)

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

@pytest.mark.xfail(strict=True)
def test_expected():
    assert False

@pytest.fixture(scope="session")
def cannot_end(worker):
    yield
    raise OSError("cannot end")

def test_passes(cannot_end, tmp_path):
    assert tmp_path.parent.name.startswith("w")
""",
}


def begun(place: Path, files: dict[str, str], *options: str) -> subprocess.Popen[str]:
    """A run of pytest of these files, with two workers."""
    for name, text in {"conftest": CONFTEST, **files}.items():
        (place / f"{name}.py").write_text(text)
    without = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "asyncio", "pytest_cov")]
    command = [sys.executable, "-m", "pytest", *without, "-ra", "--workers=2", *options]
    return subprocess.Popen(
        [*command, f"--basetemp={place}/tmp", "--rootdir=."],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(place: Path) -> int:
    """How many workers have cleaned up."""
    return len(list(place.glob("ended-*")))


def test_every_test_is_run_once_and_reported_and_one_that_kills_its_process_has_failed(tmp_path: Path) -> None:
    with begun(tmp_path, HAS_ALL) as run:
        said = run.communicate()[0]
    assert run.returncode == 1
    assert "1 error" in said and "3 failed, 8 passed, 1 skipped, 1 xfailed, 1 warning" in said, said
    assert "printed before" in said and "the module has ended" in said
    assert "the process that ran this test is gone: it was ended by SIGKILL" in said
    assert "the process that ran this test is gone: it exited with 3" in said
    assert "DeprecationWarning: it is late" in said and "not today" in said
    assert "OSError: cannot end" in said
    assert re.search(r"\[ *\d+%\]", said) and "[100%]" in said


def test_the_first_failure_ends_the_other_workers_which_clean_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "waiting")
    with begun(tmp_path, {"test_waits": WAITS, "test_fails": FAILS}, "-x") as run:
        said = run.communicate()[0]
    assert run.returncode == 1 and "stopping after 1 failures" in said, said
    assert ended(tmp_path) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda each: each.name)
def test_a_run_that_is_ended_ends_its_workers_which_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "waiting")
    with begun(tmp_path, {"test_a": WAITS, "test_b": WAITS}) as run:
        waiting = os.open(tmp_path / "waiting", os.O_RDWR)  # it does not end when one of them closes it
        for _ in range(2):
            assert select.select([waiting], [], [], 60)[0] and os.read(waiting, 1) == b"."
        os.close(waiting)
        run.send_signal(number)
        assert run.stdout is not None
        said = run.stdout.read()  # to its end: no worker is left that has it open
    assert (run.returncode == -signal.SIGKILL) == (number == signal.SIGKILL)
    assert number == signal.SIGKILL or "KeyboardInterrupt" in said
    assert ended(tmp_path) == 2


def test_a_worker_whose_test_is_interrupted_ends_the_run_with_the_tests_name(tmp_path: Path) -> None:
    interrupted = "def test_one(worker): pass\ndef test_two(worker): raise KeyboardInterrupt"
    with begun(tmp_path, {"test_a": interrupted}) as run:
        said = run.communicate()[0]
    assert run.returncode == 2 and "INTERNALERROR" not in said, said
    assert "a worker has ended as it ran test_a.py::test_two: a test was interrupted" in said
    assert ended(tmp_path) == 1


FORKS = """
import os, signal, time, pytest, tests.workers

@pytest.mark.parametrize("how", ["assert False", "pass"])
def test_a_child_comes_back(how):
    if (child := os.fork()) == 0:
        exec(how)
        return
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == tests.workers.STRAY_STATUS

def test_a_child_is_terminated():
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, b".")  # Python forgets what came before this
        while True:
            time.sleep(0.01)
    os.read(reading, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
"""


def test_what_a_test_forks_off_runs_and_reports_no_test_and_ends_by_signals(tmp_path: Path) -> None:
    with begun(tmp_path, {"test_forks": FORKS}) as run:
        said = run.communicate()[0]
    assert run.returncode == 0 and "3 passed" in said, said


STUCK = """
import time, pytest, tests.workers
tests.workers.CLEAN_UP_SECONDS = 1

@pytest.fixture(scope="session")
def stuck(worker):
    yield
    while True:
        time.sleep(0.01)

def test_swallows(stuck, request):
    with open(f"{request.config.rootpath}/waiting", "wb") as waiting:
        waiting.write(b".")
    try:
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        pass

def test_next(request):
    open(f"{request.config.rootpath}/ended-next", "w").close()
"""


def test_a_worker_that_does_not_end_is_killed_and_what_failed_before_is_shown(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "waiting")
    with begun(tmp_path, {"test_stuck": STUCK, "test_fails": FAILS}, "-x") as run:
        said = run.communicate()[0]
    assert run.returncode == 1 and "FAILED test_fails.py::test_fails" in said, said
    assert ended(tmp_path) == 0


BETWEEN = """
import os, select, signal

def test_is_the_last_of_its_file(request):
    worker, run = os.getpid(), os.getppid()

    def die():
        if os.fork() == 0:
            gone = os.pidfd_open(worker)
            os.dup2(gone, 3)
            os.closerange(4, 1000)
            select.select([3], [], [])
            os.kill(run, signal.SIGCONT)
            os._exit(0)
        os.kill(worker, signal.SIGKILL)

    request.config.pluginmanager.getplugin("in-worker")._connection.recv = die
    os.kill(run, signal.SIGSTOP)
    while open(f"/proc/{run}/stat").read().rpartition(")")[2].split()[0] != "T":
        continue
"""


def test_a_worker_that_dies_as_it_asks_for_its_next_file_fails_the_first_test_of_that(tmp_path: Path) -> None:
    two = "def test_one(): pass\ndef test_two(): pass\n"
    with begun(tmp_path, {"test_a": BETWEEN, "test_b": two}, "--workers=1") as run:
        said = run.communicate()[0]
    assert "FAILED test_b.py::test_one" in said and "1 failed, 2 passed" in said, said
    assert "the process that ran this test is gone: it was ended by SIGKILL" in said


def test_a_file_that_cannot_be_collected_is_an_error_and_nothing_is_run(tmp_path: Path) -> None:
    with begun(tmp_path, {"test_a": "import nothing_like_it", "test_b": WAITS}) as run:
        said = run.communicate()[0]
    assert run.returncode == 2 and "1 error during collection" in said, said
    assert ended(tmp_path) == 0
