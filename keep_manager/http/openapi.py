"""The OpenAPI 3.1 document of /v1, made of the table of routes and of what `operations` says of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from aiohttp import web

from keep_manager.http.middleware import STATUS_OF, json_response
from keep_manager.http.operations import IN_PATHS, OPERATIONS, Operation
from keep_manager.http.schemas import EVENT, schemas
from keep_protocol import sse
from keep_protocol.errors import ErrorKind
from keep_protocol.schema import Schema

OPENAPI = "3.1.0"
VERSION = "1"
DOCUMENT = web.AppKey("document", dict[str, object])
UNSUPPORTED_MEDIA = 415
"""A body that is encoded: HTTP's own status."""


class Route(Protocol):
    """What is read of a row of the table of routes."""

    @property
    def method(self) -> str:
        """GET, POST, …"""

    @property
    def path(self) -> str:
        """With parameters as `{name}`."""


def document(routes: Iterable[Route]) -> dict[str, object]:
    """The document of those `routes` that lie below /v1. Raises KeyError for one that is not described."""
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        if route.path.startswith("/v1/"):
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(
                OPERATIONS[route.method, route.path], route.path
            )
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "keep-manager",
            "version": VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"clientCertificate": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"clientCertificate": {"type": "mutualTLS"}},
        },
    }


def _operation(operation: Operation, path: str) -> dict[str, object]:
    parameters = [parameter.document() for parameter in operation.parameters]
    for name, where, schema in IN_PATHS:
        if where in path:
            parameters.insert(0, {"name": name, "in": "path", "required": True, "schema": schema})
    described: dict[str, object] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": _responses(operation, path),
    }
    if operation.body:
        described["requestBody"] = {"content": _body(operation.body)}
    return described


def _body(body: str) -> dict[str, object]:
    if "/" in body:
        return {body: {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}


def _responses(operation: Operation, path: str) -> dict[str, object]:
    refused: dict[str, list[str]] = {}
    for kind in operation.refused_with(path):
        refused.setdefault(str(int(STATUS_OF[kind])), []).append(kind.value)
    if operation.body:
        refused[str(UNSUPPORTED_MEDIA)] = [ErrorKind.UNSUPPORTED_MEDIA.value]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(operation.status): _answer(operation),
        **{status: {"description": ", ".join(kinds), "content": error} for status, kinds in sorted(refused.items())},
    }


def _answer(operation: Operation) -> dict[str, object]:
    if not operation.answer:
        return {"description": "done"}
    if "/" in operation.answer:
        shape: Schema = EVENT if operation.answer == sse.CONTENT_TYPE else {"type": "object"}
        return {"description": operation.summary, "content": {operation.answer: {"schema": shape}}}
    schema = {"$ref": f"#/components/schemas/{operation.answer}"}
    answer: dict[str, object] = {"description": operation.summary, "content": {"application/json": {"schema": schema}}}
    if operation.status == 201:
        answer["headers"] = {"Location": {"required": True, "schema": {"type": "string"}}}
    return answer


async def openapi(request: web.Request) -> web.StreamResponse:
    """GET /v1/openapi.json."""
    return json_response(request.app[DOCUMENT])
