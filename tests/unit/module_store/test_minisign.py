"""Debian's minisign and keepctl, both ways: what one signs the other verifies."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from module_store import signing
from module_store.signatures import BadSignature, PublicKey, Signed, check, parse_public_key, parse_signature

pytestmark = pytest.mark.skipif(shutil.which("minisign") is None, reason="Debian's package minisign is not installed")
CONTENTS = b"\0asm\1\0\0\0" * 1000
COMMENT = "keepfleet name=web version=1.2.0"


def minisign(*arguments: str, given: str = "") -> int:
    return subprocess.run(["minisign", *arguments], input=given, capture_output=True, text=True).returncode


def make_key(folder: Path, name: str, *options: str) -> None:
    files = ["-p", f"{folder}/{name}.pub", "-s", f"{folder}/{name}.key"]
    assert minisign("-G", "-f", *options, *files, given="open\nopen\n") == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module, and two keys that are not encrypted."""
    folder = tmp_path_factory.mktemp("minisign")
    (folder / "web.wasm").write_bytes(CONTENTS)
    for name in ("release", "other"):
        make_key(folder, name, "-W")
    return folder


def public(folder: Path, name: str = "release") -> PublicKey:
    return parse_public_key((folder / f"{name}.pub").read_bytes())


def secret(folder: Path, name: str = "release", password: str = "") -> signing.SecretKey:
    return signing.open_secret_key(signing.parse_secret_key((folder / f"{name}.key").read_bytes()), password)


@pytest.mark.parametrize("options", [["-H"], ["-l"]], ids=["hashed", "legacy"])
def test_what_minisign_signs_is_verified(folder: Path, options: list[str]) -> None:
    signed = ["-S", *options, "-s", f"{folder}/release.key", "-m", f"{folder}/web.wasm", "-t", COMMENT]
    assert minisign(*signed) == 0
    signature = parse_signature((folder / "web.wasm.minisig").read_bytes())
    assert signature.algorithm == (b"ED" if options == ["-H"] else b"Ed")
    assert check(signature, public(folder), CONTENTS) == Signed("web", "1.2.0")
    with pytest.raises(BadSignature, match="not this file's"):
        check(signature, public(folder), CONTENTS + b"x")
    with pytest.raises(BadSignature, match="by the key"):
        check(signature, public(folder, "other"), CONTENTS)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_signed_here_minisign_verifies(folder: Path, legacy: bool) -> None:
    text = signing.sign(secret(folder), CONTENTS, Signed("web", "2.0"), legacy=legacy)
    (folder / "web.wasm.minisig").write_text(text)
    verify = ["-V", "-p", f"{folder}/release.pub", "-m", f"{folder}/web.wasm"]
    assert minisign(*verify) == 0
    (folder / "web.wasm.minisig").write_text(text.replace("version=2.0", "version=3.0"))
    assert minisign(*verify) != 0


def _body(text: bytes, change: Callable[[bytearray], object], line: int = 1) -> bytes:
    """The same signature file with one of its Base64 lines changed."""
    lines = text.split(b"\n")
    raw = bytearray(base64.b64decode(lines[line]))
    change(raw)
    lines[line] = base64.b64encode(raw)
    return b"\n".join(lines)


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "trailing bytes in the signature": lambda text: _body(text, lambda raw: raw.extend(b"\0")),
    "trailing bytes in the global signature": lambda text: _body(text, lambda raw: raw.extend(b"\0"), 3),
    "another key's identifier": lambda text: _body(text, lambda raw: raw.__setitem__(2, raw[2] ^ 1)),
    "another algorithm": lambda text: _body(text, lambda raw: raw.__setitem__(slice(0, 2), b"EX")),
    "hashed for not hashed": lambda text: _body(
        text, lambda raw: raw.__setitem__(slice(0, 2), b"Ed" if raw[:2] == b"ED" else b"ED")
    ),
    "a changed bit": lambda text: _body(text, lambda raw: raw.__setitem__(40, raw[40] ^ 1)),
    "cut in the signature": lambda text: _body(text, lambda raw: raw.__delitem__(-1)),
    "cut behind the first line": lambda text: b"\n".join(text.split(b"\n")[:1]) + b"\n",
    "cut behind the second line": lambda text: b"\n".join(text.split(b"\n")[:2]) + b"\n",
    "without its global signature": lambda text: b"\n".join(text.split(b"\n")[:3]) + b"\n",
    "another trusted comment": lambda text: text.replace(b"version=1.2.0", b"version=9.2.0"),
    "nothing": lambda text: b"",
}


