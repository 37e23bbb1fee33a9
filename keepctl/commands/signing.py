"""`keepctl store key …`, `sign`, `attach`, `check`: whose modules may start, and signing them. No manager is asked."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack

import click

from keep_protocol.store import InUse, KnownKey
from keepctl.commands.access import output_option
from keepctl.commands.shared import FILE, Commands
from keepctl.commands.storing import Modules, in_place_options, meant, store_options, who
from keepctl.describe import moment_text
from keepctl.display import echo, json_text, say, show_table
from keepctl.files import PUBLIC_FILE, explained, replace
from keepctl.modules import MAX_MODULE_BYTES, read_file
from module_store import signing, trust
from module_store.keys import Keys, check_key_name
from module_store.operations import Operations, contents_of
from module_store.signatures import MAX_KEY_BYTES, MAX_SIGNATURE_BYTES, Signed, parse_public_key
from module_store.store import Store

SUFFIX = ".minisig"
PASSWORD_VARIABLE = "KEEPFLEET_SIGNING_PASSWORD"  # noqa: S105  # a variable's name


@click.group("key", cls=Commands, short_help="Whose signatures count.")
def key() -> None:
    """Looks after the keys of a store: a module starts only when those that are required have signed it.

    \b
    minisign -G -p release.pub -s release.key
    keepctl store key add release release.pub
    keepctl store key require release
    """


@key.command("add")
@click.argument("name")
@click.argument("public", metavar="FILE|KEY")
@in_place_options
@output_option
def add(name: str, public: str, directory: str | None, output: str) -> None:
    """Keeps a public key of minisign's, from its FILE or as its one line of text, under NAME.

    \b
    keepctl store key add release release.pub
    """
    data = read_file(public, MAX_KEY_BYTES) if os.path.exists(public) else os.fsencode(public)
    public_key = parse_public_key(data)
    with Store.create(directory) as store:
        added = Keys(store.place.path).add(name, public_key)
    echo(json_text(added.to_wire()) if output == "json" else f"{added.name}  {added.id}")


@key.command("ls")
@store_options
@output_option
def list_keys(modules: Modules, output: str) -> None:
    """Lists the keys, and says what is required, and what runs that could not start any more.

    \b
    keepctl store key ls
    """
    found = modules.requirements()
    required = trust.Trust(found.require, found.any_of)
    if output == "json":
        wire = found.to_wire()
        keys, affected = wire["keys"], wire["affected"]
        echo(json_text({"keys": keys, "trust": required.to_wire(), "affected": affected}))
        return
    names = (*required.require, *required.any_of)
    rows = [(each.name, each.id, "yes" if each.name in names else "", _revoked(each)) for each in found.keys]
    show_table(("NAME", "KEY", "REQUIRED", "REVOKED"), rows)
    say(required.text())
    _show_affected(found.affected)


def _revoked(each: KnownKey) -> str:
    return "" if each.revoked is None else f"{moment_text(each.revoked)} {each.reason}".rstrip()


@key.command("revoke")
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who are refused because of it.")
@store_options
@output_option
def revoke(name: str, reason: str, modules: Modules, output: str) -> None:
    """Has a key count no more, permanently: what only it has signed does not start from now on. Lists what runs that
    could not start any more: it runs on until you stop it. In place that is what the store's users have declared; a
    manager names its keeps.

    \b
    keepctl store key revoke release --reason "the laptop was stolen"
    """
    revoked = modules.revoke(check_key_name(name), reason)
    if output == "json":
        echo(json_text(revoked.to_wire()))
        return
    echo(f"{revoked.key.name} is revoked")
    _show_affected(revoked.affected)


def _show_affected(affected: tuple[InUse, ...]) -> None:
    for use in affected:
        by = f"signed by {', '.join(use.keys)}" if use.keys else "without a signature that counts"
        say(f"running, and could not start any more: {use.user}: {use.digest}, {by}")


@key.command("require")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("--any", "any_of", is_flag=True, help="One of them is enough.")
@click.option("--none", "nothing", is_flag=True, help="No signature is required any more.")
@in_place_options
@output_option
def require(names: tuple[str, ...], any_of: bool, nothing: bool, directory: str | None, output: str) -> None:
    """Requires that a module is signed by all of these keys to start; with --any by one of them.

    \b
    keepctl store key require release
    keepctl store key require alice bob --any
    """
    if nothing == bool(names) or (any_of and nothing):
        raise click.UsageError("name keys, perhaps with --any, or give --none")
    required = trust.Trust(any_of=names) if any_of else trust.Trust(require=names)
    with Store.create(directory) as store:
        Keys(store.place.path).require(required)
    echo(json_text(required.to_wire()) if output == "json" else required.text())


@click.command("sign")
@click.argument("file", type=FILE)
@click.option("--key", "secret", type=FILE, metavar="FILE", required=True, help="minisign's secret key.")
@click.option("--name", required=True, help="Which module it is.")
@click.option("--version", required=True, help="In which version: 1.2.0.")
@click.option("--legacy", is_flag=True, help="Sign the file itself and not its BLAKE2b, for older programs.")
@output_option
def sign(file: str, secret: str, name: str, version: str, legacy: bool, output: str) -> None:
    """Signs FILE, into FILE.minisig, as minisign does, and as it verifies.

    A password is asked for, or taken from $KEEPFLEET_SIGNING_PASSWORD.

    \b
    keepctl store sign web.wasm --key release.key --name web --version 1.2.0
    minisign -V -p release.pub -m web.wasm
    """
    sealed = signing.parse_secret_key(read_file(secret, signing.MAX_FILE_BYTES))
    contents = read_file(file, MAX_MODULE_BYTES)
    opened = signing.open_secret_key(sealed, _password(secret) if sealed.salt else "")
    text = signing.sign(opened, contents, Signed(name, version), legacy=legacy)
    with explained("write the signature"):
        replace(file + SUFFIX, text.encode(), PUBLIC_FILE)
    if output == "json":
        echo(json_text({"file": os.path.abspath(file + SUFFIX), "key": opened.id, "name": name, "version": version}))
    else:
        echo(f"{file}{SUFFIX} by {opened.id}")


def _password(secret: str) -> str:
    given = os.environ.get(PASSWORD_VARIABLE)
    return given if given is not None else str(click.prompt(f"Password of {secret}", hide_input=True, err=True))


@click.command("attach")
@click.argument("what", metavar="WHAT")
@click.argument("signatures", metavar="SIGNATURE...", nargs=-1, required=True, type=FILE)
@store_options
@output_option
def attach(what: str, signatures: tuple[str, ...], modules: Modules, output: str) -> None:
    """Keeps signatures with an object of the store, each checked first with the key it is by.

    \b
    keepctl store attach web:1.2 web.wasm.minisig
    """
    given = [read_file(each, MAX_SIGNATURE_BYTES) for each in signatures]
    attached = modules.attach(meant(modules, what), given)
    echo(json_text(attached.to_wire()) if output == "json" else f"signed by {', '.join(attached.keys)}")


@click.command("check")
@click.argument("what", metavar="WHAT|FILE")
@click.argument("signatures", metavar="[SIGNATURE...]", nargs=-1, type=FILE)
@click.option("--force", is_flag=True, help="Although a newer version was seen.")
@in_place_options
@output_option
def check(what: str, signatures: tuple[str, ...], force: bool, directory: str | None, output: str) -> None:
    """Says whether an object of the store, or FILE, may start by its signatures: those that are attached to it, or lie
    next to it as FILE.minisig, and those that are given. Nothing is changed by it.

    \b
    keepctl store check web:1.2
    keepctl store check web.wasm
    """
    given = [read_file(each, MAX_SIGNATURE_BYTES) for each in signatures]
    with Store.open(directory) as store, ExitStack() as held:
        keys = Keys(store.place.path)
        required, contents = keys.trust(), memoryview(b"")
        if os.path.isfile(what):
            contents = memoryview(read_file(what, MAX_MODULE_BYTES))
            digest = f"sha256:{hashlib.sha256(contents).hexdigest()}"
            given += [read_file(what + SUFFIX, MAX_SIGNATURE_BYTES)] if os.path.exists(what + SUFFIX) else []
        else:
            digest = meant(Operations(directory, who()), what)
            contents = held.enter_context(contents_of(store, digest))
            given += trust.attached_signatures(store, digest)
        accepted = trust.decide(required, keys.keys(), given, contents, digest, keys.newest(), force=force)
    _show(accepted, digest, required, output)


def _show(accepted: trust.Accepted, digest: str, required: trust.Trust, output: str) -> None:
    signed = accepted.signed
    if output == "json":
        said = {"name": signed.name, "version": signed.version} if signed else None
        echo(json_text({"digest": digest, "keys": accepted.keys, "signed": said, "notes": accepted.notes}))
        return
    named = f"{signed.name} {signed.version}" if signed else "a module without a signature"
    echo(f"it may start: {named}, signed by {', '.join(accepted.keys) or 'no one'}; {required.text()}")
    for note in accepted.notes:
        say(note)
