"""`systemctl reload keep-manager`: the same process goes on by the new configuration, or by the one in force."""

from __future__ import annotations

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.system.fleet import MANAGER, Fleet


def test_a_reload_changes_what_the_next_request_may_and_no_process_ends(fleet: Fleet) -> None:
    before = fleet.host.show(MANAGER, "ActiveState", "MainPID", "NRestarts")
    with fleet.configured(max_keeps=1):
        fleet.client().create()
        with pytest.raises(KeepfleetError, match="max_keeps is 1") as refused:
            fleet.client().create()
        assert refused.value.kind is ErrorKind.TOO_MANY
    fleet.client().create()
    assert fleet.host.show(MANAGER, "ActiveState", "MainPID", "NRestarts") == before


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"max_kepes": 1}, "manager.yaml:3:1: unknown key 'max_kepes'"),
        ({"address": "0.0.0.0", "max_keeps": 1}, "cannot change address while the manager runs: restart it"),
    ],
)
def test_what_cannot_be_changed_alive_changes_nothing_and_the_journal_says_why(
    fleet: Fleet, keys: dict[str, object], why: str
) -> None:
    before = fleet.manager_pid
    fleet.configure(**keys)
    try:
        said = fleet.reload()
        assert said.startswith("cannot reload the configuration, the one in force stays: ")
        assert why in said
        for _ in range(2):
            fleet.client().create()
    finally:
        fleet.configure()
        fleet.reload()
    assert fleet.manager_pid == before
