"""Modules from a registry: what is taken, as whom it is asked for, and registries that lie, redirect or stall."""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.store import Object
from module_pull import apart, artifact, transport
from module_pull.artifact import Address, Site, parse_address
from module_pull.registry import Credentials, Registry, read_credentials
from module_store.additions import ORIGIN
from module_store.operations import Operations
from module_store.store import Store
from tests.fakes.certificates import SERVER, ForeignAuthority
from tests.fakes.fake_registry import INDEX, Answer, FakeRegistry
from tests.fakes.tls_peer import refusing_port
from tests.unit.store.conftest import HELLO, WORLD, digest_of, read, tree

LOGIN = base64.b64encode(b"alice:secret").decode()


class Pulled(Record):
    address: Address
    object: Object


@pytest.fixture
def remote() -> Iterator[FakeRegistry]:
    with FakeRegistry() as found:
        yield found


def pull(
    store: Store,
    remote: FakeRegistry | int,
    what: str = "team/web:1.2",
    *,
    login: str = "",
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> Pulled:
    port = remote if isinstance(remote, int) else remote.port
    address = parse_address(f"oci://{host}:{port}/{what}", plain=context is None)
    known = Credentials(((str(address.site), login),) if login else ())
    with apart.pulled(address, known, context or ssl.create_default_context()) as incoming:
        found, kept = incoming.begin(), Operations(store.place.path, "puller")
        added = kept.add(incoming.body(), address.reference, found.digest, origin=str(found.address))
        return Pulled(found.address, added)


def refusal(store: Store, remote: FakeRegistry | int, what: str = "team/web:1.2") -> KeepfleetError:
    """Why nothing is taken, and that nothing was."""
    before = tree(Path(store.place.path))
    with pytest.raises(KeepfleetError) as refused:
        pull(store, remote, what)
    assert tree(Path(store.place.path)) == before
    return refused.value


def test_a_module_is_taken_named_as_there_and_its_manifest_s_digest_is_said(store: Store, remote: FakeRegistry) -> None:
    manifest = remote.put_module("1.2", HELLO)
    pulled = pull(store, remote)
    assert pulled.object.digest == digest_of(HELLO)
    assert str(pulled.address) == f"oci://127.0.0.1:{remote.port}/team/web:1.2@{manifest}"
    assert read(store, store.resolve("web:1.2")) == HELLO
    assert store.reference("web:1.2").history[0].who == "puller"
    assert store.attached(digest_of(HELLO), ORIGIN) == str(pulled.address).encode()


@pytest.mark.parametrize("kind", artifact.LAYERS)
def test_a_module_is_taken_by_each_media_type_that_is_in_use(store: Store, remote: FakeRegistry, kind: str) -> None:
    remote.put_module("1.2", HELLO, kind)
    assert pull(store, remote).object.size == len(HELLO)


def test_a_digest_decides_over_the_tag_next_to_it(store: Store, remote: FakeRegistry) -> None:
    pinned = remote.put_module("1.2", HELLO)
    remote.put_module("1.2", WORLD)
    assert pull(store, remote, f"web:1.2@{pinned}").object.digest == digest_of(HELLO)
    assert pull(store, remote, f"web@{pinned}").object.digest == digest_of(HELLO)


def test_of_an_index_the_manifest_for_webassembly_is_taken(store: Store, remote: FakeRegistry) -> None:
    wasm, other = remote.put_module("wasm", HELLO), remote.put_module("other", WORLD)
    entries = [
        {"digest": other, "platform": {"architecture": "amd64", "os": "linux"}},
        {"digest": wasm, "platform": {"architecture": "wasm", "os": "wasip2"}},
    ]
    remote.put("1.2", json.dumps({"mediaType": INDEX, "manifests": entries}).encode(), INDEX)
    pulled = pull(store, remote)
    assert pulled.object.digest == digest_of(HELLO)
    assert pulled.address.digest == wasm
    remote.put("1.2", json.dumps({"mediaType": INDEX, "manifests": entries[:1]}).encode(), INDEX)
    error = refusal(store, remote)
    assert error.kind is ErrorKind.UNSUPPORTED_MEDIA
    assert "of its manifests 0 are for WebAssembly" in error.message


def blob(remote: FakeRegistry) -> str:
    """The path of the module, which is there."""
    remote.put_module("1.2", HELLO)
    return f"/v2/team/web/blobs/{digest_of(HELLO)}"


def test_other_bytes_than_the_manifest_names_are_refused(store: Store, remote: FakeRegistry) -> None:
    remote.answers[blob(remote)] = Answer(body=b"\0asm evil!")
    error = refusal(store, remote)
    assert error.kind is ErrorKind.BAD_REQUEST
    assert (
        f"the module that it sent is not {digest_of(HELLO)}, which its manifest names; nothing was kept"
        in error.message
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (HELLO + b"!", "of a module of 10 bytes it sent more than that"),
        (HELLO[:4], "of a module of 10 bytes it sent 4 bytes and not that"),
        (b"", "of a module of 10 bytes it sent 0 bytes and not that"),
    ],
)
def test_more_or_less_than_the_manifest_says_is_refused(
    store: Store, remote: FakeRegistry, body: bytes, why: str
) -> None:
    remote.answers[blob(remote)] = Answer(body=body)
    assert why in refusal(store, remote).message


