"""OrthoSoftmax: one softmax row per rank, rows pushed apart, sizes set by cost.

Efficient Supernet Training with Orthogonal Softmax for Scalable ASR Model Compression
(ICASSP 2025, arXiv 2501.18895).
"""

import random
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.options import Number
from espnet_omnisparse.selection import Selection

TAU_MIN = 0.01
INITIAL_SPREAD = 0.01
_TINY = 1e-12  # keeps the gradient of a root finite at 0


class OrthoSoftmax(Selection, name="ortho_softmax"):
    """Row j of a softmax matrix chooses the j-th most important unit.

    The gates of a size are the sum of the first rows, as many as its cost affords.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one, of any kind of cost.
        tau: Temperature of the softmax at the beginning of step 1.
        tau_decay: Factor on it per update, as published; `None`: such that `tau_end`
            is reached at the end of step 1.
        tau_end: See `tau_decay`.
    """

    def __init__(
        self,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        tau: Annotated[
            Number,
            Field(gt=0, description="temperature at the beginning of step 1"),
        ] = 1.0,
        tau_decay: Annotated[
            Number | None,
            Field(
                gt=0,
                le=1,
                description="factor on it per update, published as 0.999992; without "
                "it, `tau_end` is reached at the end of step 1",
            ),
        ] = None,
        tau_end: Annotated[Number, Field(gt=0, description="see `tau_decay`")] = 0.2,
    ):
        super().__init__(space, sizes)
        if tau_decay is None and tau < tau_end:
            raise UserError(
                f"supernet.method_conf.tau must be at least tau_end, {tau_end}, not "
                f"{tau}."
            )
        self.tau, self.tau_decay, self.tau_end = tau, tau_decay, tau_end
        # equal rows would have equal gradients for ever
        rows = INITIAL_SPREAD * torch.randn(len(space), len(space))
        self.scores = torch.nn.Parameter(rows)

    def temperature(self, time: int, length: int) -> float:
        """Of the softmax at a time of step 1.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        if self.tau_decay is not None:
            return max(self.tau * self.tau_decay**time, TAU_MIN)
        return max(self.tau * (self.tau_end / self.tau) ** (time / length), TAU_MIN)

    def _size_at(self, time: int) -> Size:
        """The size whose subnet step 1 trains: the same on every process."""
        return random.Random(time).choice(list(self.sizes.values()))

    def rows(self, size: Size, time: int, length: int) -> torch.Tensor:
        """The softmax rows `[k, units]` whose cost is nearest to a size's.

        Args:
            size: The size.
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        table = size.table
        weights = torch.softmax(self.scores / self.temperature(time, length), dim=1)
        per_row = weights.detach().double() @ table.per_unit.double()
        cost = table.rest + per_row.cumsum(0)
        k = int((cost - size.limit).abs().argmin()) + 1
        return weights[:k]

    def gates(self, time: int, length: int) -> tuple[Gate, ...]:
        """Sum of the rows of a size drawn for this update; every unit is computed."""
        return tuple(self.rows(self._size_at(time), time, length).sum(0).unbind())

    def penalty(self, time: int, length: int) -> torch.Tensor:
        """How far the rows are from orthonormal; its weight rises from 0 to 1."""
        rows = self.rows(self._size_at(time), time, length)
        gram = rows @ rows.T
        apart = gram.triu(1).square().sum()
        sharp = (gram.diagonal() - 1.0).square().sum()
        return time / length * (apart + sharp + _TINY).sqrt()

    def mask_now(self, time: int, length: int) -> torch.Tensor:
        """The smallest size's mask."""
        return list(self.masks().values())[-1]

    def ranking(self) -> torch.Tensor:
        """Each row's largest entry, in the order of the rows.

        Where rows collide, the later one takes the largest that is left.
        """
        left = self.scores.detach().clone()
        order = torch.empty(len(self.space), dtype=torch.long, device=left.device)
        for number in range(len(self.space)):
            order[number] = left[number].argmax()
            left[:, order[number]] = -torch.inf
        return order

    def scores_now(self) -> torch.Tensor:
        """How early a unit is chosen: 1 for the first, towards 0 for the last."""
        order = self.ranking()
        total = len(self.space)
        places = torch.empty_like(order)
        places[order] = torch.arange(total, device=order.device)
        return 1.0 - places / total
