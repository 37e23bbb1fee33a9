"""The order in which files are given to parallel workers: the longest first, as recorded here; then all others. And the
files that `./run test --fast` leaves out."""

from __future__ import annotations

LONGEST_FIRST = (
    "tests/rare/test_newer_hosts.py",
    "tests/rare/test_installation.py",
    "tests/rare/test_benchmarks.py",
    "tests/rare/test_output_at_its_limits.py",
    "tests/system/test_declared_jobs.py",
    "tests/system/test_volumes.py",
    "tests/system/test_manager_crashes.py",
    "tests/system/test_declared_keeps.py",
    "tests/rare/test_upgrade.py",
    "tests/system/test_output_holds.py",
    "tests/system/test_typed_docs.py",
    "tests/rare/test_agent_frameworks.py",
    "tests/rare/test_real_registry.py",
    "tests/rare/test_clock_set.py",
    "tests/system/test_compiled_once.py",
    "tests/rare/test_real_programs.py",
    "tests/system/test_granted_directories.py",
    "tests/rare/test_holding.py",
    "tests/rare/test_faults_of_the_host.py",
    "tests/system/test_pulls.py",
    "tests/unit/manager/test_manager_openapi.py",
    "tests/system/test_spares.py",
    "tests/system/test_script_pools.py",
    "tests/system/test_user_manager.py",
    "tests/unit/root/test_root_trees.py",
    "tests/system/test_compilation.py",
    "tests/system/test_examples_run.py",
    "tests/unit/store/test_store_crashes.py",
    "tests/rare/test_playground.py",
    "tests/rare/test_sandbox.py",
    "tests/system/test_stored_keeps.py",
    "tests/system/test_store_over_the_api.py",
    "tests/system/test_exact_streams.py",
    "tests/system/test_script_programs.py",
    "tests/system/test_hostile_guests.py",
    "tests/system/test_roots.py",
    "tests/system/test_manager_create.py",
    "tests/system/test_injection.py",
    "tests/system/test_loader_crashes.py",
    "tests/unit/script_pool/test_script_mcp.py",
    "tests/unit/app_loader/test_app_loader_checker.py",
    "tests/unit/codelets/test_codelet_runtime.py",
    "tests/system/test_clients_of_2020.py",
    "tests/unit/script_pool/test_host_functions.py",
    "tests/unit/module_store/test_verify_parser.py",
    "tests/system/test_output.py",
    "tests/system/test_hostile_tls.py",
    "tests/unit/app_loader/test_app_loader_endpoint.py",
    "tests/unit/loader/test_output.py",
    "tests/system/test_hostile_modules.py",
    "tests/system/test_between_hosts.py",
    "tests/unit/manager/test_manager_acceptor.py",
    "tests/unit/manager/test_manager_pulls.py",
    "tests/system/test_limits_end.py",
    "tests/system/test_keepctl_on_a_host.py",
    "tests/system/test_bus.py",
    "tests/system/test_hostile_clients.py",
    "tests/system/test_attacks.py",
    "tests/unit/script_pool/test_scripts_mixed.py",
    "tests/unit/manager/test_manager_compilation.py",
    "tests/unit/script_pool/test_quickjs.py",
    "tests/unit/script_pool/test_script_sessions.py",
    "tests/unit/script_pool/test_script_command.py",
    "tests/unit/store/test_keys_crashes.py",
    "tests/unit/store/test_large_modules.py",
    "tests/system/test_codelets_on_a_host.py",
    "tests/rare/test_module_suites.py",
    "tests/test_boundaries.py",
    "tests/system/test_workload_life.py",
    "tests/system/test_granted_keeps.py",
    "tests/system/test_events.py",
    "tests/system/test_main_job.py",
    "tests/system/test_user_grants.py",
    "tests/system/test_hostile_uploads.py",
    "tests/unit/loader/test_workload.py",
    "tests/unit/loader/test_restart.py",
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
