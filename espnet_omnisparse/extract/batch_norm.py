"""Re-estimation of BatchNorm statistics: every subnet has its own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from espnet_omnisparse.errors import UserError


@torch.no_grad()
def reestimate(
    model: torch.nn.Module, run: Callable[[Any], Any], batches: Iterable[Any]
) -> int:
    """Replaces the model's BatchNorm statistics by those of some batches.

    The model is in eval, so nothing is augmented or dropped; only the BatchNorms are
    in train mode, with a cumulative average over the batches. Extracted subnets need
    it, because the supernet's statistics are the full net's (as in BigNAS and
    AlphaNet).

    Args:
        model: Changed in place, left in eval.
        run: Runs the model on one batch.
        batches: Training data without augmentation.

    Returns:
        How many batches were used.

    Raises:
        UserError: If there was none.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: every batch counts alike
        norm.train()
    count = 0
    for batch in batches:
        run(batch)
        count += 1
    if count == 0:
        raise UserError(
            "BatchNorm statistics cannot be re-estimated without audio: --calibration "
            "must be at least 1."
        )
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return count
