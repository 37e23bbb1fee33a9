"""What the door answers: statuses from error kinds in one table, and the bytes of an answer. Pure."""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

STATUS_OF: dict[ErrorKind, int] = {
    ErrorKind.BAD_REQUEST: 400,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.TOO_SLOW: 408,
    ErrorKind.CONFLICT: 409,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.UNSUPPORTED: 415,
    ErrorKind.INVALID_MODULE: 422,
    ErrorKind.TOO_COMPLEX: 422,
    ErrorKind.NO_SPACE: 507,
}
"""Any other kind is a fault of the keep itself: 500."""


REASONS: dict[int, str] = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}
"""RFC 9110's phrases; `http.HTTPStatus` would bring the whole of `http` into every keep."""


class Refused(KeepfleetError):
    """A refusal whose status its kind does not tell, perhaps with one more header."""

    def __init__(self, kind: ErrorKind, status: int, message: str, header: tuple[str, str] | None = None) -> None:
        super().__init__(kind, message)
        self.status = status
        self.header = header


class Answer(Record):
    """status, headers and body of one response; every answer is the last on its connection."""

    status: int
    body: bytes
    content_type: str
    more: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The header lines, in order."""
        length = ("Content-Length", str(len(self.body)))
        return (("Content-Type", self.content_type), length, ("Connection", "close"), *self.more)

    @property
    def reason(self) -> str:
        """The phrase of the status line; clients of 2020 expect one."""
        return REASONS.get(self.status, "")


def text_answer(text: str) -> Answer:
    """200 with plain text."""
    return Answer(200, text.encode(), "text/plain; charset=utf-8")


def json_answer(value: dict[str, object]) -> Answer:
    """200 with a JSON object."""
    return Answer(200, strict_json.dumps(value) + b"\n", "application/json")


def error_answer(error: KeepfleetError) -> Answer:
    """The answer that tells `error`, in the one error shape."""
    status = error.status if isinstance(error, Refused) else STATUS_OF.get(error.kind, 500)
    more = (error.header,) if isinstance(error, Refused) and error.header is not None else ()
    return Answer(status, strict_json.dumps({"error": error.to_wire()}) + b"\n", "application/json", more)
