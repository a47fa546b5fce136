"""What a long command tells on stderr; stdout is for its results."""

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """Tells how far it is; stdout is for the folders written."""
    print(text, file=sys.stderr, flush=True)


def bar(name: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A progress bar; where stderr is a log file it is drawn twice a minute.

    Args:
        name: What stands before it.
        total: How many there are in all.
        unit: What is counted.
        done: How many are done already.
    """
    seconds = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        desc=name,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=unit == "B",
        mininterval=seconds,
        maxinterval=seconds,
    )
