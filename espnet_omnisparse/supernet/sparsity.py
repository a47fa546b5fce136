"""The weight axis: which sparsities an update trains.

One dense net is trained so that any layer-wise sparsity pruned out of it works at
once, as in Omni-sparsity (arXiv 2110.08352). The sampling is ours: a sandwich of the
dense net, the sparsest one and random ones, the sparsest reached by a cubic ramp.
"""

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espnet_omnisparse.core.schedule import cubic_ramp
from espnet_omnisparse.errors import UserError, check_keys

DENSE, SPARSEST = "dense", "sparsest"
NETS = (DENSE, SPARSEST, "random", "around", "uniform")
_NEIGHBOURS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class SparsityConfig:
    """The `sparsity` section of `model_conf.supernet`.

    Attributes:
        final: Sparsity of the sparsest net, in every weight, when the ramp has ended.
        initial: Its sparsity when the ramp begins.
        ramp: Updates (int) or fraction of the run (float) that the ramp takes. It
            begins after the warm start and step 1.
        nets: The subnets of an update: `dense`; `sparsest`; `random`, an independent
            sparsity in every weight; `around`, those of neighbouring levels around a
            common one; `uniform`, a random one, the same in every weight. The first
            is trained with full regularisation.
        step: Between the levels that sparsities are drawn from.
        refresh: Updates after which the masks follow the weights again.
    """

    final: float = 0.9
    initial: float = 0.0
    ramp: int | float = 0.3
    nets: tuple[str, ...] = (DENSE, SPARSEST, "random", "random")
    step: float = 0.1
    refresh: int = 10

    def __post_init__(self):
        for name in ("final", "initial", "ramp", "step", "refresh"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"supernet.sparsity.{name} must be a number: {value!r}")
        if not 0.0 <= self.initial <= self.final < 1.0 or self.final == 0.0:
            raise UserError(
                "supernet.sparsity must rise from initial, at least 0, to final, below "
                f"1, not from {self.initial} to {self.final}."
            )
        most = 1.0 if isinstance(self.ramp, float) else math.inf
        if not 0 <= self.ramp <= most:
            raise UserError(
                "supernet.sparsity.ramp must be a number of updates, or a fraction of "
                f"the run between 0.0 and 1.0, not {self.ramp}."
            )
        if not 0.0 < self.step <= self.final:
            raise UserError(
                "supernet.sparsity.step must be above 0 and at most final, not "
                f"{self.step}."
            )
        if not isinstance(self.refresh, int) or self.refresh < 1:
            raise UserError(
                "supernet.sparsity.refresh must be a number of updates, at least 1, "
                f"not {self.refresh}."
            )
        listed = isinstance(self.nets, list | tuple)
        if not listed or not self.nets or any(net not in NETS for net in self.nets):
            raise UserError(
                "supernet.sparsity.nets must list at least one of "
                f"{', '.join(NETS)}, not {self.nets!r}."
            )
        object.__setattr__(self, "nets", tuple(self.nets))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SparsityConfig":
        """Makes a config from a YAML section.

        Raises:
            UserError: If a key is unknown or a value is impossible.
        """
        if not isinstance(mapping, Mapping):
            raise UserError(
                "model_conf.supernet.sparsity must be a section, such as "
                f"{{final: 0.9}}, not {mapping!r}."
            )
        known = [item.name for item in dataclasses.fields(cls)]
        check_keys("model_conf.supernet.sparsity", mapping, known)
        return cls(**mapping)

    @property
    def trains_dense(self) -> bool:
        """Whether the dense net is among those that an update trains."""
        return DENSE in self.nets

    def reach(self, time: int, length: int) -> float:
        """The highest sparsity available at an update.

        Args:
            time: Updates since the ramp began.
            length: Of the ramp, in updates.
        """
        return cubic_ramp(time, length, self.initial, self.final)

    def levels(self, reach: float) -> list[float]:
        """The sparsities to draw from, ascending, 0 and `reach` among them.

        >>> SparsityConfig(step=0.2).levels(0.5)
        [0.0, 0.2, 0.4, 0.5]
        """
        count = int(reach / self.step) + 1
        grid = (round(number * self.step, 6) for number in range(count))
        # a level hardly below the reach would be drawn twice as often
        return [level for level in grid if level < reach - 1e-3] + [reach]

    def draw(
        self, net: str, reach: float, weights: int, generator: random.Random
    ) -> tuple[float, ...]:
        """A sparsity for each of the weights; empty for the dense net.

        Args:
            net: One of `NETS`.
            reach: The highest sparsity available.
            weights: How many.
            generator: Where the randomness comes from.
        """
        if net == DENSE:
            return ()
        if net == SPARSEST:
            return (reach,) * weights
        levels = self.levels(reach)
        if net == "random":
            return tuple(generator.choice(levels) for _ in range(weights))
        common = generator.randrange(len(levels))
        if net == "uniform":
            return (levels[common],) * weights
        highest = len(levels) - 1
        steps = (generator.choice(_NEIGHBOURS) for _ in range(weights))
        return tuple(levels[min(max(common + s, 0), highest)] for s in steps)
