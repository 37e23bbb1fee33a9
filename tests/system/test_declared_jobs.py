"""Declared jobs and secrets on a real host: run by systemd's timers, over the manager's death and a reboot; secrets as
credentials that nothing shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from keep_manager.failpoints import Failpoint
from tests.system import volume_guests
from tests.system.fleet import MANAGER, Fleet
from tests.system.host import message_of, until
from tests.system.test_declared_keeps import STORE, declared, keepctl, write
from tests.system.test_typed_docs import ROOT, blocks, typed_inside

VALUE = "hunter2-of-the-test"
OFTEN = 'module: hello:1\nschedule: "OnCalendar=*:*:0/2"\n'
RARELY = 'module: hello:1\nschedule: "OnCalendar=*-*-* 00:00"\n'
SECRETS = "/var/lib/keepfleet/secrets"


def history(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """The runs of a job, as `keepctl history` shows them."""
    found = json.loads(keepctl(fleet, "history", "-o", "json", name))
    assert isinstance(found, list)
    return found


def until_run(fleet: Fleet, name: str, state: str, count: int = 1) -> list[dict[str, Any]]:
    """The runs of a job once so many are so; the manager says each change in the journal, before which it wrote it."""
    while True:
        cursor = fleet.host.cursor()
        runs = history(fleet, name)
        if [run["state"] for run in runs].count(state) >= count:
            return runs
        fleet.host.wait_journal(f"declared job {name}: run ", MANAGER, cursor)


@pytest.fixture(scope="module")
def stored(installed_fleet: Fleet) -> Iterator[Fleet]:
    """A host with modules in its store, and mounts that are shared, as systemd has them on a host of its own."""
    installed_fleet.host.run(["mount", "--make-rshared", "/"])
    for name, data in (
        ("hello:1", (ROOT / "examples/hello-c/hello.wasm").read_bytes()),
        ("sleep:1", (ROOT / "examples/sleep-wat/sleep.wasm").read_bytes()),
        ("shows:1", volume_guests.shows_secret("token")),
    ):
        (installed_fleet.host.path / "module.wasm").write_bytes(data)
        keepctl(installed_fleet, "store", "add", str(installed_fleet.host.path / "module.wasm"), name)
    yield installed_fleet
    installed_fleet.host.run(["rm", "-rf", STORE])
    installed_fleet.host.run(["mount", "--make-rprivate", "/"])


@pytest.fixture
def jobs(stored: Fleet, fleet: Fleet) -> Iterator[Fleet]:
    """That host, without jobs and secrets."""
    yield fleet
    for each in json.loads(keepctl(fleet, "get", "-o", "json")):
        keepctl(fleet, "delete", each["name"])
    for each in json.loads(keepctl(fleet, "secret", "ls", "-o", "json")):
        keepctl(fleet, "secret", "rm", each["name"])
    fleet.clear()


def set_secret(fleet: Fleet, value: str, *options: str, name: str = "token", check: bool = True) -> str:
    file = fleet.host.path / "value"
    file.write_text(value)
    return keepctl(fleet, "secret", "set", name, "--from-file", str(file), *options, check=check)


def test_a_timer_of_systemd_s_runs_a_job_and_its_history_says_how_it_went(jobs: Fleet) -> None:
    said = keepctl(jobs, "apply", "--wait", "-f", write(jobs, "often", OFTEN))
    assert "often: declared, version 1; scheduled: next run " in said
    first = until_run(jobs, "often", "done", 2)[0]
    assert (first["why"], first["exit_code"], first["scheduled"] % 2) == ("schedule", 0, 0)
    assert first["lines"][0] == "Hello from C, inside a keep!"
    assert first["scheduled"] <= first["began"] <= first["ended"]
    timer = jobs.host.show("keep-job@often.timer", "ActiveState", "Triggers")
    assert timer == {"ActiveState": "active", "Triggers": "keep-job@often.service"}
    shown = declared(jobs, "often")
    assert shown["next_run"] > first["scheduled"]
    assert "Hello from C" in keepctl(jobs, "history", "--lines", "often")
    keepctl(jobs, "delete", "often")
    jobs.restart()
    # It goes when it is noticed that nothing is declared for it.
    until(lambda: not jobs.host.units("keep-job@*.timer"), lambda: jobs.host.units("keep-job@*.timer"))


def test_a_job_that_is_run_longer_than_its_period_is_not_joined_and_can_be_stopped(jobs: Fleet) -> None:
    keepctl(jobs, "apply", "--wait", "-f", write(jobs, "slow", OFTEN.replace("hello:1", "sleep:1")))
    runs = until_run(jobs, "slow", "skipped")
    assert [run["state"] for run in runs].count("running") == 1
    assert runs[-1]["text"] == "run 1 goes on"
    assert "run 1 goes on" in keepctl(jobs, "restart", "slow", check=False)
    keepctl(jobs, "stop", "slow")
    assert until_run(jobs, "slow", "stopped")[0]["text"].startswith("stopped by admin")


def test_a_manager_that_is_killed_while_it_begins_a_run_is_followed_by_one_that_goes_on(jobs: Fleet) -> None:
    """At each point, of a job of its own; what came of both another manager then knows."""
    runs: dict[str, dict[str, Any]] = {}
    for point in (Failpoint.JOB_AFTER_RECORD, Failpoint.JOB_AFTER_CREATE):
        keepctl(jobs, "apply", "--wait", "-f", write(jobs, point.value, RARELY))
        with jobs.killed_at(point):
            keepctl(jobs, "restart", point.value, check=False)
        (runs[point.value],) = until_run(jobs, point.value, "done")
        assert (runs[point.value]["number"], runs[point.value]["why"]) == (1, "asked"), point
    jobs.restart()
    assert {name: history(jobs, name) for name in runs} == {name: [run] for name, run in runs.items()}


def test_a_full_disk_begins_no_run_that_it_could_not_remember_and_refuses_a_secret_and_leaves_what_was(
    jobs: Fleet,
) -> None:
    keepctl(jobs, "apply", "--wait", "-f", write(jobs, "report", RARELY))
    set_secret(jobs, VALUE)
    place = "/var/lib/keepfleet/jobs"
    small = "size=64k,mode=700"
    with jobs.small_disk(place, small) as sees, jobs.small_disk(SECRETS, small):
        for each in (place, SECRETS):
            jobs.host.run([*sees, "sh", "-c", f"cat /dev/zero >{each}/full"], check=False)
        cursor, why = jobs.host.cursor(), "cannot keep the history of report: No space left on device"
        assert why in keepctl(jobs, "restart", "report", check=False)
        # It is unmet for a second: nothing is to be begun any more when it is tried again.
        jobs.host.wait_journal(f"declared job report, trying again: {why}", MANAGER, cursor)
        assert jobs.keep_units() == []
        refused = set_secret(jobs, "x" * 9000, check=False)
        assert "cannot keep the secret token.cred: No space left on device" in refused
        for each in (place, SECRETS):
            jobs.host.run([*sees, "rm", f"{each}/full"])
        keepctl(jobs, "restart", "report")  # and one later
        until_run(jobs, "report", "done")
        manifest = write(jobs, "shows", "module: shows:1\nsecrets: [{name: token}]\n")
        keepctl(jobs, "apply", "--wait", "-f", manifest)
        assert keepctl(jobs, "logs", "--raw", "shows").strip() == VALUE


def test_a_guest_has_its_secret_as_a_file_and_nothing_else_shows_it(jobs: Fleet) -> None:
    cursor = jobs.host.cursor()
    assert "encrypted with the host's key" in set_secret(jobs, VALUE)
    manifest = write(jobs, "shows", "module: shows:1\nsecrets: [{name: token}]\n")
    assert keepctl(jobs, "apply", "--wait", "-f", manifest).endswith("done: exited 0\n")
    assert keepctl(jobs, "logs", "--raw", "shows").strip() == VALUE
    (unit,) = jobs.keep_units()
    everything = jobs.host.run(["systemctl", "show", "--all", unit]).stdout
    everything += jobs.host.run(["systemctl", "cat", unit]).stdout
    assert "LoadCredentialEncrypted=token:" in everything
    assert VALUE not in everything
    assert (
        jobs.host.run(["grep", "-r", "-l", VALUE, "/var/lib/keepfleet/secrets", "/run/systemd"], check=False).stdout
        == ""
    )
    entries = "\n".join(message_of(entry) for entry in jobs.host.journal(MANAGER, cursor))
    assert "security: set the secret token by admin" in entries
    assert VALUE not in entries
    modes = jobs.host.run(["sh", "-c", f"stat -c '%a %u' {SECRETS} {SECRETS}/*"]).stdout.split("\n")[:-1]
    assert modes == ["700 0", "600 0", "600 0"]
    assert "cannot remove the secret token: shows names it" in keepctl(jobs, "secret", "rm", "token", check=False)


def test_a_secret_that_is_replaced_is_had_at_the_next_start_or_now_where_that_is_asked(jobs: Fleet) -> None:
    set_secret(jobs, "the first")
    manifest = write(jobs, "shows", "module: shows:1\nsecrets: [{name: token, stored: token}]\n")
    keepctl(jobs, "apply", "--wait", "-f", manifest)
    assert "have it when they start next" in set_secret(jobs, "the second")
    assert keepctl(jobs, "logs", "--raw", "shows").strip() == "the first"
    assert "shows: restarted" in set_secret(jobs, "the third", "--restart")
    keepctl(jobs, "apply", "--wait", "-f", manifest)
    assert keepctl(jobs, "logs", "--raw", str(declared(jobs, "shows")["kuuid"])).strip() == "the third"


def test_a_keep_whose_secret_is_not_there_says_so_and_is_made_when_it_is(jobs: Fleet) -> None:
    manifest = write(jobs, "shows", "module: shows:1\nsecrets: [{name: token}]\n")
    said = keepctl(jobs, "apply", "--wait", "-f", manifest, check=False)
    assert "unmet: cannot give shows the secret token: admin has none of that name" in said
    set_secret(jobs, VALUE)
    assert keepctl(jobs, "apply", "--wait", "-f", manifest).endswith("done: exited 0\n")


@pytest.mark.parametrize("how", ["chown 1000 {}", "chmod 644 {}", "mv {0} /run/moved && ln -s /run/moved {0}"])
def test_a_value_that_others_could_change_or_read_is_given_to_no_keep(jobs: Fleet, how: str) -> None:
    set_secret(jobs, VALUE)
    jobs.host.run(["sh", "-ec", how.format(f"{SECRETS}/token.cred")])
    manifest = write(jobs, "shows", "module: shows:1\nsecrets: [{name: token}]\n")
    said = keepctl(jobs, "apply", "--wait", "-f", manifest, check=False)
    assert "unmet: cannot use the secret token.cred" in said
    assert "cannot use the secret token.cred" in keepctl(jobs, "secret", "ls")
    set_secret(jobs, VALUE)
    assert keepctl(jobs, "apply", "--wait", "-f", manifest).endswith("done: exited 0\n")


@pytest.mark.parametrize("point", [Failpoint.CREDENTIAL_AFTER_OWNER, Failpoint.CREDENTIAL_AFTER_VALUE])
def test_a_manager_that_is_killed_while_it_sets_a_secret_leaves_the_old_or_the_new_one(
    jobs: Fleet, point: Failpoint
) -> None:
    set_secret(jobs, "the first")
    with jobs.killed_at(point):
        set_secret(jobs, "the second", check=False)
        set_secret(jobs, "the second", name="fresh", check=False)
    manifest = write(jobs, "shows", "module: shows:1\nsecrets: [{name: token}]\n")
    keepctl(jobs, "apply", "--wait", "-f", manifest)
    wanted = "the first" if point is Failpoint.CREDENTIAL_AFTER_OWNER else "the second"
    assert keepctl(jobs, "logs", "--raw", "shows").strip() == wanted


@pytest.mark.parametrize("page", ["jobs", "secrets"])
def test_its_how_to_can_be_typed_from_its_first_to_its_last_line(jobs: Fleet, page: str) -> None:
    output = typed_inside(jobs, blocks(f"docs/how-to/{page}.md", "sh"))
    promised = {
        "jobs": ("report: declared, version 1; scheduled: next run ", "run 1 begins", "asked for", "Hello from C"),
        "secrets": (
            "db-password: set, stored encrypted with the host's key",
            "db-password: used by web: restarted",
            "cannot remove the secret db-password: web names it",
            "removed db-password",
        ),
    }
    for text in promised[page]:
        assert text in output, f"{page}.md promises {text!r}; it printed:\n{output}"
