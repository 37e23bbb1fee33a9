"""The published JSON Schema (draft 2020-12) of a manifest; the checks and the reference page are made of this table.

`x-must` finishes the sentence "X must …" where a pattern alone would say nothing to a person.
"""

from __future__ import annotations

from keep_protocol.limits import BOUNDS, DEFAULTS
from keep_protocol.runs import SCHEDULE, Missed, Overlap
from keep_protocol.spec import MAX_LABEL_VALUE, MAX_LABELS, Compiler, OutputPolicy, Profile, RestartPolicy
from keep_protocol.volumes import BYTES_PER_INODE, INODES, NAME_PATTERN, SIZES
from keep_protocol.workload import MAX_DIRECTORIES, MAX_SECRETS, MAX_STRINGS
from keepctl.job import CPUS, DURATION, MAX_PROBE, MAX_PROBE_SECONDS, PROBE_SECONDS, READY_SECONDS

Schema = dict[str, object]

_PATH_LIMIT = 4095
"""PATH_MAX without its NUL (man 7 path_resolution)."""


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _text(description: str, pattern: str, must: str, **more: object) -> Schema:
    return {"type": "string", "description": description, "pattern": pattern, "x-must": must, **more}


def _host_path(description: str) -> Schema:
    return _text(
        description + " An absolute path on the manager's host, below what its configuration grants you.",
        "^/[^\\u0000]*$",
        "be an absolute path",
        maxLength=_PATH_LIMIT,
    )


def _number(name: str, description: str) -> Schema:
    low, high = BOUNDS[name]
    return {
        "type": "integer",
        "description": description,
        "minimum": low,
        "maximum": high,
        "default": DEFAULTS[name],
    }


def _size(description: str) -> Schema:
    return {
        "type": ["integer", "string"],
        "description": description,
        "pattern": "^(?:[0-9]{1,12}(?:[KMGkmg](?:i?B)?|B)?)$",
        "x-must": "be bytes, or a size like 64K, 64M or 1G",
        "minimum": 0,
    }


def _duration(description: str) -> Schema:
    return {
        "type": ["integer", "string"],
        "description": description,
        "pattern": _whole(DURATION),
        "x-must": "be whole seconds, or a time like 10s, 5m or 1h30m",
        "minimum": 0,
    }


def _guest_path(description: str) -> Schema:
    return _text(
        description + " Not below /run/secrets.",
        "^/$|^(?!/run/secrets(?:/|$))(?:/(?!\\.{1,2}(?:/|$))[^/\\u0000]+)+$",
        "be an absolute, plain path, and not /run/secrets",
        maxLength=255,
    )


