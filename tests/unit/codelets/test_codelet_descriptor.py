"""Descriptors: jbpf's words, read strictly."""

from __future__ import annotations

import json

import pytest

from codelets.descriptor import MAX_BYTES, read_descriptor
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.unit.codelets.application import one

WHOLE = """
codeletset_id: queue-stats
codelet_descriptor:
  - codelet_name: ingress
    codelet_path: queue:1.0
    hook_name: ingress
    priority: 2
    runtime_threshold: 100000
    in_io_channel:
      - {name: config, stream_id: "00112233445566778899AABBCCDDEEFF"}
    out_io_channel:
      - {name: samples, stream_id: "01112233-4455-6677-8899-aabbccddeeff", serde: sample}
  - codelet_name: egress
    codelet_path: "sha256:0000000000000000000000000000000000000000000000000000000000000000"
    hook_name: egress
    linked_maps:
      - {map_name: times, linked_codelet_name: ingress, linked_map_name: arrivals}
"""


def test_a_descriptor_has_jbpfs_words() -> None:
    found = read_descriptor(WHOLE.encode())
    first, second = found.codelet_descriptor
    assert (found.codeletset_id, first.priority, first.runtime_threshold) == ("queue-stats", 2, 100000)
    assert first.in_io_channel[0].stream == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert first.out_io_channel[0].serde == "sample"
    assert second.linked_maps[0].linked_map_name == "arrivals"


def test_a_descriptor_may_be_json() -> None:
    found = read_descriptor(WHOLE.encode())
    assert read_descriptor(json.dumps(found.to_wire()).encode()) == found


def test_every_fault_is_reported_with_its_line() -> None:
    text = WHOLE.replace("priority: 2", "priority: high").replace("queue:1.0", "/etc/passwd").replace("serde", "sort")
    with pytest.raises(KeepfleetError) as caught:
        read_descriptor(text.encode(), "set.yaml")
    assert len(caught.value.evidence) == 3
    assert (
        "set.yaml: line 5, column 19: codelet_descriptor[0].codelet_path must be NAME:TAG" in caught.value.evidence[0]
    )


@pytest.mark.parametrize(
    "path",
    ["/opt/codelets/a.o", "./a.wasm", "../store/a:1", "a", "file:///a:1", "sha256:12", "a:1@sha256:12", "a:1\n", ""],
)
def test_a_path_outside_the_store_is_refused(path: str) -> None:
    with pytest.raises(KeepfleetError, match="of the module store, and no path"):
        read_descriptor(one("a", "h", path=json.dumps(path)).encode())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("linked_codelet_name: ingress", "linked_codelet_name: missing", "which the set does not have"),
        ("codelet_name: egress", "codelet_name: ingress", "two of the codelet ingress"),
        ("01112233-4455-6677-8899-aabbccddeeff", "00112233445566778899aabbccddeeff", "two channels have one stream_id"),
        ("{name: samples", "{name: config", "two of the channel or linked map config"),
        ("00112233445566778899AABBCCDDEEFF", "0011", "16 bytes in hexadecimal digits"),
        ("codeletset_id: queue-stats", "codeletset_id: " + "a" * 256, "1 to 255"),
        ("hook_name: egress", "hook_name: e/../f", "1 to 255"),
    ],
)
def test_what_does_not_fit_together_is_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot read the descriptor") as caught:
        read_descriptor(WHOLE.replace(old, new).encode())
    assert any(words in line for line in caught.value.evidence)


def test_the_limits_are_jbpfs() -> None:
    entry = WHOLE[WHOLE.index("  - codelet_name: egress") :]
    entries = "".join(
        entry.replace("egress", f"e{n}", 1).replace(entry[entry.index("    linked") :], "") for n in range(17)
    )
    with pytest.raises(KeepfleetError, match="a list of at most 16"):
        read_descriptor(f"codeletset_id: a\ncodelet_descriptor:\n{entries}".encode())


def test_variables_come_from_the_list_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODULE", "secret:1")
    text = one("a", "${HOOK}", path="${MODULE}").encode()
    with pytest.raises(KeepfleetError, match=r"unknown variable \$\{MODULE\}; there are HOOK"):
        read_descriptor(text, variables={"HOOK": "ingress"})
    found = read_descriptor(text, variables={"HOOK": "ingress", "MODULE": "a:1"})
    assert found.codelet_descriptor[0].codelet_path == "a:1"


def test_a_variable_is_text_and_no_yaml() -> None:
    with pytest.raises(KeepfleetError, match="hook_name must be"):
        read_descriptor(one("a", "${HOOK}").encode(), variables={"HOOK": "a\n  priority: 9"})


def test_a_descriptor_of_ten_megabytes_is_refused_unread() -> None:
    with pytest.raises(KeepfleetError, match=f"over {MAX_BYTES} bytes") as caught:
        read_descriptor(b"[" * 10_000_000)
    assert caught.value.kind is ErrorKind.TOO_LARGE


@pytest.mark.parametrize("text", ["", "[]", "a", "codeletset_id: a\ncodelet_descriptor: []", "{}", "&a [*a]", "\0"])
def test_what_is_no_descriptor_is_refused(text: str) -> None:
    with pytest.raises(KeepfleetError):
        read_descriptor(text.encode())
