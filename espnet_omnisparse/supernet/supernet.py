"""A supernet's plan: which subnets an update trains, with what weight and head.

The plan is a function of the update count alone, so a resumed run and every process
of a distributed one draw the same subnets.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.gate import Gate, mask_gates
from espnet_omnisparse.core.schedule import (
    STEP1,
    STEP2,
    WARM,
    Timeline,
    resolve_updates,
)
from espnet_omnisparse.core.subnet import FULL, SearchSpace
from espnet_omnisparse.cost.size import (
    KINDS,
    UNITS,
    CostTable,
    Size,
    kinds_needed,
    parse_size,
)
from espnet_omnisparse.effect import tell_without_effect
from espnet_omnisparse.errors import UserError, check_keys
from espnet_omnisparse.losses.distillation import KINDS as DISTILLATIONS
from espnet_omnisparse.selection import Net, build_selection
from espnet_omnisparse.supernet.sparsity import DENSE, NETS, SPARSEST, SparsityConfig

CURRENT = "current"  # the subnet of step 1, in logs
HEADS = ("shared", "per_size")
UPDATES = ("per_batch", "split_batch", "per_accum")
DROPOUTS = ("adaptive", "full", "none")
ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class SupernetConfig:
    """The `supernet` section of `model_conf`.

    Attributes:
        method: Selection method, a name registered in `espnet_omnisparse.selection`.
        method_conf: Options of that method.
        sizes: Name of each size below the full one -> units kept, as an int, or a
            fraction, as a float, or a budget, such as `{params: 15M}`; with masks
            `{sparsity: 0.7}`, alone or beside a budget.
        fraction_of: What a fraction in `sizes` is of, a key of `budget.KINDS`.
        heads: `shared`: one CTC output projection; `per_size`: each size its own.
        sparsity: Options of the weight axis, those of `SparsityConfig`; `None`: weights
            are not masked.
        chunks: What the nets of an update see, such as `[full, {size: 16, left: 32}]`:
            the first the largest net, the last the smallest, any the others; a warm
            start trains the full net on each of them in turn. Sizes see what the last
            says, unless they name a chunk. Empty: what the encoder does.
        update: `per_batch`: every subnet sees the whole batch; `split_batch`: the
            batch is divided among them; `per_accum`: with `accum_grad`, each
            micro-batch trains one of them.
        subnet_weight: Loss weight of each subnet; the full net's is 1. `adaptive`:
            `1 - exp(-loss)` of its own loss (arXiv 2501.18895).
        subnet_dropout: Of every net but the largest: `adaptive`: an FFN's rate shrinks
            with its unmasked weights; `full`: it does not; `none`: no dropout.
        distillation: What the largest net teaches the others on the same utterances:
            `none`, `kl`, or `alpha`, the adaptive alpha-divergence.
        distillation_weight: Share of a subnet's loss that is the teacher's.
        warm_start: Updates (int) or fraction of the run (float) that train the full
            net alone, before step 1.
        step1: Updates or fraction of the run that learn the selection.
        layer_dropout_step1: Rate of layer dropout on the full net in step 1, on units
            outside the current subnet.
        layer_dropout_step2: The same in step 2, on units outside the smallest size.
        score_lr: Learning rate of the selection's parameters; `None`: the optimiser's.
        seed: Of the random intermediate size.
    """

    method: str = "none"
    method_conf: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    fraction_of: str = UNITS
    sparsity: SparsityConfig | None = None
    chunks: tuple[Chunk | None, ...] = ()
    heads: str = "shared"
    update: str = "per_batch"
    subnet_weight: float | str = 0.3
    subnet_dropout: str = "adaptive"
    distillation: str = "none"
    distillation_weight: float = 0.5
    warm_start: int | float = 0
    step1: int | float = 0.6
    layer_dropout_step1: float = 0.0
    layer_dropout_step2: float = 0.0
    score_lr: float | None = None
    seed: int = 0

    def __post_init__(self):
        self._check_numbers()
        for name in self.sizes:
            if name == "sizes" or not re.fullmatch(r"\w[\w-]*", name):
                raise UserError(
                    f"supernet.sizes may not be called {name!r}: use letters, digits, "
                    "_ and -, and not the word sizes."
                )
        _one_of("heads", self.heads, HEADS)
        _one_of("update", self.update, UPDATES)
        _one_of("fraction_of", self.fraction_of, tuple(KINDS))
        _one_of("subnet_dropout", self.subnet_dropout, DROPOUTS)
        _one_of("distillation", self.distillation, DISTILLATIONS)
        share = self.distillation_weight
        if not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
            raise UserError("supernet.distillation_weight must be between 0 and 1.")
        self._check_sparsity()
        for name in ("layer_dropout_step1", "layer_dropout_step2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"supernet.{name} must be at least 0 and below 1.")
        for name in ("warm_start", "step1"):
            value = getattr(self, name)
            if value < 0 or (isinstance(value, float) and value > 1.0):
                raise UserError(
                    f"supernet.{name} must be a number of updates, or a fraction of "
                    f"the run between 0.0 and 1.0, not {value}."
                )
        if self.method != "none" and not self.sizes:
            raise UserError(
                "supernet.sizes is empty: name at least one size, such as "
                "{small: 0.33, medium: 0.67}."
            )
        for name in self.sizes:
            if name in (FULL, CURRENT) or name.rstrip("0123456789") in NETS:
                raise UserError(
                    f"supernet.sizes may not be called {name!r}, a word that the log "
                    "uses: choose another name."
                )

    def _check_sparsity(self) -> None:
        masked = {
            name: wanted["sparsity"]
            for name, wanted in self.sizes.items()
            if isinstance(wanted, Mapping) and "sparsity" in wanted
        }
        if self.sparsity is None:
            if masked:
                raise UserError(
                    f"supernet.sizes: {next(iter(masked))} has a sparsity, but nothing "
                    "trains one: add the section supernet.sparsity."
                )
            return
        for name, share in masked.items():
            if isinstance(share, int | float) and share > self.sparsity.final:
                raise UserError(
                    f"supernet.sizes: {name} has a sparsity of {share}, but training "
                    f"goes up to supernet.sparsity.final: {self.sparsity.final}."
                )
        if self.distillation != "none" and self.sparsity.nets[0] != DENSE:
            raise UserError(
                "supernet.distillation needs the dense net, the teacher, as the first "
                "of supernet.sparsity.nets."
            )
        if self.heads != HEADS[0]:
            raise UserError(
                "supernet.heads: per_size cannot be combined with supernet.sparsity, "
                "whose subnets have no names: use shared."
            )

    def _check_numbers(self) -> None:
        values = {f"sizes.{name}": wanted for name, wanted in self.sizes.items()}
        values |= {
            name: getattr(self, name)
            for name in (
                *("subnet_weight", "warm_start", "step1", "score_lr", "seed"),
                *("layer_dropout_step1", "layer_dropout_step2"),
                "distillation_weight",
            )
        }
        for name, value in values.items():
            # YAML reads 1e-3, without a point, as text
            if isinstance(value, str) and (name, value) != ("subnet_weight", ADAPTIVE):
                raise UserError(
                    f"supernet.{name} must be a number, not the text {value!r}: write "
                    "powers of ten as 1.0e-3."
                )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SupernetConfig":
        """Makes a config from a YAML section.

        Raises:
            UserError: If a key is unknown or a value is impossible.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        check_keys("model_conf.supernet", mapping, known)
        values = dict(mapping)
        if values.get("sparsity") is not None:
            values["sparsity"] = SparsityConfig.from_mapping(values["sparsity"])
        chunks = values.get("chunks", ())
        if not isinstance(chunks, list | tuple):
            raise UserError(
                "supernet.chunks must be a list, such as "
                f"[full, {{size: 16, left: 32}}], not {chunks!r}."
            )
        values["chunks"] = tuple(Chunk.parse(c, "supernet.chunks") for c in chunks)
        return cls(**values)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(
            f"supernet.{name} must be one of {', '.join(choices)}, not {value!r}."
        )


