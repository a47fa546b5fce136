"""What a long recording costs that is encoded as a whole, and what to do instead."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from espnet_omnisparse.core.components import heads_of
from espnet_omnisparse.errors import UserError

if TYPE_CHECKING:
    from espnet_omnisparse.nn.encoder import PrunableEncoder

#: What an attention holds at its peak, in tensors `[heads, frames, frames]` (measured).
SCORES = 8
#: Above this many bytes a recording is called long.
LONG = 2e9
ADVICE = (
    "recognise it in segments of up to 30 s, or with a size that streams "
    "(docs/streaming.md, Long recordings)"
)


@contextmanager
def telling_if_long(encoder: "PrunableEncoder", frames: int) -> Iterator[None]:
    """Inside, a recording is encoded as a whole; of a long one the user is told.

    Nothing is refused that the memory suffices for. In training nothing is told: there
    the batch decides.

    Args:
        encoder: Whose blocks encode it.
        frames: Of the recording, after subsampling.

    Raises:
        UserError: If the memory does not suffice for a long recording.
    """
    heads = (heads_of(b.module("mhsa")) for b in encoder.layers if "mhsa" in b.kept)
    needed = 4 * SCORES * max(heads, default=0) * frames**2
    if encoder.training or needed < LONG:
        yield
        return
    cost = (
        f"{frames} encoder frames at once take about {needed / 1e9:.0f} GB in each "
        "attention, and four times as much where there are twice as many"
    )
    logging.warning("A long recording: %s; %s.", cost, ADVICE)
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise UserError(
            f"This recording is too long for the memory ({cost}): {ADVICE}."
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    # of a CPU it has no type of its own
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    return on_gpu or "can't allocate memory" in str(error)
