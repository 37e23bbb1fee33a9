"""The configuration file: what it takes, and what it refuses, where."""

from __future__ import annotations

from pathlib import Path

import pytest

from keep_manager import __main__, config
from keep_manager.callers import CallerEntry, ConfiguredRole, GrantRoot, Quotas, quotas_for
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import owner_of
from keep_protocol.spec import Lease

REFUSED = {
    "port: nope": "f:1:7: port must be a whole number in 1 … 65535",
    "port: 0": "f:1:7: port must be",
    "port: 65536": "1 … 65535",
    "port: true": "f:1:7: port must be",
    "port: 3.5": "f:1:7: port must be",
    "port: 0x10": "f:1:7: port must be",
    "port: [1]": "f:1:7: port must be",
    "port: '1'": "f:1:7: port must be",
    "port:": "f:1:6: port must be",
    "port: 1\nport: 2": "f:2:1: duplicate key 'port'; the first is in line 1",
    "address: 127.0.0.1\nprot: 1": "f:2:1: unknown key 'prot'; there are address, port, ",
    "address: example.com": "f:1:10: address must be an IPv4 or IPv6 address",
    "address: 5": "f:1:10: address must be",
    "client_certificates: sometimes": "must be one of required, optional",
    "client_certificates: [required]": "must be one of required, optional",
    "pki: relative/path": "absolute",
    "keep_ports: {first: 10, last: 9}": "first, 10, lies above last, 9",
    "keep_ports: {frist: 10}": "f:1:14: unknown key 'keep_ports.frist'; there are first, last",
    "keep_ports: 7": "keep_ports must be a mapping",
    "- a": "f:1:1: the file must be a mapping",
    "5": "must be a mapping",
    "port: &x 1\nmax_keeps: *x": "anchors are not allowed",
    "port: *x": "aliases are not allowed",
    "port: &x [*x]": "anchors",
    "port: !!python/object/apply:os.system [id]": "tags are not allowed",
    "port: !foo 1": "tags are not allowed",
    "port: 1\nbad": "not YAML",
    "port: '": "not YAML",
    "? [a, b]\n: 1": "a key must be a word",
    "<<: {port: 5}": "unknown key '<<'",
    "\0": "control character",
    "a: 1\n---\nb: 2": "second document",
    "[" * 3000 + "]" * 3000: "nested more than 16 deep",
    "log_level: loud": "debug, info, warning, error",
    "lease: {idle_seconds: -1}": "lease.idle_seconds must be a whole number",
    "callers: {a: {grant_roots: [{path: rel}]}}": "f:1:36: callers.a.grant_roots[0].path must be the absolute path",
    "callers: {a: {grant_roots: [{writable: true}]}}": "f:1:29: callers.a.grant_roots[0] has no 'path'",
    "callers: {a: {grant_roots: [{path: /x, writable: 'true'}]}}": "writable must be true or false",
    "callers: {a: {grant_roots: {path: /x}}}": "f:1:28: callers.a.grant_roots must be a list",
    "callers: {a: {grants: []}}": "f:1:15: unknown key 'callers.a.grants'; there are role, grant_roots, ",
    "callers:\n  a:\n    ceilings: {memory: 1}": "f:3:15: callers.a.ceilings: invalid limits: unknown field 'memory'",
    "callers:\n  a:\n    ceilings: {tasks: 9999}": "field 'tasks' must be a whole number in 16 … 512",
    "callers: {'': {}}": "a certificate's name of 1 to 64 characters",
    "callers: {a: {}, a: {}}": "f:1:18: duplicate key 'a'",
    "callers: {a: {role: uploader}}": "role must be one of operator, user, viewer",
    "callers: {a: {quotas: {keeps: -1}}}": "callers.a.quotas.keeps must be a whole number",
    "retention_seconds: 0": "1 … 31536000",
    "max_creations_at_once: 65": "1 … 64",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_a_wrong_file_is_refused_with_the_place_and_the_reason(text: str) -> None:
    with pytest.raises(KeepfleetError) as caught:
        config.parse(text.encode(), "f")
    assert caught.value.kind is ErrorKind.CONFIGURATION
    assert REFUSED[text] in caught.value.message


def test_every_fault_is_in_one_report() -> None:
    with pytest.raises(KeepfleetError, match="f:1:7: port must be") as caught:
        config.parse(b"port: nope\nprot: 1\nkeep_ports: {first: 0}\n", "f")
    assert [line.split(": ")[0] for line in caught.value.evidence] == ["f:1:7", "f:2:1", "f:3:21"]


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(KeepfleetError, match="not UTF-8"):
        config.parse(b"\xff\xfe\xfa", "f")


def test_a_file_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(KeepfleetError, match="over 65536 bytes"):
        config.parse(b"#" * 70_000, "f")


@pytest.mark.parametrize("text", [b"", b"# nothing\n"])
def test_an_empty_file_gives_the_defaults(text: bytes) -> None:
    assert config.parse(text, "f") == config.Settings()


def test_every_key_is_taken() -> None:
    settings = config.parse(
        b"address: '::1'\nport: 4000\nclient_certificates: optional\npki: /etc/x/\ninstance: user\n"
        b"keep_ports: {first: 4001, last: 4100}\nstart_timeout_seconds: 3\nmax_keeps: 7\nmax_creations_at_once: 2\n"
        b"retention_seconds: 9\nlog_level: debug\nlease: {idle_seconds: 5}\n"
        b"callers: {alice: {role: viewer, grant_roots: [{path: /srv/a/, writable: true}], ceilings: {tasks: 20},\n"
        b"    quotas: {keeps: 3, addresses: [127.0.0.1]}}, '*': {}}\n",
        "f",
    )
    alice = CallerEntry(
        ConfiguredRole.VIEWER,
        (GrantRoot("/srv/a", True),),
        (("tasks", 20),),
        Quotas(keeps=3, addresses=("127.0.0.1",)),
    )
    assert settings == config.Settings(
        "::1",
        4000,
        config.ClientCertificates.OPTIONAL,
        "/etc/x",
        config.Instance.USER,
        config.PortRange(4001, 4100),
        3,
        7,
        2,
        9,
        Lease(5, 0),
        (("alice", alice), ("*", CallerEntry())),
        config.LogLevel.DEBUG,
    )
    assert quotas_for(settings.callers_by_name, "alice").keeps == 3
    assert quotas_for(settings.callers_by_name, "bob") == Quotas()


def test_an_entry_by_a_common_name_that_is_no_word_holds_for_its_owner_word() -> None:
    callers = config.parse(b"callers: {Build Server 1: {quotas: {keeps: 3}}, '*': {}}\n", "f").callers_by_name
    assert quotas_for(callers, owner_of("Build Server 1")).keeps == 3
    assert quotas_for(callers, "bob") == Quotas()


def test_what_is_printed_is_a_file_that_gives_the_same_settings() -> None:
    settings = config.parse(
        b"port: 4000\nkeep_ports: {first: 5000}\n"
        b"callers: {a: {ceilings: {tasks: 20}}, b: {grant_roots: [{path: /srv}]}, c: {grant_roots: []}}\n",
        "f",
    )
    assert config.parse(config.render(settings).encode(), "f") == settings


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("port: 4000\naddress: 127.0.0.2\n")
    settings = config.load(str(file), {"port": 5000})
    assert (settings.port, settings.address) == (5000, "127.0.0.2")


def test_a_flag_is_checked_like_a_key() -> None:
    with pytest.raises(KeepfleetError, match=r"--log-level|--port"):
        config.load(None, {"port": 99999})


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="no such file"):
        config.load(str(tmp_path / "none"), {})


def test_check_config_prints_what_is_in_force_and_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("port: 4000\n")
    assert __main__.main(["--config", str(file), "--log-level", "debug", "--check-config"]) == 0
    shown = capsys.readouterr().out
    assert "port: 4000" in shown
    assert "log_level: debug" in shown


def test_check_config_exits_2_with_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("prot: 4000\n")
    assert __main__.main(["--config", str(file), "--check-config"]) == 2
    assert f"{file}:1:1: unknown key 'prot'" in capsys.readouterr().err
