"""Granted directories on a real systemd: whose the files are, what nothing leads out of, and what fails whole."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from tests.system import modules
from tests.system.fleet import MANAGER, Fleet, free_port
from tests.system.host import Host, message_of, until
from tests.system.inside import detached
from tests.system.life import Life, drop_in, example
from tests.unit.app_loader import guests

ROOT = "/run/granted-directories"
OWNER = 5000
"""Whose the files are on disk; no user of the host has that number."""
SOCKET, SERVICE = "keepfleet-grants.socket", "keepfleet-grants.service"
SCORE = 4.2
"""`systemd-analyze security`, 0 to 10; half of it is for root and the four capabilities, 0.1 for loop devices."""
CALLERS = f"""{{"*": {{grant_roots: [
  {{path: {ROOT}/read}}, {{path: {ROOT}/roots}}, {{path: {ROOT}/out, writable: true}},
  {{path: {ROOT}/as, writable: true, files_as: "{OWNER}:{OWNER}"}},
  {{path: {ROOT}/keep, writable: true, files_as: keep}}, {{path: {ROOT}/root, writable: true}}]}}}}"""
MAKE = f"""
mkdir -p {ROOT}/read {ROOT}/roots {ROOT}/out {ROOT}/as/deep {ROOT}/keep {ROOT}/root {ROOT}/sibling; cd {ROOT}
echo secret >read/list; echo 1 >in; ln -s /etc out/link
chown -R {OWNER}:{OWNER} read out as/deep; chmod 0700 . read out as/deep; chmod 0600 read/list; chmod 0777 keep
"""


@pytest.fixture(scope="module")
def configured(installed_fleet: Fleet) -> Iterator[Fleet]:
    """A fleet whose manager may grant from below ROOT; its unit says nothing of that."""
    fleet = installed_fleet
    fleet.host.run(["sh", "-ec", MAKE])
    cursor = fleet.host.cursor()
    with fleet.configured(callers=CALLERS):
        fleet.host.wait_journal(f"grant root: cannot grant {ROOT}/root", MANAGER, cursor)  # the last one it tries
        yield fleet


@pytest.fixture
def granting(configured: Fleet) -> Iterator[Fleet]:
    """That fleet, with new files below ROOT."""
    configured.host.run(["sh", "-ec", f"rm -rf {ROOT}; {MAKE}"])
    yield configured
    configured.clear()
    configured.host.run(["sh", "-c", f"umount {ROOT}/out/sub; umount {ROOT}/out; rm -r {ROOT}"])


def given(*directories: tuple[str, str, bool], arguments: tuple[str, ...] = (), **more: object) -> dict[str, object]:
    """A workload with these directories: below ROOT, in the guest, writable."""
    return {
        "directories": [
            {"host": f"{ROOT}/{at}", "guest": guest, "writable": write} for at, guest, write in directories
        ],
        "arguments": list(arguments),
        "stdin": {"file": f"{ROOT}/read/list"},
        **more,
    }


def begun(fleet: Fleet, workload: dict[str, object]) -> Life:
    """A keep that awaits its workload, with what it is given."""
    life = Life.create(fleet)
    life.info = fleet.client().start(life.kuuid, "127.0.0.1", free_port(), (), workload)
    return life


def filtered(fleet: Fleet, report: str, left_out: str = "", **more: object) -> tuple[int | None, str]:
    """A new keep's run of the example filter, with all of ROOT's directories: its exit code, and what it said."""
    directories = (("read", "/read", False), ("out", "/out", True), ("as/deep", "/as", True), ("keep", "/keep", True))
    life = begun(fleet, given(*directories, arguments=(report, left_out) if left_out else (report,), **more))
    assert life.upload(example("filter-c/filter")).status == 200
    _, outcome = life.end(60)
    return outcome.exit_code, "\n".join(life.output())


def listed(host: Host, path: str) -> str:
    """Mode and owner of a file."""
    return host.run(["stat", "--format=%a %u:%g", f"{ROOT}/{path}"]).stdout.strip()


def refusal(fleet: Fleet, workload: dict[str, object]) -> KeepfleetError:
    """Why a start is refused; the keep is as it was, and can be started without directories."""
    life = Life.create(fleet)
    with pytest.raises(KeepfleetError) as caught:
        fleet.client().start(life.kuuid, "127.0.0.1", free_port(), (), workload)
    assert life.look().state is State.LISTENING
    assert fleet.client().start(life.kuuid, "127.0.0.1", free_port()).state is State.STARTED
    return caught.value


def directories_of(life: Life) -> list[str]:
    """The loader's descriptors of directories that are mounts which no path leads to."""
    return detached(life.host, life.loader_pid)


