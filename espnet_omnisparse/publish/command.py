"""`omnisparse publish`."""

import argparse

from espnet_omnisparse.arguments import (
    Commands,
    add_checkpoint,
    add_command,
    add_exp,
)
from espnet_omnisparse.extract.names import CHECKPOINT


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, publish)
    add_exp(command)
    command.add_argument(
        "--repo", required=True, metavar="USER/NAME", help="sizes are USER/NAME-SIZE"
    )
    command.add_argument(
        "--yes", action="store_true", help="upload; without it nothing is sent"
    )
    command.add_argument(
        "--private", action="store_true", help="make new repositories private"
    )
    command.add_argument("--licence", help="of the models, such as cc-by-4.0")
    command.add_argument("--language", help="of the speech, such as en")
    command.add_argument("--data", help="what the supernet was trained on, in words")
    add_checkpoint(command, CHECKPOINT)


def publish(args: argparse.Namespace) -> None:
    """Lists what would go to the Hugging Face Hub and, with --yes, uploads it."""
    import tempfile
    from pathlib import Path

    from espnet_omnisparse.publish.card import About, card
    from espnet_omnisparse.publish.hub import Hub, check_name
    from espnet_omnisparse.publish.plan import listing, members_of, staged

    check_name(args.repo)
    about = About(args.licence, args.language, args.data)
    members = members_of(args.exp, args.repo, args.checkpoint)
    hub = Hub(args.private) if args.yes else None
    for member in members:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            staged(member, folder, card(member, members, about))
            print(listing(member, folder), flush=True)
            if hub is not None:
                print(f"uploaded: {hub.upload(member.repo, folder)}", flush=True)
    if hub is None:
        print("Nothing was sent: give --yes to upload this.")
