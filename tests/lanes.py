"""The order in which files are given to parallel workers: the longest first, as recorded here; then all others."""

from __future__ import annotations

LONGEST_FIRST = (
    "tests/rare/test_real_programs.py",
    "tests/rare/test_newer_hosts.py",
    "tests/rare/test_installation.py",
    "tests/system/test_examples_run.py",
    "tests/rare/test_benchmarks.py",
    "tests/rare/test_module_suites.py",
    "tests/rare/test_clock_set.py",
    "tests/rare/test_faults_of_the_host.py",
    "tests/system/test_typed_docs.py",
    "tests/rare/test_upgrade.py",
    "tests/rare/test_holding.py",
    "tests/rare/test_sandbox.py",
    "tests/system/test_manager_crashes.py",
    "tests/system/test_compilation.py",
    "tests/system/test_between_hosts.py",
    "tests/system/test_keepctl_on_a_host.py",
    "tests/system/test_limits_end.py",
    "tests/system/test_hostile_modules.py",
    "tests/system/test_injection.py",
    "tests/system/test_granted_directories.py",
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
    "tests/system/test_manager_create.py",
    "tests/unit/root/test_root_trees.py",
    "tests/unit/app_loader/test_app_loader_checker.py",
    "tests/unit/protocol/test_certificate.py",
    "tests/unit/app_loader/test_app_loader_endpoint.py",
    "tests/unit/loader/test_restart.py",
    "tests/unit/loader/test_workload.py",
)
"""Files that take more than some seconds, the longest first; what is new goes last until it is entered here.

The seconds of each test: `./run test tests --durations=60`."""


def order(path: str) -> int:
    """The place of the file at `path`, which is relative to the checkout."""
    return LONGEST_FIRST.index(path) if path in LONGEST_FIRST else len(LONGEST_FIRST)
