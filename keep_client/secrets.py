"""The manager's calls about secrets; see `/v1/secrets` in the reference."""

from __future__ import annotations

from keep_client.http import Body
from keep_client.manager import INPUT_TYPE, ManagerClient
from keep_protocol.fields import parse
from keep_protocol.secrets import V1_SECRETS_PATH, Secret, SecretList, check_secret_name

RESTART_SECONDS = 120.0
"""With a restart of what uses it: each writes its specification to a disk."""


class SecretsClient(ManagerClient):
    """Calls to one manager about the secrets that it keeps. They raise what those of ManagerClient raise."""

    def secrets(self) -> tuple[Secret, ...]:
        """All that the caller may see, by name, without their values."""
        return parse(SecretList, self._call("GET", V1_SECRETS_PATH).object(), "secrets").secrets

    def set_secret(self, name: str, value: bytes, *, restart: bool = False) -> Secret:
        """Has the secret be `value`; with `restart`, what uses it is restarted."""
        target = f"{V1_SECRETS_PATH}/{check_secret_name(name)}{'?restart=true' if restart else ''}"
        body = Body(INPUT_TYPE, len(value), (value,))
        return parse(Secret, self._call("PUT", target, body, RESTART_SECONDS).object(), "secret")

    def remove_secret(self, name: str) -> None:
        """Removes it."""
        self._call("DELETE", f"{V1_SECRETS_PATH}/{check_secret_name(name)}")
