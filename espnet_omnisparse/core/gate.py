"""Gates: what a residual unit's output is multiplied with.

A gate is `None` (the unit is dropped and not computed), the float 1.0 (kept), or a
tensor (a soft or straight-through gate, or one value per sequence). A subnet is run
by handing the encoder one gate per unit.
"""

from collections.abc import Sequence

import torch

Gate = float | torch.Tensor | None


def mask_gates(mask: Sequence[bool] | torch.Tensor) -> tuple[Gate, ...]:
    """Gates of a hard subnet: 1.0 where kept, `None` where dropped."""
    if isinstance(mask, torch.Tensor):
        mask = mask.tolist()  # one transfer from a GPU, not one per unit
    return tuple(1.0 if keep else None for keep in mask)


def same_gate(gates: Sequence[Gate]) -> bool:
    """Whether all are one gate: all dropped, all kept, or the very same tensor.

    >>> same_gate((None, None)), same_gate((1.0, None))
    (True, False)
    """
    first = gates[0]
    if isinstance(first, float):
        return all(isinstance(gate, float) and gate == first for gate in gates)
    return all(gate is first for gate in gates)


def stack_gates(gates: Sequence[Gate]) -> torch.Tensor:
    """Scalar gates, at least one a tensor, as one tensor; `None` becomes 0."""
    example = next(gate for gate in gates if isinstance(gate, torch.Tensor))
    zero = example.new_zeros(())
    return torch.stack([zero if g is None else zero + g for g in gates])


def relaxed_top_k(scores: torch.Tensor, k: int, temperature: float = 1.0):
    """Differentiable top-k by iterated softmax; the gates sum to k.

    Each of the k rounds draws one unit softly and lowers its score by the log of what
    is left of it (Xie and Ermon, arXiv 1901.10517; used for layers in arXiv
    2407.18930).

    Args:
        scores: `[units]`.
        k: How many units to keep.
        temperature: Of the softmax.

    Returns:
        Gates `[units]`, differentiable in the scores.

    >>> relaxed_top_k(torch.zeros(4), 2).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    tiny = torch.finfo(scores.dtype).tiny
    remaining = scores
    drawn = torch.zeros_like(scores)
    gates = torch.zeros_like(scores)
    for _ in range(k):
        remaining = remaining + torch.log((1.0 - drawn).clamp(min=tiny))
        drawn = torch.softmax(remaining / temperature, dim=0)
        gates = gates + drawn
    return gates


def straight_through(soft: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    """The value of `hard` with the gradient of `soft`.

    Args:
        soft: Whose gradient is taken, any shape.
        hard: Whose value is taken, of the same shape.
    """
    return hard.to(soft.dtype) + (soft - soft.detach())


def layer_dropout_gates(
    rates: torch.Tensor,
    batch: int,
    groups: Sequence[int],
    device: torch.device | None = None,
) -> tuple[Gate, ...]:
    """Stochastic depth per sequence: a unit is dropped with its rate, else scaled up.

    Args:
        rates: `[units]`, the probability of dropping each unit; 0 leaves it alone.
        batch: Number of sequences.
        groups: Per unit, the branch it is a part of, ascending: the parts of a branch,
            whose rates are equal, are dropped together.
        device: Of the gates; `None`: that of the rates.

    Returns:
        A gate per unit: 1.0 where the rate is 0, else `[batch, 1, 1]` with entries
        0 or `1 / (1 - rate)`.
    """
    drawn: dict[int, Gate] = {}
    for rate, group in zip(rates.tolist(), groups, strict=True):
        if group in drawn:
            continue
        if rate == 0.0:
            drawn[group] = 1.0
            continue
        kept = torch.rand(batch, 1, 1, device=device or rates.device) >= rate
        drawn[group] = kept / (1.0 - rate)
    return tuple(drawn[group] for group in groups)
