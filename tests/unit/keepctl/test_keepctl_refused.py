"""A manager that refuses our certificate, with a word or without: what is wrong with our own file is said, and what to
do about it."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_client.credentials import Credentials
from keep_protocol.tls import server_context
from keepctl import authority, inspection
from tests.fakes.client_pki import Pki
from tests.fakes.tls_peer import TlsPeer
from tests.unit.keepctl.conftest import Run

DAY = datetime.timedelta(days=1)


@pytest.fixture
def foreign(tmp_path: Path) -> Pki:
    """The PKI of another manager."""
    return Pki(tmp_path)


@pytest.fixture(params=["alert", "silence"])
def refusing(request: pytest.FixtureRequest, pki: Pki) -> Iterator[TlsPeer]:
    """A manager that reports a refused certificate by its TLS alert, or hangs up on every request."""
    context = server_context(pki.layout.manager_certificate, pki.layout.manager_key, pki.ca_pem)
    if request.param == "silence":
        context.verify_mode = ssl.CERT_NONE
    with TlsPeer(context, lambda _: None) as peer:
        yield peer


def options(peer: TlsPeer, ca: str, ours: Credentials) -> tuple[str, ...]:
    return "--manager", f"127.0.0.1:{peer.port}", "--ca", ca, "--cert", ours.certificate


@pytest.mark.parametrize(("words", "code"), [(("ps",), 3), (("rm", "7"), 3), (("run", "MODULE"), 125)], ids=str)
def test_an_expired_certificate_of_ours_is_named_with_its_date_and_the_next_step(
    run: Run, refusing: TlsPeer, pki: Pki, module: str, words: tuple[str, ...], code: int
) -> None:
    ours = pki.client("expired", pki.now - 60 * DAY, days=30)
    typed = [module if word == "MODULE" else word for word in words]
    result = run(*typed, *options(refusing, pki.layout.ca_certificate, ours))
    ended = pki.now - 30 * DAY
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == (
        f"keepctl: cannot use the manager at 127.0.0.1:{refusing.port}: your certificate {ours.certificate} expired on "
        f"{ended:%Y-%m-%d}; ask for a later one: keepctl pki renew expired\n"
    )


def test_a_certificate_of_another_ca_is_named_with_ours_and_the_next_step(
    run: Run, refusing: TlsPeer, pki: Pki, foreign: Pki
) -> None:
    ours = foreign.credentials()
    result = run("ps", *options(refusing, pki.layout.ca_certificate, ours))
    assert result.exit_code == 3
    assert result.stderr.endswith(
        f": your certificate {ours.certificate} was issued by another CA than {pki.layout.ca_certificate}; "
        "ask for one of that CA: keepctl pki issue admin\n"
    )


def test_a_certificate_that_begins_later_is_a_matter_of_this_clock(run: Run, refusing: TlsPeer, pki: Pki) -> None:
    ours = pki.client("later", pki.now + DAY)
    result = run("ps", *options(refusing, pki.layout.ca_certificate, ours))
    assert f"your certificate {ours.certificate} is valid from " in result.stderr
    assert result.stderr.endswith(" UTC on; is this machine's clock right?\n")


def test_where_our_certificate_is_in_order_it_stays_a_guess(run: Run, pki: Pki) -> None:
    with TlsPeer(pki.manager(), lambda _: None) as peer:
        result = run("ps", *options(peer, pki.layout.ca_certificate, pki.credentials()))
    assert "most likely it refused our certificate" in result.stderr


def test_a_certificate_below_another_in_its_file_is_one_of_that_ones_ca(pki: Pki, foreign: Pki, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    leaf, above = foreign.credentials().certificate, pki.credentials().certificate
    chain.write_text(Path(leaf).read_text() + Path(above).read_text())
    assert inspection.fault_of_ours(str(chain), pki.layout.ca_certificate, pki.now) is None


@pytest.mark.parametrize("text", [None, "", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_of_files_that_cannot_be_read_nothing_is_said(pki: Pki, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "file.pem"
    if text is not None:
        path.write_text(text)
    assert inspection.fault_of_ours(str(path), pki.layout.ca_certificate, pki.now) is None
    assert inspection.fault_of_ours(pki.credentials().certificate, str(path), pki.now) is None


def test_a_name_that_no_client_of_ours_could_have_is_not_offered_to_a_shell(pki: Pki, tmp_path: Path) -> None:
    other = authority.make_ca(pki.now)
    odd = authority.issue_client(other, authority.new_key().public_key(), "x; rm -r /", 30 * DAY, pki.now)
    path = tmp_path / "odd.crt"
    path.write_bytes(authority.certificate_pem(odd))
    said = inspection.fault_of_ours(str(path), pki.layout.ca_certificate, pki.now)
    assert said is not None and said.endswith("keepctl pki issue NAME")
