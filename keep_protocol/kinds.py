"""The names of the kinds of keep. What a kind needs and does stands in the manager's registry of kinds.

Import rule: `enum` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """What a keep is made for. UPLOAD: it waits for one module over mutual TLS, then runs it. STORED: it runs a module
    of the manager's store, which comes with its start."""

    UPLOAD = "upload"
    STORED = "stored"
