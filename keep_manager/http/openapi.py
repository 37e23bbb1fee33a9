"""The OpenAPI 3.1 document of /v1, made of the table of routes and of what stands here about each of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from keep_manager.http.errors import STATUS_OF
from keep_manager.http.middleware import json_response
from keep_manager.http.schemas import EVENT, KUUID, PAGE_LIMIT, schemas
from keep_protocol import output, sse, store
from keep_protocol.codelets import NAME as APPLICATION_NAME
from keep_protocol.codelets import SET_ID, V1_CODELETS_PATH
from keep_protocol.constants import V1_EVENTS_PATH, V1_KEEPS_PATH, V1_POOLS_PATH
from keep_protocol.declared import MAX_SETTLING_SECONDS, V1_DECLARED_PATH
from keep_protocol.errors import ErrorKind
from keep_protocol.pulling import V1_PULLS_PATH
from keep_protocol.schema import Schema
from keep_protocol.secrets import NAME as SECRET_NAME
from keep_protocol.secrets import V1_SECRETS_PATH
from keep_protocol.states import State
from keep_protocol.store import V1_STORE_PATH
from keep_protocol.volumes import NAME_PATTERN, V1_VOLUMES_PATH

OPENAPI = "3.1.0"
VERSION = "1"
DOCUMENT_PATH = "/v1/openapi.json"
DOCUMENT = web.AppKey("document", dict[str, object])
KEEP_PATH = f"{V1_KEEPS_PATH}/{{kuuid}}"
DECLARED_PATH = f"{V1_DECLARED_PATH}/{{name}}"
SECRET_PATH = f"{V1_SECRETS_PATH}/{{name}}"
POOL_PATH = f"{V1_POOLS_PATH}/{{kuuid}}"
SETS_PATH = f"{V1_CODELETS_PATH}/{{name}}/sets"
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
"""What an operation with a body may be refused with in addition."""
UNSUPPORTED_MEDIA = 415
"""A body that is encoded: HTTP's own status."""


class Route(Protocol):
    """What is read of a row of the table of routes."""

    @property
    def method(self) -> str:
        """GET, POST, …"""

    @property
    def path(self) -> str:
        """With parameters as `{name}`."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the query or one header."""

    name: str
    place: str
    schema: Schema
    description: str

    def document(self) -> dict[str, object]:
        """As OpenAPI has it."""
        return {"name": self.name, "in": self.place, "schema": self.schema, "description": self.description}


@dataclass(frozen=True)
class Operation:
    """One operation. answer and body: its shape's name, a content type, or "" for none; refusals: with EVERYWHERE."""

    name: str
    summary: str
    status: int = 200
    answer: str = "Keep"
    body: str = ""
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[ErrorKind, ...] = (ErrorKind.NOT_FOUND,)


