"""Puts the units where systemd finds them, builds the keeps' root, makes a version the current one, and takes all of
that away again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_root.contents import contents
from keep_root.tree import digest_of, read_tree
from keep_root.tree import findings as tree_findings
from keep_root.trees import SYSTEM as SYSTEM_TREES
from keep_root.trees import Trees, remove_trees, trees_in_use, user_directory
from keepctl import files, versions
from keepctl.prefix import Prefix, check_path
from keepctl.versions import Change

SYSTEM_UNITS = "/etc/systemd/system"
SYSTEM_PROGRAMS = "/usr/local/bin"
SYSTEMCTL_SECONDS = 60.0
"""daemon-reload reads every unit again: half a second with 2,000 keeps, on a busy host several."""
COMMANDS_SECONDS = 300.0
"""Seven seconds of processor time; this is a host that is busy with an upgrade."""
_COMMANDS = "import sys; sys.path.append(sys.argv.pop()); from script_pool.program.__main__ import main; main()"
MANAGER = "keep-manager.service"
KEEPS = "keep@*.service"
COMPILATIONS, PULLS = "keep-compile@*.service", "keep-pull@*.service"
SLICES = ("keep.slice", "keep-g*.slice", "keep-compile.slice", "keep-pull.slice")
GRANTS = ("keepfleet-grants.socket", "keepfleet-grants.service")
PROXIES = ("codelets-proxy@*.socket", "codelets-proxy@*.service")
HOST_KEY = "/var/lib/systemd/credential.secret"
"""Where systemd has the key that is this host's own (man 1 systemd-creds); it outlives an uninstallation."""
RUNNING = "active,activating,deactivating,reloading"
MARK = "# Written by `keepctl install`, which overwrites it: change it with `systemctl edit`, not here.\n"
"""The first line of every file we write; a file without it was written by another program or a person."""
PLACEHOLDERS = ("PREFIX", "PACKAGES", "TREES")
_PLACEHOLDER = re.compile(r"@([A-Z][A-Z0-9_]*)@")
_WANTED_BY = (".wants", ".requires")
"""The directories in which `systemctl enable` links a unit (man systemctl)."""


@dataclass(frozen=True)
class Target:
    """Which service manager, where its units lie, an operator's programs, the keeps' roots, what the manager keeps of
    its keeps and its compiled code, and whether it is to read its units."""

    variant: str
    directory: str
    programs: str
    trees: str
    reload: bool = True
    state: str = ""
    artifacts: str = ""


def target(
    variant: str, directory: str | None, programs: str | None, trees: str | None = None, *, reload: bool
) -> Target:
    """Where `variant`, "system" or "user", looks for units its administrator made and for programs, unless given."""
    if directory is None:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        directory = SYSTEM_UNITS if variant == "system" else os.path.join(home, "systemd", "user")
    if programs is None:
        programs = SYSTEM_PROGRAMS if variant == "system" else os.path.expanduser("~/.local/bin")
    state = trees or SYSTEM_TREES
    artifacts = os.path.join(state, "artifacts")
    if trees is None and variant != "system":
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        trees, state = user_directory(), os.path.join(home, "keepfleet")
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        artifacts = os.path.join(cache, "keepfleet", "artifacts")
    directory, programs, trees = (os.path.abspath(path) for path in (directory, programs, trees or SYSTEM_TREES))
    return Target(variant, directory, programs, trees, reload, os.path.abspath(state), artifacts)


def render(name: str, template: str, values: dict[str, str]) -> str:
    """The unit file `name`. Raises KeepfleetError(CONFIGURATION) for a placeholder that is not known."""

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot write {name}: {match[0]} is no placeholder; known are {', '.join(sorted(values))}",
            )
        return check_path(values[match[1]], f"@{match[1]}@")

    return MARK + _PLACEHOLDER.sub(value_of, template)


def templates(variant: str, root: Traversable | None = None) -> dict[str, str]:
    """The variant's templates by their names below the unit directory, as in `keep@.service.d/10-keepfleet.conf`."""
    found: dict[str, str] = {}

    def walk(directory: Traversable, before: str) -> None:
        for entry in directory.iterdir():
            if entry.is_dir():
                walk(entry, f"{before}{entry.name}/")
            else:
                found[before + entry.name] = entry.read_text(encoding="utf-8")

    top = (resources.files("units") if root is None else root) / variant
    if top.is_dir():
        walk(top, "")
    if not found:
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot install: the package holds no {variant} units")
    return dict(sorted(found.items()))


