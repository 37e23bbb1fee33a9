"""Five hundred declared keeps, a thousand objects in the store, and a host that is powered off and booted again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.fleet import MANAGER
from tests.system.test_declared_keeps import booted, keepctl
from tests.system.test_typed_docs import ROOT

COUNT, OBJECTS = 500, 1000
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
        python = fleet.host.run(["sh", "-c", "readlink -f /opt/keepfleet/current/bin/python"]).stdout.strip()
        fleet.host.run([python, str(fleet.host.path / "add.py"), str(fleet.host.path / "module.wasm")])
        assert keepctl(fleet.host, "apply", "--wait", "-f", str(manifests)).count("; running\n") == COUNT
        before = {each["name"]: each["kuuid"] for each in json.loads(keepctl(fleet.host, "get", "-o", "json"))}
        fleet.restart()
        keepctl(fleet.host, "apply", "--wait", "-f", str(manifests))
        assert {each["name"]: each["kuuid"] for each in json.loads(keepctl(fleet.host, "get", "-o", "json"))} == before
    with booted(directory, prefix) as fleet:
        fleet.host.systemctl("start", "multi-user.target")
        fleet.host.systemctl("start", MANAGER)
        keepctl(fleet.host, "apply", "--wait", "-f", str(fleet.host.path / "many"))
        after = json.loads(keepctl(fleet.host, "get", "-o", "json"))
        assert [each["state"] for each in after] == ["running"] * COUNT
        assert not {each["kuuid"] for each in after} & set(before.values())
        assert len(fleet.keep_units()) == COUNT
