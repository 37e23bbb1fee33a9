"""The client on another host: names and addresses are verified in full, and everything works from there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.states import State
from tests.system import far
from tests.system.calm import no_readers_left, settled, undisturbed, usage_of
from tests.system.far import NEAR, NEAR_6, FarHost
from tests.system.fleet import Fleet, free_port
from tests.system.life import Life, example

MANAGER_NAME, KEEP_NAME = "keeps.example", "one.keep.example"
PKI = "/etc/keepfleet/pki"
ADMIN = (f"{PKI}/clients/admin.crt", f"{PKI}/clients/admin.key")
MODULE = "/etc/hello.wasm"
GIVEN_UP_SECONDS = 90.0
"""For a follower that is heard no more: the manager says that it is alive after 15 s, and waits as long."""


@pytest.fixture(scope="module")
def other(installed_fleet: Fleet) -> Iterator[FarHost]:
    """The other host, for which the manager listens on every address and has a certificate with its name."""
    fleet, host = installed_fleet, installed_fleet.host
    fleet.clear()
    with far.far_host(fleet) as other:
        names = ["--name", MANAGER_NAME, "--address", NEAR, "--address", NEAR_6]
        host.run(["keepctl", "pki", "renew-server", *names])
        with fleet.configured(address="0.0.0.0"):
            (host.path / "hello.wasm").write_bytes(example("hello-wat/hello"))
            host.run(["cp", f"{host.path}/hello.wasm", MODULE])
            yield other


def started(fleet: Fleet, address: str = NEAR) -> Life:
    """A keep that awaits its workload on `address`, with a name of its own."""
    life = Life.create(fleet)
    life.info = fleet.client().start(life.kuuid, address, free_port(), (KEEP_NAME,))
    return life


def anchor(life: Life) -> str:
    """A file with the keep's certificate, as the manager reported it, to trust alone."""
    place = f"/etc/keep-{life.kuuid}.pem"
    life.host.run(["tee", place], input=life.info.certificate)
    return place


def test_the_manager_is_verified_by_its_address_and_by_its_name(fleet: Fleet, other: FarHost) -> None:
    for name in (NEAR, MANAGER_NAME):
        assert other.ask(NEAR, fleet.port, name, f"{PKI}/ca.crt", ADMIN) == {"status": 200}


def test_the_manager_under_another_name_or_another_ca_is_not_trusted(fleet: Fleet, other: FarHost) -> None:
    wrong = other.ask(NEAR, fleet.port, "other.example", f"{PKI}/ca.crt", ADMIN)
    assert "Hostname mismatch" in wrong["distrust"]
    assert "IP address mismatch" in other.ask(NEAR, fleet.port, "192.0.2.77", f"{PKI}/ca.crt", ADMIN)["distrust"]
    life = started(fleet)
    assert "distrust" in other.ask(NEAR, fleet.port, NEAR, anchor(life), ADMIN)


@pytest.mark.parametrize("address", [NEAR, NEAR_6])
def test_a_keep_s_certificate_as_the_only_trust_anchor_is_verified_by_address_and_name(
    fleet: Fleet, other: FarHost, address: str
) -> None:
    life = started(fleet, address)
    file = anchor(life)
    for name in (address, KEEP_NAME):
        assert other.ask(address, life.info.port, name, file, ADMIN) == {"status": 200}
    assert "ismatch" in other.ask(address, life.info.port, "two.keep.example", file, ADMIN)["distrust"]
    assert "distrust" in other.ask(address, life.info.port, address, f"{PKI}/ca.crt", ADMIN)


