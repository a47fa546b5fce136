"""Which subnets an update trains, and with what weight: the sandwich rule.

The largest subnet, the smallest and random ones between them (US-Nets, arXiv
1903.05134). What is drawn is a function of the update count alone, so a resumed run and
every process of a distributed one draw the same subnets.
"""

import random
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.core.gate import Gate, mask_gates
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import FULL
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.selection import Selection
from espnet_omnisparse.supernet.config import ADAPTIVE, CURRENT, SupernetConfig
from espnet_omnisparse.supernet.sparsity import DENSE, SIZE, SPARSEST


class AdaptiveWeight:
    """The loss weight `1 - exp(-loss)`: what is learned already weighs less.

    Of OrthoSoftmax (arXiv 2501.18895), for losses per frame.
    """

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        """The weight of a subnet whose loss per frame is `loss`, a scalar."""
        return 1.0 - torch.exp(-loss)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AdaptiveWeight)

    __hash__ = object.__hash__


@dataclass(frozen=True)
class SampledSubnet:
    """One subnet of one update.

    Attributes:
        size: Its name: `full`, `current` (the subnet of step 1), a size, or one of
            `sparsity.SUBNETS`, numbered where an update has several.
        gates: A gate per unit.
        weight: Of its loss, each time.
        sparsity: A sparsity per weight; empty: nothing is masked.
        is_main: Whether it is the one with full regularisation, whose BatchNorm
            statistics count and which teaches the others: the first.
        chunk: What its frames see; `None`: the whole recording.
        layer_dropout: Rate per unit `[units]`; `None` for no layer dropout.
        exits: Sizes that end inside this one -> the number of blocks they end after;
            their losses have `exit_weight`.
        exit_weight: See `exits`.
        times: How often the update has it, all of them in one pass.
    """

    size: str
    gates: tuple[Gate, ...]
    weight: float | AdaptiveWeight = 1.0
    sparsity: tuple[float, ...] = ()
    is_main: bool = False
    chunk: Chunk | None = None
    layer_dropout: torch.Tensor | None = None
    exits: Mapping[str, int] = field(default_factory=dict)
    exit_weight: float | AdaptiveWeight = 1.0
    times: int = 1


def total_weight(sampled: Sequence[SampledSubnet]) -> float:
    """The weights of an update's losses, added up; 1 where a weight is adaptive.

    Adaptive weights begin small and stay below 1, as published.

    Args:
        sampled: The subnets of the update.

    >>> total_weight([SampledSubnet("full", ()), SampledSubnet("small", (), 0.3)])
    1.3
    """
    weights = [one.weight for one in sampled for _ in range(one.times)]
    weights += [one.exit_weight for one in sampled for _ in one.exits]
    if any(isinstance(weight, AdaptiveWeight) for weight in weights):
        return 1.0
    return sum(weights)


