"""Policies as YAML: what is not said stays as a keep has it, and what is wrong is named with its line."""

from __future__ import annotations

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse, table_of
from module_store.verify.policy import KEEP, Kind, Policy
from module_store.verify.policy_file import read_policy


def test_a_policy_is_read_with_its_name_sizes_and_imports() -> None:
    text = b"""\
name: edge-jobs
about: Small jobs that only print.
kinds: [module]
size: 2M
memory_maximum: 64M
imports:
  wasi_snapshot_preview1: [fd_write, proc_exit]
  "wasi:cli/stdout@0.2": all
functions: 500
start: false
custom_sections: [name]
table_initial: null
"""
    policy = read_policy(text, "edge.yaml")
    assert (policy.name, policy.kinds, policy.size, policy.memory_maximum) == (
        "edge-jobs",
        (Kind.MODULE,),
        2 << 20,
        64 << 20,
    )
    assert policy.imports == (("wasi_snapshot_preview1", ("fd_write", "proc_exit")), ("wasi:cli/stdout@0.2", None))
    assert (policy.functions, policy.start, policy.custom_sections) == (500, False, ("name",))
    assert policy.table_initial is None
    assert policy.memory_initial == KEEP.memory_initial and policy.valid


def test_a_name_is_enough_and_is_then_what_a_keep_takes() -> None:
    assert read_policy(b"name: mine\n", "p") == KEEP.replace(name="mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: a\nmemory_max: 1M\n", "line 2, column 1: unknown key 'memory_max'"),
        (b"name: a\nsize: lots\n", "line 2, column 7: size must be a size"),
        (b"name: a\nsize: -1\n", "line 2, column 7: size must be a size"),
        (b"name: a\nsize: 1.5\n", "size must be a size"),
        (b"name: a\nfunctions: many\n", "functions must be a whole number"),
        (b"name: a\nkinds: [elf]\n", "kinds[0] must be one of module, component"),
        (b"name: a\nimports: all\n", "imports must be a mapping of interfaces"),
        (b"name: a\nimports:\n  env: some\n", "'env' must have `all` or a list"),
        (b"name: a\nimports:\n  env: [1]\n", "'env' must have `all` or a list"),
        (b"name: Big Name\n", "name must be 1 to 63"),
        (b"size: 1M\n", "the file has no 'name'"),
        (b"name: a\nname: b\n", "line 2, column 1: duplicate key 'name'"),
        (b"", "it is empty"),
        (b"name: [", "it is not YAML"),
    ],
)
def test_a_fault_is_named_with_its_place(text: bytes, message: str) -> None:
    with pytest.raises(KeepfleetError) as caught:
        read_policy(text, "edge.yaml")
    assert caught.value.kind is ErrorKind.CONFIGURATION
    assert any(message in line for line in caught.value.evidence), caught.value.evidence


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(KeepfleetError) as caught:
        read_policy(b"name: a\nsize: x\nfunctions: y\nlocal: 3\n", "p")
    assert len(caught.value.evidence) == 3 and "(and 2 more)" in caught.value.message


def test_a_policy_is_the_same_after_a_way_through_json() -> None:
    assert parse(Policy, KEEP.to_wire(), "policy", strict=True) == KEEP


def test_every_member_says_what_it_is_about() -> None:
    assert all(row.about for row in table_of(Policy).values())
