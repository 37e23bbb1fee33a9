"""`keepctl run` and what goes with it, typed on a real host with a real manager, keeps and journal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from keepctl.describe import INTERRUPTED
from tests.system.fixtures import INSTALLED
from tests.system.fleet import Fleet
from tests.system.life import Life

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
LARGE_HEAD, LARGE_BYTES = b"\0asm\1\0\0\0" + b"\0\x80\x80\x40", 12 + (1 << 20)
"""A module of 1 MiB, all of it one custom section without a name."""
# Started in the background, and gone on with when its workload runs.
BACKGROUND = """
keepctl run --rm --name looper {options} examples/spin-wat/spin.wasm >out 2>err &
timeout 20 sh -c "until keepctl ps -o json | grep -q '\\"detail\\": \\"running'; do sleep 0.1; done"
"""


@pytest.fixture
def workplace(fleet: Fleet) -> Path:
    """A directory that is the same inside the host, with the examples in it: a checkout may lie below /tmp."""
    place = fleet.host.path / "keepctl-run"
    shutil.copytree(ROOT / "examples", place / "examples", ignore=shutil.ignore_patterns("build"), dirs_exist_ok=True)
    return place


def typed(fleet: Fleet, workplace: Path, script: str) -> str:
    """What a script prints; it may fail, and says itself with what code."""
    done = fleet.host.run(
        ["bash", "-uo", "pipefail", "-c", f"D=$(mktemp -d) && cd {workplace} || exit\n{script}\nrm -r $D"],
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"},
        timeout=SECONDS,
    )
    return done.stdout


def test_a_program_is_run_and_its_exit_code_and_reason_are_reported(fleet: Fleet, workplace: Path) -> None:
    output = typed(
        fleet,
        workplace,
        """
keepctl run --rm examples/hello-c/hello.wasm 2>$D/err; echo "exit $?"; cat $D/err
keepctl run --rm examples/exit-3/exit-3.wasm 2>&1; echo "exit $?"
keepctl run --rm examples/trap-wat/trap.wasm 2>&1; echo "exit $?"
keepctl run --rm examples/unknown-import/unknown-import.wasm 2>&1; echo "exit $?"
keepctl run --rm --time 1s examples/spin-wat/spin.wasm 2>&1; echo "exit $?"
keepctl ps -q
""",
    )
    assert "Hello from C, inside a keep!" in output
    codes = [line for line in output.splitlines() if line.startswith("exit ")]
    assert codes == ["exit 0", "exit 3", "exit 134", "exit 126", "exit 124"], output
    assert "trapped: out of bounds memory access" in output
    assert "over its time limit of 1 s" in output
    assert output.rstrip().endswith("exit 124"), "and no keep is left"


COUNTING = """
import sys
from keep_client.channel import Channel
opened, real = [], Channel.open.__func__
def counted(cls, endpoint, *rest, **named):
    opened.append(endpoint.role)
    return real(cls, endpoint, *rest, **named)
Channel.open = classmethod(counted)
from keepctl.__main__ import exit_code
code = exit_code(sys.argv[1:])
print(code, *opened)
"""


def test_a_whole_run_is_one_connection_to_the_manager_and_one_to_the_keep(fleet: Fleet, workplace: Path) -> None:
    (workplace / "counting.py").write_text(COUNTING)
    python = "$(head -n 1 $(command -v keepctl) | cut -c3- | cut -d' ' -f1)"
    output = typed(fleet, workplace, f"{python} counting.py run --rm examples/hello-c/hello.wasm")
    assert re.search(r"^0 the manager keep [0-9]+$", output, re.MULTILINE), output


def test_a_manifest_is_run_and_found_by_its_name_and_label(fleet: Fleet, workplace: Path) -> None:
    output = typed(
        fleet,
        workplace,
        f"""
cat >$D/w.yaml <<END
name: from-file
module: {workplace}/examples/return-1/return-1.wasm
limits: {{memory: 64M, time: 1m}}
labels: {{app: docs}}
END
keepctl manifest check $D/w.yaml >&2 && keepctl run -f $D/w.yaml >&2
keepctl ps -o json --label app=docs
keepctl rm from-file >&2
""",
    )
    (keep,) = json.loads(output)
    assert (keep["name"], keep["labels"], keep["limits"]["wall_seconds"]) == ("from-file", {"app": "docs"}, 60)
    assert keep["outcome"]["text"] == "exited 0"


def test_a_signal_stops_the_workload_and_removes_the_keep(fleet: Fleet, workplace: Path) -> None:
    script = BACKGROUND.format(options="").replace(">out 2>err", ">$D/out 2>$D/err")
    output = typed(fleet, workplace, f"{script}\nkill $!; wait $!; echo exit $?; cat $D/err; keepctl ps -q")
    assert output.splitlines()[0] == "exit 130", output
    assert "stopping keep" in output
    assert len(output.splitlines()) == 2, "and no keep is left"


def test_a_reader_that_goes_away_ends_a_workload_that_says_no_more(fleet: Fleet, workplace: Path) -> None:
    output = typed(
        fleet,
        workplace,
        """
