"""Who may do what: every role with every action, on its own keep, on another's, and where no keep is concerned."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from keep_manager.authorize.table import TABLE, Action, Scope, authorize, may
from keep_manager.model import missing
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State


@dataclass(frozen=True)
class Asker:
    role: Role
    name: str = "ann"
    keep: int | None = None


OWN = KeepInfo(7, State.LISTENING, owner="ann")
OTHERS = KeepInfo(8, State.LISTENING, owner="bob")
UNOWNED = KeepInfo(9, State.LISTENING)
DECLARED = (
    *(Action.READ_DECLARED, Action.DECLARE, Action.READ_SECRETS, Action.CHANGE_SECRETS),
    *(Action.READ_CODELETS, Action.CHANGE_CODELETS),
)
"""What has an owner that a certificate names, or a file on the host."""
CHANGES = {
    *(Action.DECLARE, Action.CHANGE_SECRETS, Action.CHANGE_CODELETS),
    *(Action.CREATE, Action.START, Action.INPUT, Action.STOP, Action.REMOVE),
}
STORE = {action for action in Action if action.name.startswith("STORE_")}
"""Of no keep: what a role may, it may with all of the store."""


def refusal(caller: Asker, action: Action, keep: KeepInfo | None) -> ErrorKind | None:
    try:
        authorize(caller, action, keep)
    except KeepfleetError as error:
        return error.kind
    return None


def test_every_role_has_a_rule_for_every_action() -> None:
    assert set(TABLE) == {(role, action) for role in Role for action in Action}


@pytest.mark.parametrize("action", Action)
def test_an_operator_may_do_everything(action: Action) -> None:
    for keep in (OWN, OTHERS, UNOWNED, None):
        assert refusal(Asker(Role.OPERATOR), action, keep) is None


@pytest.mark.parametrize("action", DECLARED)
def test_a_caller_without_a_certificate_declares_nothing(action: Action) -> None:
    assert refusal(Asker(Role.ANONYMOUS), action, None) is ErrorKind.FORBIDDEN


@pytest.mark.parametrize("role", [Role.USER, Role.ANONYMOUS])
@pytest.mark.parametrize("action", [action for action in Action if action not in STORE | {Action.DESCRIBE, *DECLARED}])
def test_to_a_user_there_are_its_own_keeps_alone(role: Role, action: Action) -> None:
    caller = Asker(role)
    assert refusal(caller, action, OWN) is None
    assert refusal(caller, action, None) is None
    for keep in (OTHERS, UNOWNED):
        assert refusal(caller, action, keep) is ErrorKind.NOT_FOUND


@pytest.mark.parametrize("role", [Role.USER, Role.ANONYMOUS, Role.VIEWER, Role.UPLOADER])
@pytest.mark.parametrize("action", [action for action in Action if action in STORE])
def test_the_store_is_the_operators_to_change_and_others_who_run_or_see_keeps_may_list_it(
    role: Role, action: Action
) -> None:
    may_list = action is Action.STORE_READ and role is not Role.UPLOADER
    assert refusal(Asker(role), action, None) is (None if may_list else ErrorKind.FORBIDDEN)


@pytest.mark.parametrize("action", [action for action in Action if action not in STORE])
def test_a_viewer_reads_everything_and_changes_nothing(action: Action) -> None:
    expected = ErrorKind.FORBIDDEN if action in CHANGES else None
    for keep in (OWN, OTHERS, None):
        assert refusal(Asker(Role.VIEWER), action, keep) is expected


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.DESCRIBE])
def test_an_uploader_reads_its_one_keep_and_nothing_else(action: Action) -> None:
    caller = Asker(Role.UPLOADER, "ann", keep=8)
    reads = action in (Action.READ, Action.LIST)
    assert refusal(caller, action, OTHERS) is (None if reads else ErrorKind.FORBIDDEN)
    assert refusal(caller, action, OWN) is ErrorKind.NOT_FOUND


def test_a_keep_without_an_owner_is_not_that_of_a_caller_without_a_name() -> None:
    assert not may(Asker(Role.USER, ""), Action.READ, UNOWNED)


def test_another_s_keep_is_refused_exactly_as_one_that_there_is_not() -> None:
    with pytest.raises(KeepfleetError) as refused:
        authorize(Asker(Role.USER), Action.STOP, OTHERS)
    assert refused.value.to_wire() == missing(8).to_wire()


def test_no_rule_but_those_of_the_four_scopes_is_written() -> None:
    assert {TABLE[Role.OPERATOR, action] for action in Action} == {Scope.ALL}
    assert all(TABLE[role, Action.CREATE] is Scope.NONE for role in (Role.VIEWER, Role.UPLOADER))
