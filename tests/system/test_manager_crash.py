"""SIGKILL of the manager between every two steps: no keep is stopped, lost or doubled, and none is half made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from keep_client.manager import ManagerClient
from keep_manager.failpoints import VARIABLE, Failpoint
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from tests.system.fleet import MANAGER, Fleet, free_port

DROP_IN = f"/run/systemd/system/{MANAGER}.d/failpoint.conf"
CREATE = [point for point in Failpoint if point.name.startswith("CREATE")]
START = [point for point in Failpoint if point.name.startswith("START")]
REMOVE = [point for point in Failpoint if point.name.startswith("REMOVE")]


@contextlib.contextmanager
def armed(fleet: Fleet, point: Failpoint) -> Iterator[ManagerClient]:
    """A manager that kills itself at `point`; one that does not, at the end, found again by systemd alone."""
    fleet.host.run(["mkdir", "-p", DROP_IN.rpartition("/")[0]])
    fleet.host.run(["tee", DROP_IN], input=f"[Service]\nEnvironment={VARIABLE}={point.value}\n")
    fleet.host.systemctl("daemon-reload")
    fleet.restart()
    before = fleet.host.show(MANAGER, "NRestarts")["NRestarts"]
    try:
        yield fleet.client()
    finally:
        fleet.host.run(["rm", DROP_IN])
        fleet.host.systemctl("daemon-reload")
        fleet.host.systemctl("start", MANAGER)
    assert int(fleet.host.show(MANAGER, "NRestarts")["NRestarts"]) > int(before), "the manager was not killed"
    fleet.restart()


def only(fleet: Fleet) -> KeepInfo:
    """The one keep there is, as the manager and systemd agree."""
    (keep,) = fleet.client().keeps()
    assert fleet.keep_units() == [keep.unit]
    return keep


def ready(fleet: Fleet) -> KeepInfo:
    """That keep, once it is no longer starting: `systemctl start` waits for the job there is."""
    fleet.host.systemctl("start", only(fleet).unit)
    return only(fleet)


@pytest.mark.parametrize("point", CREATE)
def test_a_creation_cut_off_leaves_a_whole_keep_or_none(fleet: Fleet, point: Failpoint) -> None:
    with armed(fleet, point) as client, pytest.raises(KeepfleetError):
        client.create()
    if point is Failpoint.CREATE_BEFORE_UNIT:
        assert fleet.client().keeps() == ()
        assert fleet.left_over() == []
        return
    keep = ready(fleet)
    assert keep.state is State.LISTENING
    assert fleet.client().start(keep.kuuid, "127.0.0.1", free_port()).state is State.STARTED
    fleet.client().remove(keep.kuuid)
    assert fleet.left_over() == []


@pytest.mark.parametrize("point", START)
def test_a_start_cut_off_leaves_the_keep_idle_or_started(fleet: Fleet, point: Failpoint) -> None:
    kuuid = fleet.client().create().kuuid
    with armed(fleet, point) as client, pytest.raises(KeepfleetError):
        client.start(kuuid, "127.0.0.1", free_port())
    keep = only(fleet)
    assert keep.kuuid == kuuid
    if point in (Failpoint.START_AFTER_COMMAND, Failpoint.START_BEFORE_REPLY):
        assert keep.state is State.STARTED
        assert keep.fingerprint
    else:
        assert keep.state is State.LISTENING
        assert fleet.client().start(kuuid, "127.0.0.1", free_port()).state is State.STARTED


def test_a_stop_cut_off_has_stopped(fleet: Fleet) -> None:
    kuuid = fleet.client().create().kuuid
    fleet.client().start(kuuid, "127.0.0.1", free_port())
    with armed(fleet, Failpoint.STOP_AFTER_COMMAND) as client, pytest.raises(KeepfleetError):
        client.stop(kuuid)
    assert fleet.client().changed(kuuid, State.STARTED, 10).state is State.COMPLETE


@pytest.mark.parametrize("point", REMOVE)
def test_a_removal_cut_off_leaves_a_whole_keep_or_none(fleet: Fleet, point: Failpoint) -> None:
    kuuid = fleet.client().create().kuuid
    with armed(fleet, point) as client, pytest.raises(KeepfleetError):
        client.remove(kuuid)
    if point is Failpoint.REMOVE_BEFORE_CALL:
        assert only(fleet).state is State.LISTENING
        fleet.client().remove(kuuid)
    else:
        fleet.host.systemctl("stop", f"keep@{kuuid}.service", check=False)
    assert fleet.client().keeps() == ()
    assert fleet.left_over() == []