@dataclass(frozen=True)
class Draw:
    """One subnet of one update.

    Attributes:
        size: Its name: `full`, `current` (the subnet of step 1), a size, or one of
            `sparsity.NETS`.
        gates: A gate per unit.
        weight: Of its loss; `None`: adaptive.
        sparsity: A sparsity per weight; empty: nothing is masked.
        main: Whether it is the net with full regularisation, whose BatchNorm statistics
            count and which teaches the others.
        chunk: What its frames see; `None`: the whole recording.
        layer_dropout: Rate per unit `[units]`; `None` for no layer dropout.
        exits: Sizes that end inside this one -> the number of blocks they end after;
            their losses have `exit_weight`.
        exit_weight: See `exits`.
    """

    size: str
    gates: tuple[Gate, ...]
    weight: float | None = 1.0
    sparsity: tuple[float, ...] = ()
    main: bool = False
    chunk: Chunk | None = None
    layer_dropout: torch.Tensor | None = None
    exits: Mapping[str, int] = field(default_factory=dict)
    exit_weight: float | None = None


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
        sizes.sort(key=lambda size: (not size.whole, -size.units, size.sparsity))
        self.sizes = {size.name: size for size in sizes}
        layered = {size.name: size for size in sizes if not size.whole}
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
            if size.whole and not other:
                other = f"supernet.sizes.{size.name}, which drops nothing"
        if other and alone:
            raise UserError(
                f"supernet.method: {config.method} has no joint training of its sizes "
                f"and cannot be combined with {other}: choose another."
            )
        if alone and config.heads != HEADS[0] and not self.selection.exits():
            raise UserError(
                f"supernet.method: {config.method} trains the full net alone, and "
                "with supernet.heads: per_size the sizes would have untrained heads: "
                "use shared."
            )
        tell_without_effect(config, self.selection, self.nets)
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
        if selection.learns or self._joint or config.sparsity:
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
        return self.timeline.phase(int(self.updates))

    @property
    def settled(self) -> bool:
        """Whether the selection is final."""
        return self.phase == STEP2

    @property
    def step1_time(self) -> tuple[int, int]:
        """Updates since step 1 began, and its length."""
        return int(self.updates) - self.timeline.warm, self.timeline.step1

    @property
    def _subnet_weight(self) -> float | None:
        weight = self.config.subnet_weight
        return None if weight == ADAPTIVE else weight

    @property
    def nets(self) -> int:
        """The most subnets that an update trains."""
        if self.config.sparsity:
            # step 1 trains two
            return max(len(self.config.sparsity.nets), 1 + self.selection.learns)
        # the full net, the smallest size and one between them
        return min(3, 1 + len(self.sizes)) if self._joint else 1

    @property
    def _joint(self) -> bool:
        """Whether the full net has sizes trained beside it, masks on weights apart."""
        return self.selection.joint or any(size.whole for size in self.sizes.values())

    def full(self, **kwargs) -> Draw:
        """The full net."""
        gates = (1.0,) * len(self.space)
        return Draw(FULL, gates, main=True, chunk=self.chunks[0], **kwargs)

    def training_draws(self) -> list[Draw]:
        """The subnets that the present update trains, the full net first."""
        if self.phase == WARM:
            # what all sizes begin with must have heard all that any of them hears
            turn = int(self.updates) % len(self.chunks)
            return [dataclasses.replace(self.full(), chunk=self.chunks[turn])]
        if self.phase == STEP1:
            return self._step1_draws()
        if self.config.sparsity:
            return self._sparse_draws(self.config.sparsity)
        if self._joint:
            return self._step2_draws()
        exits = self.selection.exits()
        return [self._alone(exits=exits, exit_weight=self._subnet_weight)]

    def _alone(self, **kwargs) -> Draw:
        """The full net where a method without another subnet trains it."""
        gates = self.selection.full_gates(*self.step1_time)
        full = self.full(**kwargs)
        return full if gates is None else dataclasses.replace(full, gates=gates)

    def _step1_draws(self) -> list[Draw]:
        time, length = self.step1_time
        gates = self.selection.gates(time, length)
        if gates is None:
            return [self._alone()]
        rates, rate = None, self.config.layer_dropout_step1
        if rate > 0.0:  # ranking the units takes time in every update
            rates = self._rates(rate, self.selection.mask_now(time, length))
        return [
            self.full(layer_dropout=rates),
            Draw(CURRENT, gates, self._subnet_weight, chunk=self.chunks[-1]),
        ]

    def _step2_draws(self) -> list[Draw]:
        masks = self.size_masks()
        *between, smallest = masks
        rates = self._rates(self.config.layer_dropout_step2, masks[smallest])
        names = [smallest]
        if between:
            names.append(self._generator().choice(between))
        return [
            self.full(layer_dropout=rates),
            *(
                Draw(
                    name,
                    mask_gates(masks[name]),
                    self._subnet_weight,
                    chunk=self.sizes[name].chunk,
                )
                for name in names
            ),
        ]

    def _sparse_draws(self, plan: SparsityConfig) -> list[Draw]:
        """The sandwich of the weight axis; with sizes of units, of both axes."""
        generator, reach = self._generator(), self.reach
        masks = list(self.selection.masks().values())
        weights = len(self.space.weights)
        draws = []
        for number, net in enumerate(plan.nets):
            mask = torch.ones(len(self.space), dtype=torch.bool)
            if net == SPARSEST and masks:
                mask = masks[-1]
            elif net != DENSE and masks:
                mask = generator.choice([mask, *masks])
            sparsity = plan.draw(net, reach, weights, generator)
            name = FULL if net == DENSE else net
            if plan.nets.count(net) > 1:
                name += str(plan.nets[: number + 1].count(net))
            main = number == 0
            weight = 1.0 if main else self._subnet_weight
            rates = None
            if main and net == DENSE and masks:
                rates = self._rates(self.config.layer_dropout_step2, masks[-1])
            chunk = self.chunks[0] if main else self.chunks[-1]
            if not main and net != SPARSEST and len(self.chunks) > 1:
                chunk = generator.choice(self.chunks)
            gates = mask_gates(mask)
            draws.append(Draw(name, gates, weight, sparsity, main, chunk, rates))
        return draws

    def _generator(self) -> random.Random:
        """Randomness of the present update: the same on every process and resumed."""
        return random.Random(f"{self.config.seed}-{int(self.updates)}")

    @property
    def reach(self) -> float:
        """The highest sparsity that the present update trains."""
        if self.config.sparsity is None or self.phase in (WARM, STEP1):
            return 0.0
        timeline = self.timeline
        time = int(self.updates) - timeline.selected_at
        return self.config.sparsity.reach(time, timeline.ramp)

    def _rates(self, rate: float, kept: torch.Tensor) -> torch.Tensor | None:
        """Layer dropout on the branches of which `kept` has nothing."""
        if rate == 0.0:
            return None
        groups = torch.tensor(self.space.groups, device=kept.device)
        touched = groups.bincount(weights=kept.float()) > 0
        return rate * (~touched[groups]).float()

    def validation_draws(self) -> list[Draw]:
        """The subnets to validate: all sizes, or in step 1 the full and current one."""
        if self.phase == WARM:
            return [self.full()]
        if self.phase == STEP1:
            mask = self.selection.mask_now(*self.step1_time)
            if mask is None:
                return [self.full()]
            return [self.full(), Draw(CURRENT, mask_gates(mask), chunk=self.chunks[-1])]
        sizes = [
            Draw(
                name,
                mask_gates(mask),
                sparsity=self._shares(name, self.reach),
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
        whole = {n: everything for n, size in self.sizes.items() if size.whole}
        return whole | self.selection.masks()

    def size_sparsity(self, size: str) -> tuple[float, ...]:
        """The sparsity of every weight of a size; empty: nothing is masked."""
        return self._shares(size, 1.0)

    def _shares(self, size: str, reach: float) -> tuple[float, ...]:
        share = min(self.sizes[size].sparsity, reach)
        return (share,) * len(self.space.weights) if share > 0.0 else ()

    def penalty(self) -> torch.Tensor | float:
        """The selection method's own loss term at the present update."""
        if self.phase != STEP1:
            return 0.0
        return self.selection.penalty(*self.step1_time)

    def count_update(self) -> None:
        """To be called after each real optimiser step."""
        in_step1 = self.phase == STEP1
        self.updates += 1
        if not in_step1:
            return
        time, length = self.step1_time
        self.selection.after_update(time, length)
        if time == length:
            self.selection.settle(self._net)
