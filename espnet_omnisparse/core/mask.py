"""Masks: which units of a supernet are kept, and which weights of a matrix.

Both kinds are made from a ranking, most important first, by keeping a beginning of it:
so a smaller mask is contained in every larger one of the same ranking.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from espnet_omnisparse.errors import UserError

UNSTRUCTURED = "unstructured"
DEFAULT_PATTERN = "8x1"  # of encoder: omni_sparse_conformer
NORMS = ("l1", "l2")


def ranking(scores: torch.Tensor) -> torch.Tensor:
    """Numbers of the units `[..., units]`, highest score first; a tie by lower number.

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


@dataclass(frozen=True)
class Pattern:
    """In which groups the weights of a matrix `[out, in]` are pruned.

    Attributes:
        rows: Consecutive outputs of a group.
        cols: Consecutive inputs of a group.
        of: M of the pattern N:M, where of each M consecutive inputs of an output as
            many are kept as the sparsity says; 0: groups compete in the whole matrix.
        norm: By which groups are compared: `l1` or `l2`.
    """

    rows: int = 1
    cols: int = 1
    of: int = 0
    norm: str = "l1"

    @classmethod
    def parse(cls, text: str, norm: str = "l1") -> "Pattern":
        """Reads `unstructured`, a block such as `8x1`, or `N:M`, such as `n:4`.

        Args:
            text: The pattern as options write it.
            norm: By which groups are compared: `l1` or `l2`.

        Raises:
            UserError: If it is none of these, or the norm is unknown.

        >>> Pattern.parse("8x1")
        Pattern(rows=8, cols=1, of=0, norm='l1')
        >>> str(Pattern.parse("n:4"))
        'n:4'
        """
        if norm not in NORMS:
            raise UserError(
                f"encoder_conf.pattern_norm must be one of {', '.join(NORMS)}, not "
                f"{norm!r}."
            )
        if text == UNSTRUCTURED:
            return cls(norm=norm)
        if block := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(text)):
            return cls(int(block[1]), int(block[2]), norm=norm)
        if groups := re.fullmatch(r"n:([1-9]\d*)", str(text)):
            return cls(of=int(groups[1]), norm=norm)
        raise UserError(
            f"encoder_conf.pattern must be {UNSTRUCTURED}, a block of outputs by "
            "inputs such as 8x1, or n:M, such as n:4 (of each 4 inputs the sparsity "
            f"says how many are kept), not {text!r}."
        )

    def __str__(self) -> str:
        if self.of:
            return f"n:{self.of}"
        single = self.rows == self.cols == 1
        return UNSTRUCTURED if single else f"{self.rows}x{self.cols}"