def test_another_keep_s_certificate_and_pin_are_refused_before_a_byte_is_sent(fleet: Fleet, other: FarHost) -> None:
    life, impostor = started(fleet), started(fleet)
    assert "distrust" in other.ask(NEAR, impostor.info.port, NEAR, anchor(life), ADMIN)
    done = other.run(
        "app-loader-tester", str(impostor.info.port), "--address", NEAR, "--fingerprint", life.info.fingerprint, MODULE,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "nothing was sent" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert impostor.look().detail == "awaiting workload"


def test_the_testers_walk_every_step_from_there_and_the_command_they_print_works(fleet: Fleet, other: FarHost) -> None:
    manager = f"{NEAR}:{fleet.port}"
    port = free_port()
    walked = other.run("keep-manager-tester", "--yes", "--manager", manager, "--address", NEAR, "--port", str(port))
    command = walked.stdout.strip().splitlines()[-1]
    assert command.startswith(f"app-loader-tester {port} --address {NEAR} --fingerprint sha256:")
    sent = other.shell(command.replace("FILE.wasm", MODULE))
    assert "Payload received" in sent.stdout
    (keep,) = fleet.client().keeps()
    life = Life(fleet, keep.kuuid)
    if life.info.state is State.STARTED:
        life.until(State.STARTED, State.COMPLETE)
    assert any("hello" in line.lower() for line in life.output())


def test_keepctl_works_from_there_by_address_and_says_who_asked(fleet: Fleet, other: FarHost) -> None:
    manager = ("--manager", f"{NEAR}:{fleet.port}")
    kuuid = other.run("keepctl", "new", *manager).stdout.strip()
    other.run("keepctl", "start", kuuid, *manager, "--address", NEAR, "--port", str(free_port()), "--name", KEEP_NAME)
    assert "received whole" in other.run("keepctl", "upload", kuuid, MODULE, "--wait", *manager).stdout
    idle = other.run("keepctl", "new", *manager).stdout.strip()
    other.run("keepctl", "start", idle, *manager, "--address", NEAR, "--port", str(free_port()))
    assert other.run("keepctl", "stop", idle, *manager).stdout == "stopped by admin\n"
    other.run("keepctl", "rm", kuuid, idle, *manager)
    assert fleet.left_over() == []


def test_a_program_is_run_from_there_with_no_word_of_an_address_also_next_to_a_keep_that_waits(
    fleet: Fleet, other: FarHost
) -> None:
    manager = ("--manager", f"{NEAR}:{fleet.port}")
    waiting = other.run("keepctl", "new", *manager).stdout.strip()
    assert f"address     {NEAR}:" in other.run("keepctl", "start", waiting, *manager).stdout
    assert "hello" in other.run("keepctl", "run", "--rm", MODULE, *manager).stdout.lower()
    on_every = other.run("keepctl", "run", "--rm", "--address", "0.0.0.0", MODULE, *manager)
    assert "hello" in on_every.stdout.lower()
    other.run("keepctl", "rm", waiting, *manager)
    assert fleet.left_over() == []


def test_a_keep_on_every_ipv6_address_is_reached_over_ipv6(fleet: Fleet, other: FarHost) -> None:
    local = ("--manager", f"127.0.0.1:{fleet.port}")
    assert "hello" in fleet.host.run(["keepctl", "run", "--rm", "--address", "::", MODULE, *local]).stdout.lower()
    refused = other.run(
        "keepctl", "run", "--rm", "--address", "::", MODULE, "--manager", f"{NEAR}:{fleet.port}", check=False
    )
    assert refused.returncode == 125
    assert f"which is IPv6 alone, and {NEAR} has no IPv6 address" in refused.stderr
    assert fleet.left_over() == []


@pytest.mark.rare
def test_a_follower_whose_network_falls_silent_is_given_up_with_its_reader(fleet: Fleet, other: FarHost) -> None:
    life = Life.awaiting(fleet)
    command = ["keepctl", "logs", "--follow", "--all", str(life.kuuid), "--manager", f"{NEAR}:{fleet.port}"]
    before = usage_of(fleet.host, life.loader_pid)
    with undisturbed(fleet), fleet.host.popen(other.command(*command)) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline()
        assert len(fleet.readers()) == 1
        with other.silenced():
            no_readers_left(fleet, GIVEN_UP_SECONDS)
        assert follower.poll() is None
    after = settled(fleet.host, life.loader_pid, before)
    assert after.descriptors <= before.descriptors, "the loader has let go of its end of the channel, too"


def test_without_a_certificate_nothing_is_answered_there_either(fleet: Fleet, other: FarHost) -> None:
    life = started(fleet)
    for port in (fleet.port, life.info.port):
        done = other.run("openssl", "s_client", "-connect", f"{NEAR}:{port}", "-quiet", "-verify_quiet", check=False)
        assert "HTTP" not in done.stdout
    assert life.look().detail == "awaiting workload"


def test_a_keep_on_the_host_s_own_loopback_cannot_be_reached_from_there(fleet: Fleet, other: FarHost) -> None:
    life = Life.awaiting(fleet)
    said = other.ask(NEAR, life.info.port, NEAR, anchor(life), ADMIN)
    assert said == {"failed": "Connection refused"}


def test_on_an_address_of_the_host_s_a_taken_port_is_an_error_and_not_moved(fleet: Fleet, other: FarHost) -> None:
    first, second = started(fleet), Life.create(fleet)
    with pytest.raises(KeepfleetError, match="Address already in use") as taken:
        fleet.client().start(second.kuuid, NEAR, first.info.port)
    assert taken.value.kind is ErrorKind.PORT_UNAVAILABLE
    assert second.look().state is State.LISTENING
    with pytest.raises(KeepfleetError, match="Cannot assign requested address"):
        fleet.client().start(second.kuuid, far.FAR, first.info.port)
    assert fleet.client().start(second.kuuid, NEAR, free_port()).state is State.STARTED
