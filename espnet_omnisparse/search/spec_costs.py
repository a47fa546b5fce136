"""What a subnet with masked weights costs, without building it.

Kinds of cost, of the model as it is deployed:

- **sparsity**: the share of the maskable weights of the *full* net that is left. A
  dropped branch's weights count as zeros; 70 % zeros is a cost of 0.3.
- **nonzero**: parameters that are not zero, as `cost.Cost` counts them.
- **params**: parameters of the kept branches, zeros included.
- **bytes**: the packed bytes of `cost.count_packed_bytes`, masked weights stored by
  their non-zero groups where that is less.
- **macs_10s**: multiply-accumulates for 10 s of audio with those of masked weights
  skipped, which takes a kernel that does so.
- **latency_ms**: time for 10 s of audio of the dense kernels. Masks do not shorten
  it: only dropped branches count.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_omnisparse.core.components import select
from espnet_omnisparse.core.layout import FRONT_END, front_layers
from espnet_omnisparse.core.mask import nonzero_groups, weight_mask
from espnet_omnisparse.core.search_space import FRONT, place
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.cost.count import FRAMES_PER_SECOND, packed_bytes
from espnet_omnisparse.cost.metrics import METRICS
from espnet_omnisparse.cost.size import CostTable
from espnet_omnisparse.extract.cut import cut_state

_VALUE_BYTES = 4


class SpecCosts:
    """Costs of the subnets of one supernet with its present weights.

    Every number comes from the real masks. What a weight has left at a sparsity is
    counted once and then looked up, so that a cost is a sum over the weights.

    Args:
        model: The supernet, on the CPU.
        masks: The sets of branches that subnets can have.
        tables: Kind -> the units' costs, for the costs `macs_10s` and `latency_ms`.
    """

    def __init__(
        self,
        model: Any,
        masks: Sequence[tuple[bool, ...]],
        tables: Mapping[str, CostTable] | None = None,
    ):
        encoder = model.encoder
        self._space = encoder.space
        self._tables = tables or {}
        self._weights = {n: w.detach() for n, w in encoder.maskable().items()}
        self._ranks = encoder.mask_ranks()
        self._total = sum(weight.numel() for weight in self._weights.values())
        self._uses = _uses_in_10s(encoder)
        self._left: dict[tuple, _Left] = {}
        self._nets = [self._net(model, mask) for mask in masks]

    def of(self, kind: str, branches: int, sparsity: Sequence[float]) -> float:
        """The cost of a subnet.

        Args:
            kind: A metric, one of `cost.metrics.OF_BUDGETS`.
            branches: Number of its set of branches in `masks`.
            sparsity: Per weight of the space; empty: nothing is masked.
        """
        net = self._nets[branches]
        if kind == "params":
            return net.parameters
        if kind == "latency_ms":
            return net.costs[kind]
        shares = sparsity or (0.0,) * len(self._weights)
        pairs = zip(net.weights, shares, strict=True)
        left = [self._of_weight(*key, share) for key, share in pairs if key]
        if kind == "sparsity":
            return sum(one.nonzero for one in left) / self._total
        if kind == "nonzero":
            return net.other_nonzero + sum(one.nonzero for one in left)
        if kind == "bytes":
            return net.other_bytes + sum(one.packed_bytes for one in left)
        return net.costs[kind] - sum(one.skipped_macs for one in left)

    def _net(self, model: Any, mask: tuple[bool, ...]) -> "_Net":
        """What the kept branches have, masked or not."""
        spec = SubnetSpec("", "", self._space, mask)
        cut = cut_state(dict(model.named_parameters()), spec).values()
        buffers = cut_state(dict(model.named_buffers()), spec).values()
        there = spec.weights
        weights = [(n, there[n]) if n in there else None for n in self._weights]
        dense = [self._of_weight(*key, 0.0) for key in weights if key]
        total = sum(tensor.numel() for tensor in cut)
        floating = sum(one.numel() for one in buffers if one.is_floating_point())
        nonzero = sum(int(tensor.count_nonzero()) for tensor in cut)
        costs = {
            kind: table.of(torch.tensor(mask)) / METRICS[kind].steps
            for kind, table in self._tables.items()
        }
        return _Net(
            tuple(weights),
            total,
            _VALUE_BYTES * (total + floating - sum(one.parameters for one in dense)),
            nonzero - sum(one.nonzero for one in dense),
            costs,
        )

    def _of_weight(self, name: str, kept: tuple[int, ...], share: float) -> "_Left":
        """What is left of a weight of which these slices are kept, at a sparsity."""
        key = (name, kept, share)
        if key not in self._left:
            self._left[key] = self._count(*key)
        return self._left[key]

    def _count(self, name: str, kept: tuple[int, ...], share: float) -> "_Left":
        at, pattern, weight = place(name), self._space.pattern, self._weights[name]
        mask = weight_mask(self._ranks[name], weight.shape, share, pattern)
        if at.block is not None:
            of = self._space.slices[at.branch]
            mask, weight = (
                select(at.branch, f"{at.layer}.weight", tensor, kept, of)
                for tensor in (mask, weight)
            )
        left = weight * mask
        return _Left(
            parameters=mask.numel(),
            nonzero=int(left.count_nonzero()),
            packed_bytes=packed_bytes(
                left.shape, nonzero_groups(left, pattern), pattern
            ),
            skipped_macs=self._uses[name] * int((~mask).sum()),
        )


@dataclass(frozen=True)
class _Left:
    """What is left of a weight."""

    parameters: int
    nonzero: int
    packed_bytes: int
    skipped_macs: int


@dataclass(frozen=True)
class _Net:
    """A set of branches: its weights that take a mask, and what else it has.

    Attributes:
        weights: Per weight of the space its name and kept slices, `None` where it is
            dropped.
        parameters: All.
        other_bytes: Of all that takes no mask, floating buffers included.
        other_nonzero: Parameters that take no mask and are not zero.
        costs: Kind -> cost by a table, nothing masked.
    """

    weights: tuple[tuple[str, tuple[int, ...]] | None, ...]
    parameters: int
    other_bytes: int
    other_nonzero: int
    costs: Mapping[str, float]


@torch.no_grad()
def _uses_in_10s(encoder: Any) -> dict[str, int]:
    """By how many vectors each weight is multiplied for 10 s of audio.

    Those of a block by frames, or relative positions; a convolution's by its windows;
    those of the decoder, which comes after CTC, by none.
    """
    count = 10 * FRAMES_PER_SECOND
    was_training = encoder.training
    feats = torch.zeros(1, count, encoder.input_size)
    made: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, _: Any, out: torch.Tensor) -> None:
            made[f"{FRONT_END}{name}.weight"] = out.numel() // len(module.weight)

        return hook

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in encoder.embed.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    frames = encoder.eval().front_end(feats, torch.tensor([count]))
    encoder.train(was_training)
    for hook in hooks:
        hook.remove()
    uses, front = {}, front_layers(made)
    for weight in encoder.space.weights:
        at = place(weight)
        uses[weight] = frames.x.size(1)
        if at.branch == FRONT:
            uses[weight] = made[front[at.layer]]
        elif at.block is None:
            uses[weight] = 0
        elif at.layer == "linear_pos":
            uses[weight] = frames.pos_emb.size(1)
    return uses
