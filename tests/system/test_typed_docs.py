"""Every command that the README, the tutorial, the how-tos and the examples have a newcomer type is typed here, on a
real host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fakes.certificates import ForeignAuthority
from tests.system.fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]
GRANTED = "/run/typed"
"""What stands for /srv/keepfleet, which the examples are given files from; unlike /srv it is the sandbox's own."""
COMMAND_SECONDS = 300
"""`./run demo` builds a wheel and its environment where there is none yet."""
SYNCED = 'journalctl() { command journalctl --sync; command journalctl "$@"; }'
"""A person types the next line later; here journald may not have written what has just happened."""
# Everything a checkout's script runs gets a loopback of its own, so that the ports of the docs are free.
OWN_LOOPBACK = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed(script: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [*OWN_LOOPBACK, "bash", "-euxo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.usefixtures("prefix")
@pytest.mark.rare
def test_the_readmes_playground_does_what_it_says() -> None:
    lines = [line for block in blocks("README.md", "") for line in block.splitlines()]
    playground = [line for line in lines if re.match(r"\./run (up|exec|down)", line)]
    assert playground[0] == "./run up" and playground[-1] == "./run down"
    name = f"readme-{os.getpid()}"
    output = typed(f"trap './run down' EXIT\n{chr(10).join(playground)}", {"KEEPFLEET_PLAYGROUND": name})
    assert "All answers were as they should be" in output
    for text in (
        "awaiting workload",
        "\n97\n",
        "returned: [21]",
        "spinning until stopped",
        "started: running the workload",
        "stopped by admin",
        "spinner stopped by admin\n",
        "exit code 124",
        "exit code 134",
        "0: read_past_the_end at",
        "exit code 126",
    ):
        assert text in output, f"the README promises {text!r}; it printed:\n{output}"
    typed_here = {*playground, "./run demo", "./run test"}
    assert [line for line in lines if line not in typed_here] == [], "a command that no test types"


@pytest.mark.usefixtures("prefix")
def test_the_readmes_demo_ends_with_every_step_checked() -> None:
    assert "./run demo" in "".join(blocks("README.md", ""))
    output = typed("./run demo", {})
    assert "Hello from C, inside a keep!" in output
    assert output.rstrip().endswith("Every step was checked.")


def test_the_demo_fails_and_names_the_step_for_a_file_that_is_no_module() -> None:
    done = subprocess.run(
        [*OWN_LOOPBACK, "./run", "demo", "README.md"], cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 1
    assert "FAILED at: step 6" in done.stderr
    assert "cannot take the module" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def typed_inside(fleet: Fleet, commands: list[str]) -> str:
    """What the commands print, typed one after another into one shell on the host."""
    checkout = fleet.host.path / "checkout"  # the host need not see the real one: it may lie below /tmp
    unseen = shutil.ignore_patterns("node_modules", "build")
    shutil.copytree(ROOT / "examples", checkout / "examples", ignore=unseen, dirs_exist_ok=True)
    script = "\n".join(commands).replace("/srv/keepfleet", GRANTED)
    for manifest in checkout.glob("examples/*/*.yaml"):
        manifest.write_text(manifest.read_text().replace("/srv/keepfleet", GRANTED))
    done = fleet.host.run(
        ["bash", "-euxo", "pipefail", "-c", f"cd {checkout}\n{SYNCED}\n{script}"],
        env={"KEEPFLEET_MANAGER": f"127.0.0.1:{fleet.port}"},
        check=False,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return f"{done.stdout}\n{done.stderr}"


def test_the_tutorial_can_be_typed_from_its_first_to_its_last_line(fleet: Fleet) -> None:
    commands = [line for block in blocks("docs/tutorial.md", "sh") for line in block.splitlines()]
    inside = [line for line in commands if not line.startswith("./run ") and line != "exit"]
    assert len(commands) - len(inside) == 4, "only ./run up, ./run exec, exit and ./run down stand outside the host"
    output = typed_inside(fleet, inside)
    for text in (
        "listening: ready for a start",
        "Hello from C, inside a keep!",
        "returned: [1]",
        "refused, exit code 1",
        "trapped, exit code 134",
        "out of bounds memory access",
        "All answers were as they should be",
    ):
        assert text in output, f"the tutorial promises {text!r}; it printed:\n{output}"


@pytest.mark.parametrize(
    ("page", "promised"),
    [
        (
            "limits",
            ("over its time limit of 1 s", "exit code 124", "exit code 12", "the ceiling for admin", "exit code 125"),
        ),
        ("events", ("created", " running ", " ended ", " removed ", "(by admin)", "ended: exited 0\n", " exited 0\n")),
        ("restart", ("exited 3", "gave it up after starting it again 4 times", "restarts     4")),
        (
            "modules",
            (
                "hello:1.0  sha256:7ea50a6d9bc9  39.5 KiB",
                "by admin from sha256:7ea50a6d9bc9",
                "removed: 1, ",
                "-: objects: 1, references: 1, attachments: 0; 39.5 KiB",
                "/var/lib/keepfleet/store: all is well",
            ),
        ),
        ("logs", ("1000000\n", "\n97\n", '"source":"stdout"', "running -> ended (finish): exited 0")),
        (
            "outcomes",
            (
                *("exit code 134", "0: read_past_the_end at", "failed: trapped: out of bounds", "exit code 126"),
                *("\nfailed\n", "failed with status 134"),
            ),
        ),
        (
            "rest-api",
            (
                "3.1.0",
                '"size":13577',
                "event: end",
                " bytes of stdout, 0 of stderr",
                '"text": "exited 0"',
                '"kind":"not-found"',
                "exit code 22",
            ),
        ),
    ],
)
def test_a_how_to_can_be_typed_from_its_first_to_its_last_line(
    fleet: Fleet, page: str, promised: tuple[str, ...]
) -> None:
    output = typed_inside(fleet, blocks(f"docs/how-to/{page}.md", "sh"))
    for text in promised:
        assert text in output, f"{page}.md promises {text!r}; it printed:\n{output}"
    assert fleet.client().keeps() == (), "and it tidies up"


@pytest.mark.rare
def test_the_page_on_certificates_can_be_typed_and_another_ca_s_client_then_runs_a_workload(fleet: Fleet) -> None:
    checkout, pki = fleet.host.path / "checkout", "/etc/keepfleet/pki"
    checkout.mkdir(exist_ok=True)
    company = ForeignAuthority("company", "rsa")
    (checkout / "company-ca.crt").write_text(company.pem)
    carol = ForeignAuthority("department", "ed25519", above=company).issue("carol", "rsa")
    (checkout / "carol.pem").write_bytes(carol.pem)
    then = [
        "chmod 600 carol.pem",
        "keepctl run --rm --cert carol.pem --key carol.pem examples/hello-c/hello.wasm",
        "keepctl pki check",
    ]
    fleet.host.run(["mv", pki, f"{pki}.before"])  # which other tests' clients are in
    try:
        fleet.host.run(["keepctl", "init"])
        fleet.restart()
        output = typed_inside(fleet, [*blocks("docs/how-to/certificates.md", "sh"), *then])
    finally:
        fleet.host.run(["rm", "-rf", pki])
        fleet.host.run(["mv", f"{pki}.before", pki])
        fleet.restart()
    for promised in (
        "spiffe://keepfleet/user/alice",
        "spiffe://keepfleet/uploader/ci/keep/",
        "spiffe://keepfleet/user/bob",
        f"{pki}: all is well",
        "trusted     keepfleet CA",
        "Hello from C, inside a keep!",
    ):
        assert promised in output, f"certificates.md promises {promised!r}; it printed:\n{output}"
    assert fleet.client().keeps() == (), "and it tidies up"


def test_the_examples_that_are_given_files_can_be_run_as_their_readme_says(fleet: Fleet) -> None:
    try:
        output = typed_inside(fleet, blocks("examples/README.md", "sh"))
    finally:
        fleet.host.run(["rm", "-rf", GRANTED, "/etc/systemd/system/keep-manager.service.d/50-examples.conf"])
        fleet.host.systemctl("daemon-reload")
        fleet.configure()
        fleet.restart()
    for text in ("\n19\n", "1 ONE\n2 TWO\n", "3 lines read, 1 left out", "3 the\n2 and\n"):
        assert text in output, f"the examples' README promises {text!r}; it printed:\n{output}"
