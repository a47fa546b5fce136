"""Budgets: what each unit of a supernet costs, and sizes as limits on a cost.

Counting units is a cost like any other, so a size is always the longest beginning of
a ranking of the units that stays within its limit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.decoder import parse_decoder
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.unchanged import Kept
from espnet_omnisparse.cost.budget import Budget, limit_on, parse_budget
from espnet_omnisparse.cost.metrics import (
    BYTES,
    MEASURED,
    METRICS,
    NONZERO,
    OF_SIZES,
    UNITS,
    ZEROS,
)
from espnet_omnisparse.errors import UserError

_BY_MASKS = (
    "give the size a sparsity, such as {sparsity: 0.7}, with the section "
    "supernet.sparsity, or search for it after training"
)


class CostTable(torch.nn.Module):
    """The cost of any subnet as a sum over its units.

    The numbers are buffers, latencies persistent ones, so that a resumed training goes
    on with what it began with; integers, because ESPnet casts floating buffers.

    Args:
        kind: A metric, a key of `METRICS`.
        space: The supernet's units.
        rest: What no selection removes.
        units: Per unit `[units]`.
        shared: Per branch `[branches]`, once if any unit of it is kept: a branch's norm
            and output bias belong to no part of it.
        pairs: Per branch `[branches]`, once for any two units of it that are kept: what
            leads from one to the other; `None`: nothing does.
        decoder: Of an attention decoder, which the rest includes: what is in none of
            its layers, then each layer.
    """

    def __init__(
        self,
        kind: str,
        space: SearchSpace,
        rest: float,
        units: torch.Tensor,
        shared: torch.Tensor,
        pairs: torch.Tensor | None = None,
        decoder: Sequence[float] = (),
    ):
        super().__init__()
        self.kind = kind
        self.groups = space.groups
        scale = METRICS[kind].steps
        self._decoder = [round(one * scale) for one in decoder]
        pairs = [0.0] * len(set(space.groups)) if pairs is None else pairs
        costs = {"rest": rest, "units": units, "shared": shared, "pairs": pairs}
        for name, value in costs.items():
            steps = torch.as_tensor(value, dtype=torch.float64) * scale
            # what is counted can be counted again, and few nets have pairs
            kept = kind == MEASURED and (name != "pairs" or space.gate_linear)
            self.register_buffer(name, steps.round().long(), persistent=kept)
        self._on_host: Kept[tuple[int, int, float]] = Kept()

    @classmethod
    def counting(cls, space: SearchSpace) -> "CostTable":
        """The table in which every unit costs 1, and nothing else anything."""
        shared = torch.zeros(len(set(space.groups)))
        return cls(UNITS, space, 0, torch.ones(len(space)), shared)

    @classmethod
    def unmeasured(cls, space: SearchSpace) -> "CostTable":
        """A table of latencies to be measured, or found in a checkpoint."""
        shared = torch.zeros(len(set(space.groups)))
        return cls(MEASURED, space, 0, torch.zeros(len(space)), shared)

    @property
    def known(self) -> bool:
        """Whether it has been measured, counted or loaded."""
        return self.total > 0

    def fill(self, other: "CostTable") -> None:
        """Takes over another table's numbers."""
        self.load_state_dict(other.state_dict())

    def spared(self, decoder: int | None) -> int:
        """Cost of what a size lacks of the attention decoder.

        Args:
            decoder: How many of its layers the size keeps; `None`: all, 0: it has no
                decoder.
        """
        if decoder is None:
            return 0
        return sum(self._decoder[1 + decoder if decoder else 0 :])

    def along(self, ranking: torch.Tensor) -> torch.Tensor:
        """Cost `[units]` of the first unit of a ranking, of the first two, ..."""
        if not self.known:
            raise RuntimeError(f"{self.kind} has not been measured yet")
        ranking = ranking.to(self.units.device)
        groups = torch.tensor(self.groups, device=ranking.device)[ranking]
        alike = groups[:, None] == groups[None, :]
        before = alike.tril(-1).sum(1)  # units of the same branch
        once = self.shared[groups] * (before == 0)
        steps = self.units[ranking] + once + self.pairs[groups] * before
        return self.rest + steps.cumsum(0)

    def of(self, mask: torch.Tensor) -> int:
        """Cost of the subnet that keeps the units in `mask`, in the metric's steps."""
        kept = mask.nonzero().squeeze(1)
        return int(self.along(kept)[-1]) if kept.numel() else int(self.rest)

    @property
    def on_host(self) -> tuple[int, int, float]:
        """Cost of what no selection removes, of the full net, of all units together.

        Read from the tensors' device once.
        """

        def read() -> tuple[int, int, float]:
            total = int(self.rest + self.units.sum() + self._whole_branches.sum())
            return int(self.rest), total, float(self.per_unit.sum())

        return self._on_host.get(self.buffers(), read)

    @property
    def total(self) -> int:
        """Cost of the full net."""
        return self.on_host[1]

    @property
    def per_unit(self) -> torch.Tensor:
        """Cost per unit `[units]`, with an even share of what its branch has beside."""
        groups = torch.tensor(self.groups, device=self.units.device)
        return self.units + (self._whole_branches.double() / groups.bincount())[groups]

    @property
    def last(self) -> torch.Tensor:
        """What each unit `[units]` adds to all others of its branch."""
        groups = torch.tensor(self.groups, device=self.units.device)
        return self.units + (self.pairs * (groups.bincount() - 1))[groups]

    @property
    def _whole_branches(self) -> torch.Tensor:
        """What each branch `[branches]` has beside its units if all are kept."""
        counts = torch.tensor(self.groups, device=self.units.device).bincount()
        return self.shared + self.pairs * (counts * (counts - 1) // 2)

    def text(self, steps: float) -> str:
        """A cost in words."""
        metric = METRICS[self.kind]
        return metric.text(steps / metric.steps)


@dataclass(frozen=True)
class Size:
    """A wanted size: a limit on a cost of its units, and how much they are masked.

    Attributes:
        name: Its name.
        table: The cost.
        wanted: The limit as a fraction of the full net's cost (float below 1), or in
            the table's steps (int).
        sparsity: Of every weight.
        chunk: What its frames see; `None`: the whole recording.
        decoder: How many layers of the attention decoder it keeps; `None`: all, 0: it
            has no decoder.
        keeps_all_units: Whether it keeps every unit, and is told by its sparsity,
            chunk or decoder alone.
    """

    name: str
    table: CostTable
    wanted: int | float
    sparsity: float = 0.0
    chunk: Chunk | None = None
    keeps_all_units: bool = False
    decoder: int | None = None

    @property
    def limit(self) -> int:
        """The largest cost allowed, were its decoder whole, in the table's steps."""
        wanted = self.wanted
        if isinstance(wanted, float):
            wanted = round(wanted * self.table.total)
        return wanted + self.table.spared(self.decoder)

    @property
    def rank(self) -> tuple[float, ...]:
        """What sizes are ordered by, the largest first."""
        layers = math.inf if self.decoder is None else self.decoder
        return (not self.keeps_all_units, -self.units, self.sparsity, -layers)

    @property
    def units(self) -> int:
        """How many units of average cost fit; exact where units are counted."""
        rest, _, units = self.table.on_host
        share = (self.limit - rest) / units
        total = self.table.units.numel()
        return max(1, min(round(share * total), total - 1))

    def mask(self, ranking: torch.Tensor) -> torch.Tensor:
        """The units `[units]` of the longest beginning of a ranking that fits."""
        mask = torch.zeros_like(self.table.units, dtype=torch.bool)
        # costs only grow along a ranking
        mask[ranking] = self.table.along(ranking) <= self.limit
        return mask

    def check(self, masks: bool = False) -> None:
        """Refuses what cannot be met, whatever is selected.

        Args:
            masks: Whether weights are masked too, so that masks may meet it.

        Raises:
            UserError: Naming the nearest limit that can be met.
        """
        if self.keeps_all_units:
            return
        per_unit = self.table.units + self.table.shared[list(self.table.groups)]
        lowest = int(self.table.rest + per_unit.max())
        highest = int(self.table.total - self.table.last.min())
        if lowest <= self.limit <= highest:
            return
        text, digit = self.table.text, METRICS[self.table.kind].digit
        spared = self.table.spared(self.decoder)
        # rounded inwards: what the message names is accepted when it is asked for
        nearest = -(-(lowest - spared) // digit) * digit
        why = "the least that holds any one unit"
        if self.limit > highest:
            nearest = (highest - spared) // digit * digit
            why = f"the full net, which is always a size, has {text(self.table.total)}"
        elif masks and self.table.kind in (NONZERO, BYTES):
            why += f"; for less, {_BY_MASKS}"
        raise UserError(
            f"supernet.sizes: {self.name} asks for {text(self.limit - spared)}; the "
            f"nearest that this net can give is {text(nearest)} ({why})."
        )


def parse_size(
    name: str,
    wanted: Any,
    fraction_of: str,
    tables: Mapping[str, CostTable],
    chunk: Chunk | None = None,
) -> Size:
    """A size as the options give it: units, a fraction, or a budget.

    Args:
        name: Its name.
        wanted: Units (int), a fraction (float), a budget such as `8MB`, or a mapping
            of one metric to a number, as in `{params: 15M}`, or to a fraction of the
            units; with a sparsity, a chunk and a decoder beside it, or one of these
            alone.
        fraction_of: The metric that a fraction is of.
        tables: Metric -> table, of all that `kinds_needed` names.
        chunk: Where it names none.
    """
    if not isinstance(wanted, Mapping | str):
        kind = fraction_of if isinstance(wanted, float) else UNITS
        return Size(name, tables[kind], wanted, chunk=chunk)
    options = dict(wanted) if isinstance(wanted, Mapping) else {}
    sparsity = float(options.get("sparsity", 0.0))
    decoder = _decoder_of(name, options)
    if "chunk" in options:
        chunk = Chunk.parse(options["chunk"], f"supernet.sizes.{name}.chunk")
    budget = budget_of(name, wanted) or Budget(UNITS, tables[UNITS].total)
    limit: int | float = round(budget.limit * METRICS[budget.kind].steps)
    if budget.kind == UNITS and budget.limit < 1:
        limit = budget.limit
    everything = budget.kind == UNITS and limit == tables[UNITS].total
    told = sparsity > 0.0 or "chunk" in options or decoder is not None
    return Size(
        *(name, tables[budget.kind], limit, sparsity, chunk, everything and told),
        decoder,
    )


def kinds_needed(sizes: Mapping[str, Any], fraction_of: str) -> Iterator[str]:
    """The metrics by which sizes are given, checked.

    Args:
        sizes: Name of each size -> what the options say of it.
        fraction_of: The metric that a fraction is of.

    Raises:
        UserError: If a budget is not one known metric with a number.
    """
    for name, wanted in sizes.items():
        if isinstance(wanted, int | float) and not isinstance(wanted, bool):
            if not math.isfinite(wanted):
                raise UserError(
                    f"supernet.sizes.{name} must be units or a fraction, not {wanted}."
                )
            yield fraction_of if isinstance(wanted, float) else UNITS
            continue
        budget = budget_of(name, wanted)
        yield budget.kind if budget else UNITS


def budget_of(name: str, wanted: Any) -> Budget | None:
    """The budget that a size is given by; `None`: it keeps every unit.

    Args:
        name: Its name.
        wanted: Text, or a mapping.

    Raises:
        UserError: If it is not one known metric with a number, or no selection of
            units can keep to it.
    """
    if isinstance(wanted, str):
        budget = parse_budget(wanted, f"supernet.sizes.{name}", (*OF_SIZES, ZEROS))
        if budget.kind == ZEROS:
            refuse_masked(name, budget)
        return budget
    limits = dict(wanted) if isinstance(wanted, Mapping) else {"": wanted}
    masked = "sparsity" in limits
    if masked:
        _check_share(name, limits.pop("sparsity"))
    limits.pop("chunk", None)
    _decoder_of(name, limits)
    limits.pop("decoder", None)
    if not limits and wanted:
        return None
    if len(limits) != 1 or next(iter(limits)) not in OF_SIZES:
        raise UserError(
            f"supernet.sizes: {name} must be units, a fraction, a budget such as 8MB, "
            f"or one of {', '.join(OF_SIZES)} with its limit, with or without a "
            f"sparsity, a chunk and a decoder, not {wanted}."
        )
    ((kind, value),) = limits.items()
    budget = limit_on(kind, value)
    if budget is None:
        raise UserError(
            f"supernet.sizes: {name} needs a positive number for {kind}, such as "
            f"40 or 15M, not {value!r}."
        )
    if masked and kind in (NONZERO, BYTES):
        raise UserError(
            f"supernet.sizes: {name} has a sparsity beside {budget.text}, which its "
            "masks lower by themselves: limit its units by units, params, macs_10s or "
            "latency_ms, or search for it after training."
        )
    return budget


def refuse_masked(name: str, budget: Budget) -> None:
    """Refuses a budget that masks can meet, and a choice of units cannot.

    Args:
        name: The size's name.
        budget: The budget.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f"supernet.sizes: {name} asks for {budget.text}, which is not met by choosing "
        f"units: {_BY_MASKS}."
    )


def _decoder_of(name: str, options: Mapping[str, Any]) -> int | None:
    if "decoder" not in options:
        return None
    return parse_decoder(options["decoder"], f"supernet.sizes.{name}.decoder")


def _check_share(name: str, sparsity: Any) -> None:
    number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not number or not 0.0 < sparsity < 1.0:
        raise UserError(
            f"supernet.sizes: {name} needs a sparsity between 0 and 1, such as 0.7, "
            f"not {sparsity!r}."
        )
