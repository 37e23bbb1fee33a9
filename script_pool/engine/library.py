"""The engine's half of JavaScript's small standard library (library.js): what would take long as interpreted code, or
is a matter of chance. Strings in, strings out; bytes are strings of characters up to U+00FF.

Import rule: the standard library alone; all of it is imported before a child locks itself.
"""

from __future__ import annotations

import base64
import encodings.idna  # noqa: F401 - the codec would import it behind the locks
import hashlib
import ipaddress
import json
import os
import re
import uuid
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_to_bytes

MAX_CHARACTERS = 16 * 1024 * 1024
"""Of one call: no clock stops it, and SHA-512 of that takes 30 ms."""
MAX_RANDOM_BYTES = 65_536

_DIGESTS = ("md5", "sha1", "sha256", "sha384", "sha512")
SPECIAL = {"http:": "80", "https:": "443", "ws:": "80", "wss:": "443", "ftp:": "21", "file:": ""}
"""The schemes whose hosts and paths the URL standard knows, and their ports."""


class _RangeError(ValueError):
    """What the script sees as one."""


def answer(operation: str, text: str) -> str:
    """`+` and the result, or `T` or `R` and the message of a TypeError or RangeError."""
    do = _OPERATIONS.get(operation)
    if do is None:
        return f"T{operation[:40]} is not known"
    if len(text) > MAX_CHARACTERS:
        return f"Rat most {MAX_CHARACTERS} characters"
    try:
        return "+" + do(text)
    except _RangeError as error:
        return f"R{error}"
    except (ValueError, UnicodeError, RecursionError) as error:
        return f"T{error}"


def _latin(data: bytes) -> str:
    return data.decode("latin-1")


def _unbase64(text: str) -> str:
    plain = re.sub(r"[\t\n\f\r ]", "", text).replace("-", "+").replace("_", "/")
    plain = plain.rstrip("=") if len(plain) % 4 == 0 else plain
    if len(plain) % 4 == 1 or not re.fullmatch(r"[A-Za-z0-9+/]*", plain):
        raise ValueError("it is not base64")
    return _latin(base64.b64decode(plain + "=" * (-len(plain) % 4)))


def _unhex(text: str) -> str:
    if not re.fullmatch(r"(?:[0-9a-fA-F]{2})*", text):
        raise ValueError("it is not hexadecimal")
    return _latin(bytes.fromhex(text))


def _random(text: str) -> str:
    count = int(text)
    if not 0 <= count <= MAX_RANDOM_BYTES:
        raise _RangeError(f"at most {MAX_RANDOM_BYTES} bytes")
    return _latin(os.urandom(count))


def _digest(name: str, text: str) -> str:
    return hashlib.new(name, text.encode("latin-1"), usedforsecurity=False).hexdigest()


def _url(text: str) -> str:
    return json.dumps(url(*json.loads(text)))


def _quote(text: str, keep: str) -> str:
    return "".join(
        mark if " " < mark < "\x7f" and mark not in keep else "".join(f"%{byte:02X}" for byte in mark.encode())
        for mark in text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def _host(text: str, special: bool) -> str:
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError("a host in brackets is not closed")
        return f"[{ipaddress.IPv6Address(text[1:-1]).compressed}]"
    if not special:
        if re.search(r"[\0\t\n\r #/<>?@\[\\\]^|]", text):
            raise ValueError("the host has a character that it cannot")
        return _quote(text, "")
    plain = unquote_to_bytes(text).decode("utf-8", "replace").lower()
    if not plain.isascii():
        plain = plain.encode("idna").decode("ascii")
    if not plain or re.search(r"[\0-\x20\"#%/:<>?@\[\\\]^`{|}\x7f]", plain):
        raise ValueError("the host is empty, or has a character that it cannot")
    last = plain.rstrip(".").rpartition(".")[2]
    return _ipv4(plain) if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last) else plain


def _ipv4(text: str) -> str:
    numbers = list[int]()
    for part in text.removesuffix(".").split("."):
        base = 16 if part.startswith("0x") else 8 if part.startswith("0") and len(part) > 1 else 10
        numbers.append(int(part.removeprefix("0x") or "0", base))
    if len(numbers) > 4 or any(number > 255 for number in numbers[:-1]):
        raise ValueError("the host is no IPv4 address")
    whole = sum(number << 8 * (3 - at) for at, number in enumerate(numbers[:-1])) + numbers[-1]
    if numbers[-1] >= 256 ** (5 - len(numbers)):
        raise ValueError("the host is no IPv4 address")
    return str(ipaddress.IPv4Address(whole))


def _path(text: str, special: bool) -> str:
    kept = list[str]()
    pieces = re.split(r"[/\\]" if special else "/", text)[1:]
    for at, piece in enumerate(pieces):
        low, last = piece.lower().replace("%2e", "."), at == len(pieces) - 1
        if low == "..":
            del kept[-1:]
        elif low != ".":
            kept.append(_quote(piece, '"#<>?`{}^'))
        if last and low in (".", ".."):
            kept.append("")
    return "/" + "/".join(kept)


