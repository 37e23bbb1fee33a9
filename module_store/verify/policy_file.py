"""Policies as YAML: one file, one policy; every fault in one answer, each with its line.

Import rule: strict_yaml, and with it PyYAML, which the rest of module_store does without.
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_store.verify.policy import Policy
from strict_yaml import records, tree


def read_policy(data: bytes, file: str) -> Policy:
    """The policy in a file's bytes. Raises KeepfleetError(CONFIGURATION), with each fault as evidence."""
    root, faults = tree.parse(data)
    policy = None
    if root is not None and not faults:
        policy, faults = records.read(Policy, root)
    if policy is None:
        lines = tuple(f"{file}: {fault}" for fault in faults) or (f"{file}: it is empty",)
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use the policy {lines[0]}{more}", lines)
    return policy