_REFERENCE_PATH, _OBJECT_PATH = f"{V1_STORE_PATH}/references/{{name}}", f"{V1_STORE_PATH}/objects/{{digest}}"
_NAMED: Schema = {"type": "string", "pattern": f"^(?:{store.REFERENCE.pattern})$"}
_DIGEST: Schema = {"type": "string", "pattern": f"^{store.DIGEST.pattern}$"}
_KEY: Schema = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
_RESUME = Parameter(
    "Last-Event-ID", "header", {"type": "string", "maxLength": sse.MAX_ID}, "the id of the last event received"
)
_MOMENT: Schema = {"type": "number", "minimum": 0}
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", V1_KEEPS_PATH): Operation(
        "listKeeps",
        "Keeps by ID, page by page",
        answer="Page",
        parameters=(
            Parameter("limit", "query", PAGE_LIMIT, "keeps on the page at most; all without it"),
            Parameter("after", "query", KUUID, "`next` of the page before"),
            Parameter(
                "label",
                "query",
                {"type": "array", "items": {"type": "string", "pattern": "^[a-z0-9./-]{1,63}=[ -~]{0,255}$"}},
                "KEY=VALUE; keeps that have all of those named",
            ),
        ),
        refusals=(),
    ),
    ("POST", V1_KEEPS_PATH): Operation(
        "createKeep",
        "A new keep, and with `start` one that listens for its workload",
        201,
        body="Create",
        parameters=(
            Parameter(
                "Idempotency-Key",
                "header",
                {"type": "string", "pattern": "^[!-~]{1,128}$"},
                "the same key, caller and body name the same keep: for ten minutes, and as long as that keep lives",
            ),
        ),
        refusals=(
            *BODY,
            ErrorKind.CONFLICT,
            ErrorKind.UNSUPPORTED,
            ErrorKind.CONFIGURATION,
            ErrorKind.KEEP_FAILED,
            ErrorKind.PORT_UNAVAILABLE,
        ),
    ),
    ("GET", KEEP_PATH): Operation(
        "getKeep",
        "One keep, immediately or after a change of its state",
        parameters=(
            Parameter(
                "changed-from",
                "query",
                {"type": "integer", "enum": [int(state) for state in State]},
                "answer when its state is no longer this one, or when the time is over",
            ),
            Parameter("timeout", "query", {"type": "number", "minimum": 0, "maximum": 60}, "seconds, at most 60"),
        ),
    ),
    ("DELETE", KEEP_PATH): Operation("removeKeep", "Ends a keep and forgets it", 204, answer=""),
    ("POST", f"{KEEP_PATH}/start"): Operation(
        "startKeep",
        "Lets a keep listen for its workload, and gives its guest what it is granted",
        body="Start",
        refusals=(*BODY, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.PORT_UNAVAILABLE, ErrorKind.CONFIGURATION),
    ),
    ("POST", f"{KEEP_PATH}/stop"): Operation(
        "stopKeep",
        "Ends a keep's upload endpoint or workload; its outcome stays",
        refusals=(*BODY, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("GET", f"{KEEP_PATH}/logs"): Operation(
        "keepLogs",
        "A keep's lines as server-sent events: `line`, and with follow a last `end`",
        answer=sse.CONTENT_TYPE,
        parameters=(
            Parameter("follow", "query", {"type": "boolean"}, "go on until the keep has ended"),
            Parameter("lines", "query", {"type": "integer", "minimum": 1, "maximum": 100_000}, "the last lines alone"),
            Parameter(
                "stream",
                "query",
                {"type": "string", "enum": [sse.STDOUT_SOURCE, sse.STDERR_SOURCE]},
                "of this one of the guest's streams alone",
            ),
            Parameter("since", "query", _MOMENT, "from then on, in seconds of the epoch"),
            Parameter("until", "query", _MOMENT, "up to then, in seconds of the epoch"),
            Parameter("all", "query", {"type": "boolean"}, "with the loader's own lines"),
            _RESUME,
        ),
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("GET", f"{KEEP_PATH}/output"): Operation(
        "keepOutput",
        "The bytes a keep's guest has written, in frames, see below; at last the keep",
        answer=output.CONTENT_TYPE,
        parameters=(
            Parameter(
                "from",
                "query",
                {"type": "integer", "minimum": 0},
                "the position behind the last frame received; without it, or overwritten, the oldest",
            ),
            Parameter("follow", "query", {"type": "boolean"}, "go on until the keep has ended"),
            Parameter(
                "hold",
                "query",
                {"type": "boolean"},
                "the guest waits for this reader; needs the right to stop the keep",
            ),
        ),
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("PUT", f"{KEEP_PATH}/input"): Operation(
        "sendInput",
        'The request\'s body becomes the standard input of a guest that was started with `stdin: {"stream": true}`',
        answer="InputSent",
        body="application/octet-stream",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("POST", V1_POOLS_PATH): Operation(
        "createPool",
        "A script pool in a keep of its own, which listens for its callers' requests: POST /scripts there",
        201,
        body="CreatePool",
        refusals=(
            *BODY,
            ErrorKind.CONFLICT,
            ErrorKind.CONFIGURATION,
            ErrorKind.KEEP_FAILED,
            ErrorKind.PORT_UNAVAILABLE,
        ),
    ),
    ("GET", V1_POOLS_PATH): Operation(
        "listPools",
        "The keeps that are script pools, by ID, page by page",
        answer="Page",
        parameters=(
            Parameter("limit", "query", PAGE_LIMIT, "pools on the page at most; all without it"),
            Parameter("after", "query", KUUID, "`next` of the page before"),
            Parameter(
                "label",
                "query",
                {"type": "array", "items": {"type": "string", "pattern": "^[a-z0-9./-]{1,63}=[ -~]{0,255}$"}},
                "KEY=VALUE; pools that have all of those named",
            ),
        ),
        refusals=(),
    ),
    ("GET", POOL_PATH): Operation("getPool", "One script pool"),
    ("DELETE", POOL_PATH): Operation("removePool", "Ends a script pool and forgets it", 204, answer=""),
    ("GET", V1_STORE_PATH): Operation("listStore", "What the module store has", answer="Store"),
    ("POST", f"{V1_STORE_PATH}/objects"): Operation(
        "addObject",
        "Keeps the request's body, a module, with its signatures, and names it; all of that or nothing",
        201,
        answer="StoredObject",
        body="application/octet-stream",
        parameters=(
            Parameter("reference", "query", _NAMED, "NAME:TAG, what to call it"),
            Parameter("digest", "query", _DIGEST, "what its digest must be"),
            Parameter(
                store.SIGNATURES_HEADER,
                "header",
                {"type": "string", "maxLength": store.MAX_SIGNATURES_HEADER},
                "detached signatures, as minisign writes them, each in Base64, with commas between them",
            ),
        ),
        refusals=(*BODY, ErrorKind.NO_SPACE, ErrorKind.CONFIGURATION),
    ),
    ("GET", _OBJECT_PATH): Operation(
        "getObject", "An object, every byte of which was read, with what needs it", answer="StoredDetails"
    ),
    ("DELETE", _OBJECT_PATH): Operation(
        "removeObject",
        "Removes an object that nothing needs",
        204,
        answer="",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("POST", f"{_OBJECT_PATH}/signatures"): Operation(
        "attachSignature",
        "Keeps a signature with an object, checked first with the key it is by",
        answer="Signatures",
        body="Signature",
        refusals=(*BODY, ErrorKind.NOT_FOUND),
    ),
    ("GET", _REFERENCE_PATH): Operation("getReference", "A reference, with its history", answer="Reference"),
    ("PUT", _REFERENCE_PATH): Operation(
        "tag", "Has a reference name an object", answer="Reference", body="Tag", refusals=(*BODY, ErrorKind.NOT_FOUND)
    ),
    ("DELETE", _REFERENCE_PATH): Operation("untag", "Removes a reference; its object stays", 204, answer=""),
    ("POST", f"{V1_STORE_PATH}/gc"): Operation(
        "collectGarbage",
        "Removes the objects that nothing needs",
        answer="Collected",
        body="Collect",
        refusals=(*BODY, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("POST", f"{V1_STORE_PATH}/verify"): Operation(
        "verifyStore",
        "Reads every byte of the store, and says what is wrong; damaged objects go into quarantine",
        answer="Findings",
    ),
    ("GET", f"{V1_STORE_PATH}/export"): Operation(
        "exportModules",
        "Objects with their references and signatures as a tar; one that breaks off has no end",
        answer="application/octet-stream",
        parameters=(
            Parameter(
                "what",
                "query",
                {"type": "array", "items": {"type": "string", "maxLength": 300}},
                "NAME:TAG, NAME:TAG@sha256:… or sha256:…, any number of times; the whole store without it",
            ),
        ),
    ),
    ("POST", f"{V1_STORE_PATH}/import"): Operation(
        "importModules",
        "Takes in an export, all of it or nothing",
        answer="Moved",
        body="application/octet-stream",
        parameters=(Parameter("replace", "query", {"type": "boolean"}, "move references that name another object"),),
        refusals=(*BODY, ErrorKind.CONFLICT, ErrorKind.NO_SPACE, ErrorKind.CONFIGURATION),
    ),
    ("POST", V1_PULLS_PATH): Operation(
        "pull",
        "Begins to pull a module from a registry that the configuration names, by a unit of its own",
        202,
        answer="Pull",
        body="Pulling",
        refusals=BODY,
    ),
    ("GET", V1_PULLS_PATH): Operation(
        "listPulls", "The pulls that are under way, and the last that have ended", answer="PullList"
    ),
    ("GET", f"{V1_PULLS_PATH}/{{id}}"): Operation(
        "getPull",
        "How far a pull is",
        answer="Pull",
        parameters=(Parameter("wait", "query", {"type": "boolean"}, "answer when it has ended, or after a second"),),
        refusals=(ErrorKind.NOT_FOUND,),
    ),
    ("DELETE", f"{V1_PULLS_PATH}/{{id}}"): Operation(
        "cancelPull",
        "Ends a pull that is under way; nothing of it is kept",
        answer="Pull",
        refusals=(ErrorKind.NOT_FOUND,),
    ),
    ("GET", f"{V1_STORE_PATH}/keys"): Operation(
        "listKeys",
        "What modules must be to start, and what runs that could not start any more",
        answer="Requirements",
    ),
    ("POST", f"{V1_STORE_PATH}/keys/{{name}}/revoke"): Operation(
        "revokeKey",
        "Has a key count no more, from now on; with what runs that could not start any more",
        answer="Revoked",
        body="Revoke",
        refusals=(*BODY, ErrorKind.NOT_FOUND),
    ),
    ("GET", V1_EVENTS_PATH): Operation(
        "keepEvents",
        "What happened to keeps, or with follow what happens from the answer's begin on, as server-sent events: `keep`",
        answer=sse.CONTENT_TYPE,
        parameters=(
            Parameter("keep", "query", KUUID, "of this keep alone"),
            Parameter("follow", "query", {"type": "boolean"}, "go on for ever"),
            Parameter("lines", "query", {"type": "integer", "minimum": 1, "maximum": 100_000}, "the last events"),
            _RESUME,
        ),
        refusals=(),
    ),
    ("GET", V1_DECLARED_PATH): Operation("listDeclared", "Declared keeps by name", answer="DeclaredList", refusals=()),
    ("GET", DECLARED_PATH): Operation(
        "getDeclared",
        "One declared keep, with its manifest, immediately or when nothing is under way for it",
        answer="Declared",
        parameters=(
            Parameter(
                "settled",
                "query",
                {"type": "integer", "minimum": 0, "maximum": MAX_SETTLING_SECONDS},
                "answer when it is neither starting nor being replaced, or after so many seconds",
            ),
        ),
    ),
    ("GET", f"{DECLARED_PATH}/runs"): Operation(
        "declaredRuns",
        "The latest runs of a declared job, the oldest first",
        answer="Runs",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("PUT", DECLARED_PATH): Operation(
        "declareKeep",
        "Has there be a keep as a manifest says, whatever happens to it or to its host",
        answer="Declared",
        body="Apply",
        refusals=(*BODY, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.NO_SPACE),
    ),
    ("GET", V1_VOLUMES_PATH): Operation(
        "listVolumes", "Volumes by name, with the declared keeps that name them", answer="VolumeList", refusals=()
    ),
    ("DELETE", VOLUME_PATH): Operation(
        "removeVolume",
        "Removes a volume and all that is in it; refused while it is used",
        204,
        answer="",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("DELETE", DECLARED_PATH): Operation(
        "deleteDeclared", "Has it be declared no more; its keeps end then", 204, answer=""
    ),
    ("POST", f"{DECLARED_PATH}/restart"): Operation(
        "restartDeclared",
        "Has another keep take its place, or runs again what has ended; of a job: runs it now",
        answer="Declared",
        refusals=(*BODY, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.NO_SPACE),
    ),
    ("POST", f"{DECLARED_PATH}/rollback"): Operation(
        "rollBackDeclared",
        "Wants again what was wanted before",
        answer="Declared",
        refusals=(*BODY, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.NO_SPACE),
    ),
    ("GET", V1_SECRETS_PATH): Operation(
        "listSecrets", "Secrets by name, never their values", answer="Secrets", refusals=()
    ),
    ("PUT", SECRET_PATH): Operation(
        "setSecret",
        "Has a secret be the request's body, which no one can read again",
        answer="Secret",
        body="application/octet-stream",
        parameters=(Parameter("restart", "query", {"type": "boolean"}, "restart the declared keeps that use it"),),
        refusals=(*BODY, ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.NO_SPACE, ErrorKind.CONFIGURATION),
    ),
    ("DELETE", SECRET_PATH): Operation(
        "removeSecret",
        "Removes a secret that no declared keep names",
        204,
        answer="",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT),
    ),
    ("GET", V1_CODELETS_PATH): Operation(
        "listApplications", "Applications on the host whose codelets can be loaded", answer="Applications", refusals=()
    ),
    ("GET", SETS_PATH): Operation(
        "listCodeletSets",
        "An application's codelet sets, with what each codelet has done",
        answer="CodeletSetList",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFIGURATION),
    ),
    ("POST", SETS_PATH): Operation(
        "loadCodeletSet",
        "Loads a set of codelets, modules of the application's store, or nothing of it",
        201,
        answer="LoadedSet",
        body="LoadSet",
        refusals=(
            *BODY,
            ErrorKind.NOT_FOUND,
            ErrorKind.CONFLICT,
            ErrorKind.INVALID_MODULE,
            ErrorKind.NO_SPACE,
            ErrorKind.CONFIGURATION,
        ),
    ),
    ("DELETE", f"{SETS_PATH}/{{id}}"): Operation(
        "unloadCodeletSet",
        "Unloads a set of codelets",
        204,
        answer="",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.CONFIGURATION),
    ),
    ("GET", f"{V1_CODELETS_PATH}/{{name}}/watch"): Operation(
        "watchCodeletSets",
        "What becomes of an application's codelet sets, as server-sent events `codeletset`, a set each: first all, then"
        " those that are loaded or unloaded, immediately, and each second those whose codelets have done something",
        answer=sse.CONTENT_TYPE,
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFIGURATION),
    ),
    ("GET", f"{V1_CODELETS_PATH}/{{name}}/stats"): Operation(
        "listHooks",
        "An application's hooks: calls, faults and times",
        answer="HookList",
        refusals=(ErrorKind.NOT_FOUND, ErrorKind.CONFIGURATION),
    ),
    ("GET", DOCUMENT_PATH): Operation("openapi", "This document", answer="application/json", refusals=()),
}
"""Every operation of /v1. A route without one is a defect, which every start of the manager shows."""


_IN_PATHS = (
    ("kuuid", "{kuuid}", KUUID),
    ("digest", "{digest}", _DIGEST),
    ("name", "references/{name}", _NAMED),
    ("name", "keys/{name}", _KEY),
    ("name", SECRET_PATH, {"type": "string", "pattern": f"^{SECRET_NAME}$"}),
    ("id", "pulls/{id}", {"type": "string", "pattern": "^[0-9a-f]{16}$"}),
    ("id", "sets/{id}", {"type": "string", "pattern": f"^{SET_ID}$"}),
    ("name", f"{V1_CODELETS_PATH}/{{name}}", {"type": "string", "pattern": f"^{APPLICATION_NAME}$"}),
    ("name", VOLUME_PATH, {"type": "string", "pattern": f"^{NAME_PATTERN}$"}),
    ("name", f"{V1_DECLARED_PATH}/{{name}}", {"type": "string", "pattern": "^[a-z0-9-]{1,63}$"}),
)
"""Parameters of paths, and the part of a path by which each is known."""


def document(routes: Iterable[Route]) -> dict[str, object]:
    """The document of those `routes` that lie below /v1. Raises KeyError for one that is not described."""
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        if route.path.startswith("/v1/"):
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(
                OPERATIONS[route.method, route.path], route.path
            )
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "keep-manager",
            "version": VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"clientCertificate": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"clientCertificate": {"type": "mutualTLS"}},
        },
    }


def _operation(operation: Operation, path: str) -> dict[str, object]:
    parameters = [parameter.document() for parameter in operation.parameters]
    for name, where, schema in _IN_PATHS:
        if where in path:
            parameters.insert(0, {"name": name, "in": "path", "required": True, "schema": schema})
    described: dict[str, object] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": _responses(operation),
    }
    if operation.body:
        described["requestBody"] = {"content": _body(operation.body)}
    return described


def _body(body: str) -> dict[str, object]:
    if "/" in body:
        return {body: {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}


def _responses(operation: Operation) -> dict[str, object]:
    refused: dict[str, list[str]] = {}
    for kind in (*EVERYWHERE, *operation.refusals):
        refused.setdefault(str(int(STATUS_OF[kind])), []).append(kind.value)
    if operation.body:
        refused[str(UNSUPPORTED_MEDIA)] = [ErrorKind.UNSUPPORTED_MEDIA.value]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(operation.status): _answer(operation),
        **{status: {"description": ", ".join(kinds), "content": error} for status, kinds in sorted(refused.items())},
    }


def _answer(operation: Operation) -> dict[str, object]:
    if not operation.answer:
        return {"description": "done"}
    if "/" in operation.answer:
        shape: Schema = EVENT if operation.answer == sse.CONTENT_TYPE else {"type": "object"}
        return {"description": operation.summary, "content": {operation.answer: {"schema": shape}}}
    schema = {"$ref": f"#/components/schemas/{operation.answer}"}
    answer: dict[str, object] = {"description": operation.summary, "content": {"application/json": {"schema": schema}}}
    if operation.status == 201:
        answer["headers"] = {"Location": {"required": True, "schema": {"type": "string"}}}
    return answer


async def openapi(request: web.Request) -> web.StreamResponse:
    """GET /v1/openapi.json."""
    return json_response(request.app[DOCUMENT])
