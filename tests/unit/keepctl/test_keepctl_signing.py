"""`keepctl store key …`, `sign`, `attach` and `check`."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keepctl.commands import store
from tests.unit.module_store.signers import Signer

RELEASE = Signer("release")
CONTENTS = b"\0asm\1\0\0\0"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module, and the store's directory in the environment."""
    (tmp_path / "web.wasm").write_bytes(CONTENTS)
    return tmp_path / "web.wasm"


def run(module: Path, *arguments: str) -> Result:
    environment = {"KEEPFLEET_STORE": str(module.parent / "store")}
    result = CliRunner().invoke(store.group, list(arguments), env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def secret_key(signer: Signer) -> bytes:
    """minisign's file of a key that is not encrypted."""
    body = signer.raw_id + signer.private.private_bytes_raw() + signer.public.public + bytes(32)
    raw = b"Ed\0\0B2" + bytes(48) + body
    return b"untrusted comment: minisign encrypted secret key\n" + base64.b64encode(raw) + b"\n"


def test_only_what_is_signed_may_start_once_that_is_required(module: Path) -> None:
    assert run(module, "add", str(module), "web:1.2").exit_code == 0
    assert "no signature is required" in run(module, "check", str(module)).stdout
    assert run(module, "key", "add", "release", RELEASE.public.to_text().splitlines()[1]).exit_code == 0
    assert run(module, "key", "require", "release").stdout == "modules must be signed by release\n"
    refused = run(module, "check", str(module))
    assert refused.exit_code == 1 and "it is not signed by release" in refused.stderr

    (module.parent / "release.key").write_bytes(secret_key(RELEASE))
    signed = ("sign", str(module), "--key", str(module.parent / "release.key"), "--name", "web", "--version", "1.2.0")
    assert run(module, *signed).exit_code == 0
    accepted = json.loads(run(module, "check", str(module), "-o", "json").stdout)
    assert (accepted["keys"], accepted["signed"]) == (["release"], {"name": "web", "version": "1.2.0"})

    refused = run(module, "check", "web:1.2")
    assert refused.exit_code == 1 and "it has no signature" in refused.stderr
    signature = str(module) + ".minisig"
    assert run(module, "attach", "web:1.2", signature).stdout == "signed by release\n"
    assert "web 1.2.0, signed by release" in run(module, "check", "web:1.2").stdout

    module.write_bytes(CONTENTS + b"\0\2\1x")
    assert run(module, "add", str(module), "web:bad").exit_code == 0
    assert "it is not this file's" in run(module, "attach", "web:bad", signature).stderr
    assert "it is not this file's" in run(module, "check", str(module)).stderr


def test_a_revoked_key_is_shown_with_its_reason_and_counts_no_more(module: Path) -> None:
    (module.parent / "release.pub").write_text(RELEASE.public.to_text())
    run(module, "key", "add", "release", str(module.parent / "release.pub"))
    run(module, "key", "require", "release", "--any")
    module.with_name("web.wasm.minisig").write_bytes(RELEASE.sign(CONTENTS))
    assert run(module, "check", str(module)).exit_code == 0
    assert run(module, "key", "revoke", "release", "--reason", "stolen").exit_code == 0
    assert "which was revoked: stolen" in run(module, "check", str(module)).stderr
    (shown,) = json.loads(run(module, "key", "ls", "-o", "json").stdout)["keys"]
    assert shown["revoked"] and shown["reason"] == "stolen" and shown["id"] == RELEASE.public.id
    assert "stolen" in run(module, "key", "ls").stdout


def test_a_requirement_names_keys_or_none(module: Path) -> None:
    assert run(module, "key", "require").exit_code == 2
    assert run(module, "key", "require", "a", "--none").exit_code == 2
    missing = run(module, "key", "require", "absent")
    assert missing.exit_code == 1 and "cannot find the key 'absent'" in missing.stderr
    assert run(module, "key", "require", "--none").stdout == "no signature is required\n"


def test_a_name_or_a_version_of_no_form_is_refused_before_anything_is_written(module: Path) -> None:
    (module.parent / "release.key").write_bytes(secret_key(RELEASE))
    signed = ("sign", str(module), "--key", str(module.parent / "release.key"), "--name", "web", "--version", "latest")
    refused = run(module, *signed)
    assert refused.exit_code == 1 and "keepfleet name=NAME version=VERSION" in refused.stderr
    assert not module.with_name("web.wasm.minisig").exists()
