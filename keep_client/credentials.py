"""Where an operator's certificates lie, and the TLS contexts made of them."""

from __future__ import annotations

import _ssl
import os
import stat

from keep_client.peer import Endpoint
from keep_protocol import sockets as socket
from keep_protocol.constants import DEFAULT_MANAGER_ADDRESS, DEFAULT_MANAGER_PORT
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.patterns import matches
from keep_protocol.tls_client import check_private_file, light_client_context, light_pinned_client_context

PKI_VARIABLE = "KEEPFLEET_PKI"
MANAGER_VARIABLE = "KEEPFLEET_MANAGER"
SYSTEM_PKI = "/etc/keepfleet/pki"
DEFAULT_CLIENT = "admin"
DEFAULT_MANAGER = f"{DEFAULT_MANAGER_ADDRESS}:{DEFAULT_MANAGER_PORT}"
MANAGER_HINT = "is it running? see: systemctl status keep-manager"
_NAME, _IPV6, _PORT = "[A-Za-z0-9.-]{1,253}", "[0-9a-fA-F:.]{1,45}", "[0-9]{1,5}"
_passphrases: dict[str, str] = {}


def pki_directory() -> str:
    """$KEEPFLEET_PKI, else /etc/keepfleet/pki for root, else keepfleet/pki in the user's configuration directory."""
    chosen = os.environ.get(PKI_VARIABLE)
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return SYSTEM_PKI
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "keepfleet", "pki")


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        return False
    return True


def parse_manager(text: str) -> Endpoint:
    """The manager in HOST, HOST:PORT, [IPV6]:PORT or https://HOST:PORT. Raises KeepfleetError(BAD_REQUEST)."""
    authority = text.strip().removeprefix("https://").removesuffix("/")
    if authority.startswith("["):
        host, closed, rest = authority[1:].partition("]")
        is_host = bool(closed) and matches(_IPV6, host) and _is_ipv6(host)
        separator, port = rest[:1], rest[1:]
    else:
        host, separator, port = authority.partition(":")
        is_host = matches(_NAME, host)
    is_port = matches(_PORT, port) and 1 <= int(port) <= 65535 if separator == ":" else not separator
    if not is_host or not is_port:
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot read {text[:80]!r} as the manager's address: it must be HOST:PORT or https://HOST:PORT",
        )
    return Endpoint(host, int(port or DEFAULT_MANAGER_PORT), "the manager", MANAGER_HINT)


def check_readable(path: str) -> None:
    """Raises KeepfleetError(CERTIFICATE) unless `path` is a regular file that we may read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return
        finally:
            os.close(descriptor)
        why = "it is not a regular file"
    except FileNotFoundError:
        why = "there is no such file; make a PKI with `keepctl init`, or name your files with --ca, --cert and --key"
    except PermissionError:
        why = "permission denied; run this as a user who may read it, or name your files with --ca, --cert and --key"
    except OSError as error:
        why = error.strerror or str(error)
    raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot use {path}: {why}")


def ask_passphrase(key: str) -> str:
    """The passphrase of an encrypted key, asked for at the terminal once a process.

    Raises KeepfleetError(CERTIFICATE) where there is no terminal.
    """
    if key in _passphrases:
        return _passphrases[key]
    import getpass  # here: for those alone who have such a key

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE,
            f"cannot use the key {key}: it is encrypted, and there is no terminal to ask for its passphrase; "
            f"write it without one: openssl pkey -in {key} -out NEW.key",
        ) from error
    return _passphrases.setdefault(key, getpass.getpass(f"Passphrase of {key}: "))


class Credentials(Record):
    """Paths: the CA that issued the manager's certificate, and our own certificate and key."""

    ca: str
    certificate: str
    key: str

    @classmethod
    def find(cls, ca: str | None = None, certificate: str | None = None, key: str | None = None) -> Credentials:
        """The files named, and for those not named the administrator's in `pki_directory()`.

        A certificate without a key's name has its key next to it: NAME.crt and NAME.key.
        """
        directory = pki_directory()
        chosen = certificate or os.path.join(directory, "clients", DEFAULT_CLIENT + ".crt")
        return cls(ca or os.path.join(directory, "ca.crt"), chosen, key or os.path.splitext(chosen)[0] + ".key")

    def _check_files(self, *paths: str) -> None:
        for path in paths:
            check_readable(path)
        check_private_file(self.key)

    def _passphrase(self) -> str:
        return ask_passphrase(self.key)

    def manager_context(self) -> _ssl._SSLContext:
        """For the manager: its CA and its name are checked. Raises KeepfleetError(CERTIFICATE)."""
        self._check_files(self.ca, self.certificate, self.key)
        return light_client_context(self.ca, self.certificate, self.key, self._passphrase)

    def keep_context(self) -> _ssl._SSLContext:
        """For a keep, whose pin the channel checks. Raises KeepfleetError(CERTIFICATE)."""
        self._check_files(self.certificate, self.key)
        return light_pinned_client_context(self.certificate, self.key, self._passphrase)
