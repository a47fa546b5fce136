"""Early exits: a size is the full net's first blocks, trained by intermediate CTC.

Intermediate Loss Regularization for CTC-based Speech Recognition (Lee and Watanabe,
ICASSP 2021, arXiv 2102.03216). One pass trains all sizes, without a step 1 or 2.
"""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.selection import Selection


class EarlyExits(Selection, name="early_exits"):
    """Ends after as many blocks as a size has.

    Args:
        space: The supernet's units, which must be blocks: an exit has no trace of
            later ones.
        sizes: Wanted sizes below the full one.
    """

    learns = joint = False

    def __init__(self, space: SearchSpace, sizes: Mapping[str, Size]):
        super().__init__(space, sizes)
        if space.granularity != "block":
            raise UserError(
                "supernet.method early_exits needs encoder_conf.granularity: block, "
                "and sizes in blocks."
            )

    def exits(self) -> Mapping[str, int]:
        """The number of blocks of each size."""
        return {name: int(mask.sum()) for name, mask in self.masks().items()}

    def ranking(self) -> torch.Tensor:
        """From the bottom."""
        return torch.arange(len(self.space))
