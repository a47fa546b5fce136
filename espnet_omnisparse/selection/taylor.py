"""First-order Taylor importance: how much the loss feels a unit's gate.

Importance Estimation for Neural Network Pruning (Molchanov et al., CVPR 2019,
arXiv 1906.10771), with a gate of 1 on every unit. Step 1 trains the full net alone and
sums the importance; it has a step 2.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.mask import ranking
from espnet_omnisparse.core.processes import sum_over_processes
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.options import Number
from espnet_omnisparse.selection import Selection


class Taylor(Selection, name="taylor"):
    """Ranks units by the squared gradient of the loss by their gate.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one.
        momentum: Of the running mean of the importance.
    """

    def __init__(
        self,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        momentum: Annotated[
            Number, Field(ge=0, lt=1, description="of the importance's running mean")
        ] = 0.99,
    ):
        super().__init__(space, sizes)
        self.momentum = momentum
        self.register_buffer("importance", torch.zeros(len(space)))
        self._gates: torch.Tensor | None = None

    def full_gates(self, time: int, length: int) -> tuple[Gate, ...]:
        """Ones that take a gradient, and that no optimiser moves.

        Where gradients are accumulated, the last micro-batch's counts: what a resumed
        training knows of an update, too.
        """
        ones = torch.ones_like(self.importance)
        self._gates = ones.requires_grad_(torch.is_grad_enabled())
        return tuple(self._gates.unbind())

    def after_update(self, time: int, length: int) -> None:
        """Adds this update's importance, as shares: its scale changes with the loss."""
        # each process knows its own utterances' part of the gradient
        squared = sum_over_processes(self._gates.grad).square()
        share = squared / squared.sum().clamp(min=torch.finfo(squared.dtype).tiny)
        self.importance.lerp_(share, 1.0 - self.momentum)

    def mask_now(self, time: int, length: int) -> torch.Tensor:
        """The smallest size's mask, as of now."""
        return list(self.masks().values())[-1]

    def ranking(self) -> torch.Tensor:
        """By importance."""
        return ranking(self.importance)

    def scores_now(self) -> torch.Tensor:
        """The importances."""
        return self.importance
