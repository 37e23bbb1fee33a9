"""A keep as others see it: what its loader reports of its process, and what clients see of both that and its spec.

Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

from keep_protocol.constants import KUUID_BITS, LAST_KEEP_PORT
from keep_protocol.fields import Flag, Items, Maybe, Nested, Record, Seconds, Text, Whole, Word, field, parse
from keep_protocol.limits import DEFAULT_LIMITS, Limits
from keep_protocol.outcome import Outcome, OutcomeKind
from keep_protocol.spec import (
    COMPILER_ABOUT,
    FINGERPRINT,
    LABELS,
    MAX_UPLOADERS,
    NAME,
    OUTPUT_ABOUT,
    PROFILE_ABOUT,
    UPLOADER,
    Compiler,
    KeepSpec,
    Kind,
    Labels,
    Lease,
    OutputPolicy,
    Profile,
    RestartPolicy,
)
from keep_protocol.states import Phase, State

__all__ = ["KeepInfo", "KeepReport", "Module", "Outcome", "OutcomeKind", "Uploader", "WorkloadSummary", "merge"]
MAX_SHOWN_ARGUMENTS = 4096
"""Characters of a workload's arguments that are shown; the rest is cut off."""


class _PhaseWord(Text):
    """A phase's word, or empty."""

    words = ("", *(phase.value for phase in Phase))

    def __init__(self) -> None:
        super().__init__(32, must=f"empty or one of {', '.join(self.words[1:])}")

    def parse(self, value: object) -> str:
        text = super().parse(value)
        if text not in self.words:
            raise ValueError
        return text


class Module(Record):
    """The module a keep runs. name: what its sender called it, or empty."""

    digest: str = field(FINGERPRINT, about="`sha256:` and 64 hexadecimal digits of its bytes")
    name: str = field(Text(255), default="", about="what its sender called it, or by what it was found; or empty")
    bytes: int = field(Whole(0, 1 << 53), default=0, about="its size")


class Uploader(Record):
    """Who sent a keep's workload: the caller's name, the certificate's serial number in hexadecimal, and its
    fingerprint."""

    fingerprint: str = field(FINGERPRINT, about="the certificate's fingerprint")
    name: str = field(Text(128), default="", about="the caller's name")
    serial: str = field(Text(64), default="", about="the certificate's serial number in hexadecimal")


class ShownDirectory(Record):
    """A granted directory as it is shown."""

    guest: str = field(Text(255), about="the guest's path")
    writable: bool = field(Flag(), default=False, about="whether the guest may write there")


class WorkloadSummary(Record):
    """What a workload was given, as it is shown; no value of its environment, and no path of the host."""

    arguments: tuple[str, ...] = field(Items(Text(), 65536), default=(), about="argv after the program's name, cut")
    export: str = field(Text(256), default="", about="the function that is called; empty for the module's own entry")
    directories: tuple[ShownDirectory, ...] = field(
        Items(Nested(ShownDirectory, "directory"), 64), default=(), about="granted directories"
    )
    secrets: tuple[str, ...] = field(Items(Text(255), 64), default=(), about="the names of its secrets")
    stdin: bool = field(Flag(), default=False, about="whether it has a standard input")


_KUUID = Whole(0, (1 << KUUID_BITS) - 1)
_PORT = Whole(0, LAST_KEEP_PORT)
_ISOLATION = "what the isolation check inside the keep found missing; empty when all holds"
_NOTES = "what this kernel lacks of a keep's isolation, and what stands in for it; workloads are taken all the same"
_RESTARTS = Whole(0, 1 << 53)


class KeepReport(Record):
    """What a loader says of its process: nothing in it decides about rights, names or limits."""

    state: State = field(Word(State), about=", ".join(f"{int(state)} {state.name.lower()}" for state in State))
    kuuid: int = field(_KUUID, about="the keep's ID")
    port: int = field(_PORT, default=0, name="app_loader_bind_port", about="where its upload endpoint listens; or 0")
    address: str = field(Text(64), default="", name="bindaddress", about="where its upload endpoint listens; or empty")
    phase: str = field(_PhaseWord(), default="", about="the phase it is in")
    detail: str = field(Text(), default="", about="a sentence for people")
    fingerprint: str = field(Text(80), default="", about="of its certificate; empty before it is started")
    certificate: str = field(Text(), default="", about="that certificate, PEM")
    isolation_failures: tuple[str, ...] = field(Items(Text(), 1000), default=(), about=_ISOLATION)
    isolation_notes: tuple[str, ...] = field(Items(Text(), 1000), default=(), about=_NOTES)
    outcome: Outcome | None = field(
        Maybe(Nested(Outcome, "outcome")), default=None, about="how its workload ended, or null before that"
    )
    restart: RestartPolicy = field(Word(RestartPolicy), default=RestartPolicy.NO, about="the restart policy in force")
    restarts: int = field(_RESTARTS, default=0, about="how often its workload was started again")
    module: Module | None = field(Maybe(Nested(Module, "module")), default=None, about="the module it runs, or null")
    workload: WorkloadSummary | None = field(
        Maybe(Nested(WorkloadSummary, "workload")), default=None, about="what its workload was given, or null"
    )
    uploaded_by: Uploader | None = field(
        Maybe(Nested(Uploader, "uploader")), default=None, about="who sent its workload, or null"
    )
    uploaders: tuple[str, ...] = field(
        Items(UPLOADER, MAX_UPLOADERS), default=(), about="who may send its workload: names and fingerprints"
    )
    control_version: int = field(Whole(1, 1000), default=1, about="the control protocol it speaks")
    journal_gone: bool = field(
        Flag(), default=False, about="whether journald does not read any more what the loader was given for it"
    )
    begun: bool = field(Flag(), default=False, about="whether its guest runs: nothing is compiled for it any more")
    unfit: bool = field(
        Flag(), default=False, about="whether its engine did not take the compiled code that came with its start"
    )


