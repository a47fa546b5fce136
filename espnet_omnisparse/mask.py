"""Masks: which units of a supernet are kept, as boolean tensors."""

import torch


def ranking(scores: torch.Tensor) -> torch.Tensor:
    """Numbers of the units `[units]`, highest score first; a tie by lower number.

    >>> ranking(torch.tensor([0.1, 0.9, 0.5, 0.5])).tolist()
    [1, 2, 3, 0]
    """
    return torch.argsort(scores.detach(), descending=True, stable=True)


def top_k_mask(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Keeps the k units of highest score; a tie goes to the lower index.

    Masks of growing k from the same scores are nested: a smaller one is contained in
    every larger one.

    Args:
        scores: `[units]`.
        k: How many to keep, 0 to the number of units.

    Returns:
        Boolean tensor `[units]` with k ones.

    >>> top_k_mask(torch.tensor([0.1, 0.9, 0.5, 0.5]), 2).tolist()
    [False, True, True, False]
    """
    if not 0 <= k <= scores.numel():
        raise ValueError(f"k must be between 0 and {scores.numel()}, got {k}")
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[ranking(scores)[:k]] = True
    return mask
