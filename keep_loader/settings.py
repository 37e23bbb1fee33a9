"""What a loader is given at its start: its keep's ID, directory and spec, and what it passes on to its forks.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
from _collections_abc import Mapping

from keep_loader.state import MODULE_NAMES
from keep_protocol.constants import COMPILED, FOLLOW, MAX_WORKLOAD_BYTES, MODULE, START_DESCRIPTORS, parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.keep import KeepReport
from keep_protocol.limits import limits_from_text
from keep_protocol.spec import SPEC_VARIABLE, START_VARIABLE, KeepSpec, Kind, decode_spec

MAX_SOCKET_PATH = 107
"""The longest path a Unix socket's address holds (man 7 unix)."""


class Entries(Record):
    """What is known here of a kind of keep. endpoint and runner: what its forks call, "module:function" each, "" where
    it has no endpoint; brings: the descriptors that its start must bring, may_bring: those that it may; needs: those
    without which its workload cannot be run again; writes: whether its endpoint gets the pipes of a workload's output,
    which is recorded: what it says of itself is bounded for the whole of its life."""

    endpoint: str
    runner: str
    brings: tuple[str, ...] = START_DESCRIPTORS
    may_bring: tuple[str, ...] = ()
    needs: tuple[str, ...] = MODULE_NAMES
    writes: bool = False


_RUNNER = "app_loader.run.runner:run"
ENTRIES = {
    Kind.UPLOAD: Entries("app_loader.receive.service:serve", _RUNNER),
    Kind.SCRIPTS: Entries("script_pool.keep.service:serve", "script_pool.keep.template:run", writes=True),
    Kind.STORED: Entries("", _RUNNER, brings=(MODULE,), may_bring=(COMPILED, FOLLOW), needs=(MODULE,)),
}
"""By the keep's kind. Named, and imported in the fork alone: what runs there is no part of the loader."""


class Settings(Record):
    """One loader's settings.

    directory: the keep's own runtime directory; entries: what its forks call; max_workload: passed on to the upload
    endpoint; watchdog_seconds: how often systemd wants to hear of us, 0 for never; spec: what the keep is; has_spec:
    whether its unit says so, which one made by the version before does not; journal_entries: how many a second the
    journal gets at most where its limits are not the unit's own, 0 for what the spec says; start_follows: whether the
    start comes with the next command.
    """

    kuuid: int
    directory: str
    entries: Entries
    max_workload: int = MAX_WORKLOAD_BYTES
    watchdog_seconds: float = 0.0
    spec: KeepSpec = KeepSpec()
    has_spec: bool = False
    journal_entries: int = 0
    start_follows: bool = False

    @property
    def socket_path(self) -> str:
        """Where the control socket listens."""
        return f"{self.directory}/control.sock"

    def of(self, spec: KeepSpec) -> Settings:
        """The same for a spare that has become what `spec` says."""
        return self.replace(spec=spec, entries=self.entries if spec.kind is self.spec.kind else ENTRIES[spec.kind])

    def endpoint_environment(self, report: KeepReport, names: tuple[str, ...]) -> dict[str, str]:
        """What the upload endpoint gets: written here word by word, and nothing of ours inherited."""
        return {
            **self.runner_environment(),
            "KEEPFLEET_KUUID": str(self.kuuid),
            "KEEPFLEET_ADDRESS": report.address,
            "KEEPFLEET_PORT": str(report.port),
            "KEEPFLEET_NAMES": ",".join(names),
            "KEEPFLEET_UPLOADERS": ",".join(report.uploaders),
            "KEEPFLEET_MAX_WORKLOAD": str(self.max_workload),
        }

    def runner_environment(self) -> dict[str, str]:
        """What a runner gets."""
        return {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "KEEPFLEET_RUNTIME_DIRECTORY": self.directory,
            "KEEPFLEET_LIMITS": self.spec.limits.to_text(),
        }


def _whole_number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot start: {name} must be a whole number, not {text[:40]!r}")
    return int(text)


def _spec(environment: Mapping[str, str]) -> tuple[KeepSpec, bool]:
    """The unit's spec; of a unit of the version before, which has none, its limits."""
    text = environment.get(SPEC_VARIABLE)
    if text is None:
        return KeepSpec(limits=limits_from_text(environment.get("KEEPFLEET_LIMITS", ""))), False
    return decode_spec(text), True


def read_settings(arguments: list[str], environment: Mapping[str, str]) -> Settings:
    """The settings in the command line and the unit's environment.

    Raises KeepfleetError: BAD_REQUEST for an invalid ID, spec or limits, CONFIGURATION for what the unit does not say
    or says wrongly.
    """
    words = arguments or [environment.get("KEEPFLEET_KUUID", "")]
    if len(words) != 1:
        raise KeepfleetError(ErrorKind.CONFIGURATION, "cannot start: give the keep's ID and nothing else")
    directory = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not directory.startswith("/"):
        raise KeepfleetError(ErrorKind.CONFIGURATION, "cannot start: $RUNTIME_DIRECTORY must name the keep's directory")
    watchdog = _whole_number(environment, "WATCHDOG_USEC", 0)
    if environment.get("WATCHDOG_PID", "") not in ("", str(os.getpid())):
        watchdog = 0
    spec, has_spec = _spec(environment)
    settings = Settings(
        kuuid=parse_kuuid(words[0]),
        directory=directory,
        entries=ENTRIES[spec.kind],
        max_workload=_whole_number(environment, "KEEPFLEET_MAX_WORKLOAD", MAX_WORKLOAD_BYTES),
        watchdog_seconds=watchdog / 1_000_000,
        spec=spec,
        has_spec=has_spec,
        journal_entries=_whole_number(environment, "KEEPFLEET_JOURNAL_ENTRIES", 0),
        start_follows=environment.get(START_VARIABLE) == "1",
    )
    if len(os.fsencode(settings.socket_path)) > MAX_SOCKET_PATH:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot start: {settings.socket_path} is too long for a socket")
    return settings
