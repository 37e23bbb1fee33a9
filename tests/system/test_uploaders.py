"""Who may upload into a keep, on a real systemd: a secret reaches the module of the caller who granted it alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keep_protocol.states import State
from keep_protocol.tls import pinned_client_context
from tests.system.fleet import Fleet, free_port
from tests.system.life import Life, example
from tests.system.wire import Answer, ask, request
from tests.unit.app_loader.guests import Attempts

ROOT = "/run/granted-secrets"
CALLERS = f'{{"admin": {{grant_roots: [{{path: {ROOT}}}]}}}}'


@pytest.fixture
def life(fleet: Fleet) -> Iterator[Life]:
    """A keep that admin has started with a secret, which no one else may grant."""
    fleet.host.run(["sh", "-ec", f"mkdir -p {ROOT}; echo s3cret >{ROOT}/token; chmod 0700 {ROOT}"])
    try:
        with fleet.configured(callers=CALLERS):
            life = Life.create(fleet)
            secret: dict[str, object] = {"secrets": [{"name": "token", "file": f"{ROOT}/token"}]}
            life.info = fleet.client().start(life.kuuid, "127.0.0.1", free_port(), (), secret)
            yield life
    finally:
        fleet.host.run(["rm", "-r", ROOT])


def upload(life: Life, name: str, module: bytes) -> Answer:
    """The answer to another client's upload."""
    data = request("PUT", "/workload", module, "Content-Type: application/wasm")
    shown = life.fleet.credentials(name)
    return ask(life.info.port, pinned_client_context(shown.certificate, shown.key), data)


def test_another_callers_module_cannot_print_the_secret_and_its_owners_can(life: Life) -> None:
    life.fleet.issue("bob")
    answer = upload(life, "bob", example("hello-wat/hello"))
    assert (answer.status, answer.kind) == (403, "forbidden")
    assert "may not upload into this keep" in str(answer.object["error"]["message"])
    life.line("client: bob (serial ")
    assert life.look().state is State.STARTED
    shows = Attempts()
    shows.show("token")
    assert life.upload(shows.module()).status == 200
    life.line("s3cret")
    assert life.until(State.STARTED, State.COMPLETE).outcome is not None
