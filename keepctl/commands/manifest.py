"""`keepctl manifest …`: the file that describes a workload."""

from __future__ import annotations

import os

import click

from keepctl.commands.access import output_option
from keepctl.commands.shared import FILE, Commands
from keepctl.display import json_text
from keepctl.manifest.reading import read_job
from keepctl.manifest.schema import SCHEMA


@click.group("manifest", cls=Commands, short_help="Checks the files that describe workloads.")
def group() -> None:
    """Checks manifests, the YAML files that describe workloads; `keepctl run -f` runs one.

    \b
    keepctl manifest check workload.yaml
    """


@group.command("check")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@output_option
def check(files: tuple[str, ...], output: str) -> None:
    """Says everything that is wrong with manifests, each fault with its line and column; exits 1 for the first bad one.

    \b
    keepctl manifest check workload.yaml
    """
    jobs = [(file, read_job(file)) for file in files]
    if output == "json":
        listed = [{"file": os.path.abspath(file), "name": job.name, "limits": job.limits} for file, job in jobs]
        click.echo(json_text(listed))
    else:
        for file, _ in jobs:
            click.echo(f"{file}: all is well")


@group.command("schema")
def schema() -> None:
    """Prints the JSON Schema of a manifest, for editors and other tools.

    \b
    keepctl manifest schema > keepfleet.schema.json
    """
    click.echo(json_text(SCHEMA))
