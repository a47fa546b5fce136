"""Greedy removal: again and again, drop the unit whose loss hurts least.

The classic backward elimination. Step 1 trains the full net alone, then units are
removed one by one by the loss on validation utterances; it has a step 2. The only
method here that has to search: about half the square of the number of units in
evaluations. With BatchNorm these losses are uncalibrated.
"""

import logging
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from espnet_omnisparse.core.mask import ranking
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.options import Count
from espnet_omnisparse.selection import Net, Selection


class Greedy(Selection, name="greedy"):
    """Ranks units by when they are removed.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one; the search ends with the smallest.
        utterances: Validation utterances that a loss is taken over.
    """

    def __init__(
        self,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        utterances: Annotated[
            Count, Field(description="validation utterances that a loss is taken over")
        ] = 50,
    ):
        super().__init__(space, sizes)
        self.utterances = utterances
        self.register_buffer("importance", torch.zeros(len(space)))

    @torch.no_grad()
    def settle(self, net: Net) -> None:
        """Removes units until the smallest size is left."""
        total = len(self.space)
        self.importance.fill_(float(total))
        kept = torch.ones(total, dtype=torch.bool)
        for removed in range(total - 1):
            if all(size.table.of(kept) <= size.limit for size in self.sizes.values()):
                break
            losses = {}
            for unit in kept.nonzero().squeeze(1).tolist():
                without = kept.clone()
                without[unit] = False
                losses[unit] = net.dev_loss(without, self.utterances)
            least = min(losses, key=losses.get)
            kept[least] = False
            self.importance[least] = float(removed)
            logging.info(
                f"greedy: removed {self.space.units[least]}, dev loss "
                f"{losses[least]:.4f}, {int(kept.sum())} of {total} left"
            )

    def ranking(self) -> torch.Tensor:
        """By the turn of removal, last first."""
        return ranking(self.importance)

    def scores_now(self) -> torch.Tensor:
        """The turns of removal; zeros before the end of step 1."""
        return self.importance
