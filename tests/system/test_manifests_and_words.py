"""Manifests that mean no good, and words as many as the kernel takes, through keepctl on a real host."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from keep_protocol.errors import ErrorKind
from keep_protocol.states import State
from keep_protocol.workload import MAX_STRINGS_BYTES
from tests.system import hostile
from tests.system.calls import refused
from tests.system.calm import undisturbed
from tests.system.fleet import Fleet, free_port
from tests.system.life import Life

MAX_ARGUMENT = 131072
"""MAX_ARG_STRLEN: what the kernel takes as one argument or variable, its NUL included (man 2 execve)."""
NAMES = len("workload.wasm") + 1
"""What a guest has without arguments and environment: its own name."""
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 200)
)
BAD = {
    "an anchor": ("name: &a web\nlabels: {x: y}\n", "anchors are not allowed"),
    "a bomb of aliases": (BOMB, "anchors are not allowed"),
    "a name twice": ("name: web\nname: web\n", "duplicate key 'name'; the first is in line 1"),
    "10 MB of text": ("#" * 10_000_000, "it is over 1048576 bytes"),
    "a deep nest": ("[" * 100_000, "nested more than 16 deep"),
    "a name in Unicode": ("name: wéb\n", "name must be 1 to 63 of a-z"),
    "a name of two lines": ('name: "web\\nExecStart=/bin/sh"\n', "name must be 1 to 63 of a-z"),
    "a unit's name": ("name: keep@1.service\n", "name must be 1 to 63 of a-z"),
    "a unit's escape": ("name: 'a\\x2db'\n", "name must be 1 to 63 of a-z"),
    "a label of two lines": ('labels: {a: "b\\nc"}\n', "labels.a must be printable"),
    "a guest path of two lines": ('directories: [{host: /a, guest: "/a\\nb"}]\n', "absolute, plain path"),
    "a secret that is a path": ("secrets: [{name: ../x, file: /x}]\n", "secrets[0].name must be 1 to 63"),
    "a variable of two names": ('environment: {"A=B": x}\n', "must be a variable's name, without ="),
}


def keepctl(fleet: Fleet, *arguments: str) -> tuple[int, str, str]:
    """keepctl inside: its exit code, its output, and what it said."""
    done = fleet.host.run(["keepctl", *arguments], check=False, env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def calm(installed_fleet: Fleet) -> Iterator[None]:
    """None of the manifests that are refused disturbs the manager, and none makes a keep."""
    with undisturbed(installed_fleet):
        yield


@pytest.mark.parametrize("kind", BAD)
def test_a_manifest_that_means_no_good_is_refused_in_words_and_makes_no_keep(
    fleet: Fleet, calm: None, kind: str
) -> None:
    text, reason = BAD[kind]
    file, module = fleet.host.path / "bad.yaml", fleet.host.path / "counts.wasm"
    file.write_text(text)
    module.write_bytes(hostile.counts_its_words())
    code, output, said = keepctl(fleet, "run", "-f", str(file), str(module))
    assert (code, output) == (125, "")
    assert reason in said
    assert "Traceback" not in said
    assert len(said) < 20_000, "50 faults at most"
    assert fleet.keep_units() == []


def counted(fleet: Fleet, *options: str) -> int:
    """How many bytes of words a guest had that keepctl ran so."""
    module = fleet.host.path / "counts.wasm"
    module.write_bytes(hostile.counts_its_words())
    _, output, said = keepctl(fleet, "run", "--rm", "-o", "json", str(module), *options)
    assert output, said
    return int(json.loads(output.splitlines()[-1])["keep"]["outcome"]["exit_code"])


def test_the_longest_argument_and_variable_of_the_kernel_s_arrive_whole(fleet: Fleet) -> None:
    longest = "a" * (MAX_ARGUMENT - 1)
    assert counted(fleet, "--", longest) == NAMES + MAX_ARGUMENT
    assert counted(fleet, "--", *[longest] * 14) == NAMES + 14 * MAX_ARGUMENT  # all that one command line may hold
    assert counted(fleet, f"--env=A={longest[len('--env=A=') :]}") == NAMES + MAX_ARGUMENT - len("--env=")


def test_a_manifest_may_hold_words_longer_than_the_kernel_would_take(fleet: Fleet) -> None:
    long = "a" * (4 * MAX_ARGUMENT)
    file = fleet.host.path / "long.yaml"
    file.write_text(f"arguments: [{long[: 2 * MAX_ARGUMENT]}]\nenvironment: {{A: {long}}}\n")
    assert counted(fleet, "-f", str(file)) == NAMES + 2 * MAX_ARGUMENT + 1 + len("A=") + len(long) + 1


@pytest.mark.parametrize("what", ["arguments", "environment"])
def test_two_mebibytes_of_words_arrive_whole_and_one_byte_more_is_refused(fleet: Fleet, what: str) -> None:
    client, life = fleet.client(), Life.create(fleet)
    most = MAX_STRINGS_BYTES - 1

    def given(size: int) -> dict[str, object]:
        return {"arguments": ["a" * size]} if what == "arguments" else {"environment": {"A": "a" * (size - 2)}}

    refused(lambda: client.start(life.kuuid, "127.0.0.1", free_port(), (), given(most + 1)), ErrorKind.TOO_LARGE)
    assert life.look().state is State.LISTENING
    life.info = client.start(life.kuuid, "127.0.0.1", free_port(), (), given(most))
    assert life.upload(hostile.counts_its_words()).status == 200
    outcome = life.until(State.STARTED, State.COMPLETE).outcome
    assert outcome is not None
    assert outcome.exit_code == NAMES + MAX_STRINGS_BYTES
    life.remove()