_PARTS = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)


def url(text: str, base: str | None = None) -> dict[str, object]:
    """The parts of a URL as the WHATWG standard takes it apart, as far as http, https, ws, wss, ftp, file and other
    schemes of no host go. Raises ValueError."""
    plain = re.sub(r"[\t\n\r]", "", text.strip("".join(map(chr, range(33)))))
    found = _PARTS.fullmatch(plain)
    if found is None:
        raise ValueError(f"{text[:100]!r} is no URL")
    scheme, rest, search, fragment = found.groups()
    under = url(base) if base is not None else None
    if scheme is None or (under and under["special"] and scheme.lower() + ":" == under["protocol"] and rest[:1] != "/"):
        if under is None:
            raise ValueError(f"{text[:100]!r} is no URL, and there is no base")
        return _relative(rest, search, fragment, under)
    protocol = scheme.lower() + ":"
    special = protocol in SPECIAL
    made: dict[str, object] = {"protocol": protocol, "special": special and protocol != "file:", "host": None}
    made |= {"username": "", "password": "", "hostname": None, "port": ""}
    slashes = re.sub(r"^[/\\]+", "//", rest) if special else rest
    if special and not slashes.startswith("//"):
        slashes = "//" + slashes
    if protocol == "file:":
        slashes = re.sub(r"^///*", "///", slashes) if re.match(r"[/\\]{3}", rest) else slashes
    if slashes.startswith("//"):
        authority, path = _authority(slashes[2:], special)
        _place(made, authority, special)
    else:
        path = slashes
    opaque = not special and not path.startswith("/")
    made["pathname"] = (
        (_quote(path, "") if opaque and made["host"] is None else path and _path(path, special))
        or ("/" if special else "")
    )  # fmt: skip
    return _finish(made, search, fragment)


def _authority(text: str, special: bool) -> tuple[str, str]:
    end = re.search(r"[/\\]" if special else "/", text)
    return (text, "") if end is None else (text[: end.start()], text[end.start() :])


def _place(made: dict[str, object], authority: str, special: bool) -> None:
    user, at, place = authority.rpartition("@")
    if at:
        name, _, password = user.partition(":")
        made["username"], made["password"] = (_quote(part, '"#<>?`{}/:;=@[\\]^|') for part in (name, password))
    host, port = place, ""
    found = re.fullmatch(r"(.*?):([0-9]*)", place, re.DOTALL)
    if found is not None and (not place.startswith("[") or found[1].endswith("]")):
        host, port = found.groups()
    if port and int(port) > 65_535:
        raise ValueError("the port is over 65535")
    if made["protocol"] == "file:" and not host:
        made["host"] = made["hostname"] = ""
        return
    hostname = _host(host, special) if host or special else ""
    port = str(int(port)) if port else ""
    port = "" if SPECIAL.get(str(made["protocol"])) == port else port
    made["hostname"], made["port"] = hostname, port
    made["host"] = hostname + (f":{port}" if port else "")


def _finish(made: dict[str, object], search: str | None, fragment: str | None) -> dict[str, object]:
    quoted = "\"#<>'" if made["protocol"] in SPECIAL else '"#<>'
    made["search"] = "?" + _quote(search[1:], quoted) if search and len(search) > 1 else ""
    made["hash"] = "#" + _quote(fragment[1:], '"<>`') if fragment and len(fragment) > 1 else ""
    return made


def _relative(rest: str, search: str | None, fragment: str | None, under: dict[str, object]) -> dict[str, object]:
    special = under["protocol"] in SPECIAL
    if not special and not str(under["pathname"]).startswith("/"):
        raise ValueError("the base has no path that something could be relative to")
    made = dict(under)
    if re.match(r"[/\\]{2}" if special else "//", rest):
        return url(str(under["protocol"]) + rest + (search or "") + (fragment or ""))
    if not rest:
        if search is None:
            search = str(under["search"])
    elif re.match(r"[/\\]" if special else "/", rest):
        made["pathname"] = _path(rest, special)
    else:
        made["pathname"] = _path(str(under["pathname"]).rpartition("/")[0] + "/" + rest, special)
    return _finish(made, search, fragment)


def _utf8(text: str) -> str:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair has no UTF-8
    return _latin(whole.encode())


_OPERATIONS: dict[str, Callable[[str], str]] = {
    "utf8": _utf8,
    "decode": lambda text: text.encode("latin-1").decode("utf-8", "replace"),
    "decode-fatal": lambda text: text.encode("latin-1").decode("utf-8"),
    "base64": lambda text: base64.b64encode(text.encode("latin-1")).decode("ascii"),
    "unbase64": _unbase64,
    "hex": lambda text: text.encode("latin-1").hex(),
    "unhex": _unhex,
    "unpercent": lambda text: _latin(unquote_to_bytes(text)),
    "random": _random,
    "uuid": lambda _: str(uuid.UUID(bytes=os.urandom(16), version=4)),
    "url": _url,
    **{f"digest-{name}": partial(_digest, name) for name in _DIGESTS},
}
