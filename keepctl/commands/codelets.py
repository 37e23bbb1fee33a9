"""`keepctl codelets …`: codelets of applications on the manager's host, and which applications it knows."""

from __future__ import annotations

import os
import pwd
import stat

import click

from codelets.states import CodeletState, SetState, sentences
from keep_client.codelets import CodeletsClient
from keep_client.credentials import parse_manager
from keep_client.peer import one_line, printable
from keep_protocol import strict_json
from keep_protocol.codelets import (
    MAX_DESCRIPTOR,
    SUFFIX,
    SYSTEM_DIRECTORY,
    Application,
    Attachment,
    check_application_name,
    check_set_id,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse
from keepctl import files
from keepctl.access import CONNECTION, OUTPUT, Access, connected
from keepctl.arguments import FILE, TEXT, Argument, Command, Option, WrongUsage
from keepctl.commands.access import made_of
from keepctl.commands.shared import Commands
from keepctl.display import echo, json_line, json_text, output_reader, show_table
from keepctl.modules import read_file

HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - what the manager's unit hides from it
_DIRECTORY = Option(
    ("--directory",), "directory", f"Where the manager looks; otherwise {SYSTEM_DIRECTORY}, or yours.", FILE, "DIR"
)
_NAME = Argument("name", "NAME")


@click.group("codelets", cls=Commands, short_help="Loads codelets into applications on the manager's host.")
def group() -> None:
    """Loads codelets into running applications on the manager's host, and shows what they do. An application is made
    known on that host, by its administrator, with `keepctl codelets attach`.

    \b
    keepctl codelets attach forwarder /run/forwarder/lcm.sock --owner ann
    keepctl codelets load forwarder queue-stats.yaml
    keepctl codelets ls forwarder
    """


def _client(access: Access) -> CodeletsClient:
    return CodeletsClient(parse_manager(access.manager), access.credentials.manager_context())


# --- over the manager ------------------------------------------------------------------------------------------------


@connected
def _list(names: tuple[str, ...], output: str, access: Access) -> int:
    if len(names) > 1:
        raise WrongUsage("name one application, or none")
    with _client(access) as client:
        if not names:
            _show_applications(client.applications(), output)
        else:
            _show_sets(client.sets(names[0]), output)
    return 0


def _show_applications(found: tuple[Application, ...], output: str) -> None:
    if output == "json":
        echo(json_text([each.to_wire() for each in found]))
        return
    rows = [(each.name, each.owner, one_line(each.detail or each.socket), each.user) for each in found]
    show_table(("NAME", "OWNER", "SOCKET", "USER"), rows)


def _show_sets(found: tuple[SetState, ...], output: str) -> None:
    if output == "json":
        echo(json_text([each.to_wire() for each in found]))
        return
    rows: list[tuple[str, ...]] = []
    for each in found:
        state = one_line("loaded" if each.loaded else f"unloaded: {each.why}")
        rows += [(one_line(each.codeletset_id), state, *_columns(codelet)) for codelet in each.codelets]
        if not each.codelets:
            rows.append((one_line(each.codeletset_id), state, "", "", "", "", "", ""))
    show_table(("SET", "STATE", "CODELET", "HOOK", "CALLS", "FAULTS", "LOST", "99 % UNDER"), rows)


def _columns(codelet: CodeletState) -> tuple[str, ...]:
    counts = (str(codelet.calls), str(codelet.faults + codelet.overruns), str(codelet.lost))
    taken = f"{codelet.p99_ns} ns" if codelet.p99_ns else ""
    return (one_line(codelet.codelet_name), one_line(codelet.hook_name), *counts, taken)


@connected
def _watch(name: str, output: str, access: Access) -> int:
    known: dict[str, SetState] = {}
    with _client(access) as client:
        watching = client.watch(name, output_reader())
        try:
            for each in watching:
                if output == "json":
                    echo(json_line(each.to_wire()))
                else:
                    for line in sentences(known.get(each.codeletset_id), each):
                        echo(one_line(line))
                known[each.codeletset_id] = each
        finally:
            watching.close()
    return 0


@connected
def _stats(name: str, output: str, access: Access) -> int:
    with _client(access) as client:
        found = client.hooks(name)
    if output == "json":
        echo(json_text([each.to_wire() for each in found]))
        return 0
    rows = [
        (one_line(each.name), str(each.calls), str(each.faults), str(each.overruns), one_line(" ".join(each.codelets)))
        for each in found
    ]
    show_table(("HOOK", "CALLS", "FAULTS", "OVERRUNS", "CODELETS"), rows)
    return 0


@connected
def _load(name: str, file: str, variables: tuple[str, ...], output: str, access: Access) -> int:
    check_application_name(name)
    given = {}
    for pair in variables:
        key, equals, value = pair.partition("=")
        if not equals:
            raise WrongUsage(f"value for '--variable': {pair!r} must be NAME=VALUE")
        given[key] = value
    descriptor = read_file(file, MAX_DESCRIPTOR).decode("utf-8", "replace")
    with _client(access) as client:
        loaded = client.load_set(name, descriptor, given)
    echo(json_text({"codeletset_id": loaded}) if output == "json" else printable(f"loaded {loaded}"))
    return 0


@connected
def _unload(name: str, sets: tuple[str, ...], output: str, access: Access) -> int:
    for each in sets:
        check_set_id(each)
    with _client(access) as client:
        for each in sets:
            client.unload_set(name, each)
            if output == "text":
                echo(f"unloaded {each}")
    if output == "json":
        echo(json_text({"unloaded": list(sets)}))
    return 0


# --- on the host -----------------------------------------------------------------------------------------------------


def _directory(given: str | None) -> str:
    if given is not None:
        return given
    if os.geteuid() == 0:
        return SYSTEM_DIRECTORY
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "keepfleet", os.path.basename(SYSTEM_DIRECTORY))


