"""Which package may import which: walks every import of the sources and fails on one that points the wrong way."""

from __future__ import annotations

import ast
import gc
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
LIGHT_PROTOCOL = {
    f"keep_protocol.{name}"
    for name in (
        "fields",
        "forking",
        "record",
        "ring",
        "spec",
        "outcome",
        "reports",
        "constants",
        "states",
        "errors",
        "enumeration",
        "sockets",
        "patterns",
        "strict_json",
        "control",
        "keep",
        "limits",
        "workload",
        "sdnotify",
    )
}
# Package (or sub-package) -> the prefixes of our own modules it may import. The longest prefix decides.
MAY_IMPORT: dict[str, set[str]] = {
    "keep_protocol": {"keep_protocol"},
    "keep_isolation": {"keep_isolation", "keep_protocol.errors"},
    "keep_loader": {"keep_loader", "keep_isolation", *LIGHT_PROTOCOL},
    "app_loader": {"app_loader", "keep_isolation", "keep_protocol"},
    "keep_root": {"keep_root", "keep_protocol"},
    "keep_grants": {
        "keep_grants",
        *(f"keep_protocol.{name}" for name in ("errors", "fields", "strict_json", "sdnotify")),
    },
    "module_pull": {"module_pull", "keep_protocol"},
    "module_store": {"module_store", "keep_protocol"},
    "codelets": {"codelets", "keep_protocol", "module_store", "strict_yaml"},
    "codelets.engine": {"codelets.engine", "keep_protocol"},
    "codelets.lcm": {
        "keep_protocol",
        *(f"codelets.{name}" for name in ("faults", "interface", "listening", "states")),
    },
    "codelets.verification": {"codelets", "keep_protocol", "module_store.verify"},
    "script_pool": {"script_pool", "keep_isolation", "keep_protocol"},
    "script_pool.engine": {"script_pool.engine", "keep_protocol"},
    "script_pool.client": {"script_pool.client", "script_pool.blocking", "script_pool.asking"},
    "script_pool.blocking": {"script_pool.blocking", "script_pool.asking"},
    "script_pool.asking": {"script_pool.asking"},
    "script_pool.keep": {
        "script_pool",
        "app_loader.receive",
        "app_loader.settings",
        "keep_isolation",
        "keep_protocol",
    },
    "script_pool.mcp": {"script_pool.client", "script_pool.fetching"},
    "script_pool.program.__main__": {"script_pool", "app_loader.check.programs", "app_loader.engine", "keep_protocol"},
    "script_pool.fetching": {"script_pool.fetching"},
    "keep_client": {"keep_client", "keep_protocol"},
    "keep_client.codelets": {"keep_client", "codelets.states", "keep_protocol"},
    "strict_yaml": {"strict_yaml", "keep_protocol"},
    "module_store.verify.process": {"module_store.verify", "keep_protocol", "app_loader.engine"},
    "module_store.verify.policy_file": {"module_store.verify", "keep_protocol", "strict_yaml"},
    "keepctl": {
        "keepctl",
        "keep_client",
        "keep_protocol",
        "keep_root",
        "module_pull",
        "module_store",
        "strict_yaml",
        "units",
    },
    "keepctl.program": {"keepctl", "keep_protocol", "script_pool.engine.interface", "script_pool.program.types"},
    "keepctl.commands.codelets": {"keepctl", "keep_client", "keep_protocol", "codelets.states"},
    "keepctl.commands.verify": {"keepctl", "keep_client", "keep_protocol", "module_store.verify", "app_loader.engine"},
    "testers": {"testers", "keep_client", "keep_protocol"},
    "units": set(),
    "benchmarks": {"benchmarks", "codelets", "keep_client", "keep_protocol", "module_store"},
    "benchmarks.bus": {"benchmarks", "keep_manager.systemd.connection", "keep_manager.systemd.message"},
    "benchmarks.languages": {"benchmarks", "script_pool.engine"},
    "tools": set(),
    "tools.sandbox": {"tools.sandbox"},
    "tools.demo": {"tools.demo", "keep_client", "keep_protocol"},
    "keep_manager": {
        "keep_manager",
        "keep_grants.protocol",
        "keep_protocol",
        "keep_root",
        "module_pull",
        "module_store",
        "strict_yaml",
    },
    "keep_manager.compilation": {
        "keep_manager.compilation",
        "keep_manager.failpoints",
        "keep_manager.tasks",
        "keep_protocol",
        "module_store",
    },
    "keep_manager.codelet_connection": {  # of codelets what speaks to an application, and nothing that runs one
        "keep_protocol",
        *(f"codelets.{name}" for name in ("faults", "lcm")),
    },
    "keep_manager.codelets": {  # likewise
        "keep_manager.codelet_connection",
        "keep_protocol",
        "strict_yaml",
        *(f"codelets.{name}" for name in ("descriptor", "lcm", "states")),
    },
    "keep_manager.modules": {"keep_manager.model", "keep_protocol", "module_store"},
    "keep_manager.http": {
        "codelets.states",
        "keep_manager.http",
        "keep_manager.authorize",
        "keep_manager.callers",
        "keep_manager.tasks",
        "keep_manager.keeps",
        "keep_manager.model",
        "keep_protocol",
    },
    "keep_manager.keeps": {
        "keep_manager.keeps",
        "keep_manager.callers",
        "keep_manager.model",
        "keep_manager.tasks",
        "keep_manager.failpoints",
        "keep_protocol",
    },
    "keep_manager.systemd": {
        "keep_manager.systemd",
        "keep_manager.model",
        "keep_manager.tasks",
        "keep_manager.failpoints",
        "keep_protocol",
        "keep_root",
    },
    "keep_manager.tasks": {"keep_manager.model"},
    "keep_manager.declared": {
        "keep_manager.declared",
        "keep_manager.failpoints",
        "keep_manager.keeps",
        "keep_manager.model",
        "keep_manager.tasks",
        "keep_protocol",
        "keepctl.job",  # what a manifest says, which the manager reads as its client does
        "keepctl.manifest",
        "module_store",
        "strict_yaml",
    },
    "keep_manager.authorize": {"keep_manager.authorize", "keep_manager.callers", "keep_manager.model", "keep_protocol"},
    "keep_manager.callers": {"keep_protocol"},
    "keep_manager.model": {"keep_manager.model", "keep_manager.callers", "keep_protocol"},
    "keep_manager.providers": {
        "keep_manager.providers",
        "keep_manager.callers",
        "keep_manager.model",
        "keep_grants.protocol",
        "keep_grants.resolve",
        "keep_protocol",
    },
    "keep_manager.timer_signals": {"keep_protocol"},
    "keep_manager.folders": {"keep_manager.model", "keep_protocol"},
    "keep_manager.pki": {"keep_manager.pki", "keep_manager.model", "keep_protocol"},
    "keep_manager.loader_client": {"keep_manager.loader_client", "keep_manager.model", "keep_protocol"},
}
# Third-party module -> the only modules of ours that may import it.
ONLY_IN: dict[str, set[str]] = {
    "dbus_next": set(),  # tests hold our own messages against it
    # A keep loads wasmtime's library alone, see app_loader.engine.binding.
    "wasmtime": {
        "benchmarks.codelets",
        "benchmarks.waiting",
        "benchmarks.flood",
        "script_pool.engine",
        "script_pool.program.command",
        "codelets.engine",
    },
    "cryptography": {"keepctl", "module_store.signatures", "module_store.signing"},
    "aiohttp": {"keep_manager", "codelets.proxy"},
    "click": {"keepctl", "testers", "codelets.__main__", "codelets.lcm_cli", "codelets.proxy_command"},
    "yaml": {"keep_manager.config", "strict_yaml", "keepctl"},
    "rich": {"keepctl"},
    "mcp": {"script_pool.mcp"},
}
STANDARD_LIBRARY_ALONE = (
    "keep_protocol",
    "keep_isolation",
    "keep_loader",
    "keep_root",
    "keep_grants",
    "module_pull",
    "module_store",
    "keep_client",
    "units",
    "tools",
)


