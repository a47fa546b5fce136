"""What a subnet with masked weights costs, without building it; and limits on that.

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

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_omnisparse.core.components import select
from espnet_omnisparse.core.mask import nonzero_groups, weight_mask
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.cost.count import FRAMES_PER_SECOND, packed_bytes
from espnet_omnisparse.cost.size import KINDS as TABLE_KINDS
from espnet_omnisparse.cost.size import CostTable
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.cut import cut_state

# kind -> what a table calls it, and the unit that it is shown in
KINDS = {
    "sparsity": ("kept weights (%)", 1e-2),
    "nonzero": ("non-zero (M)", 1e6),
    "params": ("params (M)", 1e6),
    "bytes": ("packed (MB)", 1e6),
    "macs_10s": ("MACs 10 s (G)", 1e9),
    "latency_ms": ("latency (ms)", 1.0),
}
_UNITS = {
    "%": ("sparsity", 1e-2),
    "k": ("nonzero", 1e3),
    "M": ("nonzero", 1e6),
    "kB": ("bytes", 1e3),
    "MB": ("bytes", 1e6),
    "MMAC": ("macs_10s", 1e6),
    "GMAC": ("macs_10s", 1e9),
    "ms": ("latency_ms", 1.0),
}
_VALUE_BYTES = 4


@dataclass(frozen=True)
class Budget:
    """A limit on a cost, as it was given.

    Attributes:
        number: Of its units.
        unit: A key of the table of units: `%`, `M`, `MB`, ...
    """

    number: float
    unit: str

    @property
    def name(self) -> str:
        """A name for files and folders.

        >>> parse_budget("1.5M").name, parse_budget("70%").name
        ('1p5M', '70pct')
        """
        return _plain(self.number).replace(".", "p") + self.unit.replace("%", "pct")

    @property
    def kind(self) -> str:
        """A key of `KINDS`."""
        return _UNITS[self.unit][0]

    @property
    def limit(self) -> float:
        """The largest cost allowed."""
        value = self.number * _UNITS[self.unit][1]
        # rounded: 1 - 0.7 is not 0.3
        return round(1.0 - value if self.unit == "%" else value, 9)

    def check(self, lowest: float, highest: float) -> None:
        """Refuses what no candidate meets, and what the full net meets.

        Args:
            lowest: The least cost of all candidates.
            highest: The cost of the full net, nothing masked.

        Raises:
            UserError: Naming the nearest that can be met.
        """
        if lowest <= self.limit < highest:
            return
        asked = f"--budgets: {_plain(self.number)}{self.unit}"
        if self.limit >= highest:
            full = self._text(highest, math.floor)
            raise UserError(f"{asked} is no less than the full net's {full}.")
        why = ""
        if self.kind in ("latency_ms", "params") and lowest == highest:
            why = " (only dropped branches lower it, and no such size was trained)"
        nearest = self._text(lowest, math.ceil)
        raise UserError(
            f"{asked} cannot be met; the nearest that can is {nearest}{why}."
        )

    def _text(self, cost: float, rounded: Any) -> str:
        """A cost in the budget's unit, rounded to what can be asked for."""
        scale = _UNITS[self.unit][1]
        if self.unit == "%":  # the other way round: more zeros cost less
            return f"{_plain(-rounded(-round((1.0 - cost) * 1e5, 6)) / 1e3)}%"
        return f"{_plain(rounded(round(cost / scale * 1e3, 6)) / 1e3)}{self.unit}"


def parse_budget(text: str) -> Budget:
    """Reads a budget such as `70%` (zeros), `12M`, `8MB`, `2GMAC` or `40ms`.

    Raises:
        UserError: If it is none.

    >>> parse_budget("70%").kind, parse_budget("70%").limit
    ('sparsity', 0.3)
    >>> parse_budget("900k").kind, parse_budget("900k").limit
    ('nonzero', 900000.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]+|%)", text)
    if found and found[2] in _UNITS:
        number = float(found[1])
        if number > 0 and (found[2] != "%" or number < 100):
            return Budget(number, found[2])
    raise UserError(
        f"--budgets: {text!r} must be a share of zeros such as 70%, non-zero "
        "parameters such as 12M or 900k, packed bytes such as 8MB, MACs for 10 s such "
        "as 2GMAC or 300MMAC, or a latency such as 40ms."
    )


def _plain(number: float) -> str:
    """The number without an exponent or needless zeros."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


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
        self._frames, self._positions = _frames_of_10s(encoder)
        self._left: dict[tuple, _Left] = {}
        self._nets = [self._net(model, mask) for mask in masks]

    def of(self, kind: str, branches: int, sparsity: Sequence[float]) -> float:
        """The cost of a subnet.

        Args:
            kind: A key of `KINDS`.
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
        weights: list[tuple[str, tuple[int, ...]] | None] = []
        for name in self._weights:
            block, branch, _ = name.split(".")
            parts = spec.kept[int(block)].get(branch)
            weights.append((name, parts) if parts else None)
        dense = [self._of_weight(*key, 0.0) for key in weights if key]
        total = sum(tensor.numel() for tensor in cut)
        floating = sum(one.numel() for one in buffers if one.is_floating_point())
        nonzero = sum(int(tensor.count_nonzero()) for tensor in cut)
        costs = {
            kind: table.of(torch.tensor(mask)) / TABLE_KINDS[kind][0]
            for kind, table in self._tables.items()
        }
        return _Net(
            tuple(weights),
            total,
            _VALUE_BYTES * (total + floating - sum(one.parameters for one in dense)),
            nonzero - sum(one.nonzero for one in dense),
            costs,
        )

    def _of_weight(self, name: str, parts: tuple[int, ...], share: float) -> "_Left":
        """What is left of a weight of which these parts are kept, at a sparsity."""
        key = (name, parts, share)
        if key not in self._left:
            self._left[key] = self._count(*key)
        return self._left[key]

    def _count(self, name: str, parts: tuple[int, ...], share: float) -> "_Left":
        _, branch, layer = name.split(".")
        pattern, weight = self._space.pattern, self._weights[name]
        mask = weight_mask(self._ranks[name], weight.shape, share, pattern)
        of = self._space.parts[branch]
        mask, weight = (
            select(branch, f"{layer}.weight", tensor, parts, of)
            for tensor in (mask, weight)
        )
        left = weight * mask
        frames = self._positions if layer == "linear_pos" else self._frames
        return _Left(
            parameters=mask.numel(),
            nonzero=int(left.count_nonzero()),
            packed_bytes=packed_bytes(
                left.shape, nonzero_groups(left, pattern), pattern
            ),
            skipped_macs=frames * int((~mask).sum()),
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
        weights: Per weight of the space its name and kept parts, `None` where the
            branch is dropped.
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
def _frames_of_10s(encoder: Any) -> tuple[int, int]:
    """Frames, and relative positions, that the blocks see of 10 s of audio."""
    count = 10 * FRAMES_PER_SECOND
    was_training = encoder.training
    feats = torch.zeros(1, count, encoder.input_size)
    frames = encoder.eval().front_end(feats, torch.tensor([count]))
    encoder.train(was_training)
    positions = 0 if frames.pos_emb is None else frames.pos_emb.size(1)
    return frames.x.size(1), positions
