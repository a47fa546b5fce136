"""`omnisparse search`."""

import argparse
import os
import shlex

from espnet_omnisparse.arguments import (
    Commands,
    add_checkpoint,
    add_command,
    add_exp,
    count,
)
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.names import CHECKPOINT


def add_commands(commands: Commands) -> None:
    """Registers the command."""
    command = add_command(commands, search)
    add_exp(command)
    command.add_argument(
        "--budgets",
        required=True,
        metavar='"70% 12M 8MB"',
        help="zeros, non-zero parameters, packed bytes; also 2GMAC, 40ms, params=15M",
    )
    command.add_argument(
        "--objective",
        choices=("loss", "wer"),
        default="wer",
        help="on the validation set (%(default)s)",
    )
    for name, default, text in (
        ("utterances", 200, "of the validation set"),
        ("population", 16, "subnets per budget and generation"),
        ("generations", 10, "after the first"),
        ("jobs", 1, "processes, each with a GPU of its own if there are any"),
        ("calibration", 64, "training utterances for BatchNorm's statistics"),
    ):
        command.add_argument(
            f"--{name}", type=count, default=default, help=f"{text} (%(default)s)"
        )
    command.add_argument(
        "--profile",
        type=int,
        choices=range(10),
        metavar="LEVELS",
        default=2,
        help="levels at which each weight is masked alone, to start from; 0: none "
        "(%(default)s)",
    )
    command.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    add_checkpoint(command, CHECKPOINT)


def search(args: argparse.Namespace) -> None:
    """Searches the sparsities that are best within budgets; goes on if interrupted."""
    from espnet_omnisparse.cost.budget import parse_budget
    from espnet_omnisparse.environment import require_folders
    from espnet_omnisparse.search import run as search_run
    from espnet_omnisparse.search.evolution import SearchOptions
    from espnet_omnisparse.train.journal import SUBNETS

    budgets = [parse_budget(one) for one in args.budgets.split()]
    if not budgets:
        raise UserError(
            '--budgets names none: give one or more, such as "70% 12M 8MB".'
        )
    # read here too where others do the work: a mistake is told once
    problem = search_run.read_problem(args.exp, args.checkpoint, budgets)
    if args.jobs > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return search_run.launch(args.jobs, args.argv)
    require_folders([args.exp / SUBNETS, args.exp / search_run.FOLDER])
    options = SearchOptions(args.population, args.generations, seed=args.seed)
    found = search_run.run_search(
        problem,
        options,
        args.objective,
        args.utterances,
        args.calibration,
        args.profile,
    )
    if found is not None:
        from espnet_omnisparse.search.report import write_found

        command = shlex.join(["omnisparse", *args.argv])
        print(write_found(problem, found, args.objective, command))
