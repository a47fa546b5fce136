"""`omnisparse profile`, `report` and `compare`."""

import argparse
import json
import shlex
from pathlib import Path

from espnet_omnisparse.arguments import (
    Commands,
    add_checkpoint,
    add_command,
    add_exp,
    add_rounds,
    count,
    named_path,
)
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.names import CHECKPOINT


def add_commands(commands: Commands) -> None:
    """Registers the commands."""
    _add_profile(add_command(commands, profile))
    _add_report(add_command(commands, report))
    _add_compare(add_command(commands, compare))


def _add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", nargs="+", type=named_path, metavar="FOLDER")
    command.add_argument(
        "--spec", type=Path, help="cut this size out of FOLDER in memory"
    )
    add_checkpoint(command, CHECKPOINT)
    command.add_argument(
        "--random",
        action="store_true",
        help="freshly drawn weights: non-zero counts are not a trained net's",
    )
    command.add_argument("--json", action="store_true", help="print JSON, not a table")
    add_rounds(command)


def _add_report(command: argparse.ArgumentParser) -> None:
    add_exp(command)
    command.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="[SERIES, ]LABEL=FOLDER",
        help="a size to compare with; default: those in EXP/baselines.yaml",
    )
    add_rounds(command)


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help="conf/compare/*.yaml")
    command.add_argument(
        "--seeds", type=_seeds, default="1", metavar='"1 2"', help="(%(default)s)"
    )
    command.add_argument(
        "--only", default="", metavar='"A B"', help="variants to run (all)"
    )
    command.add_argument(
        "--jobs", type=count, default=1, help="trainings at a time (%(default)s)"
    )


def _seeds(text: str) -> list[int]:
    seeds = text.split()
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise argparse.ArgumentTypeError(f"must be numbers such as '1 2', not {text!r}")
    return [int(seed) for seed in seeds]


def profile(args: argparse.Namespace) -> None:
    """Prints the costs of sizes and of models, their times measured in turn."""
    from espnet_omnisparse.report.profile import costs_table, measured_costs

    costs = measured_costs(
        args.folders, args.spec, args.checkpoint, args.random, args.rounds
    )
    print(json.dumps(costs, indent=2) if args.json else costs_table(costs))


def report(args: argparse.Namespace) -> None:
    """Writes RESULTS.md and the plots of a supernet's scored sizes."""
    from espnet_omnisparse.report.family import write_family

    baselines = []
    for given in args.baseline:
        label, equals, folder = given.partition("=")
        if not (label and equals and folder):
            raise UserError(
                f"--baseline {given}: give it as LABEL=FOLDER or SERIES, LABEL=FOLDER."
            )
        baselines.append((label, Path(folder)))
    command = shlex.join(["omnisparse", *args.argv])
    print(write_family(args.exp, command, baselines, args.rounds).summary())


def compare(args: argparse.Namespace) -> None:
    """Runs the trainings of a comparison file and writes their table."""
    from espnet_omnisparse.report import compare

    compare.compare(args.file, args.seeds, args.jobs, args.only.split())
