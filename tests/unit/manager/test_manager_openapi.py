"""The OpenAPI document is true: schemathesis asks a live manager what the document allows and what it does not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.pytest.lazy import get_all_tests
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from keep_manager.http.app import ROUTES
from keep_manager.http.openapi import document
from keep_manager.http.operations import DOCUMENT_PATH, OPERATIONS
from keep_manager.http.schemas import schemas
from keep_protocol.constants import V1_EVENTS_PATH, V1_KEEPS_PATH
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.states import State
from tests.fakes.manager_thread import manager_thread
from tests.fakes.running_manager import RunningManager

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
SECONDS = 60
DOCUMENT = document(ROUTES)
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def manager() -> Iterator[RunningManager]:
    with tempfile.TemporaryDirectory(prefix="km") as name, manager_thread(Path(name)) as manager:
        yield manager


@pytest.fixture(scope="module")
def session(manager: RunningManager) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.verify, made.cert = manager.authority.file, manager.operator.file
        made.trust_env = False
        yield made


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_every_answer_is_one_the_document_allows(
    method: str, path: str, manager: RunningManager, session: requests.Session
) -> None:
    """The requests are made here: `schema.parametrize()` makes all of them, for seconds, in every worker that collects
    the tests."""

    def ask(case: schemathesis.Case[Any]) -> None:
        if case.path == V1_EVENTS_PATH and case.query:
            case.query.pop("follow", None)  # such a stream has no end; test_manager_streams follows some
        case.call_and_validate(
            base_url=manager.url,
            session=session,
            checks=CHECKS,
            timeout=SECONDS,
            verify=session.verify,
            cert=session.cert,
        )

    described = schema.include(method=method, path=path)
    profile = settings(settings.get_profile("reproducible"), max_examples=settings().max_examples // 12)
    (made,) = get_all_tests(schema=described, test_func=ask, settings=profile, given_kwargs={})
    assert isinstance(made, Ok)
    made.ok()[1]()


def test_each_step_of_a_keep_s_life_is_answered_as_the_document_says(
    manager: RunningManager, session: requests.Session
) -> None:
    def step(method: str, path: str, status: int, **values: object) -> dict[str, object]:
        kuuid = values.pop("kuuid", "")
        url = manager.url + path.replace("{kuuid}", str(kuuid))
        response = session.request(method, url, timeout=SECONDS, **values)  # type: ignore[arg-type] # requests' own
        assert response.status_code == status, response.text
        schema[path][method].validate_response(response)
        return dict(response.json()) if response.content and "json" in response.headers["Content-Type"] else {}

    for keep in session.get(f"{manager.url}{V1_KEEPS_PATH}", timeout=SECONDS).json()["keeps"]:
        step("DELETE", "/v1/keeps/{kuuid}", 204, kuuid=keep["kuuid"])
    kuuid = step("POST", "/v1/keeps", 201, json={"name": "a", "labels": {"b": "c"}})["kuuid"]
    step("GET", "/v1/keeps", 200, params={"limit": 1, "label": "b=c"})
    step("GET", "/v1/keeps/{kuuid}", 200, kuuid=kuuid, params={"changed-from": 0})
    step("POST", "/v1/keeps/{kuuid}/start", 200, kuuid=kuuid, json={"workload": {"arguments": ["x"]}})
    step("POST", "/v1/keeps/{kuuid}/start", 409, kuuid=kuuid)
    assert step("POST", "/v1/keeps/{kuuid}/stop", 200, kuuid=kuuid)["outcome"]
    step("GET", "/v1/keeps/{kuuid}/logs", 200, kuuid=kuuid, params={"follow": "true"})
    step("GET", V1_EVENTS_PATH, 200, params={"keep": kuuid, "lines": 5})
    step("DELETE", "/v1/keeps/{kuuid}", 204, kuuid=kuuid)
    step("DELETE", "/v1/keeps/{kuuid}", 404, kuuid=kuuid)
    assert step("GET", DOCUMENT_PATH, 200) == DOCUMENT


def test_every_route_of_v1_is_described_and_nothing_else_is() -> None:
    routes = {(route.method, route.path) for route in ROUTES if route.path.startswith("/v1/")}
    assert routes == set(OPERATIONS)


def test_a_keep_and_its_outcome_have_exactly_the_members_the_document_names() -> None:
    shapes = schemas()
    keep = KeepInfo(1, State.LISTENING).to_wire()
    outcome = Outcome(OutcomeKind.EXITED, "exited 0").to_wire()
    for name, wire in (("Keep", keep), ("Outcome", outcome)):
        properties = shapes[name]["properties"]
        assert isinstance(properties, dict)
        assert set(properties) == set(wire)


def test_the_document_holds_for_the_standard_of_openapi_3_1() -> None:
    schema.validate()
