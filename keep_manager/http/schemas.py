"""The shapes of /v1 as JSON Schema, made of the contract's own tables and bounds. Pure."""

from __future__ import annotations

from keep_protocol import streams
from keep_protocol.api import MAX_PAGE
from keep_protocol.constants import KUUID_BITS, LAST_KEEP_PORT, MAX_CERTIFICATE_NAMES
from keep_protocol.errors import ErrorKind
from keep_protocol.keep import OutcomeKind
from keep_protocol.labels import MAX_LABEL_VALUE, MAX_LABELS
from keep_protocol.limits import BOUNDS, DEFAULTS
from keep_protocol.states import Phase, State
from keep_protocol.workload import MAX_DIRECTORIES, MAX_SECRETS, RestartPolicy

Schema = dict[str, object]
MAX_KUUID = (1 << KUUID_BITS) - 1


def _object(properties: dict[str, Schema], required: tuple[str, ...] | None = None, description: str = "") -> Schema:
    """An object of exactly `properties`, all of them required unless it is said which."""
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }
    return {**schema, "description": description} if description else schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(description: str, **more: object) -> Schema:
    return {"type": "string", "description": description, **more}


def _texts(description: str) -> Schema:
    return {"type": "object", "additionalProperties": {"type": "string"}, "description": description}


def _maybe(kind: str, description: str) -> Schema:
    return {"type": [kind, "null"], "description": description}


def _list(items: Schema, description: str, **more: object) -> Schema:
    return {"type": "array", "items": items, "description": description, **more}


KUUID: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_KUUID, "description": "the keep's ID"}
NAME = _text("1 to 63 of a-z, 0-9 and -, or empty", pattern=r"^[a-z0-9-]{0,63}$")
LABELS: Schema = {
    "type": "object",
    "description": "printable texts by keys of a-z, 0-9, `.`, `/` and -",
    "propertyNames": {"pattern": r"^[a-z0-9./-]{1,63}$"},
    "additionalProperties": {"type": "string", "maxLength": MAX_LABEL_VALUE},
    "maxProperties": MAX_LABELS,
}
_SECONDS = "seconds, or null where nobody measured"
_EPOCH = "seconds of the epoch, or null"


def _limits(*, required: bool) -> Schema:
    """Every limit with its bounds and its default."""
    properties: dict[str, Schema] = {
        name: {"type": "integer", "minimum": low, "maximum": high, "default": DEFAULTS[name]}
        for name, (low, high) in BOUNDS.items()
    }
    return _object(properties, None if required else ())


def _outcome() -> Schema:
    return _object(
        {
            "kind": _text("which way it ended", enum=[kind.value for kind in OutcomeKind]),
            "text": _text("how it ended, in one sentence"),
            "exit_code": _maybe("integer", "of a guest that exited"),
            "signal": _maybe("integer", "the number, of one that was killed"),
            "backtrace": _list({"type": "string"}, "of a trap, the innermost frame first"),
            "wall_seconds": _maybe("number", _SECONDS),
            "cpu_seconds": _maybe("number", _SECONDS),
            "peak_bytes": _maybe("integer", "the most memory it had"),
            "output_bytes": _maybe("integer", "what it wrote to standard output and error"),
            "started_at": _maybe("number", _EPOCH),
            "ended_at": _maybe("number", _EPOCH),
            "ended_monotonic": _maybe("number", "the same in seconds since the host's boot, which no clock changes"),
            "by": _text("who stopped it; empty when nobody did"),
            "dropped_lines": _maybe(
                "integer",
                "how many of the keep's lines the journal's limit kept out of it; null where nobody counted yet",
            ),
        }
    )


def _keep() -> Schema:
    return _object(
        {
            "state": {
                "type": "integer",
                "enum": [int(state) for state in State],
                "description": ", ".join(f"{int(state)} {state.name.lower()}" for state in State),
            },
            "kuuid": KUUID,
            "app_loader_bind_port": {
                "type": "integer",
                "minimum": 0,
                "maximum": LAST_KEEP_PORT,
                "description": "the port of its door; 0 before it is started",
            },
            "bindaddress": _text("where its door is; empty before it is started"),
            "phase": {
                "type": "string",
                "enum": ["", *(phase.value for phase in Phase)],
                "description": "where exactly it is; empty where its loader does not answer",
            },
            "detail": _text("a sentence for people"),
            "fingerprint": _text("`sha256:` and 64 hexadecimal digits of its certificate; empty before it is started"),
            "certificate": _text("that certificate, PEM"),
            "unit": _text("its systemd unit"),
            "walls": _list({"type": "string"}, "what its loader found missing around itself"),
            "outcome": {
                "anyOf": [_ref("Outcome"), {"type": "null"}],
                "description": "how its workload ended, or null before that",
            },
            "name": _text("what its creator called it"),
            "labels": _texts("what it can be found by"),
            "owner": _text("the name in its creator's certificate"),
            "limits": _limits(required=True),
            "restarts": {"type": "integer", "minimum": 0, "description": "how often its workload was started again"},
        }
    )


