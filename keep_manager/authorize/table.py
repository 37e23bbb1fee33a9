"""The one table that says which role may do what to which keeps, and the one function that decides by it. Pure.

A keep that is not the caller's does not exist for it: the refusal is the same as for one that there is not.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from keep_manager.model import missing
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role


class Action(Enum):
    """What can be asked of the manager; a word for the log and for refusals."""

    DESCRIBE = "read the protocol's description"
    CREATE = "create a keep"
    LIST = "list keeps"
    READ = "read a keep"
    LOGS = "read the lines of a keep"
    EVENTS = "read events"
    START = "start a keep"
    INPUT = "send a keep's standard input"
    STOP = "stop a keep"
    REMOVE = "remove a keep"
    READ_DECLARED = "read declared keeps"
    DECLARE = "declare a keep"
    READ_SECRETS = "list secrets"
    CHANGE_SECRETS = "change secrets"
    READ_CODELETS = "read an application's codelet sets"
    CHANGE_CODELETS = "load and unload codelet sets"
    STORE_READ = "list the module store"
    STORE_ADD = "add to the module store"
    STORE_PULL = "pull into the module store"
    STORE_TAG = "name a module of the store"
    STORE_REMOVE = "remove from the module store"
    STORE_EXPORT = "take modules out of the store"
    STORE_REVOKE = "revoke a key of the module store"


class Scope(Enum):
    """Which keeps an action is allowed on. ONE: the keep that the caller's certificate names."""

    ALL = "all"
    OWN = "own"
    ONE = "one"
    NONE = "none"


ALL, OWN, ONE, NONE = Scope.ALL, Scope.OWN, Scope.ONE, Scope.NONE
_COLUMNS = (Role.OPERATOR, Role.USER, Role.VIEWER, Role.UPLOADER, Role.ANONYMOUS)
_ROWS: dict[Action, tuple[Scope, ...]] = {
    #                 operator user viewer uploader anonymous
    Action.DESCRIBE: (ALL, ALL, ALL, ALL, ALL),
    Action.CREATE: (ALL, OWN, NONE, NONE, OWN),
    Action.LIST: (ALL, OWN, ALL, ONE, OWN),
    Action.READ: (ALL, OWN, ALL, ONE, OWN),
    Action.LOGS: (ALL, OWN, ALL, NONE, OWN),
    Action.EVENTS: (ALL, OWN, ALL, NONE, OWN),
    Action.START: (ALL, OWN, NONE, NONE, OWN),
    Action.INPUT: (ALL, OWN, NONE, NONE, OWN),
    Action.STOP: (ALL, OWN, NONE, NONE, OWN),
    Action.REMOVE: (ALL, OWN, NONE, NONE, OWN),
    # What is declared outlives every connection: it has an owner that a certificate names.
    Action.READ_DECLARED: (ALL, OWN, ALL, NONE, NONE),
    Action.DECLARE: (ALL, OWN, NONE, NONE, NONE),
    # A value is never read again, by any role: what viewers see of it is a name.
    Action.READ_SECRETS: (ALL, OWN, ALL, NONE, NONE),
    Action.CHANGE_SECRETS: (ALL, OWN, NONE, NONE, NONE),
    # An application's owner is the caller that its file on the host names.
    Action.READ_CODELETS: (ALL, OWN, ALL, NONE, NONE),
    Action.CHANGE_CODELETS: (ALL, OWN, NONE, NONE, NONE),
    Action.STORE_READ: (ALL, ALL, ALL, NONE, ALL),
    Action.STORE_ADD: (ALL, NONE, NONE, NONE, NONE),
    Action.STORE_PULL: (ALL, NONE, NONE, NONE, NONE),
    Action.STORE_TAG: (ALL, NONE, NONE, NONE, NONE),
    Action.STORE_REMOVE: (ALL, NONE, NONE, NONE, NONE),
    Action.STORE_EXPORT: (ALL, NONE, NONE, NONE, NONE),
    Action.STORE_REVOKE: (ALL, NONE, NONE, NONE, NONE),
}
TABLE: dict[tuple[Role, Action], Scope] = {
    (role, action): scope for action, row in _ROWS.items() for role, scope in zip(_COLUMNS, row, strict=True)
}
"""Every role and action. Who may upload into a keep is not asked here: the keep's own endpoint decides that by the list
it was given with its start.

Of the store: who may create keeps may run any module there, so it may see what there is, and viewers see all that
others do. What is there is the operators' alone to change, as it runs for others by its name, and its disk is
everyone's; a user who has a module of their own uploads it. To run a module is no right to its bytes: operators alone
take them out. A key is revoked from afar, since that only takes rights away and must be quick; keys are added and
required on the host itself, so that a stolen operator's certificate cannot have its own modules trusted."""


class Asker(Protocol):
    """Who asks."""

    @property
    def name(self) -> str:
        """The owner word."""

    @property
    def role(self) -> Role:
        """What it may do in general."""

    @property
    def keep(self) -> int | None:
        """The one keep an uploader's certificate is for."""


class Owned(Protocol):
    """A keep as far as it matters here."""

    @property
    def kuuid(self) -> int:
        """Its ID."""

    @property
    def owner(self) -> str:
        """Whose it is; "" for a keep of before there were owners, which is the operators'."""


def may(caller: Asker, action: Action, keep: Owned) -> bool:
    """Whether `caller` may do that to the keep."""
    match TABLE[caller.role, action]:
        case Scope.ALL:
            return True
        case Scope.OWN:
            return bool(keep.owner) and keep.owner == caller.name
        case Scope.ONE:
            return keep.kuuid == caller.keep
        case Scope.NONE:
            return False


def authorize(caller: Asker, action: Action, keep: Owned | None = None) -> None:
    """Returns where `caller` may do that: to `keep`, or where no keep is concerned, to some.

    Raises KeepfleetError: NOT_FOUND for a keep that it may not even read, FORBIDDEN otherwise.
    """
    if keep is None:
        if TABLE[caller.role, action] is not Scope.NONE:
            return
    elif may(caller, action, keep):
        return
    elif not may(caller, Action.READ, keep):
        raise missing(keep.kuuid)
    raise KeepfleetError(
        ErrorKind.FORBIDDEN, f"cannot {action.value}: the role {caller.role.value} of {caller.name} does not allow it"
    )
