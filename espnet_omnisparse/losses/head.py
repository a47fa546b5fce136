"""What a head makes of one subnet's encoder output."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class HeadLoss:
    """The loss of a subnet's output, and what else is known of it.

    Attributes:
        loss: Mean over utterances, a scalar.
        distillation: How far the output is from the teacher's, a scalar; `None`:
            there is no teacher.
        stats: Statistics for the log, by name.
    """

    loss: torch.Tensor
    distillation: torch.Tensor | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)

    def mixed(self, share: float) -> torch.Tensor:
        """The loss, of which a share is the teacher's.

        Args:
            share: Between 0 and 1; without a teacher it does not count.
        """
        if self.distillation is None:
            return self.loss
        return (1.0 - share) * self.loss + share * self.distillation
