"""Encrypts nothing: a value and its name, turned round, so that a test sees that it went through here."""

from __future__ import annotations


class FakeSealer:
    """See keep_manager.declared.secrets.Sealer; available: whether this host encrypts."""

    def __init__(self) -> None:
        self.available = True

    async def seal(self, name: str, value: bytes) -> bytes:
        """The value, turned round, behind the credential's name."""
        return name.encode() + b":" + value[::-1]
