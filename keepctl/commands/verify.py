"""`keepctl verify`: whether a module may run, by a policy; no manager is asked, and nothing of the module runs."""

from __future__ import annotations

import os
import stat

from keep_client.text import printable
from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl.access import OUTPUT
from keepctl.arguments import FILE, Argument, Command, Option
from keepctl.display import echo, json_text
from keepctl.ending import FAILED
from keepctl.files import explained
from module_store.verify.policy import KEEP, Policy
from module_store.verify.verification import verify

MAX_FILE_BYTES = 1 << 30
"""The engine's own limit of a module (wasmparser's MAX_WASM_MODULE_SIZE); the file is read whole."""
MAX_POLICY_BYTES = 1 << 20


def _read(path: str, most: int) -> bytes:
    with explained("read the file"), open(path, "rb", opener=_open) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read {path}: it has more than {most:,} bytes")
    return data


def _open(path: str, flags: int) -> int:
    """A regular file, which a device or a pipe is not: they have no end, or none yet."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "it is not a regular file", path)
    return descriptor


def _policy(file: str | None) -> Policy:
    if file is None:
        return KEEP
    from module_store.verify.policy_file import read_policy  # here: YAML is 15 ms, and most go without

    return read_policy(_read(file, MAX_POLICY_BYTES), file)


def _verify(file: str, policy: str | None, output: str) -> int:
    from app_loader.engine.validity import why_invalid  # here: it loads the engine's library

    rules = _policy(policy)
    report = verify(_read(file, MAX_FILE_BYTES), rules, why_invalid)
    if output == "json":
        echo(json_text({"file": os.path.abspath(file), **report.to_wire()}))
    else:
        echo(printable(file))
        echo("\n".join(report.lines()))
    return 0 if report.passed else FAILED


VERIFY = Command(
    "verify",
    _verify,
    "Says whether a module may run, by a policy.",
    """Verifies FILE, a WebAssembly module or component, against a policy. Prints each rule with what it found and what
    is allowed; then what bounds its memory and its instructions, where that can be known. Exits 1 where a rule fails.
    No manager is asked, and nothing of FILE runs.

    Without --policy it is what a keep with its default limits takes.

    \b
    keepctl verify web.wasm
    keepctl verify web.wasm --policy edge.yaml -o json
    """,
    (
        Option(("--policy",), "policy", "The policy, a YAML file; otherwise what a keep takes.", FILE, "FILE"),
        OUTPUT,
    ),
    (Argument("file", "FILE", FILE),),
)
