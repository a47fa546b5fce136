"""The weights of an encoder as any subnet sees them: masked by their magnitude.

The masks follow the weights while these are trained, so that a weight that was masked
can come back. Only the order of the groups is kept, from which the mask of any sparsity
is one comparison; refreshing it costs a sort per weight that has changed.
"""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.mask import Pattern, group_ranks, weight_mask


class WeightMasks:
    """Masks of a set of weights.

    Args:
        pattern: In which groups weights are masked.
    """

    def __init__(self, pattern: Pattern):
        self._pattern = pattern
        self._ranks: dict[str, torch.Tensor] = {}
        self._made_from: dict[str, tuple[int, int, float]] = {}

    def refresh(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Orders the groups anew by the present weights; those unchanged stay."""
        if not weights:
            return
        # PyTorch counts the changes of a tensor, but not a fused optimiser's
        norms = [torch.linalg.vector_norm(w.detach()).float() for w in weights.values()]
        for (name, weight), norm in zip(
            weights.items(), torch.stack(norms).tolist(), strict=True
        ):
            state = (weight.data_ptr(), weight._version, norm)
            if self._made_from.get(name) != state:
                self._ranks[name] = group_ranks(weight, self._pattern)
                self._made_from[name] = state

    def masked(self, name: str, weight: torch.Tensor, sparsity: float) -> torch.Tensor:
        """The weight with zeros where a sparsity masks it; gradients reach the rest.

        Args:
            name: As in `refresh`, which must have seen it.
            weight: `[out, in]` or `[out, in, 1]`.
            sparsity: Share of its groups that is dropped.
        """
        if sparsity == 0.0:
            return weight
        mask = weight_mask(self._ranks[name], weight.shape, sparsity, self._pattern)
        return weight * mask
