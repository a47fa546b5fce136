"""A supernet's plan: which subnets an update trains, with what weight and head.

The plan is a function of the update count alone, so a resumed run and every process
of a distributed one draw the same subnets.
"""

import dataclasses
import difflib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from espnet_omnisparse.budget import KINDS, UNITS, CostTable, kinds_needed, parse_size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.gate import Gate, mask_gates
from espnet_omnisparse.schedule import STEP1, STEP2, WARM, Timeline, resolve_updates
from espnet_omnisparse.selection import Net, build_selection
from espnet_omnisparse.subnet import FULL, SearchSpace

CURRENT = "current"  # the subnet of step 1, in logs
HEADS = ("shared", "per_size")
UPDATES = ("per_batch", "split_batch")
ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class SupernetConfig:
    """The `supernet` section of `model_conf`.

    Attributes:
        method: Selection method, a name registered in `espnet_omnisparse.selection`.
        method_conf: Options of that method.
        sizes: Name of each size below the full one -> units kept, as an int, or a
            fraction, as a float, or a budget, such as `{params: 15M}`.
        fraction_of: What a fraction in `sizes` is of, a key of `budget.KINDS`.
        heads: `shared`: one CTC output projection; `per_size`: each size its own.
        update: `per_batch`: every subnet sees the whole batch; `split_batch`: the
            batch is divided among them.
        subnet_weight: Loss weight of each subnet; the full net's is 1. `adaptive`:
            `1 - exp(-loss)` of its own loss (arXiv 2501.18895).
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
    heads: str = "shared"
    update: str = "per_batch"
    subnet_weight: float | str = 0.3
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
        if FULL in self.sizes or CURRENT in self.sizes:
            raise UserError(
                f"supernet.sizes may not be called {FULL} or {CURRENT}: the full net "
                "is always one of the sizes."
            )

    def _check_numbers(self) -> None:
        values = {f"sizes.{name}": wanted for name, wanted in self.sizes.items()}
        values |= {
            name: getattr(self, name)
            for name in (
                *("subnet_weight", "warm_start", "step1", "score_lr", "seed"),
                *("layer_dropout_step1", "layer_dropout_step2"),
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
        return cls(**mapping)


def check_keys(section: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Refuses unknown keys of a config section, with the likeliest correction.

    Raises:
        UserError: Naming the first unknown key.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {known}."
            raise UserError(f"{section} has an unknown key {key!r}; {hint}")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(
            f"supernet.{name} must be one of {', '.join(choices)}, not {value!r}."
        )


@dataclass(frozen=True)
class Draw:
    """One subnet of one update.

    Attributes:
        size: Its name: `full`, `current` (the subnet of step 1), or a size.
        gates: A gate per unit.
        weight: Of its loss; `None`: adaptive.
        layer_dropout: Rate per unit `[units]`; `None` for no layer dropout.
        exits: Sizes that end inside this one -> the number of blocks they end after;
            their losses have `exit_weight`.
        exit_weight: See `exits`.
    """

    size: str
    gates: tuple[Gate, ...]
    weight: float | None = 1.0
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

    Raises:
        UserError: If a size cannot be met.
    """

    def __init__(
        self,
        config: SupernetConfig,
        space: SearchSpace,
        measure: Callable[[str], CostTable] | None = None,
    ):
        super().__init__()
        self.config = config
        self.space = space
        self.tables = torch.nn.ModuleDict()
        for kind in dict.fromkeys(kinds_needed(config.sizes, config.fraction_of)):
            counting = kind == UNITS
            self.tables[kind] = CostTable.counting(space) if counting else measure(kind)
        sizes = [
            parse_size(name, wanted, config.fraction_of, self.tables)
            for name, wanted in config.sizes.items()
        ]
        for size in sizes:
            size.check()
        sizes.sort(key=lambda size: -size.units)
        self.sizes = {size.name: size for size in sizes}
        self.selection = build_selection(
            config.method, space, self.sizes, config.method_conf
        )
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._timeline: Timeline | None = None
        self._net: Net | None = None

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
        warm = step1 = 0
        if selection.learns or selection.joint:
            warm = resolve_updates("supernet.warm_start", config.warm_start, total)
        if selection.learns:
            step1 = resolve_updates("supernet.step1", config.step1, total)
            selection.check_length(step1)
        timeline = Timeline(warm, step1)
        if total is not None and timeline.selected_at >= total:
            raise UserError(
                f"supernet.warm_start and supernet.step1 take {timeline.selected_at} "
                f"of the run's {total} updates and leave none for the joint training "
                "of the sizes: shorten them or train longer."
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

    def full(self, **kwargs) -> Draw:
        """The full net."""
        return Draw(FULL, (1.0,) * len(self.space), **kwargs)

    def training_draws(self) -> list[Draw]:
        """The subnets that the present update trains, the full net first."""
        if self.phase == WARM:
            return [self.full()]
        if self.phase == STEP1:
            return self._step1_draws()
        if self.selection.joint:
            return self._step2_draws()
        exits = self.selection.exits()
        return [self._alone(exits=exits, exit_weight=self._subnet_weight)]

    def _alone(self, **kwargs) -> Draw:
        """The full net where a method without another subnet trains it."""
        gates = self.selection.full_gates(*self.step1_time)
        return self.full(**kwargs) if gates is None else Draw(FULL, gates, **kwargs)

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
            Draw(CURRENT, gates, self._subnet_weight),
        ]

    def _step2_draws(self) -> list[Draw]:
        masks = self.selection.masks()
        *between, smallest = masks
        rates = self._rates(self.config.layer_dropout_step2, masks[smallest])
        names = [smallest]
        if between:
            # seeded by the update: the same on every process and after a resume
            generator = random.Random(f"{self.config.seed}-{int(self.updates)}")
            names.append(generator.choice(between))
        return [
            self.full(layer_dropout=rates),
            *(
                Draw(name, mask_gates(masks[name]), self._subnet_weight)
                for name in names
            ),
        ]

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
            current = [] if mask is None else [Draw(CURRENT, mask_gates(mask))]
            return [self.full(), *current]
        masks = self.selection.masks()
        return [self.full(), *(Draw(n, mask_gates(m)) for n, m in masks.items())]

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
