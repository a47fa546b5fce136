"""How the utterances of an update are divided among its subnets."""

from collections.abc import Sequence

import torch

from espnet_omnisparse.supernet.sampling import SampledSubnet
from espnet_omnisparse.train.batch import Batch

Part = tuple[Batch, Sequence[SampledSubnet]]


class Division:
    """Which subnets see which utterances, in each of the three ways.

    `per_batch`: each sees all; `split_batch`: each sees a part of its own, so that an
    update costs what one net costs; `per_accum`: with gradient accumulation, each
    micro-batch trains one of them. All have the same expected gradient.

    Args:
        update: One of the three.
    """

    def __init__(self, update: str):
        self._update = update
        self.begin(1)

    def begin(self, micro_batches: int) -> None:
        """Says that an update has so many micro-batches, and that one begins."""
        self._micro_batches, self._done = micro_batches, 0

    def divide(self, batch: Batch, sampled: Sequence[SampledSubnet]) -> list[Part]:
        """The parts of a batch, each with the subnets that see it.

        Args:
            batch: The (micro-)batch.
            sampled: The subnets of the update.
        """
        if self._update == "per_accum":
            turn = self._done % self._micro_batches
            self._done += 1
            return [(batch, [sampled[turn % len(sampled)]])]
        if self._update == "per_batch" or len(batch) < len(sampled):
            return [(batch, sampled)]
        parts = torch.randperm(len(batch)).tensor_split(len(sampled))
        batches = batch.split([part.sort().values for part in parts])
        return [(one, [subnet]) for one, subnet in zip(batches, sampled, strict=True)]

    def stands_for(self, sampled: Sequence[SampledSubnet]) -> float:
        """For how many micro-batches the last one stands, of those of an update."""
        if self._update != "per_accum":
            return 1.0
        turn = (self._done - 1) % self._micro_batches % len(sampled)
        # fewer turns for some, where the subnets do not divide the micro-batches
        turns = len(range(turn, self._micro_batches, len(sampled)))
        return self._micro_batches / turns