_NO_NUL = {"type": "string", "pattern": "^[^\\u0000]*$", "x-must": "hold no NUL"}
_LIMITS: dict[str, object] = {
    "memory": _size(f"The guest's memory. Default {DEFAULTS['memory_bytes'] >> 20}M."),
    "time": _duration(f"How long it may run. Default {DEFAULTS['wall_seconds'] // 3600}h."),
    "cpu_time": _duration(f"How much processor time it may use. Default {DEFAULTS['cpu_seconds'] // 3600}h."),
    "cpus": {
        "type": ["integer", "number", "string"],
        "description": "How much of how many processors, with at most two decimals. Default 1.",
        "pattern": _whole(CPUS),
        "x-must": "be a number of processors like 0.5 or 2",
        "minimum": 0.01,
        "maximum": BOUNDS["cpu_percent"][1] / 100,
    },
    "stack": _size(f"The stack of WebAssembly calls. Default {DEFAULTS['stack_bytes'] >> 20}M."),
    "table_elements": _number("table_elements", "The elements of all its tables together."),
    "tasks": _number("tasks", "Processes and threads of the keep, its own among them."),
    "io_weight": _number("io_weight", "Its share of the disks among others."),
    "output_buffer_bytes": _number("output_buffer_bytes", "How much of its output is kept for later readers."),
    "compile_time": _duration(
        f"How much processor time compiling its module may use. Default {DEFAULTS['compile_seconds'] // 60}m."
    ),
    "compile_memory": _size(f"How much memory that may use. Default {DEFAULTS['compile_memory_bytes'] >> 20}M."),
    "log_lines_per_second": _number(
        "log_lines_per_second", "Entries a second in the journal; where lines come faster, several stand in one."
    ),
}
SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "urn:keepfleet:manifest:1",
    "title": "keepfleet workload",
    "description": "One workload: the module, what its guest is given, and what it may use.",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": _text(
            "What the keep is called.",
            "^[a-z0-9-]{1,63}$",
            "be 1 to 63 of a-z, 0-9 and -",
        ),
        "module": _text(
            "The WebAssembly file to send; a relative path begins at the manifest's directory. Or a module of the "
            "manager's store: NAME:TAG, NAME:TAG@sha256:… or sha256:…. Left out, it is named on the command line.",
            "^[^\\u0000]+$",
            "be the path of a file, or NAME:TAG",
            maxLength=_PATH_LIMIT,
        ),
        "export": _text(
            "The exported function to call instead of the program's own entry; `arguments` are its arguments then.",
            "^[^\\u0000-\\u001f\\u007f]{1,256}$",
            "be 1 to 256 characters, none of them a control character",
        ),
        "arguments": {
            "type": "array",
            "description": "The guest's arguments, after the program's name.",
            "maxItems": MAX_STRINGS,
            "items": _NO_NUL,
        },
        "environment": {
            "type": "object",
            "description": "The guest's environment. Secrets do not belong here.",
            "maxProperties": MAX_STRINGS,
            "propertyNames": {"pattern": "^[^=\\u0000]+$", "x-must": "be a variable's name, without ="},
            "additionalProperties": _NO_NUL,
        },
        "stdin": {
            **_host_path("The file that is the guest's standard input; empty where left out."),
            "type": ["string", "object"],
            "additionalProperties": False,
            "required": ["stream"],
            "properties": {
                "stream": {
                    "type": "boolean",
                    "description": "Whether it is the standard input of `keepctl run`, as with -i.",
                },
            },
        },
        "directories": {
            "type": "array",
            "description": "Directories the guest may open.",
            "maxItems": MAX_DIRECTORIES,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["host", "guest"],
                "properties": {
                    "host": _host_path("The directory."),
                    "guest": _guest_path("Where the guest finds it."),
                    "writable": {
                        "type": "boolean",
                        "description": "Whether the guest may write there.",
                        "default": False,
                    },
                },
            },
        },
        "secrets": {
            "type": "array",
            "description": "Files the guest finds as /run/secrets/NAME, in memory and not in its environment: of the "
            "host, or of what `keepctl secret set` gave the manager.",
            "maxItems": MAX_SECRETS,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "name": _text(
                        "Its name in the guest.",
                        "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
                        "be 1 to 63 of A-Z, a-z, 0-9, `_`, `.` and -, and begin with a letter or digit",
                    ),
                    "file": _host_path("The file."),
                    "stored": _text(
                        "The secret of `keepctl secret ls` that it is, of what is declared; without a file and this, "
                        "the one of its name.",
                        "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
                        "be a secret's name",
                    ),
                },
            },
        },
        "limits": {
            "type": "object",
            "description": "What it may use; what is left out has its default, or your ceiling where that is lower.",
            "additionalProperties": False,
            "properties": _LIMITS,
        },
        "restart": {
            "description": "When it is run again after its end.",
            "enum": [policy.value for policy in RestartPolicy],
            "default": RestartPolicy.NO.value,
        },
        "profile": {
            "description": "`strict` interprets the guest in a keep without any new executable memory; see "
            "docs/how-to/workloads.md for what that costs.",
            "enum": [profile.value for profile in Profile],
            "default": Profile.STANDARD.value,
        },
        "compiler": {
            "description": "`fast` compiles a core module in a fifth of the time, to slower code.",
            "enum": [compiler.value for compiler in Compiler],
            "default": Compiler.OPTIMIZING.value,
        },
        "output": {
            "description": "Whether it waits for those who read its output while it runs; with `drop-oldest` they miss "
            "what they are too slow for.",
            "enum": [policy.value for policy in OutputPolicy],
            "default": OutputPolicy.BLOCK.value,
        },
        "ready_seconds": {
            "type": "integer",
            "description": "How long a declared keep runs before it counts as ready, and the one it replaces ends.",
            "minimum": 0,
            "maximum": 3600,
            "default": READY_SECONDS,
        },
        "schedule": _text(
            "When a declared job runs: OnCalendar= and a calendar event of systemd's (man 7 systemd.time).",
            _whole(SCHEDULE),
            "be OnCalendar= and a calendar event, as in OnCalendar=*-*-* 03:00",
        ),
        "missed": {
            "description": "Whether a job's run is made up for, once, when no manager was there to start it.",
            "enum": [missed.value for missed in Missed],
            "default": Missed.RUN.value,
        },
        "overlap": {
            "description": "Whether a job's run may begin while another one goes on; else it is skipped.",
            "enum": [overlap.value for overlap in Overlap],
            "default": Overlap.FORBID.value,
        },
        "probe": {
            "type": "object",
            "description": "How a declared keep shows that it is ready. What has not by then counts as not ready, and "
            "is rolled back where another version was.",
            "additionalProperties": False,
            "required": ["output"],
            "properties": {
                "output": _text(
                    "Text of a line of its output: standard output or standard error.",
                    f"^[^\\u0000-\\u001f\\u007f]{{1,{MAX_PROBE}}}$",
                    f"be 1 to {MAX_PROBE} characters, none of them a control character",
                ),
                "within": _duration(
                    f"How long it has for that, at most {MAX_PROBE_SECONDS // 3600}h. Default {PROBE_SECONDS}s."
                ),
            },
        },
        "volume": {
            "type": "object",
            "description": "A directory of a declared keep's own that lasts: over its end, replacement, and a reboot. "
            "One keep has it at a time.",
            "additionalProperties": False,
            "required": ["name", "size", "guest"],
            "properties": {
                "name": _text(
                    "What it is called; made when there is none of this name.",
                    f"^{NAME_PATTERN}$",
                    "be 1 to 63 of a-z, 0-9 and -",
                ),
                "size": _size(
                    f"How much of the disk it has, its file system included; {SIZES[0] >> 20}M to {SIZES[1] >> 30}G. "
                    "It grows to that where it has less."
                ),
                "guest": _guest_path("Where the guest finds it."),
                "inodes": {
                    "type": "integer",
                    "description": f"How many files and directories fit; without it, one for {BYTES_PER_INODE >> 10}K.",
                    "minimum": INODES[0],
                    "maximum": INODES[1],
                },
            },
        },
        "labels": {
            "type": "object",
            "description": "Labels to find the keep by.",
            "maxProperties": MAX_LABELS,
            "propertyNames": {"pattern": "^[a-z0-9./-]{1,63}$", "x-must": "be 1 to 63 of a-z, 0-9, `.`, `/` and -"},
            "additionalProperties": _text(
                "A label's value.",
                "^[^\\u0000-\\u001f\\u007f-\\u009f\\u2028\\u2029]*$",
                "be printable",
                maxLength=MAX_LABEL_VALUE,
            ),
        },
    },
}
WORDS = {"memory": "memory", "time": "time", "cpu_time": "cpu_time", "cpus": "cpus", "stack": "stack_bytes"}
"""How each limit of a manifest is called by `keepctl.job.parse_limit`; the others by their own names."""
