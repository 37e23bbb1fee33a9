"""Policies as YAML: one file, one policy; every fault in one answer, each with its line.

Import rule: strict_yaml, and with it PyYAML, which the rest of module_store does without.
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind
from module_store.verify.policy import Policy
from strict_yaml import records


def read_policy(data: bytes, file: str) -> Policy:
    """The policy in a file's bytes. Raises KeepfleetError(CONFIGURATION), with each fault as evidence."""
    policy, faults = records.read_bytes(Policy, data)
    if policy is None:
        raise records.refused("use the policy", file, faults, ErrorKind.CONFIGURATION)
    return policy
