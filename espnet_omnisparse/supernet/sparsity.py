"""The weight axis: which sparsities an update trains.

One dense net is trained so that any layer-wise sparsity pruned out of it works at
once, as in Omni-sparsity (arXiv 2110.08352). The sampling is ours: a sandwich of the
dense net, the sparsest one and random ones, the sparsest reached by a cubic ramp.
"""

import logging
import random
from typing import Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from espnet_omnisparse.core.schedule import cubic_ramp
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.options import Length, Number, Section, option

DENSE, SPARSEST, NEARBY = "dense", "sparsest", "nearby"
SUBNETS = (DENSE, SPARSEST, "random", NEARBY, "uniform")
SIZE = "size"  # one that will be deployed
OF_SANDWICH = (
    f"a list of at least one of {', '.join((*SUBNETS, SIZE))} and the names of sizes"
)
#: what earlier versions called a kind of subnet
_RENAMED = {"around": NEARBY}
_NEIGHBOURS = (-2, -1, 0, 1, 2)


class SparsityConfig(Section):
    """The `sparsity` section of `model_conf.supernet`."""

    name: ClassVar[str] = "supernet.sparsity"
    renamed: ClassVar[dict[str, str]] = {"nets": "sandwich"}

    final: Number = option(
        0.9, "sparsity of the sparsest subnet, in every weight, when the ramp has ended"
    )
    initial: Number = option(0.0, "the same when the ramp begins")
    ramp: Length = option(
        0.3,
        "its length: updates or a fraction of the run; cubic; after warm start and "
        "step 1",
    )
    sandwich: tuple[str, ...] = option(
        (DENSE, SPARSEST, "random", "random"),
        "the subnets of an update (the sandwich rule): `dense`; `sparsest`; `random`, "
        "an independent sparsity in every weight; `nearby`, neighbouring levels around "
        "a common one; `uniform`, a random one, the same everywhere; `size`, any of "
        "`sizes`, another one each time that it is named, logged under the size's name "
        "(so only what is deployed is trained); or the name of one of `sizes`, such as "
        "a full net in a stream. A size that is named, or is what `sparsest` trains, "
        "has a place of its own and is not drawn. The first is never without dropout. "
        "One named twice has one pass with twice the weight, and with `split_batch` "
        "twice the utterances. `[sparsest]` alone is gradual pruning of one model",
        OF_SANDWICH,
    )
    ramp_sandwich: tuple[str, ...] = option(
        (),
        "the same while the ramp lasts; empty: `sandwich`. `[sparsest]`: masks are "
        "found as where one model is pruned alone, and denser subnets are trained "
        "again after it (as in the dense phases of AC/DC, "
        "[2106.12379](https://arxiv.org/abs/2106.12379))",
        OF_SANDWICH,
    )
    settle: Length = option(
        0,
        "length of the run's last part, updates or a fraction, in which masks stand "
        "still: one nested order of each weight's groups, as it is when the part "
        "begins, after the ramp (one mask to the end as in AC/DC, "
        "[2106.12379](https://arxiv.org/abs/2106.12379); averages under one mask as in "
        "[2306.16788](https://arxiv.org/abs/2306.16788)). Only its checkpoints are "
        "chosen and averaged; extraction and search use its order",
    )
    regrow: bool = option(
        True,
        "whether a group of weights that the sparsest subnet has lost may come back "
        "before masks settle. `false`: the mask of each sparsity stands still from "
        "when the ramp has come to it, as where one model is pruned gradually and "
        "masked weights get no gradient "
        "([1710.01878](https://arxiv.org/abs/1710.01878)); in a supernet denser "
        "subnets train them",
    )
    snapshots: Number = option(
        0.0,
        "0: off. Above: gradual pruning of one net in equal stages, one for each of "
        "`sizes`, the densest first; the mask stands still in this share of each, and "
        "the net at its end, with that mask, is the size: no weights are shared (as "
        "ZipLM's family, [2302.04089](https://arxiv.org/abs/2302.04089)). The net at "
        "the end of the warm start is `full`. Takes the place of `ramp` and `settle`; "
        "with `sandwich: [sparsest]`",
        "a number of at least 0 and below 1",
        ge=0,
        lt=1,
    )
    own: Literal["none", "norms_and_biases"] = option(
        "none",
        "what each sparsity among `sizes` has for itself: `norms_and_biases` of the "
        "blocks, and of a front end that takes masks (as the norms of slimmable nets, "
        "[1812.08928](https://arxiv.org/abs/1812.08928), and PERP, "
        "[2312.15230](https://arxiv.org/abs/2312.15230)); copied from the dense net's "
        "when masks begin; those that the ramp has not come to follow those in use. "
        "Other subnets have those of the nearest sparsity, the mean over their masked "
        "weights",
    )
    step: Number = option(0.1, "between the levels that are drawn")
    refresh: int = option(
        10,
        "updates after which the masks follow the weights again",
        "a number of updates, at least 1",
        ge=1,
        strict=True,
    )
    diagnose: int = option(
        100,
        "updates after which gradients are compared for the log, the dense net's with "
        "each size's, on 8 utterances; 0: never",
        "a number of updates, or 0",
        ge=0,
        strict=True,
    )

    @field_validator("sandwich", "ramp_sandwich", mode="before")
    @classmethod
    def _read_sandwich(cls, value: Any, info: ValidationInfo) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError("no list")
        subnets = []
        for one in value:
            new = _RENAMED.get(one) if isinstance(one, str) else None
            if new:
                logging.warning("supernet.sparsity: %s is called %s now.", one, new)
            subnets.append(new or one)
        # `SupernetConfig` knows the names of sizes
        if info.field_name == "sandwich" and not subnets:
            raise ValueError("empty")
        if not all(isinstance(one, str) for one in subnets):
            raise ValueError("unknown")
        return tuple(subnets)

    @model_validator(mode="after")
    def _check_levels(self) -> "SparsityConfig":
        if not 0.0 <= self.initial <= self.final < 1.0 or self.final == 0.0:
            raise UserError(
                "supernet.sparsity must rise from initial, at least 0, to final, below "
                f"1, not from {self.initial} to {self.final}."
            )
        if self.snapshots and (
            self.sandwich != (SPARSEST,)
            or self.settle
            or self.own != "none"
            or self.ramp_sandwich
            or not self.regrow
        ):
            raise UserError(
                "supernet.sparsity.snapshots prunes one net, whose mask stands still "
                "in each stage: it needs sandwich: [sparsest], without settle, own, "
                "ramp_sandwich and regrow: false."
            )
        if self.ramp_sandwich and (self.ramp == 0 or self.initial == self.final):
            raise UserError(
                "supernet.sparsity.ramp_sandwich has no effect without a ramp: give "
                "ramp a length, from initial to a higher final, or remove it."
            )
        if not 0.0 < self.step <= self.final:
            raise UserError(
                "supernet.sparsity.step must be above 0 and at most final, not "
                f"{self.step}."
            )
        return self

    @property
    def trains_dense(self) -> bool:
        """Whether the dense net is among those that an update trains."""
        return DENSE in self.sandwich

    @property
    def fixes_masks(self) -> bool:
        """Whether masks ever stand still."""
        return bool(self.settle or self.snapshots) or not self.regrow

    def subnets(self, highest: float) -> tuple[str, ...]:
        """The sandwich of an update.

        Args:
            highest: The highest sparsity that it trains.
        """
        ramps = self.ramp_sandwich and highest < self.final
        return self.ramp_sandwich if ramps else self.sandwich

    def max_sparsity(self, time: int, length: int) -> float:
        """The highest sparsity available at an update.

        Args:
            time: Updates since the ramp began.
            length: Of the ramp, in updates.
        """
        return cubic_ramp(time, length, self.initial, self.final)

    def levels(self, highest: float) -> list[float]:
        """The sparsities to draw from, ascending, 0 and the highest among them.

        >>> SparsityConfig(step=0.2).levels(0.5)
        [0.0, 0.2, 0.4, 0.5]
        """
        count = int(highest / self.step) + 1
        grid = (round(number * self.step, 6) for number in range(count))
        # a level hardly below the highest would be drawn twice as often
        return [level for level in grid if level < highest - 1e-3] + [highest]

    def draw(
        self, subnet: str, highest: float, weights: int, generator: random.Random
    ) -> tuple[float, ...]:
        """A sparsity for each of the weights; empty for the dense net.

        Args:
            subnet: One of `SUBNETS`.
            highest: The highest sparsity available.
            weights: How many.
            generator: Where the randomness comes from.
        """
        if subnet == DENSE:
            return ()
        if subnet == SPARSEST:
            return (highest,) * weights
        levels = self.levels(highest)
        if subnet == "random":
            return tuple(generator.choice(levels) for _ in range(weights))
        common = generator.randrange(len(levels))
        if subnet == "uniform":
            return (levels[common],) * weights
        last = len(levels) - 1
        steps = (generator.choice(_NEIGHBOURS) for _ in range(weights))
        return tuple(levels[min(max(common + s, 0), last)] for s in steps)
