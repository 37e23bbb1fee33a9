"""What is said of each operation of /v1: one row each, in the order of the reference page. Pure.

The OpenAPI document (openapi.py), the reference page and the tests against a live manager are made of this table; paths
and handlers are in the table of routes (app.py), and a row without a route, or a route without a row, fails a test.
"""

from __future__ import annotations

from keep_manager.http.codelets import APPLICATION_PATH, SET_PATH, SETS_PATH, STATS_PATH, WATCH_PATH
from keep_manager.http.pools import POOL_PATH
from keep_manager.http.schemas import KUUID, PAGE_LIMIT
from keep_manager.http.store import (
    COLLECT_PATH,
    EXPORT_PATH,
    IMPORT_PATH,
    KEYS_PATH,
    OBJECT_PATH,
    OBJECTS_PATH,
    PULL_PATH,
    REFERENCE_PATH,
    REVOKE_PATH,
    SIGNATURES_PATH,
    VERIFY_PATH,
)
from keep_protocol import output, sse, store
from keep_protocol.codelets import NAME as APPLICATION_NAME
from keep_protocol.codelets import SET_ID, V1_CODELETS_PATH
from keep_protocol.constants import V1_EVENTS_PATH, V1_KEEPS_PATH, V1_POOLS_PATH, WORKLOAD_FOLLOWS_HEADER
from keep_protocol.declared import MAX_SETTLING_SECONDS, V1_DECLARED_PATH
from keep_protocol.errors import ErrorKind
from keep_protocol.fields import Record
from keep_protocol.pulling import V1_PULLS_PATH
from keep_protocol.schema import Schema
from keep_protocol.secrets import NAME as SECRET_NAME
from keep_protocol.secrets import V1_SECRETS_PATH
from keep_protocol.states import State
from keep_protocol.store import V1_STORE_PATH
from keep_protocol.volumes import NAME_PATTERN, V1_VOLUMES_PATH

DOCUMENT_PATH = "/v1/openapi.json"
KEEP_PATH = f"{V1_KEEPS_PATH}/{{kuuid}}"
DECLARED_PATH = f"{V1_DECLARED_PATH}/{{name}}"
SECRET_PATH = f"{V1_SECRETS_PATH}/{{name}}"
VOLUME_PATH = f"{V1_VOLUMES_PATH}/{{name}}"
EVERYWHERE = (
    ErrorKind.BAD_REQUEST,
    ErrorKind.FORBIDDEN,
    ErrorKind.TOO_MANY,
    ErrorKind.UNAVAILABLE,
    ErrorKind.SYSTEMD,
    ErrorKind.INTERNAL,
)
"""What any operation may be refused with; SYSTEMD is also the status of KEEP_FAILED."""
BODY = (ErrorKind.TOO_LARGE, ErrorKind.TOO_SLOW)
"""What an operation with a body may be refused with in addition; one that has none reads what is sent all the same."""
_NO_STORE = (ErrorKind.NOT_FOUND,)
"""Where there is no store yet."""
_CONFLICT, _CONFIGURATION = (ErrorKind.CONFLICT,), (ErrorKind.CONFIGURATION,)
_TO_START = (ErrorKind.CONFLICT, ErrorKind.CONFIGURATION, ErrorKind.PORT_UNAVAILABLE)
_TO_CREATE = (*_TO_START, ErrorKind.KEEP_FAILED)
_TO_DECLARE = (ErrorKind.CONFLICT, ErrorKind.NO_SPACE)
_TO_ADD = (ErrorKind.NO_SPACE, ErrorKind.CONFIGURATION)
BYTES, JSON = "application/octet-stream", "application/json"


class Parameter(Record):
    """One parameter of the query or one header."""

    name: str
    schema: Schema
    description: str
    place: str = "query"

    def document(self) -> dict[str, object]:
        """As OpenAPI has it."""
        return {"name": self.name, "in": self.place, "schema": self.schema, "description": self.description}