def test_another_manifest_than_was_asked_for_by_digest_is_refused(store: Store, remote: FakeRegistry) -> None:
    pinned, other = remote.put_module("1.2", HELLO), remote.put_module("1.3", WORLD)
    path = f"/v2/team/web/manifests/{pinned}"
    remote.answers[path] = remote._answer("/v2/team/web/manifests/1.3")
    assert f"has the digest {other}, and {pinned} was asked for" in refusal(store, remote, f"team/web@{pinned}").message


def test_a_manifest_that_is_not_what_its_header_says_is_refused(store: Store, remote: FakeRegistry) -> None:
    remote.put_module("1.2", HELLO)
    answer = remote._answer("/v2/team/web/manifests/1.2")
    answer.headers["Docker-Content-Digest"] = digest_of(b"")
    remote.answers["/v2/team/web/manifests/1.2"] = answer
    assert f"and {digest_of(b'')} is what it says itself" in refusal(store, remote).message


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda manifest: manifest.pop("layers"), "0 of its layers are WebAssembly, and one must be; they are none"),
        (lambda manifest: manifest["layers"].append(manifest["layers"][0]), "2 of its layers are WebAssembly"),
        (
            lambda manifest: manifest["layers"][0].update(mediaType="application/vnd.oci.image.layer.v1.tar+gzip"),
            "a container image has to be pushed as an artifact",
        ),
        (lambda manifest: manifest["layers"][0].update(digest="sha512:00"), "its module has no SHA-256"),
        (lambda manifest: manifest["layers"][0].update(digest="sha256:../../x"), "its module has no SHA-256"),
        (lambda manifest: manifest["layers"][0].update(size=1 << 40), "its module is over 1073741824 bytes"),
        (lambda manifest: manifest["layers"][0].update(size=-1), "its module is over 1073741824 bytes"),
    ],
)
def test_what_is_no_webassembly_artifact_is_refused_with_what_it_is(
    store: Store, remote: FakeRegistry, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    remote.put_module("1.2", HELLO, change=change)
    assert why in refusal(store, remote).message


def test_a_manifest_without_end_or_that_is_none_is_refused(store: Store, remote: FakeRegistry) -> None:
    remote.put("1.2", bytes(artifact.MAX_MANIFEST_BYTES + 1))
    assert "its manifest of team/web is over 262144 bytes" in refusal(store, remote).message
    for none in (b"", b"[]", b'{"a":1,"a":2}', b"<html>"):
        remote.put("1.2", none)
        assert "cannot read the manifest of oci://" in refusal(store, remote).message


def test_a_pull_has_memory_of_its_own_where_the_process_that_pulls_has_much(store: Store, remote: FakeRegistry) -> None:
    held = bytearray(2 * apart.MEMORY_BYTES)  # counted as soon as it is mapped
    remote.put("1.2", bytes(artifact.MAX_MANIFEST_BYTES + 1))
    assert "its manifest of team/web is over 262144 bytes" in refusal(store, remote).message
    assert len(held) == 2 * apart.MEMORY_BYTES


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (403, "the registry does not let you have it"),
        (404, "the registry has nothing of this name"),
        (429, "the registry takes no more requests now; try again later"),
        (500, "the registry answered with status 500"),
        (204, "the registry answered with status 204"),
    ],
)
def test_what_a_registry_refuses_is_said(store: Store, remote: FakeRegistry, status: int, why: str) -> None:
    remote.answers["/v2/team/web/manifests/1.2"] = Answer(status)
    assert why in refusal(store, remote).message


