"""`fetch` as a host function: the application asks for what a script wants, of the hosts that it has named alone.

    pool.host_function(Fetch(["api.example.com"]), name="fetch")
    await pool.add("prices", "var prices = JSON.parse((await fetch(url)).body)", functions=["fetch"])

Import rule: the standard library alone.
"""

from __future__ import annotations

import base64
import http.client
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

MAX_BYTES = 1024 * 1024
"""Of a response's body."""
SECONDS = 10.0
"""For each step of a connection."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_NEVER = frozenset(
    ("connection", "content-length", "host", "proxy-authorization", "te", "transfer-encoding", "upgrade")
)
"""Headers that say where a message ends, or whom it is for."""


class FetchRefused(Exception):
    """What is not asked for; the message says why."""


class Fetch:
    """`allowed`: hosts, which are asked over HTTPS, or origins, as `http://127.0.0.1:8080`. `headers`: of every
    request, as an authorisation that the script is not to see. Redirections are not followed: the script sees them."""

    def __init__(
        self,
        allowed: Iterable[str],
        *,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_BYTES,
        seconds: float = SECONDS,
    ) -> None:
        origins = (entry if "//" in entry else f"https://{entry}" for entry in allowed)
        self._allowed = frozenset(_origin(origin) for origin in origins)
        self._headers, self._max_bytes, self._seconds = dict(headers or {}), max_bytes, seconds

    def __repr__(self) -> str:
        return f"Fetch({sorted(self._allowed)})"

    def __call__(self, url: str, options: Mapping[str, object] | None = None) -> dict[str, object]:
        """`options`: method, headers and body, as of the standard's fetch. Raises FetchRefused and OSError."""
        options = options or {}
        if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
            raise FetchRefused("cannot fetch: the URL is no string, or has characters that it cannot")
        scheme, host, port = origin = _origin(url)
        if origin not in self._allowed:
            raise FetchRefused(f"cannot fetch from {host}: it is not among the hosts that are allowed")
        method, headers, body = _request(options)
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        connection = kind(host, port, timeout=self._seconds)
        try:
            parts = urlsplit(url)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(method, path, body, {**headers, **self._headers})
            response = connection.getresponse()
            data = response.read(self._max_bytes + 1)
        except http.client.HTTPException as error:
            raise OSError(f"cannot fetch from {host}: {error!r}") from error
        finally:
            connection.close()
        if len(data) > self._max_bytes:
            raise FetchRefused(f"cannot fetch from {host}: the response has over {self._max_bytes} bytes")
        answer = {"status": response.status, "ok": 200 <= response.status < 300}
        received = {name.lower(): value for name, value in response.getheaders()}
        try:
            return {**answer, "headers": received, "body": data.decode("utf-8")}
        except UnicodeDecodeError:
            return {**answer, "headers": received, "base64": base64.b64encode(data).decode("ascii")}


def _origin(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, (parts.hostname or "").rstrip(".")
        port = parts.port or {"https": 443, "http": 80}[scheme]
    except (ValueError, KeyError):
        raise FetchRefused(f"cannot fetch {url[:100]!r}: it is no URL of https or http") from None
    if not host or "@" in parts.netloc or "\\" in url:
        raise FetchRefused(f"cannot fetch {url[:100]!r}: its host is ambiguous")
    return scheme, host, port


def _request(options: Mapping[str, object]) -> tuple[str, dict[str, str], bytes | None]:
    method, headers, body = options.get("method", "GET"), options.get("headers", {}), options.get("body")
    if method not in METHODS:
        raise FetchRefused(f"cannot fetch: the method is none of {', '.join(METHODS)}")
    if not isinstance(headers, Mapping) or not all(isinstance(value, str) for value in headers.values()):
        raise FetchRefused("cannot fetch: the headers are no object of strings")
    if never := _NEVER & {name.lower() for name in headers}:
        raise FetchRefused(f"cannot fetch: a script cannot set the header {min(never)}")
    if body is not None and not isinstance(body, str):
        raise FetchRefused("cannot fetch: the body is no string")
    return str(method), dict(headers), None if body is None else body.encode("utf-8", "replace")