def install(
    where: Target, version: Prefix, values: dict[str, str], trees: Trees | None, root: Traversable | None = None
) -> list[Change]:
    """Makes `version` the current one: its units, the keeps' root, the link `current`, the programs; then removes
    unused versions.

    Everything is rendered and checked, and the root is built, before the first file changes; and each file changes
    atomically. Without `where.reload` systemd is not asked what it runs, so that no version is removed. Raises
    KeepfleetError.
    """
    changes = []
    with versions.locked(version), files.explained(f"install units in {where.directory}"):
        wanted = {
            os.path.join(where.directory, n): render(n, t, values) for n, t in templates(where.variant, root).items()
        }
        found = {path: _existing(path) for path in wanted}
        if version.is_managed:
            versions.check_programs(version, where.programs)
        if trees is not None:
            _make_commands(trees)
        built = [] if trees is None else [_build(trees)]
        for path, text in wanted.items():
            if found[path] != text:
                files.make_directories(os.path.dirname(path), files.PUBLIC_DIRECTORY)
                files.replace(path, text.encode("utf-8"), files.PUBLIC_FILE)
            changes.append(Change("unit", path, "unchanged" if found[path] == text else "written"))
        changes += built
        if version.is_managed:
            changes += versions.make_current(version, where.programs)
        if where.reload:
            systemctl(where.variant, "daemon-reload")
            changes += _make_host_key(where)
        if where.reload and version.is_managed:
            changes += versions.remove_unused(version)
    return changes


def _make_host_key(where: Target) -> list[Change]:
    """Has the host have its own key, with which the manager encrypts secrets: made where there is none, and again where
    it is another machine's, as after a copy of its disk; where systemd has none (before 250), and
    for a user's own manager, these lie on disk as they are."""
    program = shutil.which("systemd-creds") if where.variant == "system" else None
    if program is None:
        return []
    before = os.path.exists(HOST_KEY)
    try:
        done = subprocess.run(
            [program, "setup"], check=False, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeepfleetError(ErrorKind.SYSTEMD, f"cannot make the host's key for secrets: {error}") from error
    if done.returncode:
        evidence = tuple(done.stderr.strip().splitlines()[-5:])
        raise KeepfleetError(ErrorKind.SYSTEMD, "cannot make the host's key for secrets: systemd-creds setup", evidence)
    return [] if before else [Change("key", HOST_KEY, "made")]


def _make_commands(trees: Trees) -> None:
    """What runs scripts in keeps, compiled for this host; what is made already stays. Raises KeepfleetError."""
    target = trees.target
    if not os.path.isdir(os.path.join(target.packages, "script_pool")):
        return  # what is installed there is older than scripts
    command = [target.python, "-I", "-S", "-c", _COMMANDS, target.packages]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=COMMANDS_SECONDS, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot make what runs scripts: {error}") from error
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:]
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot make what runs scripts: {''.join(why)}")


def _build(trees: Trees) -> Change:
    """The root that keeps of this version will have; unused ones go when the manager sees that they are."""
    before = set(trees.names())
    tree = trees.make()
    new = os.path.dirname(tree.directory) == trees.directory and os.path.basename(tree.directory) not in before
    return Change("root", tree.directory, "built" if new else "unchanged")


def uninstall(where: Target, version: Prefix, root: Traversable | None = None) -> list[Change]:
    """Removes what `install` made, all versions and roots among it. Raises KeepfleetError(CONFLICT) while anything of
    ours runs.

    What systemd still knows of keeps that failed and of their slices goes with it.
    """
    _refuse_while_running(where)
    changes = []
    with versions.locked(version), files.explained(f"remove units from {where.directory}"):
        if where.reload:
            ours = (KEEPS, COMPILATIONS, PULLS, MANAGER, *GRANTS, *PROXIES)
            for verb, names in (("reset-failed", units(where.variant, "failed", *ours)),
                                ("stop", units(where.variant, "active", *SLICES, *GRANTS, *PROXIES))):  # fmt: skip
                if names:
                    systemctl(where.variant, verb, *names)
        for path in [os.path.join(where.directory, name) for name in templates(where.variant, root)]:
            if _existing(path) is not None:
                changes += _remove_unit(where.directory, path)
        if where.reload:
            systemctl(where.variant, "daemon-reload")
        changes += _remove_kept(where)
        changes += [Change("root", path, "removed") for path in remove_trees(where.trees)]
        if version.is_managed:
            changes += versions.remove_programs(version, where.programs)
            changes += versions.remove_all(version)
    return changes