@pytest.mark.parametrize("signer", ["minisign", "here"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_signature_that_was_tampered_with_is_refused_here_and_by_minisign(
    folder: Path, name: str, signer: str
) -> None:
    place = folder / "web.wasm.minisig"
    if signer == "minisign":
        assert minisign("-S", "-s", f"{folder}/release.key", "-m", f"{folder}/web.wasm", "-t", COMMENT) == 0
    else:
        place.write_text(signing.sign(secret(folder), CONTENTS, Signed("web", "1.2.0")))
    verify = ["-V", "-p", f"{folder}/release.pub", "-m", f"{folder}/web.wasm"]
    good = place.read_bytes()
    assert minisign(*verify) == 0
    bad = HOSTILE[name](good)
    assert bad != good
    place.write_bytes(bad)
    assert minisign(*verify) != 0, "minisign takes it"
    with pytest.raises(BadSignature):
        check(parse_signature(bad), public(folder), CONTENTS)


@pytest.mark.parametrize("behind", [b"x", b"\n", b"trusted comment: more\n", b"\0"])
def test_bytes_behind_the_last_line_are_refused_here_whatever_minisign_makes_of_them(
    folder: Path, behind: bytes
) -> None:
    good = signing.sign(secret(folder), CONTENTS, Signed("web", "1.2.0")).encode()
    with pytest.raises(BadSignature):
        check(parse_signature(good + behind), public(folder), CONTENTS)


def test_a_signature_of_another_file_or_by_another_key_is_refused_here_and_by_minisign(folder: Path) -> None:
    other = folder / "other.wasm"
    other.write_bytes(CONTENTS + b"x")
    for name in ("release", "other"):
        text = signing.sign(secret(folder, name), CONTENTS, Signed("web", "1.2.0"))
        (folder / "other.wasm.minisig").write_text(text)
        assert minisign("-V", "-p", f"{folder}/release.pub", "-m", str(other)) != 0
        with pytest.raises(BadSignature):
            check(parse_signature(text.encode()), public(folder), other.read_bytes())


def lock(folder: Path, name: str, password: str, operations: int, memory: int) -> None:
    """Makes NAME.key of release.key, encrypted for a password that is tried in milliseconds."""
    comment, text = (folder / "release.key").read_text().splitlines()
    raw = base64.b64decode(text)
    salt, body = bytes(range(32)), raw[54:126]
    body += hashlib.blake2b(raw[:2] + body, digest_size=32).digest()
    n, p = signing._scrypt_parameters(operations, memory)
    stream = hashlib.scrypt(password.encode(), salt=salt, n=n, r=8, p=p, maxmem=2 * memory, dklen=len(body))
    limits = operations.to_bytes(8, "little") + memory.to_bytes(8, "little")
    locked = b"EdScB2" + salt + limits + bytes(a ^ b for a, b in zip(body, stream, strict=True))
    (folder / f"{name}.key").write_text(f"{comment}\n{base64.b64encode(locked).decode()}\n")


@pytest.mark.parametrize(("operations", "memory"), [(32768, 16 << 20), (1 << 19, 16 << 20), (1 << 17, 1 << 20)])
def test_a_key_with_a_password_is_opened_as_minisign_opens_it_and_a_wrong_password_is_refused(
    folder: Path, operations: int, memory: int
) -> None:
    lock(folder, "quick", "open", operations, memory)
    signed = ["-S", "-s", f"{folder}/quick.key", "-m", f"{folder}/web.wasm", "-t", COMMENT]
    assert minisign(*signed, given="open\n") == 0
    assert minisign(*signed, given="guess\n") != 0
    assert secret(folder, "quick", "open").public_key == public(folder)
    with pytest.raises(BadSignature, match="the password is wrong"):
        secret(folder, "quick", "guess")


@pytest.mark.heavy
def test_a_key_with_a_password_of_minisigns_own_making_is_opened(folder: Path) -> None:
    make_key(folder, "locked")  # three seconds of processor time and 1 GiB for each try of a password
    opened = secret(folder, "locked", "open")
    assert opened.public_key == public(folder, "locked")
    assert opened.seed.hex() not in repr(opened)
    with pytest.raises(BadSignature, match="the password is wrong"):
        secret(folder, "locked", "guess")


@pytest.mark.parametrize("identifier", ["8C841D3C3A4183E7", "0C841D3C3A4183E7", "00000D3C3A4183E7", "0" * 16])
def test_a_public_key_is_written_as_minisign_writes_it(folder: Path, identifier: str) -> None:
    comment, body = (folder / "release.key").read_text().splitlines()
    raw = bytearray(base64.b64decode(body))
    raw[54:62] = bytes.fromhex(identifier)[::-1]
    (folder / "known.key").write_text(f"{comment}\n{base64.b64encode(raw).decode()}\n")
    assert minisign("-R", "-f", "-W", "-p", f"{folder}/known.pub", "-s", f"{folder}/known.key") == 0
    assert public(folder, "known").id == identifier
    assert public(folder, "known").to_text().encode() == (folder / "known.pub").read_bytes()


def test_a_secret_key_that_asks_for_more_than_minisigns_is_refused_before_it_is_tried(folder: Path) -> None:
    comment, body = (folder / "release.key").read_text().splitlines()
    raw = bytearray(base64.b64decode(body))
    raw[2:4], raw[46:54] = b"Sc", (1 << 40).to_bytes(8, "little")
    with pytest.raises(BadSignature, match="more than 1 GiB"):
        signing.parse_secret_key(f"{comment}\n{base64.b64encode(raw).decode()}\n".encode())


def test_a_damaged_secret_key_is_refused(folder: Path) -> None:
    comment, body = (folder / "release.key").read_text().splitlines()
    raw = bytearray(base64.b64decode(body))
    raw[70] ^= 1
    with pytest.raises(BadSignature, match="do not belong together"):
        signing.open_secret_key(signing.parse_secret_key(f"{comment}\n{base64.b64encode(raw).decode()}\n".encode()))
    for data in (b"", body.encode(), f"{comment}\n{body[:-4]}\n".encode(), f"{comment}\n{body}\n\n".encode()):
        with pytest.raises(BadSignature):
            signing.parse_secret_key(data)
