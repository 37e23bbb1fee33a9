"""Those who ask in tests."""

from __future__ import annotations

from keep_manager.model import Caller
from keep_protocol.identity import Role

ALICE = Caller("alice", Role.USER, "127.0.0.1", "alice (serial a1) at 127.0.0.1")
BOB = Caller("bob", Role.USER, "127.0.0.1", "bob (serial b0) at 127.0.0.1")
STRANGER = Caller("anonymous", Role.ANONYMOUS, "192.0.2.9", "a client without a certificate at 192.0.2.9")
