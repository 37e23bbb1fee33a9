"""The tests' own host and fleet: what the other system tests stand on."""

from __future__ import annotations

import pytest

from keep_protocol.states import State
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import CommandFailed, Host, message_of


def test_a_failed_command_shows_what_it_printed(host: Host) -> None:
    with pytest.raises(CommandFailed, match=r"sh -c .* exited 3:\nout"):
        host.run(["sh", "-c", "echo out; exit 3"])


def test_the_journal_is_read_from_a_cursor_on_and_by_field(host: Host) -> None:
    host.run(["logger", "before"])
    cursor = host.cursor()
    host.run(["logger", "after"])
    assert [message_of(entry) for entry in host.journal(since_cursor=cursor, SYSLOG_IDENTIFIER="root")] == ["after"]


def test_a_journal_line_is_waited_for(host: Host) -> None:
    cursor = host.cursor()
    host.run(["systemd-run", "--quiet", "--unit=speaker", "sh", "-c", 'echo "so"on'])
    assert host.wait_journal("soon", since_cursor=cursor)["_SYSTEMD_UNIT"] == "speaker.service"
    with pytest.raises(CommandFailed, match="never showed 'never'"):
        host.wait_journal("never", unit="speaker.service", since_cursor=cursor, seconds=0.1)


def test_the_shared_directory_is_the_same_inside(host: Host) -> None:
    (host.path / "note").write_text("from outside")
    assert host.run(["cat", f"{host.path}/note"], user="nobody").stdout == "from outside"


def test_the_manager_answers_from_outside_and_a_test_s_keeps_are_ended_after_it(fleet: Fleet) -> None:
    keep = fleet.client().create()
    assert keep.state is State.LISTENING
    assert fleet.keep_units() == [keep.unit]
    fleet.clear()
    assert fleet.left_over() == []


def test_a_killed_manager_is_another_process_when_kill_returns(fleet: Fleet) -> None:
    before = fleet.manager_pid
    fleet.kill()
    assert fleet.manager_pid not in (0, before)
    assert "Enarx-Keep-Manager" in fleet.client().banner()


def test_configured_restarts_the_manager_with_other_keys_and_back(fleet: Fleet) -> None:
    with fleet.configured(client_certificates="optional"):
        assert fleet.host.show(MANAGER, "ActiveState") == {"ActiveState": "active"}
        shown = fleet.host.run(["keep-manager", "--config", "/etc/keepfleet/manager.yaml", "--check-config"]).stdout
        assert "optional" in shown
    assert "optional" not in (fleet.configuration / "manager.yaml").read_text()