def _attach(name: str, socket: str, user: str | None, owner: str | None, directory: str | None, output: str) -> int:
    where = os.path.join(_directory(directory), check_application_name(name) + SUFFIX)
    path = os.path.abspath(socket)
    wire: dict[str, object] = {"socket": path, "user": user or _listening(path), "owner": owner or ""}
    made = parse(Attachment, wire, "attachment", strict=True)
    if os.geteuid() == 0 and directory is None and path.startswith(HIDDEN):
        why = "the manager's unit hides that directory from it; have the application listen below /run"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot attach {path}: {why}")
    lines = [f"{key}: {strict_json.dumps(value).decode()}" for key, value in made.to_wire().items()]
    text = "\n".join(["# Written by `keepctl codelets attach`.", *lines, ""])
    with files.explained(f"attach {name}"):
        files.make_directories(os.path.dirname(where), files.PUBLIC_DIRECTORY)
        files.replace(where, text.encode(), files.PUBLIC_FILE)
    whose = f"operators and {made.owner} load" if made.owner else "operators load"
    echo(json_text({"file": where, **made.to_wire()}) if output == "json" else f"attached {name}: {whose}; {where}")
    return 0


def _listening(path: str) -> str:
    """The user whose socket it is, by name where he has one. Raises KeepfleetError."""
    try:
        there = os.lstat(path)
    except OSError as error:
        why = f"{error.strerror}; start the application, or say with --user as whom it will listen"
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot attach {path}: {why}") from error
    if not stat.S_ISSOCK(there.st_mode):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot attach {path}: it is no socket")
    try:
        return pwd.getpwuid(there.st_uid).pw_name
    except KeyError:
        return str(there.st_uid)