def test_three_keeps_write_one_report_that_its_owner_alone_can_read(granting: Fleet) -> None:
    for _ in range(3):
        assert filtered(granting, "/out/report.txt", "/read/list")[0] == 0
    assert listed(granting.host, "out/report.txt") == f"600 {OWNER}:{OWNER}"
    operator = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups", "cat", f"{ROOT}/out/report.txt"]
    granting.host.run(["chmod", "0711", ROOT])
    assert granting.host.run(operator).stdout == "1 lines read, 1 left out\n"


def test_one_keep_reads_what_another_wrote(granting: Fleet) -> None:
    assert filtered(granting, "/out/first")[0] == 0
    assert filtered(granting, "/as/second", "/out/first")[0] == 0
    assert listed(granting.host, "as/deep/second") == f"600 {OWNER}:{OWNER}"


def test_a_root_of_root_s_is_written_to_as_the_user_that_the_configuration_names(granting: Fleet) -> None:
    error = refusal(granting, given(("as", "/as", True)))
    assert (
        f"{ROOT}/as for writing: it belongs to 0:0, and the keep writes to what is 5000:5000's alone" in error.message
    )
    assert filtered(granting, "/as/report")[0] == 0
    assert listed(granting.host, "as/deep/report") == f"600 {OWNER}:{OWNER}"


def test_files_as_keep_leaves_them_to_the_keep_s_own_user(granting: Fleet) -> None:
    assert filtered(granting, "/keep/report")[0] == 0
    assert 61184 <= int(listed(granting.host, "keep/report").split()[1].split(":")[0]) <= 65519
    code, said = filtered(granting, "/keep/report")
    assert (code, "cannot open /keep/report: Permission denied" in said) == (1, True)


def test_what_is_granted_to_be_read_is_read_at_0600_and_never_written(granting: Fleet) -> None:
    assert filtered(granting, "/out/report", "/read/list")[0] == 0
    code, said = filtered(granting, "/read/report")
    assert (code, "cannot open /read/report" in said) == (1, True)


def test_a_root_of_root_s_can_be_read_where_everybody_may_and_not_written(granting: Fleet) -> None:
    life = begun(granting, given(("roots", "/roots", False)))
    assert life.info.state is State.STARTED
    error = refusal(granting, given(("root", "/root", True)))
    assert error.kind is ErrorKind.CONFIGURATION
    assert f"{ROOT}/root belongs to 0:0, which is root" in error.message
    assert "files_as: USER" in error.message


@pytest.mark.parametrize("path", ["out/link", "out/link/ssh", "sibling", "out/none"])
def test_a_directory_by_a_link_or_outside_is_refused(granting: Fleet, path: str) -> None:
    kind = ErrorKind.NOT_FOUND if path == "out/none" else ErrorKind.FORBIDDEN
    assert refusal(granting, given((path, "/x", False))).kind is kind


def test_nothing_leads_out_of_a_granted_directory_and_its_mount_says_so(granting: Fleet) -> None:
    life = begun(granting, given(("read", "/read", False), ("out", "/out", True)))
    found = directories_of(life)
    assert len(found) == 2
    script = """
import json, os, sys
def look(path):
    here, up = os.stat(path), os.stat(path + "/../../..")
    flags = os.statvfs(path).f_flag
    names = [name for name in ("RDONLY", "NOSUID", "NODEV", "NOEXEC") if flags & getattr(os, "ST_" + name)]
    return [os.path.samestat(here, up), here.st_uid, names]
print(json.dumps([look(path) for path in sys.argv[1:]]))
"""
    looked = json.loads(life.host.run(["python3", "-I", "-c", script, *found]).stdout)
    keep = int(life.host.run(["stat", "--format=%u", f"/run/keepfleet/{life.kuuid}"]).stdout)
    assert sorted(looked) == [
        [True, keep, ["NOSUID", "NODEV", "NOEXEC"]],
        [True, keep, ["RDONLY", "NOSUID", "NODEV", "NOEXEC"]],
    ]


