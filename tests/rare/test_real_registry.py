"""`keepctl store pull` from Debian's own registry on loopback: with and without a password, over TLS and without."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from tests.fakes.certificates import SERVER, ForeignAuthority
from tests.rare.hosts import run_in_machines_network
from tests.system.fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]
MODULE = (ROOT / "examples/hello-c/hello.wasm").read_bytes()
DIGEST = f"sha256:{hashlib.sha256(MODULE).hexdigest()}"
LOGIN = base64.b64encode(b"alice:secret").decode()
HASHED = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
"""Of `secret`: `htpasswd -nbB`."""
PACKAGE = "docker-registry"
LISTENS = re.compile(r"listening on 127\.0\.0\.1:([0-9]+)")
Headers = dict[str, str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The registry's program: as installed, or out of Debian's package, which would start it on this machine."""
    installed = shutil.which(PACKAGE)
    if installed:
        return installed
    directory = tmp_path_factory.mktemp("package")
    fetched = run_in_machines_network("apt-get", "download", "-qq", PACKAGE, cwd=directory)
    if fetched.returncode:
        pytest.skip(f"there is no {PACKAGE} here, and apt cannot have it: {fetched.stderr.strip()[-200:]}")
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), "there"], cwd=directory, check=True)
    return str(directory / "there/usr/bin" / PACKAGE)