@torch.no_grad()
def group_ranks(
    weight: torch.Tensor, pattern: Pattern, fixed: torch.Tensor | None = None
) -> torch.Tensor:
    """The place of each group in the order of magnitude, 0 the largest.

    Args:
        weight: A matrix; see `matrix_shape`. Groups that stick out at an edge count
            what they have.
        pattern: The groups.
        fixed: Places that groups have whatever their magnitude, -1 where they have
            none, of the shape returned; the last places, or all.

    Returns:
        `[out / rows, in / cols]`, rounded up: places in the whole matrix; or for N:M
        `[out, in / M, M]`, places among the M.

    >>> weight = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    >>> group_ranks(weight, Pattern())
    tensor([[1, 2],
            [3, 0]])
    >>> group_ranks(weight, Pattern(), torch.tensor([[3, -1], [-1, -1]]))
    tensor([[3, 1],
            [2, 0]])
    """
    matrix = weight.detach().float().flatten(1)
    size = matrix.abs() if pattern.norm == "l1" else matrix.square()
    if pattern.of:
        # every weight is a group of its own; padding is ranked below all of them
        groups = _tiles(size, 1, pattern.of, fill=-1.0).squeeze(1)
    else:
        groups = _tiles(size, pattern.rows, pattern.cols).sum((1, 3))
    if fixed is not None:
        groups = groups.masked_fill(fixed >= 0, -math.inf)
    compete = groups if pattern.of else groups.flatten()
    places = ranking(compete).argsort(-1).view_as(groups)
    return places if fixed is None else torch.where(fixed >= 0, fixed, places)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Outputs and inputs of a weight that is a matrix, or multiplies as one.

    Args:
        shape: A linear layer's `[out, in]`, or a convolution's `[out, in, ...]`, whose
            inputs are those of its window: `[out, in * kernel]`, as `unfold` has them.

    >>> matrix_shape((16, 10)), matrix_shape((16, 10, 1)), matrix_shape((16, 2, 3, 3))
    ((16, 10), (16, 10), (16, 18))
    """
    return shape[0], math.prod(shape[1:])


def group_shape(shape: torch.Size, pattern: Pattern) -> tuple[int, ...]:
    """The shape of what `group_ranks` returns for a weight of this shape.

    Args:
        shape: Of the weight; see `matrix_shape`.
        pattern: In which groups weights are masked.

    >>> group_shape((16, 10), Pattern(rows=8)), group_shape((16, 10), Pattern(of=4))
    ((2, 10), (16, 3, 4))
    """
    out, inputs = matrix_shape(shape)
    if pattern.of:
        return out, -(-inputs // pattern.of), pattern.of
    return -(-out // pattern.rows), -(-inputs // pattern.cols)


def weight_mask(
    ranks: torch.Tensor, shape: torch.Size, sparsity: float, pattern: Pattern
) -> torch.Tensor:
    """Which weights are kept at a sparsity; masks of one ranking are nested.

    Args:
        ranks: What `group_ranks` returned.
        shape: Of the weight; see `matrix_shape`.
        sparsity: Share of the groups that is dropped, rounded to whole groups; one of
            those that compete always stays.
        pattern: The groups.

    Returns:
        Boolean, of the given shape.

    >>> ranks = group_ranks(torch.tensor([[3.0, -1.0], [0.5, -4.0]]), Pattern())
    >>> weight_mask(ranks, (2, 2), 0.5, Pattern()).tolist()
    [[True, False], [False, True]]
    """
    out, inputs = matrix_shape(shape)
    keep = group_mask(ranks, shape, sparsity, pattern)
    if pattern.of:
        keep = keep.flatten(1)
    else:
        keep = keep[:, None, :, None].expand(-1, pattern.rows, -1, pattern.cols)
        keep = keep.flatten(2).flatten(0, 1)
    return keep[:out, :inputs].reshape(shape)


def group_mask(
    ranks: torch.Tensor, shape: torch.Size, sparsity: float, pattern: Pattern
) -> torch.Tensor:
    """Which groups `weight_mask` keeps.

    Args:
        ranks: What `group_ranks` returned.
        shape: Of the weight; see `matrix_shape`.
        sparsity: See `weight_mask`.
        pattern: The groups.

    Returns:
        Boolean, of the shape of `ranks`.
    """
    if not pattern.of:
        return ranks < _kept(ranks.numel(), sparsity)
    keep = ranks < _kept(pattern.of, sparsity)
    if last := matrix_shape(shape)[1] % pattern.of:  # an incomplete group's own share
        keep[:, -1] = ranks[:, -1] < _kept(last, sparsity)
    return keep


def nonzero_groups(weight: torch.Tensor, pattern: Pattern) -> int:
    """How many groups of a weight are not all zero; those of N:M are single weights.

    Args:
        weight: A matrix; see `matrix_shape`.
        pattern: In which groups weights are masked.
    """
    tiles = _tiles(weight.detach().flatten(1) != 0, pattern.rows, pattern.cols)
    return int(tiles.any(3).any(1).sum())


def kept_groups(shape: torch.Size, sparsity: float, pattern: Pattern) -> int:
    """How many groups of a weight `weight_mask` keeps; those of N:M are single weights.

    Args:
        shape: Of the weight; see `matrix_shape`.
        sparsity: Share of the groups that is masked, at least 0 and below 1.
        pattern: In which groups weights are masked.

    >>> kept_groups((16, 10), 0.5, Pattern(rows=8))
    10
    >>> kept_groups((2, 6), 0.5, Pattern(of=4))
    6
    """
    out, inputs = matrix_shape(shape)
    if pattern.of:
        whole, last = divmod(inputs, pattern.of)
        row = whole * _kept(pattern.of, sparsity) + _kept(last, sparsity)
        return out * row
    return _kept(math.prod(group_shape(shape, pattern)), sparsity)


def _tiles(
    matrix: torch.Tensor, rows: int, cols: int, fill: float = 0.0
) -> torch.Tensor:
    """`[out, in]`, padded, as `[out / rows, rows, in / cols, cols]`."""
    missing = (0, -matrix.size(1) % cols, 0, -matrix.size(0) % rows)
    padded = F.pad(matrix, missing, value=fill)
    return padded.unflatten(1, (-1, cols)).unflatten(0, (-1, rows))


def _kept(groups: int, sparsity: float) -> int:
    # a matrix, or a group of N:M, without any weight would be no layer
    return min(groups, max(1, groups - round(sparsity * groups)))
