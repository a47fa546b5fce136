"""The weights of an encoder as any subnet sees them: masked by their magnitude.

The masks follow the weights while these are trained, so that a weight that was masked
can come back, until their order is settled, if it ever is. Only the order of the groups
is kept, from which the mask of any sparsity is one comparison; refreshing it costs a
sort per weight that has changed.
"""

from collections.abc import Mapping

import torch

from espnet_omnisparse.core.mask import (
    Pattern,
    group_mask,
    group_ranks,
    group_shape,
    weight_mask,
)

_REMEMBERED = 12  # masks of each weight, between two refreshes


class MaskOrder(torch.nn.Module):
    """The order of the groups of every weight, once and for all, in checkpoints.

    A group has its place in it from when it is fixed, and -1 before. Masks that stand
    still before training ends: AC/DC (arXiv 2106.12379) ends with one sparse phase
    under one mask, and weights can only be averaged under the same mask (Sparse Model
    Soups, arXiv 2306.16788).

    Args:
        weights: Name -> a weight that takes masks.
        pattern: In which groups they are masked.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], pattern: Pattern):
        super().__init__()
        self._shapes = {name: weight.shape for name, weight in weights.items()}
        self._pattern = pattern
        for name, weight in weights.items():
            shape = group_shape(weight.shape, pattern)
            unknown = torch.full(shape, -1, dtype=torch.int32)
            module, leaf = nested(self, name)
            module.register_buffer(leaf, unknown)
        self.settled = False
        self.register_load_state_dict_post_hook(lambda *_: self._look())

    def ranks(self) -> dict[str, torch.Tensor]:
        """For each weight the places of its groups that are fixed, -1 for others."""
        return dict(self.named_buffers())

    @torch.no_grad()
    def settle(self, ranks: Mapping[str, torch.Tensor]) -> None:
        """Keeps an order from now on."""
        for name, kept in self.ranks().items():
            kept.copy_(ranks[name])
        self.settled = True

    @torch.no_grad()
    def leave_out(self, ranks: Mapping[str, torch.Tensor], sparsity: float) -> None:
        """Fixes the places of what a sparsity drops, so that it does not come back.

        Args:
            ranks: What `group_ranks` returned for each weight, by what is fixed so far.
            sparsity: The highest that has been reached, the same in every weight.
        """
        for name, kept in self.ranks().items():
            stays = group_mask(ranks[name], self._shapes[name], sparsity, self._pattern)
            kept.copy_(torch.where(stays, kept, ranks[name]))

    @torch.no_grad()
    def forget(self) -> None:
        """Lets the masks follow the weights again."""
        for kept in self.ranks().values():
            kept.fill_(-1)
        self.settled = False

    def _look(self) -> None:
        """Finds out from what was loaded whether every group has its place."""
        ranks = self.ranks().values()
        self.settled = bool(ranks) and all(bool((one >= 0).all()) for one in ranks)


def nested(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """The module in which a tensor of a name with points belongs, and its name there.

    Modules that are not there are made.

    Args:
        module: The outermost module.
        name: A tensor's name, with points.
    """
    *path, leaf = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, torch.nn.Module())
        module = module._modules[part]
    return module, leaf


def flip_rate(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Size],
    sparsity: float,
    pattern: Pattern,
) -> float:
    """The share of the weights that a mask dropped or took back between two orders.

    The flip rate of a sparse Transformer's training (arXiv 2404.01847).

    Args:
        before: Name -> what `group_ranks` returned for a weight.
        after: The same later.
        shapes: Of the weights.
        sparsity: Of the mask, the same in every weight.
        pattern: In which groups they are masked.

    >>> shapes = {"w": torch.Size((2, 2))}
    >>> before, after = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0, 2], [1, 3]])
    >>> flip_rate({"w": before}, {"w": after}, shapes, 0.5, Pattern())
    0.5
    """
    flipped = 0
    for name, shape in shapes.items():
        old, new = (
            weight_mask(r[name], shape, sparsity, pattern) for r in (before, after)
        )
        flipped += int((old != new).sum())
    return flipped / max(sum(shape.numel() for shape in shapes.values()), 1)


class WeightMasks:
    """Masks of a set of weights.

    Args:
        pattern: In which groups weights are masked.

    Attributes:
        order: What the masks stay like as far as it is fixed; `None`: they follow the
            weights.
    """

    def __init__(self, pattern: Pattern):
        self._pattern = pattern
        self.order: MaskOrder | None = None
        self._ranks: dict[str, torch.Tensor] = {}
        self._made_from: dict[str, tuple[int | float, ...]] = {}
        # the order that masks are made of, its version, and these by sparsity
        self._kept: dict[str, tuple[torch.Tensor, int, dict[float, torch.Tensor]]] = {}

    def refresh(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Orders the groups anew by the present weights; those unchanged stay."""
        if self.order is not None and self.order.settled:
            self._ranks, self._made_from = self.order.ranks(), {}
            return
        if not weights:
            return
        fixed = {} if self.order is None else self.order.ranks()
        # PyTorch counts the changes of a tensor, but not a fused optimiser's
        norms = [torch.linalg.vector_norm(w.detach()).float() for w in weights.values()]
        for (name, weight), norm in zip(
            weights.items(), torch.stack(norms).tolist(), strict=True
        ):
            known = fixed.get(name)
            state = (weight.data_ptr(), weight._version, norm)
            if known is not None:
                state += (known._version,)
            if self._made_from.get(name) != state:
                self._ranks[name] = group_ranks(weight, self._pattern, known)
                self._made_from[name] = state

    def ranks(self) -> dict[str, torch.Tensor]:
        """Name -> the order of a weight's groups; see `group_ranks`."""
        return dict(self._ranks)

    def masked(self, name: str, weight: torch.Tensor, sparsity: float) -> torch.Tensor:
        """The weight with zeros where a sparsity masks it; gradients reach the rest.

        Args:
            name: As in `refresh`, which must have seen it.
            weight: A matrix; see `mask.matrix_shape`.
            sparsity: Share of its groups that is dropped.
        """
        if sparsity == 0.0:
            return weight
        return weight * self.kept(name, weight.shape, sparsity)

    def kept(self, name: str, shape: torch.Size, sparsity: float) -> torch.Tensor:
        """Which elements of a weight `masked` does not make zero.

        Args:
            name: As in `refresh`, which must have seen it.
            shape: Of the weight.
            sparsity: Share of its groups that is dropped.
        """
        ranks = self._ranks[name]
        of, version, made = self._kept.get(name, (None, 0, {}))
        if of is not ranks or version != ranks._version:
            made = {}
            self._kept[name] = ranks, ranks._version, made
        if sparsity not in made:
            if len(made) == _REMEMBERED:
                del made[next(iter(made))]  # the oldest
            made[sparsity] = weight_mask(ranks, shape, sparsity, self._pattern)
        return made[sparsity]