def _workload() -> Schema:
    path = _text("an absolute, plain path of the manager's host", minLength=1)
    texts: Schema = {"type": "string"}
    directory = _object(
        {
            "host": path,
            "guest": _text("an absolute, plain path for the guest", minLength=1),
            "writable": {"type": "boolean", "default": False, "description": "whether the guest may write there"},
        },
        ("host", "guest"),
    )
    return _object(
        {
            "arguments": _list(texts, "argv after the program's name"),
            "environment": _texts("its variables, and no others"),
            "export": _text("the function to call; empty for the module's own entry"),
            "export_arguments": _list(texts, "its arguments, typed by its signature"),
            "stdin": {
                "anyOf": [_object({"file": path}), {"type": "null"}],
                "description": "its standard input; empty without one",
            },
            "directories": _list(directory, "directories of the host", maxItems=MAX_DIRECTORIES),
            "secrets": _list(
                _object({"name": _text("its file's name below /run/secrets", minLength=1), "file": path}),
                "files of the host",
                maxItems=MAX_SECRETS,
            ),
            "restart": _text("when it is run again", enum=[policy.value for policy in RestartPolicy], default="no"),
        },
        (),
        "what the guest is given; paths lie below the caller's grant roots",
    )


def schemas() -> dict[str, Schema]:
    """Every shape by its name."""
    return {
        "Keep": _keep(),
        "Outcome": _outcome(),
        "KeepEvent": _object(
            {
                "at": {"type": "number", "description": "seconds of the epoch"},
                "event": {"type": "string", "enum": [happening.value for happening in streams.Happening]},
                "by": _text("who asked for it; empty where nobody did or nobody knows"),
                "keep": _ref("Keep"),
            },
            None,
            "the data of a `keep` event",
        ),
        "LogLine": _object(
            {
                "at": {"type": "number", "description": "seconds of the epoch"},
                "source": {"type": "string", "enum": list(streams.SOURCES)},
                "text": _text("the line"),
            },
            None,
            "the data of a `line` event",
        ),
        "Page": _object(
            {
                "keeps": _list(_ref("Keep"), "by ID"),
                "next": {
                    "anyOf": [KUUID, {"type": "null"}],
                    "description": "what to ask for `after` to go on, or null",
                },
            }
        ),
        "Create": _object(
            {
                "arch": _text("the kind of keep", enum=["wasi"], default="wasi"),
                "name": NAME,
                "labels": LABELS,
                "limits": _limits(required=False),
            },
            (),
        ),
        "Start": _object(
            {
                "address": _text("an IPv4 or IPv6 address of the manager's host", default="127.0.0.1"),
                "port": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": LAST_KEEP_PORT,
                    "description": "of its upload endpoint; without one the first of keep_ports that is free; "
                    "on 127.0.0.1 a taken one moves to the next free one",
                },
                "names": _list({"type": "string"}, "for its certificate", maxItems=MAX_CERTIFICATE_NAMES),
                "workload": {
                    "anyOf": [_workload(), {"type": "null"}],
                    "description": "what the guest is given; paths lie below the caller's grant roots",
                },
            },
            (),
        ),
        "Error": _object(
            {
                "error": _object(
                    {
                        "kind": _text("for programs", enum=[kind.value for kind in ErrorKind]),
                        "message": _text("cannot X: why"),
                        "evidence": _list({"type": "string"}, "lines that show it"),
                    }
                )
            }
        ),
    }


PAGE_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
EVENT: Schema = {
    "type": "object",
    "description": "one server-sent event; its data is JSON",
    "properties": {
        "event": {"type": "string", "enum": [streams.LINE, streams.KEEP, streams.END]},
        "data": {"type": "string"},
        "id": {"type": "string", "maxLength": streams.MAX_ID},
    },
    "required": ["event", "data"],
}
