"""Named places where a test makes the manager kill itself, to prove that nothing is lost there.

Inert unless `$KEEPFLEET_FAILPOINT` names one, or the path of a file that does: a user who can set the manager's
environment can kill it anyway.
"""

from __future__ import annotations

import contextlib
import os
import signal
from enum import Enum

VARIABLE = "KEEPFLEET_FAILPOINT"


class Failpoint(Enum):
    """Every place, in the order the work passes them."""

    CREATE_BEFORE_UNIT = "create-before-unit"
    CREATE_AFTER_CALL = "create-after-call"
    CREATE_AFTER_READY = "create-after-ready"
    CREATE_BEFORE_REPLY = "create-before-reply"
    CLAIM_BEFORE_CALL = "claim-before-call"
    CLAIM_AFTER_CALL = "claim-after-call"
    START_AFTER_FILES = "start-after-files"
    START_BEFORE_BIND = "start-before-bind"
    START_AFTER_BIND = "start-after-bind"
    START_AFTER_ADDRESS = "start-after-address"
    START_AFTER_COMMAND = "start-after-command"
    START_BEFORE_REPLY = "start-before-reply"
    STOP_AFTER_COMMAND = "stop-after-command"
    REMOVE_BEFORE_CALL = "remove-before-call"
    REMOVE_AFTER_CALL = "remove-after-call"
    REMOVE_BEFORE_FILES = "remove-before-files"
    REMOVE_BEFORE_REPLY = "remove-before-reply"
    DECLARE_AFTER_HISTORY = "declare-after-history"
    DECLARE_AFTER_WRITE = "declare-after-write"
    DECLARE_AFTER_REMOVE = "declare-after-remove"
    RECONCILE_BEFORE_CREATE = "reconcile-before-create"
    RECONCILE_AFTER_CREATE = "reconcile-after-create"
    RECONCILE_AFTER_REMOVE = "reconcile-after-remove"
    RECONCILE_AFTER_ROLL_BACK = "reconcile-after-roll-back"
    JOB_AFTER_RECORD = "job-after-record"
    JOB_AFTER_CREATE = "job-after-create"
    CREDENTIAL_AFTER_OWNER = "credential-after-owner"
    CREDENTIAL_AFTER_VALUE = "credential-after-value"
    RECONCILE_AFTER_PROVE = "reconcile-after-prove"
    VOLUME_AFTER_RESERVE = "volume-after-reserve"
    VOLUME_AFTER_FORMAT = "volume-after-format"
    VOLUME_AFTER_RENAME = "volume-after-rename"
    VOLUME_AFTER_GONE = "volume-after-gone"
    COMPILE_BEFORE_CALL = "compile-before-call"
    COMPILE_AFTER_CALL = "compile-after-call"
    COMPILE_AFTER_END = "compile-after-end"
    COMPILE_AFTER_CREATE = "compile-after-create"
    COMPILE_AFTER_WRITE = "compile-after-write"
    COMPILE_AFTER_RENAME = "compile-after-rename"
    PULL_BEFORE_CALL = "pull-before-call"
    PULL_AFTER_CALL = "pull-after-call"
    PULL_BEFORE_ADD = "pull-before-add"
    PULL_AFTER_ADD = "pull-after-add"


def reach(point: Failpoint) -> None:
    """Ends this process with SIGKILL when the environment asks for it at `point`, or the file that it names does.

    That file is removed first: the next manager passes.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked == point.value or (asked.startswith("/") and _is_in(asked, point)):
        os.kill(os.getpid(), signal.SIGKILL)


def _is_in(path: str, point: Failpoint) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        if file.read(len(point.value) + 1) == point.value:
            os.unlink(path)
            return True
    return False
