"""The manager's calls about codelets of applications on its host; see `/v1/codelets` in the reference."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from codelets.states import HookState, SetState
from keep_client.connection import CALL_SECONDS, resumed
from keep_client.http import json_body, objects_in
from keep_client.manager import ManagerClient
from keep_protocol.codelets import (
    SET_EVENT,
    V1_CODELETS_PATH,
    Application,
    ApplicationList,
    LoadedSet,
    LoadSet,
    check_application_name,
    check_set_id,
)
from keep_protocol.fields import Record, parse

CHANGE_SECONDS = CALL_SECONDS + 60.0
"""A load or unload: what the manager gives the application for it, and the manager's own time."""
R = TypeVar("R", bound=Record)


class CodeletsClient(ManagerClient):
    """Calls to one manager about codelets. They raise what those of ManagerClient raise."""

    def applications(self) -> tuple[Application, ...]:
        """The applications that the caller may see."""
        return parse(ApplicationList, self._call("GET", V1_CODELETS_PATH).object(), "applications").applications

    def sets(self, application: str) -> tuple[SetState, ...]:
        """An application's codelet sets."""
        return self._listed(_path(application, "sets"), "codeletsets", SetState)

    def hooks(self, application: str) -> tuple[HookState, ...]:
        """An application's hooks."""
        return self._listed(_path(application, "stats"), "hooks", HookState)

    def watch(self, application: str, reader: int | None = None) -> Generator[SetState, None, None]:
        """An application's sets, and again each that is not as before, for ever. A lost connection is made again, and
        all sets come again. reader: the pipe or socket they will be written to, as for `lines`."""
        target = _path(application, "watch")
        events = resumed(lambda after: self.stream(target, True, reader, after), self.patience)
        try:
            for event in events:
                if event.name == SET_EVENT:
                    yield parse(SetState, event.data, "set")
        finally:
            events.close()

    def load_set(self, application: str, descriptor: str, variables: dict[str, str]) -> str:
        """Loads the set of a descriptor; its ID."""
        asked = LoadSet(descriptor, tuple(variables.items())).to_wire()
        reply = self._call("POST", _path(application, "sets"), json_body(asked), CHANGE_SECONDS)
        return parse(LoadedSet, reply.object(), "set").codeletset_id

    def unload_set(self, application: str, name: str) -> None:
        """Unloads a set."""
        self._call("DELETE", f"{_path(application, 'sets')}/{check_set_id(name)}", seconds=CHANGE_SECONDS)

    def _listed(self, path: str, member: str, record: type[R]) -> tuple[R, ...]:
        reply = self._call("GET", path)
        return tuple(parse(record, each, member) for each in objects_in(reply.object(), member, reply.peer))


def _path(application: str, what: str) -> str:
    return f"{V1_CODELETS_PATH}/{check_application_name(application)}/{what}"