class Operation(Record):
    """One operation. answer and body: its shape's name, a content type, or "" for none; refusals: in addition to
    EVERYWHERE, to BODY where it has one, and to NOT_FOUND where its path names something."""

    name: str
    summary: str
    answer: str = "Keep"
    body: str = ""
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[ErrorKind, ...] = ()
    status: int = 200

    def refused_with(self, path: str) -> tuple[ErrorKind, ...]:
        """All that it may be refused with."""
        found = (*EVERYWHERE, *(BODY if self.body else ()), *((ErrorKind.NOT_FOUND,) if "{" in path else ()))
        return (*found, *self.refusals)


_FLAG: Schema = {"type": "boolean"}
_MOMENT: Schema = {"type": "number", "minimum": 0}
_LINES: Schema = {"type": "integer", "minimum": 1, "maximum": 100_000}
_NAMED: Schema = {"type": "string", "pattern": f"^(?:{store.REFERENCE.pattern})$"}
_DIGEST: Schema = {"type": "string", "pattern": f"^{store.DIGEST.pattern}$"}
_KEY: Schema = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
_LABEL: Schema = {"type": "string", "pattern": "^[a-z0-9./-]{1,63}=[ -~]{0,255}$"}
_RESUME = Parameter(
    "Last-Event-ID", {"type": "string", "maxLength": sse.MAX_ID}, "the id of the last event received", "header"
)


def _pages(of_what: str) -> tuple[Parameter, ...]:
    return (
        Parameter("limit", PAGE_LIMIT, f"{of_what} on the page at most; all without it"),
        Parameter("after", KUUID, "`next` of the page before"),
        Parameter("label", {"type": "array", "items": _LABEL}, f"KEY=VALUE; {of_what} that have all of those named"),
    )