@dataclass(frozen=True)
class Remote:
    """A registry that runs. ca: the file of the CA that signed for it, "" where it has no TLS."""

    port: int
    ca: str = ""
    login: str = ""

    def push(self, tag: str, module: bytes) -> str:
        """What `wkg oci push` and `oras push` do; the manifest's digest."""
        config = self._put_blob(b"{}")
        layer = self._put_blob(module)
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2},
                "layers": [{"mediaType": "application/wasm", "digest": layer, "size": len(module)}],
            }
        ).encode()
        kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        return self._ask("PUT", f"/v2/team/web/manifests/{tag}", manifest, kind)["Docker-Content-Digest"]

    def _put_blob(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        there = self._ask("POST", "/v2/team/web/blobs/uploads/")["Location"]
        there = "/" + there.split("/", 3)[3] + ("&" if "?" in there else "?") + f"digest={digest}"
        self._ask("PUT", there, data, {"Content-Type": "application/octet-stream"})
        return digest

    def _ask(self, method: str, target: str, body: bytes | None = None, headers: Headers | None = None) -> Headers:
        connection = http.client.HTTPConnection("localhost", self.port)
        if self.ca:
            context = ssl.create_default_context(cafile=self.ca)
            connection = http.client.HTTPSConnection("localhost", self.port, context=context)
        login = {"Authorization": f"Basic {self.login}"} if self.login else {}
        connection.request(method, target, body, {**login, **(headers or {})})
        answer = connection.getresponse()
        assert answer.status in (200, 201, 202), (answer.status, answer.read())
        answer.read()
        connection.close()
        return dict(answer.getheaders())


def started(program: str, directory: Path, settings: Headers, login: str = "", ca: str = "") -> Iterator[Remote]:
    """A registry, until the test ends."""
    storage = f"storage: {{filesystem: {{rootdirectory: {directory}/data}}}}"
    (directory / "config.yml").write_text(f"version: 0.1\n{storage}\nhttp: {{addr: '127.0.0.1:0'}}\n")
    command = [program, "serve", str(directory / "config.yml")]
    process = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = next(filter(None, map(LISTENS.search, process.stderr)), None)
        assert said, "the registry does not start"
        yield Remote(int(said[1]), ca, login)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def open_registry(program: str, tmp_path: Path) -> Iterator[Remote]:
    yield from started(program, tmp_path, {})


@pytest.fixture
def closed_registry(program: str, tmp_path: Path) -> Iterator[Remote]:
    """One with TLS by a CA of its own, and a password."""
    authority = ForeignAuthority("registry ca")
    name = (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    issued = authority.issue("localhost", usages=(SERVER,), others=(name,))
    (tmp_path / "ca.crt").write_text(authority.pem)
    (tmp_path / "server.pem").write_bytes(issued.pem)
    (tmp_path / "htpasswd").write_text(f"alice:{HASHED}\n")
    settings = {
        "REGISTRY_HTTP_TLS_CERTIFICATE": str(tmp_path / "server.pem"),
        "REGISTRY_HTTP_TLS_KEY": str(tmp_path / "server.pem"),
        "REGISTRY_AUTH": "htpasswd",
        "REGISTRY_AUTH_HTPASSWD_REALM": "registry",
        "REGISTRY_AUTH_HTPASSWD_PATH": str(tmp_path / "htpasswd"),
    }
    yield from started(program, tmp_path, settings, LOGIN, str(tmp_path / "ca.crt"))


def keepctl(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keepctl", "store", *words, "--store", str(tmp_path / "store")]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_pushed_module_is_pulled_by_its_tag_and_by_its_digest(open_registry: Remote, tmp_path: Path) -> None:
    manifest = open_registry.push("1.2", MODULE)
    there = f"oci://localhost:{open_registry.port}/team/web"
    done = keepctl(tmp_path, "pull", "--plain-http", f"{there}:1.2")
    assert done.stdout == f"web:1.2  {DIGEST}  39.5 KiB\nfrom {there}:1.2@{manifest}\n", done.stderr
    open_registry.push("1.2", b"\0asm\1\0\0\0")
    pinned = keepctl(tmp_path, "pull", "--plain-http", f"{there}:1.2@{manifest}", "pinned:1", "-o", "json")
    shown = json.loads(pinned.stdout)
    assert {**shown, "added": 0} == {
        "digest": DIGEST,
        "size": len(MODULE),
        "added": 0,
        "reference": "pinned:1",
        "from": f"{there}:1.2@{manifest}",
    }
    assert "attached    local.origin" in keepctl(tmp_path, "inspect", "web:1.2").stdout
    missing = keepctl(tmp_path, "pull", "--plain-http", f"{there}:9")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == f"keepctl: cannot pull {there}:9: the registry has nothing of this name\n"


def test_a_registry_with_tls_and_a_password_gets_them(closed_registry: Remote, tmp_path: Path) -> None:
    closed_registry.push("1.2", MODULE)
    there = f"oci://localhost:{closed_registry.port}/team/web:1.2"
    assert "its certificate is not believed" in keepctl(tmp_path, "pull", there).stderr
    trusting = ("pull", there, "--registry-ca", closed_registry.ca)
    assert "name a file by --credentials" in keepctl(tmp_path, *trusting).stderr
    login = tmp_path / "auth.json"
    login.write_text(json.dumps({"auths": {f"localhost:{closed_registry.port}": {"auth": LOGIN}}}))
    login.chmod(0o600)
    done = keepctl(tmp_path, *trusting, "--credentials", str(login))
    assert done.stdout.startswith(f"web:1.2  {DIGEST}  "), done.stderr


def test_a_blob_that_was_changed_in_the_registry_s_own_store_is_refused(open_registry: Remote, tmp_path: Path) -> None:
    open_registry.push("1.2", MODULE)
    hexadecimal = DIGEST.removeprefix("sha256:")
    (data,) = tmp_path.glob(f"data/docker/registry/v2/blobs/sha256/*/{hexadecimal}/data")
    data.write_bytes(MODULE[:-1] + b"!")
    done = keepctl(tmp_path, "pull", "--plain-http", f"oci://localhost:{open_registry.port}/team/web:1.2")
    assert f"the module that it sent is not {DIGEST}, which its manifest names; nothing was kept" in done.stderr
    assert list((tmp_path / "store/objects").iterdir()) == []


def test_a_manager_pulls_from_it_with_tls_and_a_password_by_a_unit_of_its_own(
    fleet: Fleet, closed_registry: Remote, tmp_path: Path
) -> None:
    """With the files that its configuration names; the person who asks has neither."""
    manifest = closed_registry.push("1.2", MODULE)
    site, store = f"localhost:{closed_registry.port}", "/var/lib/keepfleet/store"
    (fleet.configuration / "registry-ca.pem").write_text(Path(closed_registry.ca).read_text())
    login = fleet.configuration / "registry.json"
    login.write_text(json.dumps({"auths": {site: {"auth": LOGIN}}}))
    login.chmod(0o600)
    files = "credentials: /etc/keepfleet/registry.json, ca: /etc/keepfleet/registry-ca.pem"
    cursor, manager = fleet.host.cursor(), f"127.0.0.1:{fleet.port}"
    fleet.host.run(["rm", "-rf", store])
    try:
        with fleet.configured(registries=f'{{"{site}": {{{files}}}}}'):
            pull = ["keepctl", "store", "pull", f"oci://{site}/team/web:1.2", "--manager", manager]
            done = fleet.host.run(pull)
            assert done.stdout == f"web:1.2  {DIGEST}  39.5 KiB\nfrom oci://{site}/team/web:1.2@{manifest}\n"
            done = fleet.host.run(["keepctl", "run", "--rm", "--manager", manager, "web:1.2"])
            assert "Hello from C" in done.stdout
        with fleet.configured(registries=f'{{"{site}": {{ca: /etc/keepfleet/registry-ca.pem}}}}'):
            refused = fleet.host.run(pull, check=False)
            assert "the registry wants to know who asks" in refused.stderr
        with fleet.configured(registries=f'{{"{site}": {{}}}}'):
            assert "its certificate is not believed" in fleet.host.run(pull, check=False).stderr
        said = json.dumps([str(each) for each in fleet.host.journal(since_cursor=cursor)])
        assert LOGIN not in said
    finally:
        fleet.host.run(["rm", "-rf", store])