class KeepInfo(Record):
    """One keep as clients see it. The wire has the original's member names, and further ones of ours."""

    kuuid: int = field(_KUUID, about="the keep's ID")
    state: State = field(Word(State), about=", ".join(f"{int(state)} {state.name.lower()}" for state in State))
    detail: str = field(Text(), default="", about="a sentence for people")
    address: str = field(
        Text(64), default="", name="bindaddress", about="where its upload endpoint is; empty before it is started"
    )
    port: int = field(
        _PORT, default=0, name="app_loader_bind_port", about="the port of its upload endpoint; 0 before it is started"
    )
    fingerprint: str = field(
        Text(80),
        default="",
        about="`sha256:` and 64 hexadecimal digits of its certificate; empty before it is started",
    )
    certificate: str = field(Text(), default="", about="that certificate, PEM")
    unit: str = field(Text(64), default="", about="its systemd unit")
    isolation_failures: tuple[str, ...] = field(Items(Text(), 1000), default=(), about=_ISOLATION)
    isolation_notes: tuple[str, ...] = field(Items(Text(), 1000), default=(), about=_NOTES)
    outcome: Outcome | None = field(
        Maybe(Nested(Outcome, "outcome")), default=None, about="how its workload ended, or null before that"
    )
    name: str = field(NAME, default="", about="what its creator called it")
    labels: Labels = field(LABELS, default=(), about="what it can be found by")
    owner: str = field(Text(128), default="", about="whose it is: the name of the caller who created it")
    limits: Limits = field(Nested(Limits, "limits"), default=DEFAULT_LIMITS, about="what it may use")
    restarts: int = field(_RESTARTS, default=0, about="how often its workload was started again")
    phase: str = field(_PhaseWord(), default="", about="where exactly it is; empty where its loader does not answer")
    kind: Kind = field(Word(Kind), default=Kind.UPLOAD, about="what it is made for")
    created_at: float | None = field(Maybe(Seconds()), default=None, about="seconds of the epoch, or null")
    restart: RestartPolicy = field(Word(RestartPolicy), default=RestartPolicy.NO, about="when its workload runs again")
    lease: Lease = field(Nested(Lease, "lease"), default=Lease(), about="how long it may stay unused")
    profile: Profile = field(Word(Profile), default=Profile.STANDARD, about=PROFILE_ABOUT)
    compiler: Compiler = field(Word(Compiler), default=Compiler.OPTIMIZING, about=COMPILER_ABOUT)
    output: OutputPolicy = field(Word(OutputPolicy), default=OutputPolicy.BLOCK, about=OUTPUT_ABOUT)
    module: Module | None = field(Maybe(Nested(Module, "module")), default=None, about="the module it runs, or null")
    workload: WorkloadSummary | None = field(
        Maybe(Nested(WorkloadSummary, "workload")), default=None, about="what its workload was given, or null"
    )
    uploaders: tuple[str, ...] = field(
        Items(UPLOADER, MAX_UPLOADERS), default=(), about="who may send its workload: names and fingerprints"
    )
    uploaded_by: Uploader | None = field(
        Maybe(Nested(Uploader, "uploader")), default=None, about="who sent its workload, or null"
    )

    def to_wire(self) -> dict[str, object]:
        """The keep with the original's four members first, in its order."""
        value = super().to_wire()
        first = {name: value[name] for name in ("state", "kuuid", "app_loader_bind_port", "bindaddress")}
        return first | value


def merge(spec: KeepSpec, report: KeepReport, unit: str) -> KeepInfo:
    """The keep as clients see it: what it is by its spec, what its process does by its loader's report."""
    return KeepInfo(
        kuuid=report.kuuid,
        state=report.state,
        detail=report.detail,
        address=report.address,
        port=report.port,
        fingerprint=report.fingerprint,
        certificate=report.certificate,
        unit=unit,
        isolation_failures=report.isolation_failures,
        isolation_notes=report.isolation_notes,
        outcome=report.outcome,
        name=spec.name,
        labels=spec.labels,
        owner=spec.owner,
        limits=spec.limits,
        restarts=report.restarts,
        phase=report.phase,
        kind=spec.kind,
        created_at=spec.created_at or None,
        restart=report.restart,
        lease=spec.lease,
        profile=spec.profile,
        compiler=spec.compiler,
        output=spec.output,
        module=_module(spec, report),
        workload=report.workload,
        uploaders=report.uploaders or spec.uploaders,
        uploaded_by=report.uploaded_by,
    )


def _module(spec: KeepSpec, report: KeepReport) -> Module | None:
    """What it runs: as its spec says where that says it, else as its loader does."""
    if not spec.digest:
        return report.module
    return Module(spec.digest, spec.module, 0 if report.module is None else report.module.bytes)


def keep_from_wire(value: dict[str, object]) -> KeepInfo:
    """The keep another process described. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    return parse(KeepInfo, value, "keep")