def test_a_file_system_mounted_below_is_granted_with_it(granting: Fleet) -> None:
    host = granting.host
    host.run(
        ["sh", "-ec", f"cd {ROOT}/out; mkdir sub; echo hidden >sub/hidden; mount -t tmpfs below sub; echo x >sub/seen"]
    )
    life = begun(granting, given(("out", "/out", True)))
    (found,) = directories_of(life)
    assert host.run(["ls", f"{found}/sub"]).stdout.split() == ["seen"]


def test_a_file_of_a_file_system_mounted_later_is_the_one_that_a_guest_reads(granting: Fleet) -> None:
    """Where the mount above is private, what is mounted after the manager's start never appears in its namespace."""
    host = granting.host
    make = "mkdir late; echo hidden >late/in; echo hidden >late/token; mount -t tmpfs late late"
    host.run(["sh", "-ec", f"cd {ROOT}/read; mount --bind . .; mount --make-private {ROOT}/read"])
    try:
        host.run(["sh", "-ec", f"cd {ROOT}/read; {make}; cd late; echo seen >in; echo t0ken >token; chmod 0600 *"])
        secrets = [{"name": "token", "file": f"{ROOT}/read/late/token"}]
        life = begun(granting, {"stdin": {"file": f"{ROOT}/read/late/in"}, "secrets": secrets})
        host.run(["umount", f"{ROOT}/read/late"])
        assert life.upload(guests.ECHO).status == 200
        life.line("seen")
        life.end(60)
        host.run(["sh", "-ec", f"cd {ROOT}/read; mount -t tmpfs late late; echo t0ken >late/token"])
        life, shows = begun(granting, {"secrets": secrets}), guests.Attempts()
        shows.show("token")
        assert life.upload(shows.module()).status == 200
        life.line("t0ken")
        life.end(60)
    finally:
        host.run(["sh", "-c", f"umount {ROOT}/read/late; umount {ROOT}/read"])


def test_a_file_that_its_owner_alone_may_read_is_granted_from_a_home(granting: Fleet) -> None:
    host = granting.host
    place = "/home/granted-file"
    host.run(["sh", "-ec", f"mkdir -p {place}; echo seen >{place}/in; chown -R {OWNER} {place}; chmod -R go= {place}"])
    try:
        with granting.configured(callers=f'{{"*": {{grant_roots: [{{path: {place}}}]}}}}'):
            life = begun(granting, {"stdin": {"file": f"{place}/in"}})
            assert life.upload(guests.ECHO).status == 200
            life.line("seen")
            life.end(60)
    finally:
        host.run(["rm", "-r", place])


def test_a_file_system_that_cannot_be_mapped_is_refused_by_its_name_and_place(granting: Fleet) -> None:
    host = granting.host
    layers = f"lowerdir={ROOT}/l,upperdir={ROOT}/u,workdir={ROOT}/w"
    host.run(["sh", "-ec", f"cd {ROOT}; mkdir l u w out/sub; mount -t overlay -o {layers} layers out/sub"])
    for write in (False, True):
        error = refusal(granting, given(("out", "/out", write)))
        assert error.kind is ErrorKind.UNSUPPORTED
        assert f"overlay, mounted at {ROOT}/out/sub, cannot be id-mapped" in error.message
    error = refusal(granting, given(("out/sub", "/out", True)))
    assert "its file system, overlay, cannot be id-mapped" in error.message
    assert "files_as: keep" in error.message
    assert begun(granting, given(("out/sub", "/sub", False))).info.state is State.STARTED


def test_what_the_host_mounted_read_only_stays_so_in_a_writable_grant(granting: Fleet) -> None:
    granting.host.run(["sh", "-ec", f"mount --bind {ROOT}/out {ROOT}/out; mount -o remount,ro,bind {ROOT}/out"])
    code, said = filtered(granting, "/out/report")
    assert (code, "cannot open /out/report" in said) == (1, True)
    assert filtered(granting, "/as/report")[0] == 0


