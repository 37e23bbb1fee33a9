"""Whether a store's policy takes a module, before each start: asked of the descriptor that runs, in a process of its
own, and kept with the object on this host, so that the same question is asked once.

Import rule: that of module_store.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import metadata

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from module_store.archive import LOCAL
from module_store.keys import Keys
from module_store.objects import mapped
from module_store.place import MAX_RECORD_BYTES
from module_store.store import Store
from module_store.trust import attached_signatures, decide

VERIFIED = f"{LOCAL}verified"
"""The kind of the attachment: what was found last, and by which policy. One an object, so that there is never more."""
RULES = "1"
"""To be changed with what the verifier finds or how: what was found before holds no more."""
VERIFY_SECONDS = 15.0
"""A client waits 18 seconds longer for a start than the keep may take."""
_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from module_store.verify.process import main; main(sys.argv[2])"
)
_ONE = threading.Lock()
"""One verification at a time: each may take 320 MB."""


def check_policy(store: Store, digest: str, file: int, policy: bytes) -> None:
    """Returns where the policy takes the module that `file` reads. For threads.

    Raises KeepfleetError: INVALID_MODULE, with each rule that failed and what was found, UNAVAILABLE where that could
    not be found out, CONFIGURATION for a policy that cannot be read.
    """
    key = _key(policy)
    known, refusal = _known(store, digest, key)
    if not known:
        with _ONE:
            known, refusal = _known(store, digest, key)  # another start may have asked meanwhile
            if not known:
                refusal = _verify(file, digest, policy)
                _keep(store, digest, key, refusal)
    if refusal is not None:
        raise refusal


def check_start(store: Store, digest: str, file: int, *, by_policy: bool = True) -> None:
    """Raises KeepfleetError unless the module in `file` is signed as the store requires, is no older than the newest
    that has started, and passes the store's policy. What is looked at is what the descriptor reads, which is what will
    run. by_policy: false for a codelet, which has a policy of its own."""
    keys = Keys(store.place.path)
    trust, policy, accepted = keys.trust(), keys.policy(), None
    if trust.asks:
        with mapped(file) as contents:
            given = attached_signatures(store, digest)
            accepted = decide(trust, keys.keys(), given, contents, digest, keys.newest())
    if policy is not None and by_policy:
        check_policy(store, digest, file, policy)
    if accepted is not None and accepted.signed is not None:
        keys.saw(accepted.signed, digest)  # last: what did not start is none that was seen


def _key(policy: bytes) -> str:
    """What else decides besides the module: the policy, the verifier and the engine."""
    parts = (RULES, metadata.version("wasmtime"), hashlib.sha256(policy).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _known(store: Store, digest: str, key: str) -> tuple[bool, KeepfleetError | None]:
    """Whether it was found out before, and then why the module is refused, None where it is not."""
    try:
        body = store.attached(digest, VERIFIED)
        said = {} if body is None else strict_json.loads_object(body, MAX_RECORD_BYTES, "what was verified")
    except KeepfleetError:
        return False, None  # it is asked again, and written again
    if said.get("key") != key:
        return False, None
    return True, error_from_wire(said["refusal"]) if said.get("refusal") is not None else None


def _keep(store: Store, digest: str, key: str, refusal: KeepfleetError | None) -> None:
    """Writes down what was found. Where that is not possible, on a full disk or of an object that is being removed, it
    holds all the same, and the next start asks again."""
    said = refusal.to_wire() if refusal is not None else None
    with suppress(KeepfleetError):
        store.attach(digest, VERIFIED, strict_json.dumps({"key": key, "refusal": said}))


def _verify(file: int, digest: str, policy: bytes) -> KeepfleetError | None:
    """Why the module is refused, None where it is not. Raises KeepfleetError where that cannot be found out."""
    command = [sys.executable, "-I", "-c", _PROGRAM, _PACKAGES, str(file)]
    try:
        done = subprocess.run(
            command, input=policy, capture_output=True, pass_fds=(file,), timeout=VERIFY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _unknown(digest, f"it takes over {VERIFY_SECONDS:g} seconds") from None
    except OSError as error:
        raise _unknown(digest, f"no process can be started for it: {error.strerror}") from error
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"exited {done.returncode}"
        raise _unknown(digest, f"its process {how}: too large or too complex to verify, perhaps", tuple(last))
    said = strict_json.loads_object(done.stdout, MAX_RECORD_BYTES, "the verification")
    if "error" in said:
        raise error_from_wire(said["error"])
    return None if said["refusal"] is None else error_from_wire(said["refusal"])


def _unknown(digest: str, why: str, evidence: tuple[str, ...] = ()) -> KeepfleetError:
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot verify {digest}: {why}", evidence)
