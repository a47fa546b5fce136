"""Long recordings in segments that are cut where it is quiet."""

from collections.abc import Iterable, Iterator

import numpy as np

LONGEST = 30.0  # seconds
SHORTEST = 20.0  # of a segment that is cut: the quietest place lies between the two
_QUIET = 0.1  # seconds over which loudness is measured


def segments(
    blocks: Iterable[np.ndarray], rate: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Divides a recording; what it holds at a time does not grow with its length.

    Args:
        blocks: Its samples `[n]`, one block after the other.
        rate: Samples per second.

    Yields:
        When a segment begins, in seconds, and its samples.
    """
    waiting, begin = np.empty(0, np.float32), 0
    for block in blocks:
        waiting = np.concatenate([waiting, np.asarray(block, np.float32)])
        while len(waiting) > LONGEST * rate:
            cut = quietest(waiting, int(SHORTEST * rate), int(LONGEST * rate), rate)
            yield begin / rate, waiting[:cut]
            waiting, begin = waiting[cut:], begin + cut
    if len(waiting):
        yield begin / rate, waiting


def quietest(samples: np.ndarray, first: int, last: int, rate: int) -> int:
    """The middle of the least loud tenth of a second between two places.

    Args:
        samples: `[n]`.
        first: From where on it is sought.
        last: Up to where.
        rate: Samples per second.

    >>> quietest(np.r_[np.ones(50), np.zeros(10), np.ones(40)], 20, 100, 100)
    55
    """
    step = max(int(_QUIET * rate), 1)
    count = (last - first) // step
    parts = samples[first : first + count * step].reshape(count, step)
    return first + int((parts**2).mean(1).argmin()) * step + step // 2
