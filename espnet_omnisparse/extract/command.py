"""`omnisparse extract`."""

import argparse
from pathlib import Path

from espnet_omnisparse.arguments import (
    Commands,
    add_checkpoint,
    add_command,
    add_exp,
    count,
)
from espnet_omnisparse.extract.names import (
    CALIBRATION,
    CHECKPOINT,
    size_folder,
)


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, extract)
    add_exp(command)
    add_checkpoint(command, CHECKPOINT)
    command.add_argument("--subnets", type=Path, help="folder of specs (EXP/subnets)")
    command.add_argument("--sizes", nargs="+", metavar="SIZE", help="default: all")
    command.add_argument("--out", metavar="PREFIX", help="of the folders written (EXP)")
    command.add_argument(
        "--stock", action="store_true", help="write the form that ESPnet alone loads"
    )
    command.add_argument(
        "--calibration",
        type=count,
        default=CALIBRATION,
        help="training utterances for BatchNorm's statistics (%(default)s)",
    )


def extract(args: argparse.Namespace) -> None:
    """Writes sizes of a supernet as experiment folders of their own."""
    from espnet_omnisparse.environment import require_writable
    from espnet_omnisparse.extract.experiment import (
        checkpoint_of,
        extract_size,
        wanted_specs,
    )

    specs = wanted_specs(args.exp, args.subnets, args.sizes or ())
    prefix = args.out or str(args.exp)
    for size, spec in specs.items():
        out = Path(size_folder(prefix, size, args.stock))
        require_writable(out / "model.pth")  # before minutes of calibration
        written = extract_size(
            args.exp,
            checkpoint_of(args.exp, size, args.checkpoint),
            spec,
            out,
            args.stock,
            args.calibration,
        )
        print(f"{out}: {'extracted' if written else 'already extracted'}")
