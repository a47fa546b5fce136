"""How the utterances of an update are divided among its subnets."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from espnet_omnisparse.supernet.sampling import AdaptiveWeight, SampledSubnet
from espnet_omnisparse.supernet.sparsity import SUBNETS
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
        count = len(sampled)
        if self._update == "in_turn":
            subnet = sampled[update % count]
            return [(batch, [replace(subnet, size=_kind(subnet))])], count
        if self._update == "per_accum":
            turn = self._done % self._micro_batches % count
            self._done += 1
            # fewer turns for some, where the subnets do not divide the micro-batches
            turns = len(range(turn, self._micro_batches, count))
            return [(batch, [sampled[turn]])], self._micro_batches / turns
        if self._update == "per_batch" or len(batch) < count:
            return [(batch, sampled)], 1.0
        parts = torch.randperm(len(batch)).tensor_split(count)
        subnets, parts = _joined(sampled, parts)
        batches = batch.split([part.sort().values for part in parts])
        divided = zip(batches, subnets, strict=True)
        return [(one, [subnet]) for one, subnet in divided], 1.0


def _joined(
    sampled: Sequence[SampledSubnet], parts: Sequence[torch.Tensor]
) -> tuple[list[SampledSubnet], list[torch.Tensor]]:
    """One pass for the parts of a net that an update has several times.

    It has the weight of all of them together, which leaves the expected gradient what
    it was; parts are of one size, or differ by an utterance.
    """
    subnets: list[SampledSubnet] = []
    joined: list[torch.Tensor] = []
    for subnet, part in zip(sampled, parts, strict=True):
        same = [n for n, one in enumerate(subnets) if _is_same(one, subnet)]
        if same:
            (at,) = same
            weight, name = subnets[at].weight + subnet.weight, _kind(subnet)
            subnets[at] = replace(subnets[at], size=name, weight=weight)
            joined[at] = torch.cat([joined[at], part])
        else:
            subnets.append(subnet)
            joined.append(part)
    return subnets, joined


def _is_same(one: SampledSubnet, other: SampledSubnet) -> bool:
    if _kind(one) != _kind(other) or one.is_largest or other.is_largest:
        return False
    if isinstance(one.weight, AdaptiveWeight):  # of the loss of each on its own
        return False
    net = (one.gates, one.sparsity, one.chunk)
    return net == (other.gates, other.sparsity, other.chunk)


def _kind(subnet: SampledSubnet) -> str:
    """Its name in the sandwich: no size has a number behind such a name."""
    kind = subnet.size.rstrip("0123456789")
    return kind if kind in SUBNETS else subnet.size
