"""A supernet's plan: the update count, the phases, the selection and the sizes."""

from collections.abc import Callable, Sequence

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.schedule import (
    STEP1,
    STEP2,
    WARM,
    Timeline,
    resolve_updates,
)
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import UNITS, CostTable, Size, kinds_needed, parse_size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.selection import Net, build_selection
from espnet_omnisparse.supernet.config import CURRENT, SupernetConfig
from espnet_omnisparse.supernet.sampling import SampledSubnet, Sampler


class Supernet(torch.nn.Module):
    """The part of a model that is not deployed: update count, selection, plan.

    Args:
        config: The supernet's options.
        space: The encoder's units.
        measure: Makes the table of a kind of cost of the model at hand; called for
            the kinds by which sizes are given.
        chunk: What the encoder's frames see where `chunks` is empty.

    Raises:
        UserError: If a size cannot be met.
    """

    def __init__(
        self,
        config: SupernetConfig,
        space: SearchSpace,
        measure: Callable[[str], CostTable] | None = None,
        chunk: Chunk | None = None,
    ):
        super().__init__()
        self.config = config
        self.chunks = config.chunks or (chunk,)
        self.space = space
        self.tables = torch.nn.ModuleDict()
        for kind in dict.fromkeys(kinds_needed(config.sizes, config.fraction_of)):
            counting = kind == UNITS
            self.tables[kind] = CostTable.counting(space) if counting else measure(kind)
        sizes = [
            parse_size(name, wanted, config.fraction_of, self.tables, self.chunks[-1])
            for name, wanted in config.sizes.items()
        ]
        for size in sizes:
            size.check()
        if config.sparsity is not None:
            self._check_chunks(sizes)
        sizes.sort(
            key=lambda size: (not size.keeps_all_units, -size.units, size.sparsity)
        )
        self.sizes = {size.name: size for size in sizes}
        layered = {size.name: size for size in sizes if not size.keeps_all_units}
        self.selection = build_selection(
            config.method, space, layered, config.method_conf
        )
        if config.sparsity is not None and space.pattern is None:
            raise UserError(
                "supernet.sparsity masks weights, but the encoder has no pattern: use "
                "encoder: omni_sparse_conformer."
            )
        alone = self.selection.sizes and not self.selection.joint
        other = "supernet.sparsity" if config.sparsity is not None else ""
        for size in sizes:
            if size.keeps_all_units and not other:
                other = f"supernet.sizes.{size.name}, which drops nothing"
        if other and alone:
            raise UserError(
                f"supernet.method: {config.method} has no joint training of its sizes "
                f"and cannot be combined with {other}: choose another."
            )
        self._sampler = Sampler(config, space, self.sizes, self.selection, self.chunks)
        #: Real optimiser steps so far. A Python number, since a tensor on a GPU is
        #: waited for each time it is read; the buffer has it in checkpoints.
        self.update = 0
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._timeline: Timeline | None = None
        self._net: Net | None = None

    def _check_chunks(self, sizes: Sequence[Size]) -> None:
        """Refuses sizes that see what the sandwich of sparsities never does."""
        for size in sizes:
            if size.chunk not in self.chunks:
                raise UserError(
                    f"supernet.sizes: {size.name} has a chunk that no net is trained "
                    "with: add it to supernet.chunks."
                )

    def attach(self, net: Net) -> None:
        """Gives the selection the trained net to ask when step 1 ends."""
        self._net = net

    def set_run_length(self, total: int | None) -> None:
        """Fixes the phases of a run of `total` updates (`None`: unknown).

        Raises:
            UserError: If a fraction meets a run of unknown length, step 2 would be
                empty, or step 1 is too short for the method.
        """
        config, selection = self.config, self.selection
        warm = step1 = ramp = 0
        if selection.learns or self._sampler.joint or config.sparsity:
            warm = resolve_updates("supernet.warm_start", config.warm_start, total)
        if selection.learns:
            step1 = resolve_updates("supernet.step1", config.step1, total)
            selection.check_length(step1)
        if config.sparsity:
            name = "supernet.sparsity.ramp"
            ramp = resolve_updates(name, config.sparsity.ramp, total)
        timeline = Timeline(warm, step1, ramp)
        if total is not None and timeline.settled_at >= total:
            names = "supernet.warm_start and supernet.step1"
            if config.sparsity:
                names = "supernet.warm_start, supernet.step1 and sparsity.ramp"
            raise UserError(
                f"{names} take {timeline.settled_at} of the run's {total} updates and "
                "leave none for the joint training of the sizes: shorten them or train "
                "longer."
            )
        self._timeline = timeline

    @property
    def timeline(self) -> Timeline:
        """The phases; `set_run_length` must have been called."""
        if self._timeline is None:
            raise RuntimeError("set_run_length must be called before training")
        return self._timeline

    @property
    def phase(self) -> str:
        """The present phase."""
        return self.timeline.phase(self.update)

    @property
    def settled(self) -> bool:
        """Whether the selection is final."""
        return self.phase == STEP2

    @property
    def step1_time(self) -> tuple[int, int]:
        """Updates since step 1 began, and its length."""
        return self.update - self.timeline.warm, self.timeline.step1

    @property
    def subnets_per_update(self) -> int:
        """The most subnets that an update trains."""
        return self._sampler.most

    def full(self) -> SampledSubnet:
        """The full net."""
        return self._sampler.full()

    def sample_subnets(self) -> list[SampledSubnet]:
        """The subnets that the present update trains, the largest first."""
        if self.phase == WARM:
            return self._sampler.warm_start(self.update)
        if self.phase == STEP1:
            return self._sampler.step1(*self.step1_time)
        if self.config.sparsity:
            return self._sampler.of_sparsities(
                self.config.sparsity, self.max_sparsity, self.update
            )
        if self._sampler.joint:
            return self._sampler.of_sizes(self.size_masks(), self.update)
        return self._sampler.without_sizes(*self.step1_time)

    @property
    def max_sparsity(self) -> float:
        """The highest sparsity that the present update trains."""
        if self.config.sparsity is None or self.phase in (WARM, STEP1):
            return 0.0
        timeline = self.timeline
        time = self.update - timeline.selected_at
        return self.config.sparsity.max_sparsity(time, timeline.ramp)

    def validation_subnets(self) -> list[SampledSubnet]:
        """The subnets to validate: all sizes, or in step 1 the full and current one."""
        if self.phase == WARM:
            return [self.full()]
        if self.phase == STEP1:
            mask = self.selection.mask_now(*self.step1_time)
            if mask is None:
                return [self.full()]
            return [
                self.full(),
                SampledSubnet(CURRENT, mask_gates(mask), chunk=self.chunks[-1]),
            ]
        sizes = [
            SampledSubnet(
                name,
                mask_gates(mask),
                sparsity=self._shares(name, self.max_sparsity),
                chunk=self.sizes[name].chunk,
            )
            for name, mask in self.size_masks().items()
        ]
        plan = self.config.sparsity
        dense = plan is None or plan.trains_dense or not sizes
        return [self.full(), *sizes] if dense else sizes

    def size_masks(self) -> dict[str, torch.Tensor]:
        """The units `[units]` of each size below the full one, largest first.

        Only meaningful once step 1 has ended.
        """
        everything = torch.ones(len(self.space), dtype=torch.bool)
        whole = {
            n: everything for n, size in self.sizes.items() if size.keeps_all_units
        }
        return whole | self.selection.masks()

    def size_sparsity(self, size: str) -> tuple[float, ...]:
        """The sparsity of every weight of a size; empty: nothing is masked."""
        return self._shares(size, 1.0)

    def _shares(self, size: str, highest: float) -> tuple[float, ...]:
        share = min(self.sizes[size].sparsity, highest)
        return (share,) * len(self.space.weights) if share > 0.0 else ()

    def penalty(self) -> torch.Tensor | float:
        """The selection method's own loss term at the present update."""
        if self.phase != STEP1:
            return 0.0
        return self.selection.penalty(*self.step1_time)

    def count_update(self) -> None:
        """To be called after each real optimiser step."""
        in_step1 = self.phase == STEP1
        self.update += 1
        if not in_step1:
            return
        time, length = self.step1_time
        self.selection.after_update(time, length)
        if time == length:
            self.selection.settle(self._net)

    def _save_to_state_dict(self, *args) -> None:
        self.updates.fill_(self.update)
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self.update = self.update