def test_an_operator_unmounts_a_file_system_while_a_keep_goes_on_with_it(granting: Fleet) -> None:
    host = granting.host
    host.run(["sh", "-ec", f"cd {ROOT}; mount -t tmpfs -o uid={OWNER},gid={OWNER} below out; echo x >out/seen"])
    life = begun(granting, given(("out", "/out", True)))
    (found,) = directories_of(life)
    host.run(["umount", f"{ROOT}/out"])
    assert host.run(["ls", found]).stdout.split() == ["seen"]
    assert life.upload(modules.says(b"went on")).status == 200
    life.until(State.STARTED, State.COMPLETE)


def test_a_workload_that_runs_again_still_writes_to_its_directory(granting: Fleet) -> None:
    life = begun(granting, given(("out", "/out", True), arguments=("/out/report",), restart="always"))
    assert life.upload(example("filter-c/filter")).status == 200
    outcome = life.becomes(State.ERROR).outcome
    assert life.info.detail.startswith("gave it up after starting it again 4 times")
    assert outcome is not None
    assert outcome.exit_code == 0, "it could open its report each time"
    assert listed(granting.host, "out/report") == f"600 {OWNER}:{OWNER}"


def test_a_loader_that_was_killed_has_its_directories_again(granting: Fleet) -> None:
    life = begun(granting, given(("out", "/out", True), arguments=("/out/report",)))
    life.kill_loader()
    life.becomes(State.STARTED)
    assert life.upload(example("filter-c/filter")).status == 200
    _, outcome = life.end(60)
    assert outcome.exit_code == 0
    assert listed(granting.host, "out/report") == f"600 {OWNER}:{OWNER}"


def test_ten_starts_at_the_same_moment_are_all_granted(granting: Fleet) -> None:
    granting.host.systemctl("stop", SERVICE)
    with ThreadPoolExecutor(10) as pool:
        lives = list(pool.map(lambda _: begun(granting, given(("out", "/out", True))), range(10)))
    assert all(len(directories_of(life)) == 1 for life in lives)


def test_without_the_helper_a_start_fails_whole_and_says_what_to_do(granting: Fleet) -> None:
    workload = given(("out", "/out", True))
    granting.host.systemctl("stop", SOCKET)
    try:
        error = refusal(granting, workload)
        doctor = granting.host.run(["keepctl", "doctor"], check=False)
    finally:
        granting.host.systemctl("restart", SOCKET)
    assert (
        f"{SOCKET} is down: no directory, file or secret can be granted; run: systemctl restart {SOCKET}"
        in doctor.stdout
    )
    assert SOCKET not in granting.host.run(["keepctl", "doctor"], check=False).stdout
    assert error.kind is ErrorKind.UNAVAILABLE
    assert "there is no socket /run/keepfleet-grants.sock; run: systemctl restart keepfleet-grants" in error.message
    assert begun(granting, workload).info.state is State.STARTED


def test_a_helper_that_could_miss_what_is_mounted_grants_nothing_and_says_why(granting: Fleet) -> None:
    workload = given(("out", "/out", True))
    with drop_in(granting.host, SERVICE, "[Service]\nPrivateMounts=yes\n"):
        granting.host.systemctl("stop", SERVICE)
        error = refusal(granting, workload)
        of_a_file = refusal(granting, {"stdin": {"file": f"{ROOT}/read/list"}})
    granting.host.systemctl("stop", SERVICE)
    assert error.kind is of_a_file.kind is ErrorKind.CONFIGURATION
    assert of_a_file.message == error.message
    assert "cannot trust the grants helper: it has a mount namespace of its own" in error.message
    assert begun(granting, workload).info.state is State.STARTED


def test_a_helper_that_cannot_start_fails_the_start_and_a_restart_of_its_socket_helps(granting: Fleet) -> None:
    workload = given(("out", "/out", True))
    with drop_in(granting.host, SERVICE, "[Service]\nExecStart=\nExecStart=/nowhere\n"):
        granting.host.systemctl("stop", SERVICE)
        error = refusal(granting, workload)
        assert error.kind is ErrorKind.UNAVAILABLE
        assert "journalctl -u keepfleet-grants.service" in error.message
        assert "systemctl restart keepfleet-grants.socket" in refusal(granting, workload).message
    life = Life.create(granting)

    def started() -> bool:
        granting.host.systemctl("reset-failed", SOCKET)  # or systemd counts the restarts, too
        granting.host.systemctl("restart", SOCKET)
        with contextlib.suppress(KeepfleetError):
            life.info = granting.client().start(life.kuuid, "127.0.0.1", free_port(), (), workload)
        return life.info.state is State.STARTED

    until(started, lambda: "the limit of the socket's unit holds for some seconds, across its restart, and no longer")


