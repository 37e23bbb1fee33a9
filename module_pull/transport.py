"""HTTP to a registry: each answer bounded in time by how much has come, and redirects only where they may lead.

Import rule: that of module_pull.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import SplitResult, urljoin, urlsplit

from keep_protocol.errors import ErrorKind, KeepfleetError
from module_pull.artifact import Site

STALL_SECONDS = 30.0
"""Without a byte, and the start that MIN_RATE is given: a registry may fetch a blob from elsewhere first."""
MIN_RATE = 16 * 1024
"""Bytes a second, on average: a module of 200 MB then takes at most three and a half hours."""
CONNECT_SECONDS = 10.0
MAX_REDIRECTS = 3
"""Registries redirect blobs once, to where they are stored."""
_MOVED = (301, 302, 303, 307, 308)


class Transport:
    """Requests to a registry at `home`, and to where it redirects them.

    context: how TLS certificates are checked.
    """

    def __init__(self, home: Site, context: ssl.SSLContext) -> None:
        self.home = home
        self._context = context

    def __repr__(self) -> str:
        return f"Transport({self.home})"

    @contextmanager
    def get(
        self, site: Site, target: str, headers: Mapping[str, str], *, redirects: int = 0
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to one request, to be read in the block. Raises KeepfleetError, also in the block.

        redirects: how many are followed; what says who we are is sent to `site` alone.
        """
        with explained_transfer(site), _connected(site, self._context, anywhere=self._is_home(site)) as wire:
            connection = http.client.HTTPConnection(site.host, site.port)
            connection.sock = cast(Any, wire)
            connection.request("GET", target, headers={"Connection": "close", **headers})
            answer = connection.getresponse()
            if answer.status not in _MOVED:
                yield answer
                return
            moved = answer.getheader("Location", "")
        onward, path = self._redirected(site, target, moved, redirects)
        kept = headers if onward == site else {name: text for name, text in headers.items() if name != "Authorization"}
        with self.get(onward, path, kept, redirects=redirects - 1) as answer:
            yield answer

    def _is_home(self, site: Site) -> bool:
        return site.host == self.home.host

    def _redirected(self, site: Site, target: str, moved: str, redirects: int) -> tuple[Site, str]:
        """Where a redirect leads. Raises KeepfleetError where none may."""
        if redirects < 1:
            raise unavailable(site, "it redirects where no redirect is followed, or again and again")
        try:
            parts = urlsplit(urljoin(f"{'https' if site.secure else 'http'}://{site}{target}", moved))
            onward = site_of(parts)
        except ValueError:
            raise unavailable(site, "it redirects to what is no address") from None
        if not onward.secure and not (parts.scheme == "http" and not site.secure and self._is_home(onward)):
            raise unavailable(site, f"it redirects to {onward} without TLS")
        return onward, parts.path + (f"?{parts.query}" if parts.query else "")


def site_of(parts: SplitResult) -> Site:
    """The server of an address that is taken apart. Raises ValueError."""
    secure = parts.scheme == "https"
    return Site(parts.hostname or "", parts.port or (443 if secure else 80), secure)


@contextmanager
def explained_transfer(site: Site) -> Iterator[None]:
    """Turns what fails between us and `site` into KeepfleetError(UNAVAILABLE)."""
    try:
        yield
    except TimeoutError:
        why = f"it has sent nothing for {STALL_SECONDS:g} s, or less than {MIN_RATE} bytes a second"
        raise unavailable(site, why) from None
    except ssl.SSLCertVerificationError as error:
        hint = "--registry-ca, or `ca` in the manager's configuration, names the CA of a registry of your own"
        why = f"its certificate is not believed: {error.verify_message}; {hint}"
        raise unavailable(site, why) from error
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise unavailable(site, why) from error


def unavailable(site: Site, why: str) -> KeepfleetError:
    """The error of a server that did not answer as it should."""
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot pull from {site}: {why}")


class _Paced(io.RawIOBase):
    """What comes from a socket, which has to come at a certain rate. Raises TimeoutError."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._began, self._count = sock, time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._began + STALL_SECONDS + self._count / MIN_RATE - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(min(left, STALL_SECONDS))
        count = self._sock.recv_into(buffer)
        self._count += count
        return count


class _Wire:
    """What http.client takes for a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sendall = sock.sendall
        self._sock = sock

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode  # always for reading
        return io.BufferedReader(_Paced(self._sock))

    def close(self) -> None:
        """Left to the one who connected it."""


@contextmanager
def _connected(site: Site, context: ssl.SSLContext, *, anywhere: bool) -> Iterator[_Wire]:
    """A connection. anywhere: to any address; else only to one of the internet, so that a registry cannot have this
    host ask another of its own network. Raises OSError, KeepfleetError."""
    with socket.create_connection((site.host, site.port), CONNECT_SECONDS) as plain:
        address = ipaddress.ip_address(plain.getpeername()[0].partition("%")[0])
        if not anywhere and not address.is_global:
            raise unavailable(site, f"the registry redirects to {address}, which is no address of the internet")
        if not site.secure:
            yield _Wire(plain)
            return
        plain.settimeout(STALL_SECONDS)
        with context.wrap_socket(plain, server_hostname=site.host) as secured:
            yield _Wire(secured)
