"""What `keepctl run` imports before its first request: a person waits for each of them."""

from __future__ import annotations

import subprocess
import sys

LATER = {
    "asyncio",
    "cryptography",
    "http.client",
    "ipaddress",
    "keep_protocol.api",
    "rich",
    "secrets",
    "urllib.parse",
    "yaml",
}
"""What a run imports while it waits, or not at all: each is 1 to 60 ms before the first request could go out."""


def test_what_can_wait_is_not_imported_before_the_first_request() -> None:
    code = "import sys, keepctl.__main__, keepctl.commands.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert LATER & set(done.stdout.split()) == set()
