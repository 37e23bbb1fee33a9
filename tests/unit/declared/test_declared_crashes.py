"""What is declared, on a disk that is full and of a manager that is killed at any step, and after a power cut at any
moment: what was acknowledged is there, and what was not is there whole or not at all."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from keep_manager.declared.history import History
from keep_manager.declared.runs import JobRecord
from keep_manager.declared.secrets import Secrets
from keep_manager.declared.specifications import Specifications, Unreadable
from keep_manager.declared.volumes import IMAGE, Volumes
from keep_manager.model import Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.limits import MIB
from keep_protocol.runs import Run, RunState, RunWhy
from module_store.disk import Disk
from tests.fakes.fake_sealer import FakeSealer
from tests.unit.declared.specs import specification
from tests.unit.store.disks import POWER_CUTS, Cutting, Full, deadly_at

ALICE = Caller("alice", Role.USER, "127.0.0.1", "alice")
Steps = list[Callable[[], object]]
IMAGES = b"a whole file system"
NOT_THERE: object = object()
"""Before the first acknowledgement anything may be there that the next manager starts with."""


@dataclass(frozen=True)
class Kind:
    """One kind of what lasts. steps: what a manager does in the folder, each acknowledged when it returns, the first of
    which is to open it; state: what the manager that follows finds there."""

    steps: Callable[[Path, Disk], Steps]
    state: Callable[[Path], object]


def specification_steps(folder: Path, disk: Disk) -> Steps:
    files = Specifications(str(folder), disk)
    one, two, three = (specification(text=f"module: web:{n}\n", version=n) for n in (1, 2, 3))
    return [
        files.open,
        lambda: files.write(one),
        lambda: files.write(two, one),
        lambda: files.write(three, two),
        lambda: files.remove("web"),
    ]


def specification_state(folder: Path) -> object:
    files = Specifications(str(folder))
    files.open()
    wanted = {name: "" if isinstance(each, Unreadable) else each.text for name, each in files.load().items()}
    history = [each.header.version for each in files.history("web")]
    latest = int(wanted["web"].rpartition(":")[2]) if "web" in wanted else 1
    assert set(history) <= set(range(1, latest + 1)), "nothing is in the history that was never wanted"
    return wanted


def history_steps(folder: Path, disk: Disk) -> Steps:
    history = History(str(folder), disk)
    run = Run(1, RunState.RUNNING, RunWhy.SCHEDULE, 1.0, began=1.0)
    return [
        history.open,
        lambda: history.write("report", JobRecord(1.0, (run,))),
        lambda: history.write("report", JobRecord(2.0, (run.replace(state=RunState.DONE, ended=2.0),))),
        lambda: history.forget("report"),
    ]


def history_state(folder: Path) -> object:
    history = History(str(folder))
    history.open()
    return history.read("report", 9.0)


def run(work: Coroutine[object, object, object]) -> object:
    return asyncio.run(work)


def secrets_in(folder: Path, disk: Disk | None, *, encrypts: bool) -> Secrets:
    sealer = FakeSealer()
    sealer.available = encrypts
    return Secrets(str(folder), sealer, lambda: (), disk=disk)


def secret_steps(*encrypts: bool) -> Callable[[Path, Disk], Steps]:
    """A secret that is set, set again and removed on a host that encrypts, or one that begins or ceases to."""

    def steps(folder: Path, disk: Disk) -> Steps:
        before, after = (secrets_in(folder, disk, encrypts=each) for each in encrypts)
        return [
            lambda: run(before.open()),
            lambda: run(before.set("token", b"one", ALICE, 9)),
            lambda: run(before.set("token", b"two", ALICE, 9)),
            lambda: run(after.open()),
            lambda: run(after.set("token", b"three", ALICE, 9)),
            lambda: run(after.remove("token")),
        ]

    return steps


def secret_state(folder: Path) -> object:
    """Whose each secret is, and its value as systemd would give it to a keep."""

    secrets = secrets_in(folder, None, encrypts=True)
    asyncio.run(secrets.open())
    values = {}
    for name in secrets.names():
        path, sealed = secrets.credentials([name])[name]
        data = Path(path).read_bytes()
        values[name] = (secrets.owner(name), data.removeprefix(b"token:")[::-1] if sealed else data)
    return values


def volume_steps(folder: Path, disk: Disk) -> Steps:
    volumes = Volumes(str(folder), lambda _: 1 << 40, disk)
    return [
        volumes.open,
        lambda: volumes.ensure("data", "alice", 16 * MIB, 100),
        lambda: volumes.ensure("data", "alice", 32 * MIB, 100),
        lambda: volumes.remove("data"),
    ]


def volume_state(folder: Path) -> object:
    volumes = Volumes(str(folder), lambda _: 1 << 40)
    volumes.open()
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []
    return {
        each.name: (each.owner, each.size_bytes, each.detail, is_whole(folder / each.name / IMAGE))
        for each in volumes.listed()
    }


def is_whole(image: Path) -> bool:
    data = image.read_bytes()
    return data == IMAGES or (len(data) >= 16 * MIB and data[1080:1082] == b"\x53\xef")


SMALL_FILES = {
    "specifications": Kind(specification_steps, specification_state),
    "histories": Kind(history_steps, history_state),
    "secrets of a host that begins to encrypt": Kind(secret_steps(False, True), secret_state),
}
ALL = {
    **SMALL_FILES,
    "secrets of a host that encrypts no more": Kind(secret_steps(True, False), secret_state),
    "volumes": Kind(volume_steps, volume_state),  # which have such tests of their own
}


class Images(Cutting):
    """A disk for file systems too, which a program writes and no method of a disk: what it wrote is one word here."""

    def sync(self, descriptor: int) -> None:
        node = self._nodes[os.fstat(descriptor).st_ino]
        if os.fstat(descriptor).st_size >= 16 * MIB:
            node.data = IMAGES  # type: ignore[union-attr] # no directory is as long
        super().sync(descriptor)


@pytest.mark.parametrize("model", POWER_CUTS)
@pytest.mark.parametrize("name", ALL)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path, name: str, model: str) -> None:
    kind, disk = ALL[name], Images(tmp_path, model, 3)
    before: object = NOT_THERE
    for step in kind.steps(disk.base / "state/kept", disk):
        step()
        disk.cut()
        after = kind.state(disk.base / "state/kept")
        assert kind.state(disk.left[-1] / "state/kept") == after, "it was acknowledged"
        for path in disk.left[:-1]:
            assert before is NOT_THERE or kind.state(path / "state/kept") in (before, after)
        before = after
        disk.left.clear()
    assert disk.cuts > 10


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_disk_that_is_full_at_any_step_leaves_what_was_there_and_it_goes_on_once_there_is_room(
    tmp_path: Path, name: str
) -> None:
    kind = SMALL_FILES[name]
    for number in count(1):
        folder, before = tmp_path / str(number) / "kept", NOT_THERE
        disk = Full(number)
        for step in kind.steps(folder, disk):
            try:
                step()
            except KeepfleetError as error:
                assert (error.kind, disk.refused != "") == (ErrorKind.NO_SPACE, True)
                found = kind.state(folder)
                step()
                assert found in (before, kind.state(folder)) or before is NOT_THERE
            before = kind.state(folder)
        assert [each for each in os.listdir(folder) if each.endswith(".new")] == []
        if disk.count < number:
            break
    assert number > 10


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_manager_that_is_killed_at_any_step_is_followed_by_one_that_finds_what_was_there_or_what_was_to_be(
    tmp_path: Path, name: str
) -> None:
    kind = SMALL_FILES[name]
    steps = kind.steps(tmp_path / "whole/kept", Disk())
    states = []
    for step in steps:
        step()
        states.append(kind.state(tmp_path / "whole/kept"))
    for number in count(1):
        folder = tmp_path / str(number) / "kept"
        acknowledged, say = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for step in kind.steps(folder, deadly_at(number)):
                    step()
                    os.write(say, b".")
            finally:
                os._exit(1 if sys.exc_info()[0] else 0)
        os.close(say)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(acknowledged, "rb") as pipe:
            done = len(pipe.read())
        assert status == (0 if done == len(steps) else -signal.SIGKILL)
        if status == 0:
            break
        assert kind.state(folder) in states[max(done - 1, 0) : done + 1]
    assert number > 10


async def test_no_changed_bit_of_a_secret_s_record_makes_it_another_s_and_none_of_its_value_is_given(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "secrets"
    secrets = secrets_in(folder, None, encrypts=False)
    await secrets.open()
    await secrets.set("token", b"hunter2", ALICE, 9)
    for file in ("token.json", "token.plain"):
        whole = (folder / file).read_bytes()
        for position in range(len(whole)):
            changed = bytearray(whole)
            changed[position] ^= 1 << position % 8
            (folder / file).write_bytes(changed)
            found = secrets_in(folder, None, encrypts=False)
            await found.open()
            if file == "token.json":
                assert found.owner("token") == "", changed
            else:
                with pytest.raises(KeepfleetError, match="damaged, or was changed since it was set"):
                    found.credentials(["token"])
        (folder / file).write_bytes(whole)
