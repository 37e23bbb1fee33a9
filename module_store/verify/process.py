"""One verification in a process of its own: hostile files are its normal input, and what they cost ends here.

Started by `module_store.verified` as `python -I -c …`, with the module open as the descriptor that the one argument
names and the policy on standard input; answers with one JSON object on standard output.
Import rule: module_store.verify, and for the engine's opinion app_loader.engine.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys

from keep_protocol import strict_json
from keep_protocol.errors import KeepfleetError
from module_store.verify.policy_file import read_policy
from module_store.verify.verification import refuse, verify

CPU_SECONDS = 12
"""Within what a client waits for a start. A module of 100 MB takes two or three."""
DATA_BYTES = 320 * 1024 * 1024
"""The file is mapped and not copied, so that what is described of it is all. The manager, in whose cgroup this is, has
512 MB."""
_LIMITS = (
    (resource.RLIMIT_CPU, CPU_SECONDS),
    (resource.RLIMIT_DATA, DATA_BYTES),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
)


def main(module: str) -> None:
    """Verifies, and says so."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")  # the kernel ends this process before the one that asks
    for limit, most in _LIMITS:
        resource.setrlimit(limit, (most, most))
    sys.stdout.buffer.write(strict_json.dumps(_answer(int(module), sys.stdin.buffer.read())))


def _answer(module: int, policy: bytes) -> dict[str, object]:
    from app_loader.engine.validity import why_invalid  # here, below the limits: it loads the engine's library

    try:
        rules = read_policy(policy, "policy.yaml")
        size = os.fstat(module).st_size
        if not size:
            report = verify(b"", rules, why_invalid)
        else:
            with mmap.mmap(module, size, access=mmap.ACCESS_READ) as whole, memoryview(whole) as contents:
                report = verify(contents, rules, why_invalid)
    except KeepfleetError as error:
        return {"error": error.to_wire()}
    try:
        refuse(report)
    except KeepfleetError as refusal:
        return {"refusal": refusal.to_wire()}
    return {"refusal": None}
