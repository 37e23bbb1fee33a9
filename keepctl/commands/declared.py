"""`keepctl apply`, `diff`, `get`, `delete`, `restart`, `rollback`: keeps that are there permanently."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from itertools import chain

from keep_client.credentials import parse_manager
from keep_client.declared import DeclaredClient
from keep_client.peer import ConnectionFailed, one_line, printable
from keep_protocol.declared import DeclaredKeep, DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl.access import CONNECTION, OUTPUT, Access, connected
from keepctl.arguments import FILE, Argument, Choice, Command, Option
from keepctl.describe import FAILED, moment_text
from keepctl.display import echo, json_text, show_failure, show_table

_SUFFIXES = (".yaml", ".yml")
_HEADER = ("NAME", "STATE", "VERSION", "ID", "MODULE", "DETAIL")
_WELL = (DeclaredState.RUNNING, DeclaredState.DONE, DeclaredState.SCHEDULED)
_FILES = Option(("-f", "--file"), "paths", "A manifest, or a directory of them.", FILE, "PATH", many=True)
_WAIT = Option(("--wait",), "wait", "Until it runs, has ended, or cannot; exits 1 unless it runs or exited 0.")
_NAMES = Argument("names", "NAME...", many=True)


def client_of(access: Access) -> DeclaredClient:
    """The manager's calls about what is declared."""
    return DeclaredClient(parse_manager(access.manager), access.credentials.manager_context())


def _manifests(paths: Sequence[str]) -> dict[str, str]:
    """The manifests at these paths by the names they declare, each checked. Raises KeepfleetError."""
    from keepctl.manifest.reading import read_job  # here: YAML costs 15 ms, and `get` does without

    if not paths:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read manifests: name them with -f FILE or -f DIRECTORY")
    found: dict[str, str] = {}
    for path in chain.from_iterable(map(_files, paths)):
        job = read_job(path)
        name = job.name or os.path.splitext(os.path.basename(path))[0]
        if name in found:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot use {path}: another file declares {name}, too")
        try:
            with open(path, encoding="utf-8", newline="") as file:  # word for word
                found[name] = file.read()
        except OSError as error:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {path}: {error.strerror}") from error
    return found


def _files(path: str) -> list[str]:
    """A file itself, or the manifests in a directory, by name. Raises KeepfleetError."""
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return [path]
        found = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(_SUFFIXES)]
    except OSError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {path}: {error.strerror}") from error
    if not found:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot use {path}: no file in it ends in .yaml or .yml")
    return found


def _each(names: Sequence[str], output: str, work: Callable[[str], tuple[DeclaredKeep | None, str, bool]]) -> int:
    """Does `work` for each, which gives what there is then, what it says, and whether that is well; the exit code. One
    that fails does not keep the others; a manager that does not answer ends it immediately."""
    code, after = 0, []
    for name in names:
        try:
            found, said, well = work(name)
        except KeepfleetError as error:
            code = show_failure(error)
            if isinstance(error, ConnectionFailed):
                break
            continue
        code = code if well else FAILED
        if found is not None:
            after.append(found.to_wire())
        if output == "text":
            echo(one_line(f"{name}: {said}"))
    if output == "json":
        echo(json_text(after))
    return code


def _awaited(client: DeclaredClient, found: DeclaredKeep, said: str) -> tuple[DeclaredKeep, str, bool]:
    """It once nothing is under way for it. It is well where that is what was asked for, and not what was before."""
    after = client.settled(found.name)
    said = f"{said}; {_state(after)}"
    return after, said, after.state in _WELL and after.version == found.version


def _state(found: DeclaredKeep) -> str:
    why = ": ".join(_reasons(found))
    return found.state.value + (f": {why}" if why else "")


def _reasons(found: DeclaredKeep) -> list[str]:
    """Why it is so; that what runs is running says nothing more."""
    detail = "" if found.state is DeclaredState.RUNNING else found.detail
    due = "" if found.next_run is None else f"next run {moment_text(found.next_run)}"
    return [text for text in (detail, found.note, due) if text]


@connected
def _apply(paths: tuple[str, ...], wait: bool, output: str, access: Access) -> int:
    manifests = _manifests(paths)
    with client_of(access) as client:
        before = {each.name: each.version for each in client.declared()}

        def one(name: str) -> tuple[DeclaredKeep | None, str, bool]:
            found = client.apply(name, manifests[name])
            known = before.get(name)
            verb = "declared" if known is None else "unchanged" if known == found.version else "changed"
            said = f"{verb}, version {found.version}"
            return _awaited(client, found, said) if wait else (found, said, True)

        return _each(list(manifests), output, one)


