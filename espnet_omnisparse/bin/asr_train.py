"""`espnet2.bin.asr_train` with our task."""

import argparse
import copy
from collections.abc import Sequence

from espnet_omnisparse.arguments import refuse_in_one_sentence
from espnet_omnisparse.cost.budget import parse_budget
from espnet_omnisparse.errors import one_sentence
from espnet_omnisparse.search.feasible import check_untrained
from espnet_omnisparse.tasks import OmniASRTask, SupernetTask


def main(cmd: Sequence[str] | None = None) -> None:
    """Trains, collects statistics or prints the configuration, as ESPnet does."""
    train(OmniASRTask, cmd)


def train(task: type[SupernetTask], cmd: Sequence[str] | None = None) -> None:
    """The same of any task.

    Args:
        task: The task's class.
        cmd: The command line; `None`: the process' own.
    """
    with one_sentence():
        parser = task.get_parser()
        # argparse would print pages of usage above the sentence that matters
        refuse_in_one_sentence(parser)
        parser.add_argument(
            "--budgets", default="", help="of a search after the training: 70%%,8MB"
        )
        args = parser.parse_args(cmd)
        _check_budgets(task, args)
        task.main(args=args)


def _check_budgets(task: type[SupernetTask], args: argparse.Namespace) -> None:
    """Takes the budgets, which are no option of the training, and looks at them."""
    budgets = [parse_budget(one) for one in args.budgets.split(",") if one]
    del args.budgets
    if budgets and not (args.collect_stats or args.print_config):
        model = task.build_model(copy.deepcopy(args))
        check_untrained(model, args.output_dir, budgets)


if __name__ == "__main__":
    main()
