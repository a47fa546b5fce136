"""One line of progress for trainings that write ESPnet logs, until interrupted.

python3 -m espnet_omnisparse.recipe.progress exp/asr_a/train.log exp/asr_b/train.log
"""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_omnisparse.errors import one_sentence

_STARTED = re.compile(r"(\d+)/(\d+)epoch started")
_RESULTS = re.compile(r"\d+epoch results:.*?\[valid\].*?loss_full=([\d.e+-]+)")


def progress_of(log: Path) -> str:
    """Name, epoch and validation loss of one training, as far as its log tells.

    >>> progress_of(Path("exp/asr_a/train.log"))
    'asr_a: starting'
    """
    name = log.parent.name
    text = log.read_text(errors="replace") if log.exists() else ""
    started = _STARTED.findall(text)
    if not started:
        return f"{name}: starting"
    epoch, total = started[-1]
    losses = _RESULTS.findall(text)
    note = f", valid loss {float(losses[-1]):.2f}" if losses else ""
    return f"{name}: epoch {epoch}/{total}{note}"


def main(argv: Sequence[str] | None = None, every: float = 30.0) -> None:
    """Prints a line whenever something has changed.

    Args:
        argv: Log files; `None`: those of the command line.
        every: Seconds between two looks.
    """
    logs = [Path(one) for one in (sys.argv[1:] if argv is None else argv)]
    last = ""
    with one_sentence():
        while True:
            line = "   ".join(progress_of(log) for log in logs)
            if line != last:
                print(line, flush=True)
                last = line
            time.sleep(every)


if __name__ == "__main__":
    main()
