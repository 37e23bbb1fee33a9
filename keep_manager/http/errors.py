"""The one table from error kinds to HTTP statuses, and the one shape of an error. Pure."""

from __future__ import annotations

from http import HTTPStatus

from keep_protocol.api import UNDEFINED_COMMAND
from keep_protocol.errors import ErrorKind, KeepfleetError

STATUS_OF: dict[ErrorKind, HTTPStatus] = {
    ErrorKind.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorKind.UNKNOWN_COMMAND: HTTPStatus.BAD_REQUEST,
    ErrorKind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorKind.CONFLICT: HTTPStatus.CONFLICT,
    ErrorKind.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorKind.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorKind.TOO_SLOW: HTTPStatus.REQUEST_TIMEOUT,
    ErrorKind.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorKind.UNSUPPORTED: HTTPStatus.NOT_IMPLEMENTED,
    ErrorKind.UNSUPPORTED_MEDIA: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ErrorKind.INVALID_MODULE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorKind.TOO_COMPLEX: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorKind.COMPILING: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.PORT_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.NO_SPACE: HTTPStatus.INSUFFICIENT_STORAGE,
    ErrorKind.ISOLATION_FAILURE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.KEEP_FAILED: HTTPStatus.BAD_GATEWAY,
    ErrorKind.SYSTEMD: HTTPStatus.BAD_GATEWAY,
    ErrorKind.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.CONFIGURATION: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.CERTIFICATE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

KIND_OF = {
    400: ErrorKind.BAD_REQUEST,
    404: ErrorKind.NOT_FOUND,
    405: ErrorKind.BAD_REQUEST,
    408: ErrorKind.TOO_SLOW,
    413: ErrorKind.TOO_LARGE,
    415: ErrorKind.UNSUPPORTED_MEDIA,
    417: ErrorKind.BAD_REQUEST,
}
"""The kinds of the refusals that are HTTP's own; any other status is INTERNAL."""


def v1_body(error: KeepfleetError) -> dict[str, object]:
    """An error as /v1 has it."""
    return {"error": error.to_wire()}


def legacy_body(error: KeepfleetError) -> dict[str, object]:
    """An error as /keeps_post has it: the original's `text`, and ours in addition."""
    if error.kind is ErrorKind.UNKNOWN_COMMAND:
        return dict(UNDEFINED_COMMAND)
    return {"text": error.message, "error": error.to_wire()}