def _detach(names: tuple[str, ...], directory: str | None, output: str) -> int:
    for name in names:
        where = os.path.join(_directory(directory), check_application_name(name) + SUFFIX)
        try:
            os.unlink(where)
        except FileNotFoundError:
            raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot detach {name}: there is no {where}") from None
        except OSError as error:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot detach {name}: {error.strerror}") from error
        if output == "text":
            echo(f"detached {name}")
    if output == "json":
        echo(json_text({"detached": list(names)}))
    return 0


ATTACH = Command(
    "attach",
    _attach,
    "Makes an application known to this host's manager.",
    """Makes an application known to this host's manager, by its life-cycle socket, and by the user as whom it listens
    there: the manager speaks to no one else in that place. Operators may load codelets into it, and one other caller,
    its owner. To be done on the host itself, as who may write the manager's configuration; it counts immediately.

    \b
    keepctl codelets attach forwarder /run/forwarder/lcm.sock --owner ann
    """,
    (
        Option(("--user",), "user", "As whom it listens; otherwise whose the socket is.", TEXT, "USER"),
        Option(("--owner",), "owner", "Who may load besides operators: a certificate's name.", TEXT, "CALLER"),
        _DIRECTORY,
        OUTPUT,
    ),
    (_NAME, Argument("socket", "SOCKET", FILE)),
)
DETACH = Command(
    "detach",
    _detach,
    "Has the manager know applications no more.",
    """Has this host's manager know applications no more; what is loaded in them stays.

    \b
    keepctl codelets detach forwarder
    """,
    (_DIRECTORY, OUTPUT),
    (Argument("names", "NAME...", many=True),),
)
LIST = Command(
    "ls",
    _list,
    "Lists applications, or the codelet sets of one.",
    """Lists the applications that you may see, or with the name of one the codelet sets in it: for each codelet its
    hook, its calls, its faults, the messages that were lost, and how long it takes.

    \b
    keepctl codelets ls
    keepctl codelets ls forwarder
    """,
    (*CONNECTION, OUTPUT),
    (Argument("names", "[NAME]", required=False, many=True),),
)
LOAD = Command(
    "load",
    _load,
    "Loads a codelet set into an application.",
    """Loads the codelet set that a descriptor describes into an application, whole or not at all. Its modules are in
    the application's store already; where one does not pass verification, the report says why.

    \b
    keepctl codelets load forwarder queue-stats.yaml
    keepctl codelets load forwarder steer.yaml --variable VERSION=1.0
    """,
    (
        *CONNECTION,
        OUTPUT,
        Option(("--variable",), "variables", "NAME=VALUE: what ${NAME} stands for.", TEXT, "NAME=VALUE", many=True),
    ),
    (_NAME, Argument("file", "FILE", FILE)),
)
UNLOAD = Command(
    "unload",
    _unload,
    "Unloads codelet sets from an application.",
    """Unloads codelet sets from an application, by their IDs. Calls that are under way end as they would have.

    \b
    keepctl codelets unload forwarder queue-stats
    """,
    (*CONNECTION, OUTPUT),
    (_NAME, Argument("sets", "ID...", many=True)),
)
STATS = Command(
    "stats",
    _stats,
    "Shows an application's hooks: calls and faults.",
    """Shows an application's hooks, with the calls that had codelets, their faults, and what is loaded on each; as JSON
    with a histogram of the times.

    \b
    keepctl codelets stats forwarder
    """,
    (*CONNECTION, OUTPUT),
    (_NAME,),
)
WATCH = Command(
    "watch",
    _watch,
    "Shows what becomes of an application's codelet sets.",
    """Shows what becomes of an application's codelet sets until Ctrl-C: each that is loaded or unloaded, by whomever or
    for its faults, as it happens, and each second the calls and faults of codelets that were called. As JSON a set is a
    line.

    \b
    keepctl codelets watch forwarder
    """,
    (*CONNECTION, OUTPUT),
    (_NAME,),
)
for command in (LOAD, UNLOAD, LIST, STATS, WATCH, ATTACH, DETACH):
    group.add_command(made_of(command))
