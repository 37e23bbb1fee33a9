"""Specifications for tests."""

from __future__ import annotations

from keep_manager.declared.specification import Header, Specification, read_job
from keep_protocol.identity import Role

DIGEST = "sha256:" + "ab" * 32
SALT = "cd" * 32


def specification(
    name: str = "web",
    text: str = "module: web:1.2\nrestart: always\n",
    *,
    owner: str = "alice",
    version: int = 1,
    module: str = DIGEST,
    generation: int = 0,
) -> Specification:
    """One of alice's."""
    header = Header(owner, Role.USER, version, 1764297000.5, SALT, module, generation)
    return Specification(name, header, text, read_job(name, text))
