"""The names of the kinds of keep. What a kind needs and does stands in the manager's registry of kinds.

Import rule: `enum` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from keep_protocol.enumeration import Enum


class Kind(Enum):
    """What a keep is made for. UPLOAD: it waits for one module over mutual TLS, then runs it. STORED: it runs a module
    of the manager's store, which comes with its start. SCRIPTS: it serves a script pool over mutual TLS."""

    UPLOAD = "upload"
    STORED = "stored"
    SCRIPTS = "scripts"
