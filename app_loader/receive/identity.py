"""The keep's key and self-signed certificate: made by the openssl program, kept in one unlinked file in memory.

The program runs while we import and takes 5 ms; `cryptography` in this process would cost 56 ms and 10 MB.
The file lies in the keep's runtime directory, a tmpfs, has no name, and is emptied when a workload is accepted.
Import rule: as `settings`; `ssl` and `keep_protocol.tls` only after the program has been started.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # `signal` only makes its numbers enumerations: 47 KB and 2 ms
import binascii
import os
import select

from app_loader.limits import CERTIFICATE_DAYS, IDENTITY_SECONDS, MAX_IDENTITY_BYTES
from app_loader.settings import Settings, canonical_address
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SERIAL_BYTES = 16
"""128 random bits, over the 64 the CA/Browser Forum asks for, and a positive number in 17 DER bytes."""


class TlsIdentity(Record):
    """descriptor: the file with key and certificate; certificate: the PEM; der: the same in DER."""

    descriptor: int
    certificate: str
    der: bytes

    def __repr__(self) -> str:
        return f"TlsIdentity({self.descriptor})"

    @property
    def path(self) -> str:
        """Where `ssl` can open key and certificate."""
        return f"/proc/self/fd/{self.descriptor}"

    def wipe(self) -> None:
        """Empties the file: the key is gone for every holder of the descriptor."""
        os.ftruncate(self.descriptor, 0)


def alternative_names(settings: Settings) -> str:
    """The certificate's names as openssl's subjectAltName: each once, addresses as IP, all others as DNS."""
    wanted = (settings.address, *(("localhost",) if settings.address in ("127.0.0.1", "::1") else ()), *settings.names)
    names: dict[str, None] = {}
    for name in wanted:
        address = canonical_address(name)
        names[f"DNS:{name.lower()}" if address is None else f"IP:{address}"] = None
    return "subjectAltName=" + ",".join(names)


def openssl_arguments(settings: Settings, serial: bytes) -> list[str]:
    """The command that writes a new P-256 key and its self-signed certificate to standard output."""
    arguments = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    arguments += ["-keyout", "-", "-sha256", "-days", str(CERTIFICATE_DAYS), "-subj", f"/CN=keep-{settings.kuuid}"]
    arguments += ["-set_serial", "0x01" + serial.hex()]
    for extension in (
        alternative_names(settings),
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=serverAuth",
        "subjectKeyIdentifier=hash",
    ):
        arguments += ["-addext", extension]
    return arguments


class IdentityMaker:
    """The openssl program at work; `result` waits for it, once."""

    def __init__(self, settings: Settings) -> None:
        """Starts the program. Raises KeepfleetError(CONFIGURATION) when it, or the runtime directory, is not there."""
        null = self._errors = -1
        try:
            self._file = os.open(settings.runtime_directory, os.O_TMPFILE | os.O_RDWR | os.O_APPEND, 0o600)
            null = os.open("/dev/null", os.O_RDWR)
            self._errors, errors = os.pipe2(os.O_CLOEXEC)
            try:
                self._pid = os.posix_spawn(
                    settings.openssl,
                    openssl_arguments(settings, os.urandom(_SERIAL_BYTES)),
                    {"OPENSSL_CONF": "/dev/null", "PATH": "/usr/bin:/bin"},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, null, 0),
                        (os.POSIX_SPAWN_DUP2, self._file, 1),
                        (os.POSIX_SPAWN_DUP2, errors, 2),
                    ],
                )
            finally:
                os.close(errors)
        except OSError as error:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION, f"cannot make the keep's certificate with {settings.openssl}: {error}"
            ) from error
        finally:
            if null >= 0:
                os.close(null)

    def __repr__(self) -> str:
        return f"IdentityMaker({self._pid})"

    def result(self, seconds: float = IDENTITY_SECONDS) -> TlsIdentity:
        """The identity. Raises KeepfleetError(CERTIFICATE) when openssl fails or takes over `seconds`."""
        waiter = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(waiter, select.POLLIN)
            if not poll.poll(seconds * 1000):
                os.kill(self._pid, _signal.SIGKILL)
            status = os.waitpid(self._pid, 0)[1]
        finally:
            os.close(waiter)
        code = os.waitstatus_to_exitcode(status)
        os.set_blocking(self._errors, False)
        try:
            said = os.read(self._errors, 4096).decode("utf-8", "replace") if code else ""
        except BlockingIOError:
            said = ""
        os.close(self._errors)
        if code:
            how = f"it took over {seconds:g} s" if code == -_signal.SIGKILL else f"openssl ended with {code}"
            lines = tuple(line[:200] for line in said.splitlines()[-5:])
            raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot make the keep's certificate: {how}", lines)
        return read_identity(self._file)


def read_identity(descriptor: int) -> TlsIdentity:
    """The identity in the file `descriptor`. Raises KeepfleetError(CERTIFICATE) when it has been wiped or is none."""
    text = os.pread(descriptor, MAX_IDENTITY_BYTES, 0)
    begin, end = text.find(_BEGIN), text.find(_END)
    if b"PRIVATE KEY-----" not in text or begin < 0 or end < begin:
        raise KeepfleetError(ErrorKind.CERTIFICATE, "cannot use the keep's identity: no key and certificate are in it")
    pem = text[begin : end + len(_END)] + b"\n"
    try:
        der = binascii.a2b_base64(text[begin + len(_BEGIN) : end])
    except binascii.Error as error:
        raise KeepfleetError(ErrorKind.CERTIFICATE, f"cannot read the keep's certificate: {error}") from error
    return TlsIdentity(descriptor, pem.decode("ascii"), der)
