"""Five hundred declared keeps, a thousand objects in the store, and a host that is powered off and booted again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.system.fixtures import INSTALLED
from tests.system.fleet import MANAGER, Fleet
from tests.system.test_declared_keeps import booted, declared, keepctl
from tests.system.test_typed_docs import ROOT

COUNT, OBJECTS = 500, 1000
SECONDS = 1500
"""For one command about all of them: they come at one to two a second, and the host may be busy."""
MANIFEST = "module: many:1\nrestart: always\nready_seconds: 0\nlimits: {memory: 16M}\n"
ADD = f"""
import io, sys
from module_store.store import Store
module = open(sys.argv[1], "rb").read()
with Store.create("/var/lib/keepfleet/store") as store:
    store.add(io.BytesIO(module), reference="many:1")
    for number in range({OBJECTS} - 1):
        store.add(io.BytesIO(module + b"\\0\\5\\4" + number.to_bytes(4, "big")), reference=f"other-{{number}}:1")
"""


def applied(fleet: Fleet) -> str:
    """What `keepctl apply --wait` says of all of them."""
    command = ["keepctl", "apply", "--wait", "-f", str(fleet.host.path / "many")]
    return fleet.host.run(command, timeout=SECONDS).stdout


def kuuids(fleet: Fleet) -> dict[str, int]:
    """The keep of each that runs."""
    found = json.loads(keepctl(fleet, "get", "-o", "json"))
    return {each["name"]: each["kuuid"] for each in found if each["state"] == "running"}


def processor_seconds(fleet: Fleet, pid: int) -> float:
    """What a process has used, in hundredths of a second as the kernel counts."""
    fields = fleet.host.run(["cat", f"/proc/{pid}/stat"]).stdout.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.heavy
def test_all_of_them_are_there_again_after_a_boot(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("many")
    directory.chmod(0o755)
    with booted(directory, prefix) as fleet:
        fleet.install()
        fleet.host.systemctl("enable", MANAGER)
        manifests = fleet.host.path / "many"
        manifests.mkdir()
        for number in range(COUNT):
            (manifests / f"many-{number}.yaml").write_text(MANIFEST)
        (fleet.host.path / "module.wasm").write_bytes((ROOT / "examples/sleep-wat/sleep.wasm").read_bytes())
        (fleet.host.path / "add.py").write_text(ADD)
        add = [f"{INSTALLED}/bin/python", "-P", str(fleet.host.path / "add.py"), str(fleet.host.path / "module.wasm")]
        fleet.host.run(add, timeout=SECONDS)
        assert applied(fleet).count("; running\n") == COUNT
        before = kuuids(fleet)
        assert len(before) == COUNT
        fleet.restart()
        assert applied(fleet).count("unchanged, version 1; running\n") == COUNT
        assert kuuids(fleet) == before
    with booted(directory, prefix) as fleet:
        first, began = processor_seconds(fleet, 1), time.monotonic()
        fleet.host.systemctl("start", "multi-user.target")
        fleet.host.systemctl("start", MANAGER)
        ready = time.monotonic() - began
        assert applied(fleet).count("unchanged, version 1; running\n") == COUNT
        took = time.monotonic() - began
        print(  # what the boot cost, for a reader of the log; the host may be busy
            f"{COUNT} declared keeps after a boot: manager ready in {ready:.1f} s, all running in {took:.0f} s; "
            f"processor time a keep: PID 1 {1000 * (processor_seconds(fleet, 1) - first) / COUNT:.1f} ms, "
            f"manager {1000 * processor_seconds(fleet, fleet.manager_pid) / COUNT:.1f} ms"
        )
        after = kuuids(fleet)
        assert after.keys() == before.keys()
        assert not set(after.values()) & set(before.values())
        assert len(fleet.keep_units()) == COUNT
        assert declared(fleet, "many-0")["version"] == 1