def test_a_helper_that_hangs_costs_one_start_its_time_and_a_killed_one_nothing(granting: Fleet) -> None:
    workload = given(("out", "/out", True))
    begun(granting, workload)
    granting.host.systemctl("kill", "--signal=STOP", SERVICE)
    error = refusal(granting, workload)
    assert error.kind is ErrorKind.UNAVAILABLE
    assert "did not answer within" in error.message
    granting.host.systemctl("kill", "--signal=KILL", SERVICE)
    assert begun(granting, workload).info.state is State.STARTED


ASK = """
import sys
sys.path.insert(0, next(path for path in __import__("site").getsitepackages()))
from contextlib import ExitStack
from keep_grants.protocol import *
wanted = Wanted("/etc", "ssl", True, DiskIds(5000, 5000))
with ExitStack() as held:
    ask(held, "/run/keepfleet-grants.sock", GrantRequest((wanted,), KeepIds(61184, 61184)))
"""


def test_root_s_other_processes_are_refused_and_other_users_cannot_even_ask(granting: Fleet) -> None:
    command = ["/opt/keepfleet/bin/python", "-I", "-c", ASK]
    done = granting.host.run(command, check=False)
    assert "only keep-manager.service may ask for them, and this is process" in done.stderr
    done = granting.host.run(["systemd-run", "--quiet", "--pipe", "--wait", "--unit=stranger", *command], check=False)
    assert re.search("this is process [0-9]+ of stranger.service", done.stderr)
    done = granting.host.run(["setpriv", "--reuid=5000", "--clear-groups", *command], check=False)
    assert "cannot be reached at /run/keepfleet-grants.sock: Permission denied" in done.stderr


def test_a_reload_says_of_each_root_what_a_keep_will_have_there(granting: Fleet) -> None:
    cursor = granting.host.cursor()
    granting.reload()
    said = message_of(granting.host.wait_journal(f"grant root: cannot grant {ROOT}/root", MANAGER, cursor))
    assert "files_as: USER" in said
    text = "\n".join(message_of(entry) for entry in granting.host.journal(MANAGER, cursor))
    assert f"grant root: {ROOT}/read read-only, its files those of {OWNER}:{OWNER}" in text
    assert f"grant root: {ROOT}/out for writing, its files those of {OWNER}:{OWNER}" in text
    assert f"grant root: cannot grant {ROOT}/as for writing: it belongs to 0:0" in text
    assert f"grant root: {ROOT}/keep for writing" in text
    assert f"{ROOT}/roots read-only; the keep reads what everybody may read" in text


def test_the_helper_s_units_are_clean_and_as_tight_as_promised(granting: Fleet) -> None:
    done = granting.host.run(["systemd-analyze", "verify", "--man=no", SOCKET, SERVICE])
    assert done.stdout + done.stderr == ""
    said = granting.host.run(["systemd-analyze", "security", "--no-pager", SERVICE]).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= SCORE


def test_the_helper_leaves_when_it_is_idle_and_is_started_again(granting: Fleet) -> None:
    cursor = granting.host.cursor()
    begun(granting, given(("out", "/out", True)))
    granting.host.wait_journal(f"{SERVICE}: Deactivated successfully", SERVICE, cursor, seconds=60)
    assert begun(granting, given(("out", "/out", True))).info.state is State.STARTED


def test_the_socket_is_root_s_and_takes_packets(granting: Fleet) -> None:
    assert granting.host.run(["stat", "--format=%a %U %F", "/run/keepfleet-grants.sock"]).stdout == "600 root socket\n"
    shown = granting.host.run(["grep", "/run/keepfleet-grants.sock", "/proc/net/unix"]).stdout
    assert int(shown.split()[4], 16) == socket.SOCK_SEQPACKET
