"""Where a server is, and how errors speak of it."""

from __future__ import annotations

from dataclasses import dataclass


def authority(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens; `role` names it in errors, as in "the manager"; `hint` is for when nobody does."""

    host: str
    port: int
    role: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.role} at {self.authority}"

    @property
    def authority(self) -> str:
        """HOST:PORT, as it stands in a URL and in the Host header."""
        return authority(self.host, self.port)