def _remove_kept(where: Target) -> list[Change]:
    """Removes what keeps have left, their output and how they ended, for which no one could be asked any more, and the
    compiled code. The module store and declared keeps stay."""
    changes = []
    for what, path in (("output", os.path.join(where.state, "keeps")), ("code", where.artifacts)):
        if where.state and os.path.isdir(path):
            shutil.rmtree(path)
            changes.append(Change(what, path, "removed"))
    for empty in (
        *(os.path.join(where.state, name) for name in ("declared/history", "declared", "secrets", "jobs", "volumes")),
        where.state,
    ):
        with suppress(OSError):  # it has something in it, or is not there
            os.rmdir(empty)
    return changes


def findings(
    where: Target, version: Prefix, values: dict[str, str], trees: Trees, root: Traversable | None = None
) -> list[str]:
    """What is not as `install` would make it, one sentence each; empty when all is well. Raises KeepfleetError."""
    found = []
    for name, template in templates(where.variant, root).items():
        path = os.path.join(where.directory, name)
        if _existing(path) != render(name, template, values):
            found.append(f"{path} is not what this version writes; run: keepctl install")
    if version.is_managed and os.path.realpath(version.current) != version.directory:
        found.append(f"{version.current} names another version; run: keepctl install")
    if where.reload and is_manager_running(where) and GRANTS[0] not in units(where.variant, "active", GRANTS[0]):
        user = " --user" if where.variant == "user" else ""
        what = "no directory, file or secret can be granted"
        found.append(f"{GRANTS[0]} is down: {what}; run: systemctl{user} restart {GRANTS[0]}")
    name = f"root-{digest_of(contents(trees.target), trees.target)}"
    tree = read_tree(os.path.join(where.trees, name))
    if tree is None and where.trees != SYSTEM_TREES:
        tree = read_tree(os.path.join(SYSTEM_TREES, name))
    if tree is None:
        found.append(f"{where.trees} has no root made of what is installed now; run: keepctl install")
    else:
        found += tree_findings(tree)
    return found


def is_manager_running(where: Target) -> bool:
    """Whether the manager is, so that an upgrade takes a restart. Raises KeepfleetError(SYSTEMD)."""
    return bool(units(where.variant, RUNNING, MANAGER))


def units(variant: str, states: str, *patterns: str) -> list[str]:
    """The loaded units with such names in one of these states. Raises KeepfleetError(SYSTEMD)."""
    listed = systemctl(variant, "list-units", "--plain", "--no-legend", "--full", f"--state={states}", *patterns)
    return [line.split()[0] for line in listed.splitlines() if line.strip()]


def systemctl(variant: str, *arguments: str) -> str:
    """What `systemctl` prints. Raises KeepfleetError(SYSTEMD) with its complaint."""
    command = ["systemctl", *(["--user"] if variant == "user" else []), *arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeepfleetError(ErrorKind.SYSTEMD, f"cannot run {' '.join(command)}: {error}") from error
    if done.returncode:
        raise KeepfleetError(
            ErrorKind.SYSTEMD,
            f"cannot run {' '.join(command)}: it failed; is this host running systemd? (--no-reload leaves it out)",
            tuple(done.stderr.strip().splitlines()[-5:]),
        )
    return done.stdout


def _refuse_while_running(where: Target) -> None:
    """Raises KeepfleetError(CONFLICT) with what runs, and how to end it."""
    running = units(where.variant, RUNNING, KEEPS, COMPILATIONS, PULLS, MANAGER) if where.reload else []
    if running:
        user = " --user" if where.variant == "user" else ""
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot uninstall while {len(running)} of our units run; this ends all keeps and the manager: "
            f"systemctl{user} stop '{KEEPS}' '{COMPILATIONS}' '{PULLS}' {MANAGER}",
            tuple(running[:10]),
        )
    elsewhere = trees_in_use(where.trees)
    if elsewhere:
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            "cannot uninstall while a user's own keeps run from these roots; that user ends them with: "
            f"systemctl --user stop '{KEEPS}'",
            tuple(elsewhere),
        )


def _existing(path: str) -> str | None:
    try:
        text = files.read(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    if not text.startswith(MARK):
        raise KeepfleetError(
            ErrorKind.CONFLICT, f"cannot replace {path}: `keepctl install` did not write it; move it away first"
        )
    return text


def _remove_unit(directory: str, path: str) -> list[Change]:
    """Removes a unit file with the links by which `systemctl enable` has it started, and what is empty then."""
    links = [
        os.path.join(directory, name, os.path.basename(path))
        for name in sorted(os.listdir(directory))
        if name.endswith(_WANTED_BY)
    ]
    changes = []
    for each in [*(link for link in links if os.path.islink(link)), path]:
        os.unlink(each)
        changes.append(Change("unit", each, "removed"))
        if os.path.dirname(each) != directory and not os.listdir(os.path.dirname(each)):
            os.rmdir(os.path.dirname(each))
    return changes
