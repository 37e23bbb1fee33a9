"""The verification of a file: parse, compare with a policy, say what bounds it. Pure, but for the engine's opinion."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.verify.binary import Buffer, Unreadable
from module_store.verify.bodies import Bodies, Budget, OverBudget, decode
from module_store.verify.bounds import ExportBound, elements_at_most, export_bounds, memory_bound, own_tables
from module_store.verify.component import parse
from module_store.verify.module import CoreModule
from module_store.verify.policy import KEEP, Policy
from module_store.verify.report import MAX_LISTED, Bounds, ExportReport, Finding, Report, Work
from module_store.verify.rules import (
    Parsed,
    check,
    decoded_rules,
    imported,
    instructions_rule,
    kind_of,
    modules_of,
    shown,
)

Opinion = Callable[[memoryview], str]
"""The engine's: why it does not take a core module, or ""."""
_SHOWN_DETAILS = 5
"""Of each rule that failed, with a refusal; the report has more."""
_COMPONENTS = "a component's exports are not core functions"


def _validity(parsed: Parsed, opinion: Opinion | None) -> Finding:
    if opinion is None:
        return Finding("valid", False, "not known: no engine was asked", "valid for the engine")
    modules = modules_of(parsed)
    faults = [shown(said) for module in modules if (said := opinion(module.contents))]
    if faults:
        return Finding(
            "valid", False, "the engine does not take it", "valid for the engine", None, None, tuple(faults[:3])
        )
    if isinstance(parsed, CoreModule):
        return Finding("valid", True, "the engine takes it", "valid for the engine")
    found = f"the engine takes its {len(modules)} core modules; what links them is checked when it is compiled"
    return Finding("valid", True, found, "valid for the engine")


def _decoded(parsed: Parsed, budget: Budget) -> tuple[Bodies | None, str]:
    try:
        return decode(modules_of(parsed), budget), ""
    except OverBudget as error:
        return None, str(error)
    except Unreadable as error:
        return None, error.message


def _imports(parsed: Parsed) -> tuple[tuple[str, str], ...]:
    found: dict[str, list[str]] = {}
    for interface, function in imported(parsed):
        if len(found) < MAX_LISTED or interface in found:
            found.setdefault(interface, []).append("(any)" if function is None else shown(function))
    return tuple((shown(interface), ", ".join(functions)[:4000]) for interface, functions in found.items())


def _exports(parsed: Parsed) -> tuple[str, ...]:
    names = [each.name for each in parsed.exports] if isinstance(parsed, CoreModule) else [n for n, _ in parsed.exports]
    return tuple(map(shown, names[:MAX_LISTED]))


def _bounds(parsed: Parsed, bodies: Bodies | None, exports: tuple[ExportBound, ...], reason: str) -> Bounds:
    memory = memory_bound(parsed, bodies)
    reports = tuple(
        ExportReport(shown(each.name), each.instructions, each.host_calls, each.none) for each in exports[:MAX_LISTED]
    )
    tables = None
    if isinstance(parsed, CoreModule):
        tables = sum(map(elements_at_most, own_tables(parsed)))
    return Bounds(memory.value, memory.none, tables, reports, reason)


def verify(
    data: Buffer,
    policy: Policy = KEEP,
    opinion: Opinion | None = None,
    budget: Budget = Budget(),  # noqa: B008  # a tuple of numbers
) -> Report:
    """The report on a file against a policy. Never raises for what is in the file.

    opinion: what the engine says of a core module. Without it a policy that asks for validity fails.
    """
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    try:
        parsed = parse(data)
    except Unreadable as error:
        finding = Finding("readable", False, error.message, "a WebAssembly module or component")
        return Report(policy.name, False, digest, len(data), None, (finding,))
    bodies, exhausted = _decoded(parsed, budget)
    bounds: tuple[ExportBound, ...] = ()
    reason = exhausted
    if isinstance(parsed, CoreModule) and bodies is not None:
        bounds = export_bounds(parsed, bodies.modules[0])
    elif not reason:
        reason = _COMPONENTS
    findings = [Finding("readable", True, kind_of(parsed).value, "")]
    if policy.valid:
        findings.append(_validity(parsed, opinion))
    findings += check(parsed, policy)
    findings += decoded_rules(policy, bodies, exhausted)
    findings += instructions_rule(policy, bounds, reason)
    done = (bodies.code_bytes, bodies.instructions) if bodies is not None else (0, 0)
    work = Work(done[0], budget.code_bytes, done[1], budget.instructions, exhausted)
    passed = all(finding.passed for finding in findings)
    return Report(
        policy.name,
        passed,
        digest,
        len(data),
        kind_of(parsed),
        tuple(findings),
        _imports(parsed),
        _exports(parsed),
        _bounds(parsed, bodies, bounds, reason),
        work,
    )


def refuse(report: Report) -> None:
    """Raises KeepfleetError(INVALID_MODULE) where a module did not pass, with each rule that failed as evidence."""
    if report.passed:
        return
    failed: Iterable[Finding] = report.failures
    lines: list[str] = []
    for each in failed:
        lines.append(f"{each.rule}: {each.found}{f'; allowed: {each.allowed}' if each.allowed else ''}")
        lines += [f"{each.rule}: {detail}" for detail in each.details[:_SHOWN_DETAILS]]
    rules = ", ".join(each.rule for each in report.failures)
    message = f"cannot take the module: it does not pass the policy {report.policy}: {rules}"
    raise KeepfleetError(ErrorKind.INVALID_MODULE, message, tuple(lines))
