"""No selection: one net of one size, trained as ESPnet would train it."""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.selection import Selection


class NoSelection(Selection, name="none"):
    """Trains the full net alone: the baseline for every size.

    Args:
        space: The net's units.
        sizes: Must be empty.
    """

    learns = joint = False

    def __init__(self, space: SearchSpace, sizes: Mapping[str, Size]):
        if sizes:
            raise UserError(
                "supernet.method none trains one size only: remove sizes, or choose "
                "a selection method."
            )
        super().__init__(space, sizes)

    def ranking(self) -> torch.Tensor:
        """No size asks for it."""
        return torch.arange(len(self.space))
