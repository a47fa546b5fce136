"""Random branches: what a selection must be better than.

It has no step 1, and a step 2.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.selection import Selection


class RandomOrder(Selection, name="random"):
    """Keeps the first units of a random order.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one.
        seed: Of the order.
    """

    learns = False

    def __init__(
        self,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        seed: Annotated[int, Field(strict=True, description="of the order")] = 0,
    ):
        super().__init__(space, sizes)
        self.seed = seed

    def ranking(self) -> torch.Tensor:
        """The order that the seed gives."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.space), generator=generator)