def test_a_registry_that_is_not_there_is_said(store: Store) -> None:
    with refusing_port() as port:
        assert "Connection refused" in refusal(store, port).message


def test_a_registry_that_stalls_is_left_after_a_while_wherever_it_does(
    store: Store, remote: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.1)
    path = blob(remote)
    for stalling in (path, "/v2/team/web/manifests/1.2"):
        remote.answers[stalling] = Answer(headers={"Content-Length": "10"}, body=HELLO[:5], stall=True)
        error = refusal(store, remote)
        assert error.kind is ErrorKind.UNAVAILABLE
        assert "it has sent nothing for 0.1 s, or less than 16384 bytes a second" in error.message


def test_a_blob_is_followed_to_where_it_lies_and_who_we_are_is_not_said_there(
    store: Store, remote: FakeRegistry
) -> None:
    path = blob(remote)
    remote.login, remote.challenge = f"Basic {LOGIN}", 'Basic realm="web"'
    with FakeRegistry() as other:
        remote.answers[path] = Answer(307, {"Location": f"http://127.0.0.1:{other.port}/elsewhere?token=1"})
        other.answers["/elsewhere?token=1"] = Answer(302, {"Location": "/at/last"})
        other.answers["/at/last"] = Answer(body=HELLO)
        assert pull(store, remote, login=LOGIN).object.digest == digest_of(HELLO)
    assert other.asked == [("/elsewhere?token=1", ""), ("/at/last", "")]
    assert remote.asked[-1] == (path, f"Basic {LOGIN}")


def test_redirects_come_to_an_end(store: Store, remote: FakeRegistry) -> None:
    path = blob(remote)
    remote.answers[path] = Answer(307, {"Location": path})
    assert "again and again" in refusal(store, remote).message
    assert [asked for asked, _ in remote.asked].count(path) == 4


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://example.com/x", "it redirects to example.com:80 without TLS"),
        ("ftp://127.0.0.1/x", "without TLS"),
        ("//[bad", "it redirects to what is no address"),
        ("https://x:99999/", "it redirects to what is no address"),
        ("", "it redirects where no redirect is followed, or again and again"),
    ],
)
def test_a_redirect_that_leads_where_none_may_is_refused(
    store: Store, remote: FakeRegistry, location: str, why: str
) -> None:
    remote.answers[blob(remote)] = Answer(302, {"Location": location})
    assert why in refusal(store, remote).message


def test_a_redirect_into_this_host_s_own_network_is_refused(store: Store, remote: FakeRegistry) -> None:
    with FakeRegistry() as inner:
        remote.answers[blob(remote)] = Answer(302, {"Location": f"https://localhost:{inner.port}/secret"})
        error = refusal(store, remote)
    assert "the registry redirects to 127.0.0.1, which is no address of the internet" in error.message
    assert inner.asked == []