_CHANGED = (
    Parameter(
        "changed-from",
        {"type": "integer", "enum": [int(state) for state in State]},
        "answer when its state is no longer this one, or when the time is over",
    ),
    Parameter("timeout", {"type": "number", "minimum": 0, "maximum": 60}, "seconds, at most 60"),
)
_IDEMPOTENCY = Parameter(
    "Idempotency-Key",
    {"type": "string", "pattern": "^[!-~]{1,128}$"},
    "the same key, caller and body name the same keep: for ten minutes, and as long as that keep lives",
    "header",
)
_WORKLOAD_FOLLOWS = Parameter(
    WORKLOAD_FOLLOWS_HEADER,
    {"type": "string", "enum": ["yes"]},
    "with `start`: its workload is sent immediately, so what runs it is made ready when it listens, and not when the "
    "first client comes; some 7 MiB",
    "header",
)
_LOGS = (
    Parameter("follow", _FLAG, "go on until the keep has ended"),
    Parameter("lines", _LINES, "the last lines alone"),
    Parameter(
        "stream",
        {"type": "string", "enum": [sse.STDOUT_SOURCE, sse.STDERR_SOURCE]},
        "of this one of the guest's streams alone",
    ),
    Parameter("since", _MOMENT, "from then on, in seconds of the epoch"),
    Parameter("until", _MOMENT, "up to then, in seconds of the epoch"),
    Parameter("all", _FLAG, "with the loader's own lines"),
    _RESUME,
)
_OUTPUT = (
    Parameter(
        "from",
        {"type": "integer", "minimum": 0},
        "the position behind the last frame received; without it, or overwritten, the oldest",
    ),
    Parameter("follow", _FLAG, "go on until the keep has ended"),
    Parameter("hold", _FLAG, "the guest waits for this reader; needs the right to stop the keep"),
)
_EVENTS = (
    Parameter("keep", KUUID, "of this keep alone"),
    Parameter("follow", _FLAG, "go on for ever"),
    Parameter("lines", _LINES, "the last events"),
    _RESUME,
)
_ADDED = (
    Parameter("reference", _NAMED, "NAME:TAG, what to call it"),
    Parameter("digest", _DIGEST, "what its digest must be"),
    Parameter(
        store.SIGNATURES_HEADER,
        {"type": "string", "maxLength": store.MAX_SIGNATURES_HEADER},
        "detached signatures, as minisign writes them, each in Base64, with commas between them",
        "header",
    ),
)
_EXPORTED = Parameter(
    "what",
    {"type": "array", "items": {"type": "string", "maxLength": 300}},
    "NAME:TAG, NAME:TAG@sha256:… or sha256:…, any number of times; the whole store without it",
)
_REPLACE = Parameter("replace", _FLAG, "move references that name another object")
_WAIT = Parameter("wait", _FLAG, "answer when it has ended, or after a second")
_SETTLED = Parameter(
    "settled",
    {"type": "integer", "minimum": 0, "maximum": MAX_SETTLING_SECONDS},
    "answer when it is neither starting nor being replaced, or after so many seconds",
)
_RESTART = Parameter("restart", _FLAG, "restart the declared keeps that use it")

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", V1_KEEPS_PATH): Operation("listKeeps", "Keeps by ID, page by page", "Page", parameters=_pages("keeps")),
    ("POST", V1_KEEPS_PATH): Operation(
        "createKeep",
        "A new keep, and with `start` one that listens for its workload",
        body="Create",
        parameters=(_IDEMPOTENCY, _WORKLOAD_FOLLOWS),
        refusals=(*_TO_CREATE, ErrorKind.UNSUPPORTED),
        status=201,
    ),
    ("GET", KEEP_PATH): Operation(
        "getKeep", "One keep, immediately or after a change of its state", parameters=_CHANGED
    ),
    ("DELETE", KEEP_PATH): Operation("removeKeep", "Ends a keep and forgets it", "", status=204),
    ("POST", f"{KEEP_PATH}/start"): Operation(
        "startKeep",
        "Lets a keep listen for its workload, and gives its guest what it is granted",
        body="Start",
        refusals=_TO_START,
    ),
    ("POST", f"{KEEP_PATH}/stop"): Operation(
        "stopKeep", "Ends a keep's upload endpoint or workload; its outcome stays", refusals=(*BODY, ErrorKind.CONFLICT)
    ),
    ("GET", f"{KEEP_PATH}/logs"): Operation(
        "keepLogs",
        "A keep's lines as server-sent events: `line`, and with follow a last `end`",
        sse.CONTENT_TYPE,
        parameters=_LOGS,
        refusals=_CONFLICT,
    ),
    ("GET", f"{KEEP_PATH}/output"): Operation(
        "keepOutput",
        "The bytes a keep's guest has written, in frames, see below; at last the keep",
        output.CONTENT_TYPE,
        parameters=_OUTPUT,
        refusals=_CONFLICT,
    ),
    ("PUT", f"{KEEP_PATH}/input"): Operation(
        "sendInput",
        'The request\'s body becomes the standard input of a guest that was started with `stdin: {"stream": true}`',
        "InputSent",
        BYTES,
        refusals=_CONFLICT,
    ),
    ("POST", V1_POOLS_PATH): Operation(
        "createPool",
        "A script pool in a keep of its own, which listens for its callers' requests: POST /scripts there",
        body="CreatePool",
        refusals=_TO_CREATE,
        status=201,
    ),
    ("GET", V1_POOLS_PATH): Operation(
        "listPools", "The keeps that are script pools, by ID, page by page", "Page", parameters=_pages("pools")
    ),
    ("GET", POOL_PATH): Operation("getPool", "One script pool"),
    ("DELETE", POOL_PATH): Operation("removePool", "Ends a script pool and forgets it", "", status=204),
    ("GET", V1_STORE_PATH): Operation("listStore", "What the module store has", "Store", refusals=_NO_STORE),
    ("POST", OBJECTS_PATH): Operation(
        "addObject",
        "Keeps the request's body, a module, with its signatures, and names it; all of that or nothing",
        "StoredObject",
        BYTES,
        _ADDED,
        _TO_ADD,
        201,
    ),
    ("GET", OBJECT_PATH): Operation(
        "getObject", "An object, every byte of which was read, with what needs it", "StoredDetails"
    ),
    ("DELETE", OBJECT_PATH): Operation(
        "removeObject", "Removes an object that nothing needs", "", refusals=_CONFLICT, status=204
    ),
    ("POST", SIGNATURES_PATH): Operation(
        "attachSignature",
        "Keeps a signature with an object, checked first with the key it is by",
        "Signatures",
        "Signature",
    ),
    ("GET", REFERENCE_PATH): Operation("getReference", "A reference, with its history", "Reference"),
    ("PUT", REFERENCE_PATH): Operation("tag", "Has a reference name an object", "Reference", "Tag"),
    ("DELETE", REFERENCE_PATH): Operation("untag", "Removes a reference; its object stays", "", status=204),
    ("POST", COLLECT_PATH): Operation(
        "collectGarbage",
        "Removes the objects that nothing needs",
        "Collected",
        "Collect",
        refusals=(*_NO_STORE, ErrorKind.CONFLICT),
    ),
    ("POST", VERIFY_PATH): Operation(
        "verifyStore",
        "Reads every byte of the store, and says what is wrong; damaged objects go into quarantine",
        "Findings",
        refusals=_NO_STORE,
    ),
    ("GET", EXPORT_PATH): Operation(
        "exportModules",
        "Objects with their references and signatures as a tar; one that breaks off has no end",
        BYTES,
        parameters=(_EXPORTED,),
        refusals=_NO_STORE,
    ),
    ("POST", IMPORT_PATH): Operation(
        "importModules",
        "Takes in an export, all of it or nothing",
        "Moved",
        BYTES,
        (_REPLACE,),
        (*_TO_ADD, ErrorKind.CONFLICT),
    ),
    ("POST", V1_PULLS_PATH): Operation(
        "pull",
        "Begins to pull a module from a registry that the configuration names, by a unit of its own",
        "Pull",
        "Pulling",
        status=202,
    ),
    ("GET", V1_PULLS_PATH): Operation(
        "listPulls", "The pulls that are under way, and the last that have ended", "PullList", refusals=_NO_STORE
    ),
    ("GET", PULL_PATH): Operation("getPull", "How far a pull is", "Pull", parameters=(_WAIT,)),
    ("DELETE", PULL_PATH): Operation("cancelPull", "Ends a pull that is under way; nothing of it is kept", "Pull"),
    ("GET", KEYS_PATH): Operation(
        "listKeys",
        "What modules must be to start, and what runs that could not start any more",
        "Requirements",
        refusals=_NO_STORE,
    ),
    ("POST", REVOKE_PATH): Operation(
        "revokeKey",
        "Has a key count no more, from now on; with what runs that could not start any more",
        "Revoked",
        "Revoke",
    ),
    ("GET", V1_EVENTS_PATH): Operation(
        "keepEvents",
        "What happened to keeps, or with follow what happens from the answer's begin on, as server-sent events: `keep`",
        sse.CONTENT_TYPE,
        parameters=_EVENTS,
    ),
    ("GET", V1_DECLARED_PATH): Operation("listDeclared", "Declared keeps by name", "DeclaredList"),
    ("GET", DECLARED_PATH): Operation(
        "getDeclared",
        "One declared keep, with its manifest, immediately or when nothing is under way for it",
        "Declared",
        parameters=(_SETTLED,),
    ),
    ("GET", f"{DECLARED_PATH}/runs"): Operation(
        "declaredRuns", "The latest runs of a declared job, the oldest first", "Runs", refusals=_CONFLICT
    ),
    ("PUT", DECLARED_PATH): Operation(
        "declareKeep",
        "Has there be a keep as a manifest says, whatever happens to it or to its host",
        "Declared",
        "Apply",
        refusals=_TO_DECLARE,
    ),
    ("GET", V1_VOLUMES_PATH): Operation(
        "listVolumes", "Volumes by name, with the declared keeps that name them", "VolumeList"
    ),
    ("DELETE", VOLUME_PATH): Operation(
        "removeVolume",
        "Removes a volume and all that is in it; refused while it is used",
        "",
        refusals=_CONFLICT,
        status=204,
    ),
    ("DELETE", DECLARED_PATH): Operation(
        "deleteDeclared", "Has it be declared no more; its keeps end then", "", status=204
    ),
    ("POST", f"{DECLARED_PATH}/restart"): Operation(
        "restartDeclared",
        "Has another keep take its place, or runs again what has ended; of a job: runs it now",
        "Declared",
        refusals=(*BODY, *_TO_DECLARE),
    ),
    ("POST", f"{DECLARED_PATH}/rollback"): Operation(
        "rollBackDeclared", "Wants again what was wanted before", "Declared", refusals=(*BODY, *_TO_DECLARE)
    ),
    ("GET", V1_SECRETS_PATH): Operation("listSecrets", "Secrets by name, never their values", "Secrets"),
    ("PUT", SECRET_PATH): Operation(
        "setSecret",
        "Has a secret be the request's body, which no one can read again",
        "Secret",
        BYTES,
        (_RESTART,),
        (*_TO_ADD, ErrorKind.CONFLICT),
    ),
    ("DELETE", SECRET_PATH): Operation(
        "removeSecret", "Removes a secret that no declared keep names", "", refusals=_CONFLICT, status=204
    ),
    ("GET", V1_CODELETS_PATH): Operation(
        "listApplications", "Applications on the host whose codelets can be loaded", "Applications"
    ),
    ("GET", SETS_PATH): Operation(
        "listCodeletSets",
        "An application's codelet sets, with what each codelet has done",
        "CodeletSetList",
        refusals=_CONFIGURATION,
    ),
    ("POST", SETS_PATH): Operation(
        "loadCodeletSet",
        "Loads a set of codelets, modules of the application's store, or nothing of it",
        "LoadedSet",
        "LoadSet",
        refusals=(*_TO_ADD, ErrorKind.CONFLICT, ErrorKind.INVALID_MODULE),
        status=201,
    ),
    ("DELETE", SET_PATH): Operation(
        "unloadCodeletSet",
        "Unloads a set of codelets",
        "",
        refusals=(ErrorKind.CONFLICT, ErrorKind.CONFIGURATION),
        status=204,
    ),
    ("GET", WATCH_PATH): Operation(
        "watchCodeletSets",
        "What becomes of an application's codelet sets, as server-sent events `codeletset`, a set each: first all, then"
        " those that are loaded or unloaded, immediately, and each second those whose codelets have done something",
        sse.CONTENT_TYPE,
        refusals=_CONFIGURATION,
    ),
    ("GET", STATS_PATH): Operation(
        "listHooks", "An application's hooks: calls, faults and times", "HookList", refusals=_CONFIGURATION
    ),
    ("GET", DOCUMENT_PATH): Operation("openapi", "This document", JSON),
}
"""Every operation of /v1. A route without one is a defect, which every start of the manager shows."""


IN_PATHS = (
    ("kuuid", "{kuuid}", KUUID),
    ("digest", "{digest}", _DIGEST),
    ("name", "references/{name}", _NAMED),
    ("name", "keys/{name}", _KEY),
    ("name", SECRET_PATH, {"type": "string", "pattern": f"^{SECRET_NAME}$"}),
    ("id", "pulls/{id}", {"type": "string", "pattern": "^[0-9a-f]{16}$"}),
    ("id", "sets/{id}", {"type": "string", "pattern": f"^{SET_ID}$"}),
    ("name", APPLICATION_PATH, {"type": "string", "pattern": f"^{APPLICATION_NAME}$"}),
    ("name", VOLUME_PATH, {"type": "string", "pattern": f"^{NAME_PATTERN}$"}),
    ("name", DECLARED_PATH, {"type": "string", "pattern": "^[a-z0-9-]{1,63}$"}),
)
"""Parameters of paths, and the part of a path by which each is known."""
