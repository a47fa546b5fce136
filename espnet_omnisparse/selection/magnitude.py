"""Magnitude pruning of whole units: what has small weights is dropped.

Learning both Weights and Connections for Efficient Neural Networks (Han et al., NIPS
2015), on structures instead of single weights. Step 1 trains the full net alone, then
the units are ranked once; it has a step 2.
"""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.components import select
from espnet_omnisparse.core.layout import layout_in, locate
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


def unit_magnitudes(
    state: Mapping[str, torch.Tensor], space: SearchSpace
) -> torch.Tensor:
    """Root mean square of the weight matrices of each unit `[units]`.

    Args:
        state: State dict of the full net's encoder.
        space: Its units.
    """
    state = {f"encoder.{name}": tensor for name, tensor in state.items()}
    layout = layout_in(state)
    squares = dict.fromkeys(space.units, 0.0)
    counts = dict.fromkeys(space.units, 0)
    for name, tensor in state.items():
        # an attention's positional biases are matrices as well, but no weights
        if tensor.dim() < 2 or not name.startswith(layout.prefix):
            continue
        if not name.endswith(".weight"):
            continue
        number, branch, rest = locate(name, layout)
        if branch not in space.branches:  # of no unit alone
            continue
        for part in range(space.parts[branch]):
            inner = layout.inside(branch, rest)
            mine = select(branch, inner, tensor, [part], space.parts[branch])
            unit = space.unit(number, branch, part)
            squares[unit] += float(mine.square().sum())
            counts[unit] += mine.numel()
    return torch.tensor([(squares[u] / counts[u]) ** 0.5 for u in space.units])