def test_a_manifest_is_not_looked_for_elsewhere(store: Store, remote: FakeRegistry) -> None:
    remote.answers["/v2/team/web/manifests/1.2"] = Answer(302, {"Location": "/other"})
    assert "it redirects where no redirect is followed" in refusal(store, remote).message


def test_a_token_is_fetched_as_the_registry_asks_and_used_for_what_follows(store: Store, remote: FakeRegistry) -> None:
    blob(remote)
    realm = f"http://127.0.0.1:{remote.port}/token"
    remote.login = "Bearer t0k3n"
    remote.challenge = f'Bearer realm="{realm}",service="registry",scope="repository:team/web:pull"'
    path = "/token?service=registry&scope=repository%3Ateam%2Fweb%3Apull"
    remote.answers[path] = Answer(body=b'{"token": "t0k3n"}')
    assert pull(store, remote, login=LOGIN).object.digest == digest_of(HELLO)
    assert remote.asked[1] == (path, f"Basic {LOGIN}")
    assert [login for path, login in remote.asked[2:]] == ["Bearer t0k3n"] * 2


@pytest.mark.parametrize(
    ("challenge", "token", "why"),
    [
        ("", b"", "name a file by --credentials"),
        ('Basic realm="x"', b"", "name a file by --credentials"),
        (
            'Bearer realm="http://example.com/token"',
            b"",
            "it wants credentials to be sent to example.com:80 without TLS",
        ),
        ('Bearer realm="http://[bad/"', b"", "to what is no address"),
        ('Bearer realm="TOKEN"', b'{"token": 1}', "sent no token"),
        ('Bearer realm="TOKEN"', b'{"token": "a\\r\\nHost: b"}', "sent no token"),
        ('Bearer realm="TOKEN"', b"x" * (1 << 17), "it is over 65536 bytes"),
        ('Bearer realm="TOKEN"', b'{"token": "wrong"}', "name a file by --credentials"),
    ],
)
def test_a_registry_that_does_not_let_us_in_is_left_with_the_reason(
    store: Store, remote: FakeRegistry, challenge: str, token: bytes, why: str
) -> None:
    blob(remote)
    remote.login = "Bearer right"
    remote.challenge = challenge.replace("TOKEN", f"http://127.0.0.1:{remote.port}/token")
    remote.answers["/token?"] = Answer(body=token)
    assert why in refusal(store, remote).message