keepctl run --rm --time 10m examples/spin-wat/spin.wasm 2>&1 | head -n 1; echo "exit ${PIPESTATUS[0]}"
keepctl ps -q
""",
    )
    assert output.splitlines() == ["spinning until stopped", "exit 141"], "and no keep is left"


def test_output_that_cannot_be_written_and_streams_that_are_closed_leave_no_keep(fleet: Fleet, workplace: Path) -> None:
    output = typed(
        fleet,
        workplace,
        """
keepctl run --rm --time 10m examples/spin-wat/spin.wasm 2>&1 >/dev/full; echo "exit $?"
keepctl run --rm examples/hello-c/hello.wasm 2>&-; echo "exit $?"
keepctl run --rm -o json examples/hello-c/hello.wasm 2>&1 | head -n 1 | cut -c 1-5; echo "exit ${PIPESTATUS[0]}"
keepctl ps -q
""",
    )
    assert "cannot write the output: No space left on device" in output
    codes = [line for line in output.splitlines() if line.startswith("exit ")]
    assert codes[:2] == ["exit 125", "exit 0"] and codes[2] in ("exit 0", "exit 141"), output
    assert output.splitlines()[-1] == codes[2], "and no keep is left"


def test_what_runs_is_seen_in_ps_and_inspect(fleet: Fleet, workplace: Path) -> None:
    output = typed(
        fleet,
        workplace,
        """
keepctl run -d --name spinner examples/spin-wat/spin.wasm >/dev/null
keepctl logs -f spinner | head -n 1 >/dev/null
keepctl ps
keepctl inspect -o text spinner
keepctl rm spinner >/dev/null
""",
    )
    header, row, *facts = output.splitlines()
    assert header.split() == ["ID", "NAME", "STATE", "AGE", "MODULE", "ADDRESS", "DETAIL"]
    assert re.search(r" spinner +2 started +[0-9]+ s +(spin\.wasm|sha256:[0-9a-f]{12}) ", row), row
    assert any(re.match(r"module +.*sha256:[0-9a-f]{64}", fact) for fact in facts), facts
    assert any(re.match(r"created +[0-9]{4}-", fact) for fact in facts), facts


def test_a_certificate_of_another_ca_is_distinguished_from_a_manager_that_hangs_up(
    fleet: Fleet, workplace: Path
) -> None:
    output = typed(
        fleet,
        workplace,
        """
keepctl init --pki $D/keepfleet/pki -o json >$D/made
python3 -c 'import json, sys; print(json.load(sys.stdin)["client"]["name"])' <$D/made
keepctl ps --cert $D/keepfleet/pki/clients/admin.crt 2>&1; echo "exit $?"
""",
    )
    name, refusal, code = output.splitlines()
    assert (name, code) == ("admin", "exit 3")
    assert "/clients/admin.crt was issued by another CA than /etc/keepfleet/pki/ca.crt; ask for one of that" in refusal


STUCK = """
import signal, sys
from keep_client import keep
chunks = keep._chunks
def first_one(file):
    yield next(chunks(file))
    while True:
        signal.pause()
keep._chunks = first_one
from keepctl.__main__ import exit_code
sys.exit(exit_code(sys.argv[1:]))
"""
"""keepctl, whose module lies on a disk that gives it the first part and no more."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_run_that_is_ended_in_the_midst_of_its_upload_leaves_nothing_or_a_keep_that_can_be_removed(
    fleet: Fleet, number: signal.Signals
) -> None:
    large = fleet.host.path / "large.wasm"
    large.write_bytes(LARGE_HEAD)
    os.truncate(large, LARGE_BYTES)
    command = [f"{INSTALLED}/bin/python", "-P", "-c", STUCK, "run", str(large)]
    with fleet.host.popen(command, env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"}) as run:
        while not any("receiving" in keep.detail for keep in fleet.client().keeps()):
            assert run.poll() is None, run.stdout and run.stdout.read()
        if number is not signal.SIGKILL:  # which the end of this block sends
            run.send_signal(number)
            assert run.wait(SECONDS) == INTERRUPTED
    left = [Life(fleet, keep.kuuid) for keep in fleet.client().keeps()]
    assert len(left) == (number is signal.SIGKILL)
    for life in left:
        while "receiving" in life.look().detail:  # what was sent before the kill is read before the end is
            continue
        with life.connect() as connection:
            assert "awaiting a workload" in life.banner(connection)
        life.remove()
    assert fleet.left_over() == []


def test_a_killed_manager_is_waited_for(fleet: Fleet, workplace: Path) -> None:
    script = BACKGROUND.format(options="--time 4s").replace(">out 2>err", ">$D/out 2>$D/err")
    output = typed(
        fleet, workplace, f"{script}\nsystemctl kill -s KILL keep-manager; wait $!; echo exit $?; cat $D/err"
    )
    assert output.splitlines()[0] == "exit 124", output
    assert "over its time limit of 4 s" in output
