"""Long recordings in windows that overlap, and the tokens of the windows as one text.

A window is recognised by itself. At its edges it lacks the speech around it, so the
first half of an overlap is taken from the window before, the second from the one after.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np

from espnet_omnisparse.runtime import Token

LENGTH = 30.0  # seconds of a window
OVERLAP = 6.0  # of them, that the next one has too
#: Between the two windows' nearest tokens and the place where they are joined: their
#: times for one token may differ by a frame or two.
_CLEAR = 0.1


def windows(
    blocks: Iterable[np.ndarray], length: int, step: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Divides a recording; what it holds at a time does not grow with its length.

    Args:
        blocks: Its samples `[n]`, one block after the other.
        length: Of a window, in samples; the last one may be shorter.
        step: From a window's beginning to the next one's.

    Yields:
        The number of a window's first sample, and its samples.

    >>> [(begin, len(part)) for begin, part in windows([np.zeros(11)], 5, 3)]
    [(0, 5), (3, 5), (6, 5)]
    """
    waiting, begin = np.empty(0, np.float32), 0
    for block in blocks:
        waiting = np.concatenate([waiting, np.asarray(block, np.float32)])
        while len(waiting) > length:
            yield begin, waiting[:length]
            waiting, begin = waiting[step:], begin + step
    if len(waiting):
        yield begin, waiting


def joined(
    blocks: Iterable[np.ndarray],
    rate: int,
    frame: int,
    tokens_of: Callable[[np.ndarray], Iterable[Token]],
) -> Iterator[Token]:
    """The tokens of a recording of any length.

    Args:
        blocks: Its samples `[n]`, one block after the other.
        rate: Samples per second.
        frame: Samples from a frame of the encoder to the next. Windows begin at frames,
            so that they hear the same ones.
        tokens_of: Recognises the samples of a window; times are from its beginning on.

    Yields:
        Tokens, with times from the recording's beginning on.
    """
    length = round(LENGTH * rate / frame) * frame
    overlap = round(OVERLAP * rate / frame)
    step = length - overlap * frame
    # no token is in the middle between two frames
    middle, reach = (overlap // 2 + 0.5) * frame / rate, OVERLAP / 4
    before: list[Token] = []
    for number, samples in windows(blocks, length, step):
        begin = number / rate
        after = [
            Token(one.text, one.id, begin + one.seconds) for one in tokens_of(samples)
        ]
        if number:
            times = (one.seconds for one in (*before, *after))
            meet = meeting(times, begin + middle, reach)
            yield from (one for one in before if one.seconds < meet)
            after = [one for one in after if one.seconds >= meet]
        before = after
    yield from before


def meeting(times: Iterable[float], middle: float, reach: float) -> float:
    """Where two windows are joined: as near to the middle as no token is.

    Args:
        times: Of the tokens of both, in seconds.
        middle: Of their overlap.
        reach: How far from it they may be joined.

    >>> meeting([1.0, 4.95, 5.5], 5.0, 1.0), meeting([1.0, 2.0], 5.0, 1.0)
    (5.05, 5.0)
    """
    first, last = middle - reach, middle + reach
    edges = [first, *sorted(time for time in times if first < time < last), last]
    clear = (
        min(max(middle, one + _CLEAR), other - _CLEAR)
        for one, other in pairwise(edges)
        if other - one > 2 * _CLEAR
    )
    return min(clear, key=lambda place: abs(place - middle), default=middle)