@connected
def _diff(paths: tuple[str, ...], output: str, access: Access) -> int:
    import difflib

    manifests = _manifests(paths)
    with client_of(access) as client:
        declared = {each.name: each.manifest for each in client.declared()}
    found = []
    for name, wanted in manifests.items():
        before = declared.get(name)
        kind = "new" if before is None else "unchanged" if before == wanted else "changed"
        lines = (before or "").splitlines(), wanted.splitlines()
        diff = list(difflib.unified_diff(*lines, f"declared/{name}", name, lineterm=""))
        found.append({"name": name, "change": kind, "diff": diff})
    if output == "json":
        echo(json_text(found))
    else:
        for line in chain.from_iterable(each["diff"] for each in found):
            echo(printable(line))
    return FAILED if any(each["change"] != "unchanged" for each in found) else 0


@connected
def _get(names: tuple[str, ...], output: str, access: Access) -> int:
    with client_of(access) as client:
        found = [client.declared_keep(name) for name in names] if names else list(client.declared())
    if output == "json":
        echo(json_text([each.to_wire() for each in found]))
    elif output == "yaml":
        echo("\n---\n".join(each.manifest.rstrip("\n") for each in found))
    else:
        show_table(_HEADER, [_row(each) for each in found])
    return 0


def _row(each: DeclaredKeep) -> tuple[str, ...]:
    why = "; ".join(_reasons(each))
    kuuid = "" if each.kuuid is None else str(each.kuuid)
    return each.name, each.state.value, str(each.version or ""), kuuid, each.module, why


@connected
def _delete(names: tuple[str, ...], output: str, access: Access) -> int:
    with client_of(access) as client:

        def one(name: str) -> tuple[DeclaredKeep | None, str, bool]:
            found = client.declared_keep(name)
            client.undeclare(name)
            return found, "declared no more", True

        return _each(names, output, one)


@connected
def _restart(names: tuple[str, ...], wait: bool, output: str, access: Access) -> int:
    with client_of(access) as client:

        def one(name: str) -> tuple[DeclaredKeep | None, str, bool]:
            found = client.restart(name)
            said = f"another keep takes its place, version {found.version}"
            if found.schedule:
                said = "it is run now" if found.last_run is None else f"run {found.last_run.number} begins"
            return _awaited(client, found, said) if wait else (found, said, True)

        return _each(names, output, one)


@connected
def _roll_back(names: tuple[str, ...], wait: bool, output: str, access: Access) -> int:
    with client_of(access) as client:

        def one(name: str) -> tuple[DeclaredKeep | None, str, bool]:
            found = client.roll_back(name)
            return _awaited(client, found, found.note) if wait else (found, found.note, True)

        return _each(names, output, one)


APPLY = Command(
    "apply",
    _apply,
    "Declares keeps, which are then there permanently.",
    """Has there be a keep for each manifest, from now on: again after it ended, as its `restart:` says, and after a
    reboot. Its name is the manifest's, or the file's without .yaml. What is declared as it is written stays as it is;
    what differs, or whose module's reference has moved, is replaced. Nothing is declared unless every manifest can be
    read.

    \b
    keepctl apply --wait -f web.yaml
    """,
    (*CONNECTION, OUTPUT, _FILES, _WAIT),
)
DIFF = Command(
    "diff",
    _diff,
    "Shows what an apply would change.",
    """Shows the lines in which manifests differ from what is declared; exits 1 where they do.

    \b
    keepctl diff -f web.yaml
    """,
    (*CONNECTION, OUTPUT, _FILES),
)
GET = Command(
    "get",
    _get,
    "Lists what is declared, and how it is.",
    """Lists the declared keeps, or those named; -o yaml prints their manifests, word for word.

    \b
    keepctl get
    keepctl get -o yaml web >web.yaml
    """,
    (*CONNECTION, OUTPUT.replace(value=Choice("text", "json", "yaml"))),
    (_NAMES.replace(metavar="[NAME...]", required=False),),
)
DELETE = Command(
    "delete",
    _delete,
    "Has keeps be declared no more, and ends them.",
    """Has keeps be declared no more; they end, and their history is forgotten.

    \b
    keepctl delete web
    """,
    (*CONNECTION, OUTPUT),
    (_NAMES,),
)
RESTART = Command(
    "restart",
    _restart,
    "Has another keep take a declared one's place.",
    """Has another keep take the place of the one there is, which ends when the new one is ready; or runs again what has
    ended, or was stopped. A job is run now.

    \b
    keepctl restart --wait web
    """,
    (*CONNECTION, OUTPUT, _WAIT),
    (_NAMES,),
)
ROLLBACK = Command(
    "rollback",
    _roll_back,
    "Wants again what was declared before.",
    """Has keeps be again as they were declared before the last change: manifest and module. A second rollback takes
    the first one back.

    \b
    keepctl rollback --wait web
    """,
    (*CONNECTION, OUTPUT, _WAIT),
    (_NAMES,),
)
