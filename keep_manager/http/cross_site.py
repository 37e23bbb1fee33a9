"""Refuses what a browser sends because another site's page asked it to.

A browser that holds a client certificate shows it for any page: such a page could make keeps with a form. It cannot
read an answer, and cannot send `application/json` without asking first (the manager allows it to none, as it answers no
preflight). Browsers name the page's site in Origin, with every POST, and in Sec-Fetch-Site (Fetch standard, "CORS
protocol"; Fetch Metadata Request Headers); no program of ours sends either.
"""

from __future__ import annotations

from aiohttp import web

from keep_protocol.errors import ErrorKind, KeepfleetError

JSON = "application/json"
_OWN_SITE = {"same-origin", "none"}
"""The manager's own page, and an address typed by the user."""
_NOTHING = "application/octet-stream"
"""What aiohttp's client says of a body that is not there, and no form of a page can say."""
_SHOWN = 60


def check_site(request: web.Request) -> None:
    """Raises KeepfleetError(FORBIDDEN) for a request on behalf of another site's page."""
    headers = request.headers
    own = f"https://{headers.get('Host', '')}"
    foreign = [origin for origin in headers.getall("Origin", []) if origin != own]
    foreign += [site for site in headers.getall("Sec-Fetch-Site", []) if site not in _OWN_SITE]
    if foreign:
        raise KeepfleetError(
            ErrorKind.FORBIDDEN, f"cannot obey another site's page: a browser sent this for {foreign[0][:_SHOWN]!r}"
        )


def check_media_type(request: web.Request) -> None:
    """Raises KeepfleetError(UNSUPPORTED_MEDIA) for a body that is said to be anything but JSON, and for an encoded one.

    A body whose type is not said is taken for JSON: the manager of 2020 (warp's json filter) drew the same line.
    """
    headers = request.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, "cannot read the request: its body must not be encoded")
    given = headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
    if given != JSON and (request.body_exists or given != _NOTHING):
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"cannot read the request: its Content-Type is {given[:_SHOWN]!r}, and must be {JSON}",
        )
