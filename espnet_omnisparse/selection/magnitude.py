"""Magnitude pruning of whole units: what has small weights is dropped.

Learning both Weights and Connections for Efficient Neural Networks (Han et al., NIPS
2015), on structures instead of single weights. Step 1 trains the full net alone, then
the units are ranked once; it has a step 2.
"""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.mask import ranking
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.selection import Net, Selection


class Magnitude(Selection, name="magnitude"):
    """Ranks units by the root mean square of their weights.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one.
    """

    def __init__(self, space: SearchSpace, sizes: Mapping[str, Size]):
        super().__init__(space, sizes)
        self.register_buffer("importance", torch.zeros(len(space)))

    def settle(self, net: Net) -> None:
        """Looks at the weights once."""
        self.importance.copy_(net.magnitudes())

    def ranking(self) -> torch.Tensor:
        """By magnitude."""
        return ranking(self.importance)

    def scores_now(self) -> torch.Tensor:
        """The magnitudes; zeros before the end of step 1."""
        return self.importance
