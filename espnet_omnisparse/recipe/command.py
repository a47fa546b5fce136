"""`omnisparse recipe` and `omnisparse template`."""

import argparse
import re
from pathlib import Path

from espnet_omnisparse.arguments import Commands, add_command
from espnet_omnisparse.errors import UserError


def add_commands(commands: Commands) -> None:
    """Registers the commands."""
    command = add_command(commands, recipe)
    command.add_argument(
        "recipe",
        type=Path,
        metavar="PATH",
        help="its folder, such as egs2/x/asr1",
    )
    command.add_argument(
        "--config",
        type=Path,
        help="the recipe's configuration to derive the supernet's from (default: what "
        "run.sh names, conf/training.yaml under ESPnet3, or a Conformer with CTC)",
    )
    command.add_argument(
        "--axis",
        choices=("layer", "weight"),
        default="layer",
        help="whether sizes drop branches, or weights (%(default)s)",
    )
    command.add_argument(
        "--name", default="omnisparse", help="of what is written (%(default)s)"
    )
    command = add_command(commands, template)
    command.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE")


def recipe(args: argparse.Namespace) -> None:
    """Prepares any ASR recipe of ESPnet for a supernet, without changing its files."""
    from espnet_omnisparse.recipe import adopt, adoption, espnet3, template

    if not re.fullmatch(r"[\w-]+", args.name):
        raise UserError(
            f"--name {args.name}: use letters, digits, _ and -, as in run_NAME.sh."
        )
    template.require_versions()
    kind = espnet3 if espnet3.is_recipe(args.recipe) else adopt
    planned = kind.plan(args.recipe, args.config, args.axis, args.name)
    written = adoption.write(args.recipe, planned)
    for name in planned.files:
        note = "" if name in written else " (was there)"
        print(f"{args.recipe / name}{note}")
    print(f"Derived from: {planned.source}")
    print(f"Keys that differ: {', '.join(planned.changed)}")
    print(f"Sizes are decoded with: {planned.inference_config or 'what run.sh says'}")
    python, has_package = adopt.python_of(args.recipe)
    print(f"Python of its stages: {python or 'none'}")
    if not has_package:
        raise UserError(
            f"{python or 'The Python of its path.sh'} has no espnet-omnisparse: "
            "install it there, with that Python's pip."
        )
    print(f"Next: cd {args.recipe} && ./{planned.wrapper}")


def template(args: argparse.Namespace) -> None:
    """Links ESPnet's recipe template into recipe folders, fetching it when needed."""
    from espnet_omnisparse.recipe import template

    template.require_versions()
    root = template.locate()
    print(f"ESPnet's recipe template: {root}")
    for folder in args.recipes:
        template.link(folder, root)
        print(f"Linked into: {folder}")
