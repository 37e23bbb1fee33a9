"""What verification found: records that a program reads as JSON, and lines that a person reads."""

from __future__ import annotations

from keep_protocol.fields import Flag, Items, Maybe, Nested, Pairs, Record, Text, Whole, Word, field
from module_store.verify.policy import Kind

MAX_DETAILS = 20
"""Offending imports, sections, exports of one finding: more are counted, not listed."""
MAX_LISTED = 1000
"""Imports and exports of a report; a module may have 100,000 of each."""
_MOST = (1 << 63) - 1
_NUMBER, _TEXT = Whole(0, _MOST), Text(4000)


class Finding(Record):
    """One rule and what it found."""

    rule: str = field(Text(40), about="the rule's name, a policy's member")
    passed: bool = field(Flag(), about="whether the module keeps to it")
    found: str = field(_TEXT, about="what the module has, in words")
    allowed: str = field(_TEXT, about="what the policy allows, in words")
    value: int | None = field(Maybe(_NUMBER), default=None, about="what it has, where that is a number")
    limit: int | None = field(Maybe(_NUMBER), default=None, about="the most that is allowed, where that is a number")
    details: tuple[str, ...] = field(Items(_TEXT, MAX_DETAILS + 1), default=(), about="what is not allowed, each")


class ExportReport(Record):
    """What one exported function runs at most, of a core module."""

    name: str = field(_TEXT, about="the export's name")
    instructions: int | None = field(Maybe(_NUMBER), about="instructions, at most; null where there is no bound")
    host_calls: int | None = field(Maybe(_NUMBER), about="calls of the host, at most")
    reason: str = field(_TEXT, default="", about="why there is no bound")


class Bounds(Record):
    """What holds whatever the module is given."""

    memory_bytes: int | None = field(Maybe(_NUMBER), default=None, about="all linear memories, at most")
    memory_reason: str = field(_TEXT, default="", about="why that is not known")
    table_elements: int | None = field(Maybe(_NUMBER), default=None, about="elements of all tables, at most")
    exports: tuple[ExportReport, ...] = field(
        Items(Nested(ExportReport, "bound"), MAX_LISTED), default=(), about="each exported function of a core module"
    )
    exports_reason: str = field(_TEXT, default="", about="why exports have no bounds")


class Work(Record):
    """What was decoded, and what might have been at most."""

    code_bytes: int = field(_NUMBER, default=0, about="bytes of code that were decoded")
    code_bytes_budget: int = field(_NUMBER, default=0, about="bytes of code that are decoded at most")
    instructions: int = field(_NUMBER, default=0, about="instructions that were decoded")
    instructions_budget: int = field(_NUMBER, default=0, about="instructions that are decoded at most")
    exhausted: str = field(_TEXT, default="", about="why bodies were not decoded, where they were not")


class Report(Record):
    """The verification of one file against one policy."""

    policy: str = field(_TEXT, about="the policy's name")
    passed: bool = field(Flag(), about="whether every rule passed")
    digest: str = field(Text(80, "sha256:[0-9a-f]{64}"), about="of the file that was verified")
    size: int = field(_NUMBER, about="its bytes")
    kind: Kind | None = field(Maybe(Word(Kind)), about="what it is; null where it could not be read")
    findings: tuple[Finding, ...] = field(Items(Nested(Finding, "finding"), 100), about="each rule, in order")
    imports: tuple[tuple[str, str], ...] = field(
        Pairs(_TEXT, _TEXT, MAX_LISTED), default=(), about="each interface, with what is used of it"
    )
    exports: tuple[str, ...] = field(Items(_TEXT, MAX_LISTED), default=(), about="what it offers, by name")
    bounds: Bounds = field(Nested(Bounds, "bounds"), default=Bounds(), about="what holds whatever it is given")
    work: Work = field(Nested(Work, "work"), default=Work(), about="what of its code was decoded for this")

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The rules that did not pass."""
        return tuple(finding for finding in self.findings if not finding.passed)

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        kind = self.kind.value if self.kind else "unreadable"
        lines = [f"{kind}, {self.size:,} bytes, {self.digest}", f"policy {self.policy}", ""]
        wide = max(len(finding.rule) for finding in self.findings)
        for finding in self.findings:
            mark = "ok  " if finding.passed else "FAIL"
            allowed = f"; allowed: {finding.allowed}" if finding.allowed else ""
            lines.append(f"{mark} {finding.rule:{wide}}  {finding.found}{allowed}")
            lines += [f"     {'':{wide}}    {detail}" for detail in finding.details]
        lines += ["", *self._bounds()]
        failed = len(self.failures)
        rules = "rule" if failed == 1 else "rules"
        lines += ["", "passed" if self.passed else f"refused: {failed} {rules} failed"]
        return lines

    def _bounds(self) -> list[str]:
        if self.kind is None:
            return []
        bounds, work, lines = self.bounds, self.work, []
        memory = f"at most {bounds.memory_bytes:,} bytes" if bounds.memory_bytes is not None else bounds.memory_reason
        lines.append(f"bound: memory: {memory}")
        if bounds.exports_reason:
            lines.append(f"bound: instructions: {bounds.exports_reason}")
        for export in bounds.exports[:MAX_DETAILS]:
            runs = export.reason
            if export.instructions is not None:
                calls = f", {export.host_calls:,} calls of the host" if export.host_calls else ""
                runs = f"at most {export.instructions:,} instructions{calls}"
            lines.append(f"bound: {export.name or '(no name)'}: {runs}")
        if len(bounds.exports) > MAX_DETAILS:
            lines.append(f"bound: … and {len(bounds.exports) - MAX_DETAILS:,} exports more")
        decoded = (
            f"{work.code_bytes:,} of at most {work.code_bytes_budget:,} bytes of code, "
            f"{work.instructions:,} of at most {work.instructions_budget:,} instructions"
        )
        return [*lines, f"decoded: {decoded}"]