def test_a_certificate_is_believed_by_its_ca_alone(store: Store, tmp_path: Path) -> None:
    ours, other = ForeignAuthority("registry ca"), ForeignAuthority("another")
    name = (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    (tmp_path / "server.pem").write_bytes(ours.issue("localhost", usages=(SERVER,), others=(name,)).pem)
    with FakeRegistry(str(tmp_path / "server.pem")) as remote:
        remote.put_module("1.2", HELLO)
        good, bad = (ssl.create_default_context(cadata=authority.pem) for authority in (ours, other))
        with pytest.raises(
            KeepfleetError, match=r"its certificate is not believed: .*; --registry-ca, or `ca` .* names the CA"
        ):
            pull(store, remote, context=bad, host="localhost")
        assert pull(store, remote, context=good, host="localhost").object.digest == digest_of(HELLO)


@pytest.mark.parametrize(
    "wrong",
    [
        "http://x/y:1", "oci://x", "oci://x/y", "oci://x/Y:1", "oci://x:0x/y:1", "oci://x:99999/y:1", "oci://x/y:1@sha256:1",
        "oci://user:password@x/y:1", "oci://x/y:1?z", "oci:///y:1", "oci://x/../y: 1", "oci://x/" + "y" * 1000 + ":1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(KeepfleetError, match="as an artifact's address: it must be oci://HOST/NAME:TAG"):
        parse_address(wrong)


def test_an_address_says_its_parts() -> None:
    address = parse_address(f"oci://[::1]:5000/a/b:1@{digest_of(b'')}")
    assert (address.site, address.name, address.tag) == (Site("::1", 5000, True), "a/b", "1")
    assert parse_address("oci://x/y:1").site == Site("x", 443, True)
    assert parse_address("oci://x/y:1", plain=True).site == Site("x", 80, False)
    assert str(address) == f"oci://[::1]:5000/a/b:1@{digest_of(b'')}"


def test_credentials_are_read_from_a_file_of_their_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {"https://ghcr.io/v1/": {"auth": LOGIN}, "localhost:5000": {"auth": LOGIN}}}))
    os.chmod(path, 0o640)
    with pytest.raises(KeepfleetError, match=r"others may read it; run: chmod 600 /"):
        read_credentials(str(path))
    os.chmod(path, 0o600)
    known = read_credentials(str(path))
    assert known.of(Site("ghcr.io", 443, True)) == known.of(Site("localhost", 5000, True)) == LOGIN
    assert known.of(Site("localhost", 5001, True)) == ""
    assert LOGIN not in repr(known)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "it has no `auths`"),
        ('{"auths": []}', "it has no `auths`"),
        ('{"auths": {"x": {}}}', "its entry for x has no `auth`"),
        ('{"auths": {"x": {"auth": "!"}}}', "its entry for x has no `auth`"),
        ("[]", "it must be a JSON object"),
    ],
)
def test_a_file_without_credentials_is_said_with_what_is_missing(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "auth.json").write_text(text)
    os.chmod(tmp_path / "auth.json", 0o600)
    with pytest.raises(KeepfleetError) as refused:
        read_credentials(str(tmp_path / "auth.json"))
    assert why in refused.value.message
    with pytest.raises(KeepfleetError, match="No such file"):
        read_credentials(str(tmp_path / "none"))


def test_no_password_goes_to_another_host_without_tls(store: Store) -> None:
    client = Registry(
        Site("example.com", 80, False), Credentials((("example.com", LOGIN),)), ssl.create_default_context()
    )
    address = parse_address("oci://example.com/web:1", plain=True)
    with pytest.raises(KeepfleetError, match="no password is sent without TLS"):
        client._authorized(address, 'Basic realm="x"')


class Watching(FakeRegistry):
    """Looks at the process that asks: its status, its limits and its open files, by the first request."""

    def __init__(self) -> None:
        super().__init__()
        self.status: dict[str, str] = {}
        self.limits, self.files = "", set[str]()

    def _answer(self, path: str) -> Answer:
        for process in (Path("/proc", pid) for pid in children()):
            if (process / "comm").read_text() == "keep-pull\n" and not self.status:
                lines = (line.split(":", 1) for line in (process / "status").read_text().splitlines())
                self.status = {name: value.strip() for name, value in lines}
                self.limits = (process / "limits").read_text()
                self.files = {os.readlink(file).partition(":")[0] for file in (process / "fd").iterdir()}
        return super()._answer(path)


def test_the_process_that_asks_a_registry_has_no_right_no_file_of_ours_and_ends_with_the_pull(store: Store) -> None:
    with Watching() as remote:
        remote.put_module("1.2", HELLO)
        pull(store, remote)
    own = str(apart.NOBODY) if os.geteuid() == 0 else str(os.geteuid())
    assert remote.status["Uid"].split() == [own] * 4
    assert (remote.status["NoNewPrivs"], int(remote.status["CapEff"], 16)) == ("1", 0)
    assert os.geteuid() != 0 or remote.status["Groups"] == ""
    for limit in ("Max file size", "Max processes", "Max core file size"):
        assert re.search(rf"^{limit} +0 +0 ", remote.limits, re.MULTILINE), limit
    assert remote.files - {os.readlink("/proc/self/fd/2").partition(":")[0]} <= {"/dev/null", "pipe", "socket"}
    assert "keep-pull\n" not in [Path(f"/proc/{pid}/comm").read_text() for pid in children()]


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
