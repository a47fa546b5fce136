"""LayerDrop: train with blocks left out at random, then keep every n-th block.

Reducing Transformer Depth on Demand with Structured Dropout (Fan et al., ICLR 2020,
arXiv 1909.11556). It has no step 1 and no step 2: the sizes are cut out of one net
that has never been trained at any of them.
"""

import random
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.options import Number
from espnet_omnisparse.selection.uniform import Uniform


class LayerDrop(Uniform, name="layerdrop"):
    """Leaves each block out of an update with the same rate.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one, cut out as uniform depth.
        rate: How often a block is left out.
    """

    joint = False

    def __init__(
        self,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        rate: Annotated[
            Number, Field(gt=0, lt=1, description="how often a block is left out")
        ] = 0.5,
    ):
        super().__init__(space, sizes)
        self.rate = rate

    def full_gates(self, time: int, length: int) -> tuple[Gate, ...]:
        """The blocks of this update: the same on every process."""
        generator = random.Random(time)
        gates = [
            None if generator.random() < self.rate else 1.0
            for _ in range(self.space.num_blocks)
        ]
        return tuple(gates[block] for block in self.space.blocks)
