"""Simple-Top-k: scores per unit, a relaxed top-k, and a k that shrinks.

Dynamic Encoder Size Based on Data-Driven Layer-wise Pruning for Speech Recognition
(Interspeech 2024, arXiv 2407.18930).
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from espnet_omnisparse.core.gate import Gate, relaxed_top_k, straight_through
from espnet_omnisparse.core.mask import ranking, top_k_mask
from espnet_omnisparse.core.schedule import shrinking_k
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.options import Count, Number
from espnet_omnisparse.selection import Selection


class SimpleTopK(Selection, name="simple_topk"):
    """Learns one score per unit through relaxed top-k gates.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one. k shrinks to the number of units that
            the smallest of them holds, on average where it is given by a budget.
        shrink: r, how many units k loses at a time.
        straight_through: Hard gates in the forward pass, with the relaxed gates'
            gradient (the authors' LibriSpeech runs); else soft gates (TED-LIUM 2).
        temperature: Of the relaxed top-k.
    """

    def __init__(
        self,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        shrink: Annotated[
            Count,
            Field(
                description="r: how many units k loses at a time; every "
                "`step1 * r / (units - smallest)` updates"
            ),
        ] = 1,
        straight_through: Annotated[
            bool,
            Field(
                strict=True,
                description="hard gates forward, relaxed gates backward; false: soft "
                "gates",
            ),
        ] = True,
        temperature: Annotated[
            Number, Field(gt=0, description="of the relaxed top-k")
        ] = 1.0,
    ):
        super().__init__(space, sizes)
        self.shrink = shrink
        self.straight_through = straight_through
        self.temperature = temperature
        self.scores = torch.nn.Parameter(torch.full((len(space),), 0.5))

    def k(self, time: int, length: int) -> int:
        """Units kept at this time of step 1.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        smallest = min(size.units for size in self.sizes.values())
        return shrinking_k(time, len(self.space), smallest, self.shrink, length)

    def gates(self, time: int, length: int) -> tuple[Gate, ...]:
        """Relaxed or straight-through top-k gates; every unit is computed."""
        k = self.k(time, length)
        gates = relaxed_top_k(self.scores, k, self.temperature)
        if self.straight_through:
            gates = straight_through(gates, top_k_mask(self.scores, k))
        return tuple(gates.unbind())

    def mask_now(self, time: int, length: int) -> torch.Tensor:
        """Hard top-k of the present scores."""
        return top_k_mask(self.scores, self.k(time, length))

    def ranking(self) -> torch.Tensor:
        """By score."""
        return ranking(self.scores)

    def scores_now(self) -> torch.Tensor:
        """The scores themselves."""
        return self.scores.detach()
