"""`keepctl verify`: whether a module may run, by a policy; no manager is asked, and nothing of the module runs."""

from __future__ import annotations

import os

from keep_client.peer import printable
from keepctl.access import OUTPUT
from keepctl.arguments import FILE, Argument, Command, Option
from keepctl.describe import FAILED
from keepctl.display import echo, json_text
from keepctl.modules import MAX_MODULE_BYTES, read_file
from module_store.verify.policy import KEEP, Policy
from module_store.verify.verification import verify

MAX_POLICY_BYTES = 1 << 20


def _policy(file: str | None) -> Policy:
    if file is None:
        return KEEP
    from module_store.verify.policy_file import read_policy  # here: YAML is 15 ms, and most go without

    return read_policy(read_file(file, MAX_POLICY_BYTES), file)


def _verify(file: str, policy: str | None, output: str) -> int:
    from app_loader.engine.validity import why_invalid  # here: it loads the engine's library

    rules = _policy(policy)
    report = verify(read_file(file, MAX_MODULE_BYTES), rules, why_invalid)
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
