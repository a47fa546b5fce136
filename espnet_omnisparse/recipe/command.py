"""`omnisparse template`."""

import argparse
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, template)
    command.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE")


def template(args: argparse.Namespace) -> None:
    """Links ESPnet's recipe template into recipe folders, fetching it when needed."""
    from espnet_omnisparse.recipe import template

    template.require_versions()
    root = template.locate()
    print(f"ESPnet's recipe template: {root}")
    for folder in args.recipes:
        template.link(folder, root)
        print(f"Linked into: {folder}")