def sources() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parsed(path: Path) -> ast.Module:
    """The file's tree. CPython before 3.11.5 cannot make one while a collection makes another (its issue 106905)."""
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it points"
            module = node.module or ""
            yield node.lineno, module
            if module in OURS or (ROOT / Path(*module.split("."))).is_dir():
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def within(module: str, prefixes: set[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def rule_for(module: str) -> set[str]:
    matching = [prefix for prefix in MAY_IMPORT if within(module, {prefix})]
    assert matching, f"{module} belongs to no package of the map; draw it in MAY_IMPORT"
    return MAY_IMPORT[max(matching, key=len)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    allowed = rule_for(module)
    for line, imported in imports_of(path):
        top = imported.partition(".")[0]
        if top in OURS:
            # `from keep_protocol import states` names the package too; that much is no import of anything in it.
            assert imported in OURS or within(imported, allowed), f"{path}:{line}: {module} must not import {imported}"
        elif top not in sys.stdlib_module_names:
            assert top not in ONLY_IN or within(module, ONLY_IN[top]), (
                f"{path}:{line}: {module} must not import {imported}"
            )


@pytest.mark.parametrize("package", STANDARD_LIBRARY_ALONE)
def test_what_must_stay_lean_imports_the_standard_library_alone(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for line, imported in imports_of(path):
            top = imported.partition(".")[0]
            late = module_name(path) in ONLY_IN.get(top, ())  # named there on its own, and imported where it is used
            assert late or top in OURS or top in sys.stdlib_module_names, (
                f"{path}:{line}: {package} must not import {imported}"
            )


def test_every_package_is_drawn_in_the_map() -> None:
    assert {prefix.partition(".")[0] for prefix in MAY_IMPORT} >= OURS


@pytest.mark.parametrize("package", sorted(OURS - {"codelets"}))  # an embedding API: its names are imported when used
def test_importing_a_package_by_name_brings_in_nothing(package: str) -> None:
    assert not list(imports_of(ROOT / package / "__init__.py"))


def test_the_wheel_holds_every_package_but_what_only_a_checkout_uses() -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    assert OURS - set(hatch["build"]["targets"]["wheel"]["packages"]) == {"tools", "benchmarks"}


def test_each_test_file_outside_a_package_has_a_name_of_its_own() -> None:
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in files]
    assert sorted({name for name in names if names.count(name) > 1}) == [], "pytest imports them by name"
