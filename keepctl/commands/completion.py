"""`keepctl completion SHELL`: what makes a shell complete keepctl's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Prints a shell's completion script.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Prints the script that makes SHELL complete keepctl's commands and options.

    \b
    bash: keepctl completion bash > ~/.local/share/bash-completion/completions/keepctl
    zsh:  keepctl completion zsh > "${fpath[1]}/_keepctl"
    fish: keepctl completion fish > ~/.config/fish/completions/keepctl.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  # click has these three
    root = ctx.find_root()
    click.echo(found(root.command, {}, "keepctl", "_KEEPCTL_COMPLETE").source())
