"""A manifest's file, read into a job."""

from __future__ import annotations

import os
import stat
from _collections_abc import Iterator

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.runs import Overlap
from keep_protocol.volumes import SIZES, usual_inodes
from keepctl.job import (
    MAX_PROBE_SECONDS,
    NO_RESTART,
    PROBE_SECONDS,
    READY_SECONDS,
    Grant,
    Job,
    Probe,
    Volume,
    is_stored,
    parse_duration,
    parse_limit,
    parse_size,
)
from keepctl.manifest.check import faults_of
from keepctl.manifest.schema import SCHEMA, WORDS
from strict_yaml.tree import MAX_BYTES, Fault, Node, parse


def parse_job(data: bytes, directory: str = "") -> tuple[Job | None, list[Fault]]:
    """The job a manifest describes, or every fault of it; `directory` is where a relative module lies. Pure."""
    root, faults = parse(data)
    if root is None:
        return None, faults or [Fault(1, 1, "it is empty")]
    faults += faults_of(root, SCHEMA)
    if not faults:
        faults += [*_twice(root), *_of_two_places(root), *_of_one_volume(root)]
        faults += [*_limits(root)[1], *_volume(root)[1], *_probe(root)[1]]
    if faults:
        return None, sorted(faults)
    job = _job(root, directory)
    try:
        job.check()
    except KeepfleetError as error:
        return None, [Fault(root.line, root.column, error.message)]
    return job, []


def read_job(path: str) -> Job:
    """The job in the file at `path`. Raises KeepfleetError(BAD_REQUEST) with every fault as evidence."""
    job, faults = parse_job(_read(path), os.path.dirname(os.path.abspath(path)))
    if job is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot use {path}: {count}; see: keepctl manifest schema",
            tuple(f"{path}:{fault.line}:{fault.column}: {fault.message}" for fault in faults),
        )
    return job


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {path}: it is not a regular file")
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {path}: {error.strerror}") from error


def _entries(root: Node, name: str) -> dict[str, Node]:
    value = root.value[name].value if isinstance(root.value, dict) and name in root.value else None
    return value if isinstance(value, dict) else {}


def _items(root: Node, name: str) -> list[dict[str, Node]]:
    value = root.value[name].value if isinstance(root.value, dict) and name in root.value else None
    return [item.value for item in value if isinstance(item.value, dict)] if isinstance(value, list) else []


def _text(root: Node, name: str) -> str:
    value = root.value[name].value if isinstance(root.value, dict) and name in root.value else None
    return value if isinstance(value, str) else ""


def _whole(root: Node, name: str, default: int) -> int:
    value = root.value[name].value if isinstance(root.value, dict) and name in root.value else None
    return value if isinstance(value, int) else default


def _texts(root: Node, name: str) -> tuple[str, ...]:
    value = root.value[name].value if isinstance(root.value, dict) and name in root.value else None
    return tuple(str(item.value) for item in value) if isinstance(value, list) else ()


def _twice(root: Node) -> Iterator[Fault]:
    """What may stand only once: a directory's place in the guest, and a secret's name."""
    for list_name, member in (("directories", "guest"), ("secrets", "name")):
        seen: dict[str, int] = {}
        for item in _items(root, list_name):
            node = item[member]
            first = seen.setdefault(node.text, node.line)
            if first != node.line:
                yield Fault(
                    node.line, node.column, f"{list_name}: duplicate {node.text!r}; the first is in line {first}"
                )


def _of_two_places(root: Node) -> Iterator[Fault]:
    """Secrets that are to come both from a file and from what the manager has."""
    for item in _items(root, "secrets"):
        if "file" in item and "stored" in item:
            node = item["stored"]
            yield Fault(node.line, node.column, "secrets: `file` and `stored` are two places; leave one of them out")


def _of_one_volume(root: Node) -> Iterator[Fault]:
    """Runs that may overlap, and a volume that one keep has at a time: each but the first would fail."""
    if _text(root, "overlap") == Overlap.ALLOW.value and _entries(root, "volume") and isinstance(root.value, dict):
        node = root.value["overlap"]
        yield Fault(node.line, node.column, "overlap: one keep has a volume at a time; forbid it, or leave volume out")


def _limits(root: Node) -> tuple[dict[str, int], list[Fault]]:
    limits: dict[str, int] = {}
    faults: list[Fault] = []
    for name, node in _entries(root, "limits").items():
        try:
            limit, number = parse_limit(WORDS.get(name, name), node.text)
            limits[limit] = number
        except KeepfleetError as error:
            faults.append(Fault(node.line, node.column, error.message))
    return limits, faults


def _volume(root: Node) -> tuple[Volume | None, list[Fault]]:
    entries = _entries(root, "volume")
    if not entries:
        return None, []
    node = entries["size"]
    try:
        size = parse_size(node.text)
        if not SIZES[0] <= size <= SIZES[1]:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"a volume has {SIZES[0] >> 20}M to {SIZES[1] >> 30}G")
    except KeepfleetError as error:
        return None, [Fault(node.line, node.column, error.message)]
    asked = entries["inodes"].value if "inodes" in entries else None
    inodes = asked if isinstance(asked, int) else usual_inodes(size)
    return Volume(entries["name"].text, entries["guest"].text, size, inodes), []


def _probe(root: Node) -> tuple[Probe | None, list[Fault]]:
    entries = _entries(root, "probe")
    if not entries:
        return None, []
    node = entries.get("within")
    try:
        seconds = PROBE_SECONDS if node is None else parse_duration(node.text)
        if not 1 <= seconds <= MAX_PROBE_SECONDS:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"within must be 1 to {MAX_PROBE_SECONDS} seconds")
    except KeepfleetError as error:
        return None, [Fault(node.line, node.column, error.message)] if node is not None else []
    return Probe(entries["output"].text, seconds), []


def _job(root: Node, directory: str) -> Job:
    module, export, arguments = _text(root, "module"), _text(root, "export"), _texts(root, "arguments")
    return Job(
        module=module if not module or is_stored(module) else os.path.join(directory, module),
        name=_text(root, "name"),
        labels={name: node.text for name, node in _entries(root, "labels").items()},
        arguments=() if export else arguments,
        environment={name: node.text for name, node in _entries(root, "environment").items()},
        directories=tuple(
            Grant(item["host"].text, item["guest"].text, "writable" in item and item["writable"].value is True)
            for item in _items(root, "directories")
        ),
        secrets={item["name"].text: item["file"].text for item in _items(root, "secrets") if "file" in item},
        stored_secrets={
            item["name"].text: item["stored"].text if "stored" in item else item["name"].text
            for item in _items(root, "secrets")
            if "file" not in item
        },
        stdin=_text(root, "stdin"),
        streams="stream" in (given := _entries(root, "stdin")) and given["stream"].value is True,
        limits=_limits(root)[0],
        restart=_text(root, "restart") or NO_RESTART,
        profile=_text(root, "profile"),
        compiler=_text(root, "compiler"),
        output=_text(root, "output"),
        schedule=_text(root, "schedule"),
        missed=_text(root, "missed") or Job().missed,
        overlap=_text(root, "overlap") or Job().overlap,
        ready_seconds=_whole(root, "ready_seconds", READY_SECONDS),
        probe=_probe(root)[0],
        volume=_volume(root)[0],
        export=export,
        export_arguments=arguments if export else (),
    )
