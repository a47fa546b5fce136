"""A supernet's plan: the update count, the phases, the selection and the sizes."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.gate import mask_gates
from espnet_omnisparse.core.own_parameters import OwnParameters
from espnet_omnisparse.core.schedule import (
    SETTLE,
    STEP1,
    STEP2,
    WARM,
    Timeline,
)
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.unchanged import Kept
from espnet_omnisparse.core.updates import after_each_update
from espnet_omnisparse.core.weight_masks import MaskOrder
from espnet_omnisparse.cost.metrics import MEASURED, UNITS
from espnet_omnisparse.cost.size import CostTable, Size, kinds_needed, parse_size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.selection import Net, build_selection
from espnet_omnisparse.supernet.config import CURRENT, PER_SIZE, SupernetConfig
from espnet_omnisparse.supernet.effect import check_effect
from espnet_omnisparse.supernet.phases import phases_of
from espnet_omnisparse.supernet.plan import Plan
from espnet_omnisparse.supernet.sampling import SampledSubnet, Sampler

_ON_ITS_OWN = (
    "This supernet {lacks}, because it is not trained by espnet_omnisparse's task: "
    "train with espnet_omnisparse.bin.asr_train, under ESPnet3 add "
    "espnet_omnisparse.train.lightning.SupernetCallback to trainer.callbacks, or call "
    "model.supernet.begin(updates, optimizer) before the first one."
)


def _largest_first(sizes: Mapping[str, Size]) -> dict[str, Size]:
    if not all(size.table.known for size in sizes.values()):
        return dict(sizes)
    ranked = sorted(sizes.values(), key=lambda size: size.rank)
    return {size.name: size for size in ranked}


class Supernet(torch.nn.Module):
    """The part of a model that is not deployed: update count, selection, plan.

    Args:
        config: The supernet's options.
        space: The encoder's units.
        measure: Makes the table of a metric of the model at hand; called for
            the metrics by which sizes are given, for latencies not before a training
            begins: a checkpoint has them.
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
        self.order: MaskOrder | None = None
        self.own: OwnParameters | None = None
        self.tables = torch.nn.ModuleDict()
        for kind in dict.fromkeys(kinds_needed(config.sizes, config.fraction_of)):
            if kind == UNITS:
                self.tables[kind] = CostTable.counting(space)
            elif kind == MEASURED:
                self.tables[kind] = CostTable.unmeasured(space)
            else:
                self.tables[kind] = measure(kind)
        sizes = [
            parse_size(name, wanted, config.fraction_of, self.tables, self.chunks[-1])
            for name, wanted in config.sizes.items()
        ]
        for size in sizes:
            if size.table.known:
                size.check(masks=config.sparsity is not None)
        if config.sparsity is not None:
            self._check_chunks(sizes)
        self.sizes = _largest_first({size.name: size for size in sizes})
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
        if alone and config.heads == PER_SIZE and not self.selection.exits():
            raise UserError(
                f"supernet.method: {config.method} trains the full net alone, and "
                "with supernet.heads: per_size the sizes would have untrained heads: "
                "use shared."
            )
        self._masks: Kept[dict[str, torch.Tensor]] = Kept()
        self._sampler = Sampler(config, space, self.sizes, self.selection, self.chunks)
        # a Python number, since a tensor on a GPU is waited for each time it is read;
        # the buffer has it in checkpoints
        self._update, self._counts = 0, False
        check_effect(config, self.selection, self._sampler.most)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.total: int | None = None
        self.began: Plan | None = None
        self._timeline: Timeline | None = None
        self._net: Net | None = None
        self._measure = measure
        # their order may depend on the tables
        self.register_load_state_dict_post_hook(lambda *_: self._sort_sizes())

    def _check_chunks(self, sizes: Sequence[Size]) -> None:
        """Refuses sizes that see what the sandwich of sparsities never does."""
        for size in sizes:
            if size.chunk not in self.chunks:
                raise UserError(
                    f"supernet.sizes: {size.name} has a chunk that no net is trained "
                    "with: add it to supernet.chunks."
                )

    def equip(
        self, weights: Mapping[str, torch.Tensor], vectors: Mapping[str, torch.Tensor]
    ) -> None:
        """Makes what the options of the weight axis ask for beside the encoder.

        Args:
            weights: Those that take masks, by name.
            vectors: Those that sparsities may have for themselves.
        """
        plan = self.config.sparsity
        if plan is not None and plan.fixes_masks:
            self.order = MaskOrder(weights, self.space.pattern)
        if plan is not None and plan.own != "none":
            shares = [one.sparsity for one in self.sizes.values() if one.sparsity > 0.0]
            self.own = OwnParameters(vectors, shares)

    def attach(self, net: Net) -> None:
        """Gives the selection the trained net to ask when step 1 ends."""
        self._net = net

    def go_on(self, plan: Plan | None, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on with a training, whose phases and measured costs are kept.

        Args:
            plan: The plan that it began with; `None`: its checkpoint has none.
            state: This module's part of its checkpoint.
        """
        self.began = plan
        self.load_state_dict(state)

    def begin(self, total: int | None, optimizer: torch.optim.Optimizer) -> None:
        """All that a training of one's own must call, before its first update.

        Args:
            total: Updates of the run; `None`: unknown.
            optimizer: Whose steps are the updates.
        """
        self.follow(optimizer)
        self.set_run_length(total)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Counts the optimiser's updates, without those skipped for a bad gradient."""
        self._counts = True
        after_each_update(optimizer, self.count_update)

    def measure(self) -> None:
        """Measures the latencies by which sizes are given, unless they are known.

        Raises:
            UserError: If a size cannot be met.
        """
        table = self.tables[MEASURED] if MEASURED in self.tables else None
        if table is None or table.known:
            return
        together = torch.distributed.is_initialized()
        if not together or torch.distributed.get_rank() == 0:
            table.fill(self._measure(MEASURED))
        if together:  # times differ, and all processes must train the same sizes
            for numbers in table.buffers():
                received = numbers.clone()
                torch.distributed.broadcast(received, 0)
                numbers.copy_(received)  # a change that is seen, unlike the broadcast's
        self._sort_sizes()
        for size in self.sizes.values():
            size.check(masks=self.config.sparsity is not None)

    def _sort_sizes(self) -> None:
        """Largest first, here and in the selection."""
        self.sizes = _largest_first(self.sizes)
        known = self.selection.sizes
        self.selection.sizes = {n: known[n] for n in self.sizes if n in known}

    def set_run_length(self, total: int | None) -> None:
        """Fixes the phases of a run of `total` updates (`None`: unknown).

        A run that goes on keeps those that it began with: of what it becomes longer,
        the last does. Latencies that are not known yet are measured.

        Raises:
            UserError: If a fraction meets a run of unknown length, step 2 would be
                empty, or step 1 is too short for the method.
        """
        self.measure()
        if total is not None:
            total = max(total, self.update)  # a shorter run only ends at once
        if self.began:
            timeline = self.began.timeline
        else:
            joint = self._sampler.joint
            timeline = phases_of(self.config, self.selection, joint, total)
        if total is not None and timeline.settled_at >= total:
            if timeline.settle_at is not None:
                raise UserError(
                    f"The masks of this run settle at update {timeline.settle_at}, but "
                    f"it has {total} updates now: train longer."
                )
            names = "supernet.warm_start and supernet.step1"
            if self.config.sparsity:
                names = "supernet.warm_start, supernet.step1 and sparsity.ramp"
            raise UserError(
                f"{names} take {timeline.settled_at} of the run's {total} updates and "
                "leave none for the joint training of the sizes: shorten them or train "
                "longer."
            )
        self._timeline, self.total = timeline, total

    @property
    def update(self) -> int:
        """Real optimiser steps so far."""
        return self._update

    @update.setter
    def update(self, count: int) -> None:
        self._update, self._counts = count, True

    @property
    def timeline(self) -> Timeline:
        """The phases; `set_run_length` must have been called."""
        if self._timeline is None:
            raise UserError(_ON_ITS_OWN.format(lacks="does not know its phases"))
        return self._timeline

    @property
    def phase(self) -> str:
        """The present phase."""
        return self.timeline.phase(self.update)

    @property
    def settled(self) -> bool:
        """Whether the selection is final."""
        return self.phase in (STEP2, SETTLE)

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
        """The subnets that the present update trains, the main one first.

        Raises:
            UserError: If nothing counts the updates: all would be the first.
        """
        phase = self.phase
        if not self._counts:
            raise UserError(_ON_ITS_OWN.format(lacks="does not count its updates"))
        if phase == WARM:
            return self._sampler.warm_start(self.update)
        if phase == STEP1:
            return self._sampler.step1(*self.step1_time)
        if self.config.sparsity:
            masks = self.size_masks()
            return self._sampler.of_sparsities(masks, self.max_sparsity, self.update)
        if self._sampler.joint:
            return self._sampler.of_sizes(self.size_masks(), self.update)
        return self._sampler.without_sizes(*self.step1_time)

    @property
    def max_sparsity(self) -> float:
        """The highest sparsity that the present update trains."""
        if self.config.sparsity is None or self.phase in (WARM, STEP1):
            return 0.0
        timeline = self.timeline
        if stage := timeline.stage(self.update):
            return stage.sparsity(self.update)
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

        Only meaningful once step 1 has ended. On the CPU, wherever the model is.
        """
        return self._masks.get(self._selected_by(), self._size_masks)

    def _selected_by(self) -> Iterator[torch.Tensor]:
        """All that the masks of sizes depend on."""
        yield from self.selection.parameters()
        yield from self.selection.buffers()
        yield from self.tables.buffers()

    def _size_masks(self) -> dict[str, torch.Tensor]:
        everything = torch.ones(len(self.space), dtype=torch.bool)
        whole = [name for name, size in self.sizes.items() if size.keeps_all_units]
        chosen = {name: mask.cpu() for name, mask in self.selection.masks().items()}
        return dict.fromkeys(whole, everything) | chosen

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
        self._masks = Kept()  # a fused optimiser's changes of scores are not seen
        time, length = self.step1_time
        self.selection.after_update(time, length)
        if time == length:
            self.selection.settle(self._net)

    def _save_to_state_dict(self, *args) -> None:
        self.updates.fill_(self.update)
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._update = self.updates.item()
