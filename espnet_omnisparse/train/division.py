"""How the utterances of an update are divided among its subnets."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from espnet_omnisparse.supernet.sampling import SampledSubnet
from espnet_omnisparse.train.batch import Batch

Part = tuple[Batch, Sequence[SampledSubnet]]


class Division:
    """Which subnets see which utterances, in each of the four ways.

    `per_batch`: each sees all; `split_batch`: each sees a part of its own, so that an
    update costs about what one net costs; `per_accum`: with gradient accumulation, each
    micro-batch trains one of them; `in_turn`: each update does, which then costs what
    one net costs. All have the same expected gradient.

    Args:
        update: One of the four.
    """

    def __init__(self, update: str):
        self._update = update
        self.begin(1)

    def begin(self, micro_batches: int) -> None:
        """Says that an update has so many micro-batches, and that one begins."""
        self._micro_batches, self._done = micro_batches, 0

    def divide(
        self, batch: Batch, sampled: Sequence[SampledSubnet], update: int
    ) -> tuple[list[Part], float]:
        """The parts of a batch, each with the subnets that see it.

        Args:
            batch: The (micro-)batch.
            sampled: The subnets of the update.
            update: The update count.

        Returns:
            The parts, and how often their losses count, so that all subnets are heard
            as often as if each saw everything.
        """
        turns = [replace(one, times=1) for one in sampled for _ in range(one.times)]
        count = len(turns)
        if self._update == "in_turn":
            return [(batch, [turns[update % count]])], count
        if self._update == "per_accum":
            turn = self._done % self._micro_batches % count
            self._done += 1
            # fewer turns for some, where the subnets do not divide the micro-batches
            share = len(range(turn, self._micro_batches, count))
            return [(batch, [turns[turn]])], self._micro_batches / share
        if self._update == "per_batch" or len(batch) < count:
            return [(batch, sampled)], 1.0
        # a part for each time; they are of one size, or differ by an utterance, and
        # those of one net are seen together: the expected gradient stays what it was
        parts = iter(torch.randperm(len(batch)).tensor_split(count))
        seen = [torch.cat([next(parts) for _ in range(one.times)]) for one in sampled]
        batches = batch.split([part.sort().values for part in seen])
        divided = zip(batches, sampled, strict=True)
        return [(one, [subnet]) for one, subnet in divided], 1.0
