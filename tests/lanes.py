"""The order in which files are given to parallel workers: the longest first, as recorded here; then all others. And the
files that `./run test --fast` leaves out."""

from __future__ import annotations

LONGEST_FIRST = (
    "tests/rare/test_newer_hosts.py",
    "tests/system/test_typed_docs.py",
    "tests/system/test_manager_crashes.py",
    "tests/rare/test_installation.py",
    "tests/system/test_granted_directories.py",
    "tests/rare/test_clock_set.py",
    "tests/rare/test_sandbox.py",
    "tests/rare/test_benchmarks.py",
    "tests/rare/test_upgrade.py",
    "tests/system/test_examples_run.py",
    "tests/system/test_compilation.py",
    "tests/unit/root/test_root_trees.py",
    "tests/rare/test_holding.py",
    "tests/rare/test_real_programs.py",
    "tests/rare/test_faults_of_the_host.py",
    "tests/system/test_limits_end.py",
    "tests/unit/app_loader/test_app_loader_checker.py",
    "tests/unit/app_loader/test_app_loader_endpoint.py",
    "tests/system/test_manager_create.py",
    "tests/system/test_between_hosts.py",
    "tests/system/test_keepctl_on_a_host.py",
    "tests/system/test_injection.py",
    "tests/system/test_attacks.py",
    "tests/system/test_hostile_tls.py",
    "tests/system/test_loader_crashes.py",
    "tests/system/test_hostile_guests.py",
    "tests/system/test_roots.py",
    "tests/system/test_spares.py",
    "tests/system/test_workload_life.py",
    "tests/system/test_hostile_clients.py",
    "tests/system/test_granted_keeps.py",
    "tests/system/test_events.py",
    "tests/system/test_user_manager.py",
    "tests/system/test_user_grants.py",
    "tests/system/test_hostile_uploads.py",
    "tests/system/test_main_job.py",
    "tests/unit/protocol/test_certificate.py",
    "tests/unit/loader/test_restart.py",
    "tests/unit/loader/test_workload.py",
    "tests/rare/test_module_suites.py",
    "tests/system/test_hostile_modules.py",
)
"""Files that take more than some seconds, the longest first; what is new goes last until it is entered here.

By the clock, as `./run test --costs` prints them: who waits holds a worker, too."""

RARE = frozenset(
    f"tests/system/test_{name}.py"
    for name in (
        "attacks",
        "between_hosts",
        "compilation",
        "examples_run",
        "granted_directories",
        "granted_keeps",
        "hostile_clients",
        "hostile_guests",
        "hostile_tls",
        "hostile_uploads",
        "injection",
        "limits_end",
        "loader_crashes",
        "manager_crashes",
        "manager_create",
        "roots",
        "typed_docs",
        "user_grants",
        "user_manager",
    )
) | {"tests/unit/root/test_root_trees.py"}
"""What takes many seconds, and a fault of its own subject to break: a file kills a manager at each step, or ends each
limit, or tries each attack. Those of them that were measured cost 189 of the 210 processor seconds of the first 426
tests. `test_main_job.py` stays in `--fast`, and what asks systemd itself."""


def order(path: str) -> int:
    """The place of the file at `path`, which is relative to the checkout."""
    return LONGEST_FIRST.index(path) if path in LONGEST_FIRST else len(LONGEST_FIRST)
