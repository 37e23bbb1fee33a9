"""The shapes of /v1 as JSON Schema, made of the tables of the contract's records. Pure."""

from __future__ import annotations

from codelets.states import CodeletState, HookState, SetState
from keep_protocol import pulling, sse, store
from keep_protocol.api import MAX_PAGE, NewKeep, StartKeep
from keep_protocol.api_pools import NewPool
from keep_protocol.codelets import Application, ApplicationList, LoadedSet, LoadSet
from keep_protocol.constants import KUUID_BITS
from keep_protocol.declared import Apply, DeclaredKeep, RunHistory
from keep_protocol.errors import ErrorKind
from keep_protocol.fields import Record
from keep_protocol.keep import KeepInfo, Module, Uploader, WorkloadSummary
from keep_protocol.outcome import Outcome
from keep_protocol.runs import Run
from keep_protocol.schema import Schema, record_schema
from keep_protocol.secrets import Secret, SecretList
from keep_protocol.spec import Lease
from keep_protocol.volumes import Volume

ANSWERS: dict[str, type[Record]] = {
    "Keep": KeepInfo,
    "Outcome": Outcome,
    "Lease": Lease,
    "Module": Module,
    "Workload": WorkloadSummary,
    "Uploader": Uploader,
    "Declared": DeclaredKeep,
    "Run": Run,
    "Secret": Secret,
    "Secrets": SecretList,
    "Runs": RunHistory,
    "Volume": Volume,
    "Application": Application,
    "Applications": ApplicationList,
    "CodeletSet": SetState,
    "Codelet": CodeletState,
    "Hook": HookState,
    "LoadedSet": LoadedSet,
    "KeepEvent": sse.KeepEvent,
    "LogLine": sse.LogLine,
    "Store": store.Listing,
    "StoredObject": store.Object,
    "StoredDetails": store.Details,
    "Reference": store.Reference,
    "Collected": store.Collected,
    "Findings": store.Findings,
    "Moved": store.Moved,
    "Signatures": store.Attached,
    "Requirements": store.Requirements,
    "Key": store.KnownKey,
    "InUse": store.InUse,
    "Revoked": store.Revoked,
    "Pull": pulling.Pull,
}
"""What the manager writes: every member is there."""
REQUESTS: dict[str, type[Record]] = {
    "Create": NewKeep,
    "Start": StartKeep,
    "CreatePool": NewPool,
    "Apply": Apply,
    "Tag": store.Tagging,
    "Collect": store.Collection,
    "Signature": store.Signature,
    "Revoke": store.Revoking,
    "Pulling": pulling.Pulling,
    "LoadSet": LoadSet,
}
"""What it reads: what has a default may be left out."""
_NAMES = {record: name for name, record in ANSWERS.items()}
KUUID: Schema = {
    "type": "integer",
    "minimum": 1,
    "maximum": (1 << KUUID_BITS) - 1,
    "description": "the keep's ID",
}
PAGE_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
EVENT: Schema = {
    "type": "object",
    "description": "one server-sent event; its data is JSON",
    "properties": {
        "event": {"type": "string", "enum": [sse.LINE, sse.KEEP, sse.END]},
        "data": {"type": "string"},
        "id": {"type": "string", "maxLength": sse.MAX_ID},
    },
    "required": ["event", "data"],
}


def _of_answer(record: type[Record]) -> Schema:
    """A nested record of an answer: by reference where it has a name of its own."""
    if record in _NAMES:
        return {"$ref": f"#/components/schemas/{_NAMES[record]}"}
    return record_schema(record, refer=_of_answer, answer=True)


def _of_request(record: type[Record]) -> Schema:
    """A nested record of a request: by reference where it is a request of its own, else where it stands."""
    name = next((name for name, known in REQUESTS.items() if known is record), None)
    return record_schema(record, refer=_of_request) if name is None else {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, object]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _page() -> Schema:
    after = {"anyOf": [KUUID, {"type": "null"}], "description": "what to ask for `after` to go on, or null"}
    return _object({"keeps": {"type": "array", "items": _of_answer(KeepInfo), "description": "by ID"}, "next": after})


def _input_sent() -> Schema:
    size = {"type": "integer", "minimum": 0, "description": "how many were passed on"}
    whole = {"type": "boolean", "description": "whether that was all; else the guest took no more"}
    return _object({"bytes": size, "complete": whole})


def _error() -> Schema:
    lines = {"type": "array", "items": {"type": "string"}, "description": "lines that show it"}
    kinds = [kind.value for kind in ErrorKind]
    return _object(
        {
            "error": _object(
                {
                    "kind": {"type": "string", "description": "for programs", "enum": kinds},
                    "message": {"type": "string", "description": "cannot X: why"},
                    "evidence": lines,
                }
            )
        }
    )


def schemas() -> dict[str, Schema]:
    """Every shape by its name."""
    return {
        **{name: record_schema(record, refer=_of_answer, answer=True) for name, record in ANSWERS.items()},
        **{name: record_schema(record, refer=_of_request) for name, record in REQUESTS.items()},
        "Page": _page(),
        "DeclaredList": _object({"declared": {"type": "array", "items": _of_answer(DeclaredKeep)}}),
        "PullList": _object({"pulls": {"type": "array", "items": _of_answer(pulling.Pull)}}),
        "VolumeList": _object({"volumes": {"type": "array", "items": _of_answer(Volume)}}),
        "CodeletSetList": _object({"codeletsets": {"type": "array", "items": _of_answer(SetState)}}),
        "HookList": _object({"hooks": {"type": "array", "items": _of_answer(HookState)}}),
        "InputSent": _input_sent(),
        "Error": _error(),
    }
