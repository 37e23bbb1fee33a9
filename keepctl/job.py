"""One workload as a person describes it, on the command line or in a manifest, and the requests made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from keep_protocol.limits import Limits
from keep_protocol.spec import RestartPolicy, check_labels, check_name
from keep_protocol.workload import Directory, Workload

NO_RESTART = RestartPolicy.NO.value


@dataclass(frozen=True)
class Grant:
    """A directory of the manager's host, its path in the guest, and whether the guest may write there."""

    host: str
    guest: str
    writable: bool = False


@dataclass(frozen=True)
class Job:
    """A workload: what the keep is called and may use, and what its guest is given.

    module: the file to send, "" where it comes by another way; environment, labels, limits and secrets: by name;
    stdin and the secrets' values: files of the manager's host.
    """

    module: str = ""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    directories: tuple[Grant, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    restart: str = NO_RESTART
    export: str = ""
    export_arguments: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) for what the manager would refuse by its contract."""
        check_name(self.name)
        check_labels(self.labels.items())
        Limits(**self.limits)
        Workload(
            arguments=self.arguments,
            environment=tuple(self.environment.items()),
            export=self.export,
            export_arguments=self.export_arguments,
            stdin=bool(self.stdin),
            directories=tuple(Directory(grant.guest, grant.writable) for grant in self.directories),
            secrets=tuple(self.secrets),
            restart=RestartPolicy(self.restart),
        )

    def workload(self) -> dict[str, object] | None:
        """The `workload` of a start request, with only what differs from nothing; None where all is nothing."""
        wanted: dict[str, object] = {
            "arguments": list(self.arguments),
            "environment": dict(self.environment),
            "export": self.export,
            "export_arguments": list(self.export_arguments),
            "stdin": {"file": self.stdin} if self.stdin else None,
            "directories": [
                {"host": grant.host, "guest": grant.guest, "writable": grant.writable} for grant in self.directories
            ],
            "secrets": [{"name": name, "file": file} for name, file in self.secrets.items()],
            "restart": "" if self.restart == NO_RESTART else self.restart,
        }
        return {name: value for name, value in wanted.items() if value} or None