class Sampler:
    """Draws the subnets of an update.

    Args:
        config: The supernet's options.
        space: The encoder's units.
        sizes: The wanted sizes, largest first.
        selection: What decides on their units.
        chunks: What subnets see, the first the largest, the last the smallest.
    """

    def __init__(
        self,
        config: SupernetConfig,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        selection: Selection,
        chunks: tuple[Chunk | None, ...],
    ):
        self._config, self._space, self._sizes = config, space, sizes
        self._selection, self._chunks = selection, chunks
        weight = config.subnet_weight
        self._weight = AdaptiveWeight() if weight == ADAPTIVE else weight

    @property
    def joint(self) -> bool:
        """Whether the full net has sizes trained beside it, masks on weights apart."""
        return self._selection.joint or any(
            size.keeps_all_units for size in self._sizes.values()
        )

    @property
    def most(self) -> int:
        """The most subnets that an update trains."""
        if self._config.sparsity:
            plan = self._config.sparsity
            most = max(len(plan.sandwich), len(plan.ramp_sandwich))
            return max(most, 1 + self._selection.learns)  # step 1 trains two
        # the full net, the smallest size and one between them
        return min(3, 1 + len(self._sizes)) if self.joint else 1

    def full(self, **options) -> SampledSubnet:
        """The full net."""
        gates = (1.0,) * len(self._space)
        options = {"chunk": self._chunks[0], "gates": gates, **options}
        return SampledSubnet(FULL, is_main=True, **options)

    def warm_start(self, update: int) -> list[SampledSubnet]:
        """The full net, on each chunk in turn: all that any size sees."""
        return [self.full(chunk=self._chunks[update % len(self._chunks)])]

    def step1(self, time: int, length: int) -> list[SampledSubnet]:
        """The full net, and the subnet of the scores that step 1 learns.

        Args:
            time: Updates since step 1 began.
            length: Of step 1.
        """
        gates = self._selection.gates(time, length)
        if gates is None:
            return [self._alone(time, length)]
        rates, rate = None, self._config.layer_dropout_step1
        if rate > 0.0:  # ranking the units takes time in every update
            rates = self._rates(rate, self._selection.mask_now(time, length))
        return [
            self.full(layer_dropout=rates),
            SampledSubnet(CURRENT, gates, self._weight, chunk=self._chunks[-1]),
        ]

    def without_sizes(self, time: int, length: int) -> list[SampledSubnet]:
        """The full net and its exits, of methods without joint training.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        exits = self._selection.exits()
        return [self._alone(time, length, exits=exits, exit_weight=self._weight)]

    def _alone(self, time: int, length: int, **options) -> SampledSubnet:
        """The full net where a method without another subnet trains it."""
        gates = self._selection.full_gates(time, length)
        return self.full(**options, **({} if gates is None else {"gates": gates}))

    def of_sizes(
        self, masks: Mapping[str, torch.Tensor], update: int
    ) -> list[SampledSubnet]:
        """The sandwich of the layer axis: full net, smallest size, one between.

        Args:
            masks: The units `[units]` of each size, largest first.
            update: The update count.
        """
        *between, smallest = masks
        rates = self._rates(self._config.layer_dropout_step2, masks[smallest])
        names = [smallest]
        if between:
            names.append(self._generator(update).choice(between))
        return [
            self.full(layer_dropout=rates),
            *(
                SampledSubnet(
                    name,
                    mask_gates(masks[name]),
                    self._weight,
                    chunk=self._sizes[name].chunk,
                )
                for name in names
            ),
        ]

    def of_sparsities(
        self, size_masks: Mapping[str, torch.Tensor], highest: float, update: int
    ) -> list[SampledSubnet]:
        """The sandwich of the weight axis; with sizes of units, of both axes.

        Args:
            size_masks: The units `[units]` of each size, largest first.
            highest: The highest sparsity of this update.
            update: The update count.
        """
        generator, plan = self._generator(update), self._config.sparsity
        layered = self._selection.sizes
        masks = [mask for name, mask in size_masks.items() if name in layered]
        every = torch.ones(len(self._space), dtype=torch.bool)
        smallest = masks[-1] if masks else every
        weights = len(self._space.weights)
        sandwich = plan.subnets(highest)
        sizes = self._drawn_sizes(sandwich, size_masks, smallest, generator)
        sampled = []
        for subnet in sandwich:
            main = not sampled
            if subnet == SIZE or subnet in self._sizes:
                name = next(sizes) if subnet == SIZE else subnet
                sampled.append(self._of_size(name, size_masks[name], highest, main))
                continue
            mask = every
            if subnet == SPARSEST:
                mask = smallest
            elif subnet != DENSE and masks:
                mask = generator.choice([every, *masks])
            sparsity = plan.draw(subnet, highest, weights, generator)
            rates = None
            if main and subnet == DENSE and masks:
                rates = self._rates(self._config.layer_dropout_step2, smallest)
            chunk = self._chunks[0] if main else self._chunks[-1]
            if not main and subnet != SPARSEST and len(self._chunks) > 1:
                chunk = generator.choice(self._chunks)
            sampled.append(
                SampledSubnet(
                    FULL if subnet == DENSE else subnet,
                    mask_gates(mask),
                    1.0 if main else self._weight,
                    sparsity,
                    main,
                    chunk,
                    rates,
                )
            )
        together = _each_once(sampled)
        if self._config.update == "in_turn":
            return together  # such an update logs one of them, as what it is
        return _numbered(together, self._sizes)

    def _drawn_sizes(
        self,
        sandwich: Sequence[str],
        size_masks: Mapping[str, torch.Tensor],
        smallest: torch.Tensor,
        generator: random.Random,
    ) -> Iterator[str]:
        """Names of sizes, none twice before each has been drawn once.

        Those that have a place of their own, by name or as the sparsest subnet, whose
        units are the `smallest`, are not drawn, unless all have one.
        """
        placed = {*sandwich} & {*self._sizes}
        if SPARSEST in sandwich:
            # the main subnet sees the largest chunk
            chunk = self._chunks[-1 if SPARSEST in sandwich[1:] else 0]
            final = self._config.sparsity.final
            placed |= {
                name
                for name, size in self._sizes.items()
                if (size.sparsity, size.chunk, size.decoder) == (final, chunk, None)
                and torch.equal(size_masks[name], smallest)
            }
        names = [name for name in self._sizes if name not in placed]
        names = names or list(self._sizes)
        count = sandwich.count(SIZE)
        for start in range(0, count, max(len(names), 1)):
            yield from generator.sample(names, min(len(names), count - start))

    def _of_size(
        self, name: str, mask: torch.Tensor, highest: float, main: bool
    ) -> SampledSubnet:
        """A size, which keeps the units in `mask`, as far as the ramp has come."""
        share = min(self._sizes[name].sparsity, highest)
        return SampledSubnet(
            name,
            mask_gates(mask),
            1.0 if main else self._weight,
            (share,) * len(self._space.weights) if share > 0.0 else (),
            main,
            self._sizes[name].chunk,
        )

    def _generator(self, update: int) -> random.Random:
        """Randomness of an update: the same on every process and resumed."""
        return random.Random(f"{self._config.seed}-{update}")

    def _rates(self, rate: float, kept: torch.Tensor) -> torch.Tensor | None:
        """Layer dropout on the branches of which `kept` has nothing."""
        if rate == 0.0:
            return None
        groups = torch.tensor(self._space.groups, device=kept.device)
        counts = torch.zeros(len(set(self._space.groups)), device=kept.device)
        touched = counts.index_add(0, groups, kept.float()) > 0
        return rate * (~touched[groups]).float()


def _each_once(drawn: Sequence[SampledSubnet]) -> list[SampledSubnet]:
    """Nets that were drawn several times, once, with how often they were."""
    return [
        replace(one, times=drawn.count(one))
        for number, one in enumerate(drawn)
        if one not in drawn[:number]
    ]


def _numbered(
    sampled: Sequence[SampledSubnet], sizes: Container[str]
) -> list[SampledSubnet]:
    """The same, different nets of one name told apart by a number behind it.

    Sizes keep theirs, which says what decoder and head they have.
    """
    names = [one.size for one in sampled]

    def numbered(at: int, name: str) -> str:
        if name in sizes or names.count(name) == 1:
            return name
        return f"{name}{names[: at + 1].count(name)}"

    return [replace(one, size=numbered(at, one.size)) for at, one in enumerate(sampled)]
