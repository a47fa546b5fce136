"""`espnet2.bin.asr_train` with our task."""

from collections.abc import Sequence

from espnet_omnisparse.arguments import refuse_in_one_sentence
from espnet_omnisparse.errors import one_sentence
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
        task.main(args=parser.parse_args(cmd))


if __name__ == "__main__":
    main()
