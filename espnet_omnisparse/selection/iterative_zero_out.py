"""Iterative-Zero-Out: sigmoid gates, a sparsity loss, and scores set back in turns.

Dynamic Encoder Size Based on Data-Driven Layer-wise Pruning for Speech Recognition
(Interspeech 2024, arXiv 2407.18930).
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from espnet_omnisparse.core.gate import Gate
from espnet_omnisparse.core.mask import ranking, top_k_mask
from espnet_omnisparse.core.schedule import iteration_ends, resolve_updates
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.cost.size import Size
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.options import Count, Length
from espnet_omnisparse.selection import Selection

OPEN, SHUT = 10.0, -5.0
PENALTY = 5.0


class IterativeZeroOut(Selection, name="iterative_zero_out"):
    """Shuts a few more of the least important units at the end of every iteration.

    What is shut is not frozen: its score may recover.

    Args:
        space: The supernet's units.
        sizes: Wanted sizes below the full one. Units are shut until the smallest is
            left.
        zero_out: How many more units are shut at the end of each iteration.
        first_iteration: Length of the first iteration, in updates or as a fraction of
            step 1; `None`: as long as the others, which share the rest evenly.
    """

    def __init__(
        self,
        space: SearchSpace,
        sizes: Mapping[str, Size],
        zero_out: Annotated[
            Count,
            Field(
                description="how many more units are shut at the end of each "
                "iteration; there are as many iterations as it takes to come down to "
                "the smallest size"
            ),
        ] = 2,
        first_iteration: Annotated[
            Length | None,
            Field(
                description="length of the first iteration, in updates or as a "
                "fraction of step 1; by default as the others"
            ),
        ] = None,
    ):
        super().__init__(space, sizes)
        self.zero_out = zero_out
        self.first_iteration = first_iteration
        self.scores = torch.nn.Parameter(torch.full((len(space),), OPEN))
        # masks taken on the way, of the sizes whose ranking a zero-out would flatten;
        # by name, because the order of sizes may depend on measured latencies
        self._rows = {name: row for row, name in enumerate(sorted(sizes))}
        self.register_buffer("taken", torch.zeros(len(sizes), dtype=torch.bool))
        shape = (len(sizes), len(space))
        self.register_buffer("taken_masks", torch.ones(shape, dtype=torch.bool))

    @property
    def shut_counts(self) -> list[int]:
        """n_i: how many units are shut at the end of each iteration, in total."""
        last = len(self.space) - min(size.units for size in self.sizes.values())
        return [*range(self.zero_out, last, self.zero_out), last]

    def check_length(self, length: int) -> None:
        """Refuses a step 1 in which an iteration would have no update.

        Raises:
            UserError: If there are more iterations than updates.
        """
        super().check_length(length)
        ends = [0, *self._ends(length)]
        if any(end <= start for start, end in zip(ends, ends[1:], strict=False)):
            raise UserError(
                f"supernet.step1 has {length} updates, too few for the "
                f"{len(ends) - 1} iterations of iterative_zero_out: lengthen it, raise "
                "method_conf.zero_out or shorten first_iteration."
            )

    def _ends(self, length: int) -> list[int]:
        first = self.first_iteration
        if first is not None:
            first = resolve_updates("method_conf.first_iteration", first, length)
        return iteration_ends(length, len(self.shut_counts), first)

    def wanted_shut(self, time: int, length: int) -> int:
        """n_i of the iteration that this time lies in.

        Args:
            time: Updates since step 1 began.
            length: Of step 1, in updates.
        """
        ends = zip(self._ends(length), self.shut_counts, strict=True)
        return next(shut for end, shut in ends if time < end)

    def gates(self, time: int, length: int) -> tuple[Gate, ...]:
        """Soft gates throughout; every unit is computed."""
        return tuple(torch.sigmoid(self.scores).unbind())

    def mask_now(self, time: int, length: int) -> torch.Tensor:
        """The units that the iteration is to leave open."""
        shut = self.shut_counts[-1]
        if time < length:
            shut = self.wanted_shut(time, length)
        return top_k_mask(self.scores, len(self.space) - shut)

    def penalty(self, time: int, length: int) -> torch.Tensor:
        """Distance of the mean shut-ness from that of the iteration, times 5."""
        shut = 1.0 - torch.sigmoid(self.scores).mean()
        target = self.wanted_shut(time, length) / len(self.space)
        return PENALTY * (shut - target).abs()

    @torch.no_grad()
    def after_update(self, time: int, length: int) -> None:
        """At the end of an iteration, shuts the units of lowest score."""
        ends = dict(zip(self._ends(length), self.shut_counts, strict=True))
        if time not in ends:
            return
        self._take_masks(ends[time])
        worst = ranking(self.scores)[len(self.space) - ends[time] :]
        self.scores[worst] = SHUT

    def _take_masks(self, shut: int) -> None:
        """Keeps the masks that need the ranking of units about to be shut."""
        left, last = len(self.space) - shut, shut == self.shut_counts[-1]
        for name, size in self.sizes.items():
            row, mask = self._rows[name], size.mask(self.ranking())
            if (last or mask.sum() > left) and not self.taken[row]:
                self.taken_masks[row] = mask
                self.taken[row] = True

    def ranking(self) -> torch.Tensor:
        """By score, within the masks taken on the way, so that sizes are nested."""
        by_score = ranking(self.scores)
        # how many of those masks keep a unit counts before its score
        levels = self.taken_masks.sum(0)
        return by_score[ranking(levels[by_score])]

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks taken on the way, and for the rest the final ranking's."""
        masks = super().masks()
        for name, row in self._rows.items():
            if self.taken[row]:
                masks[name] = self.taken_masks[row]
        return dict(sorted(masks.items(), key=lambda item: -int(item[1].sum())))

    def scores_now(self) -> torch.Tensor:
        """The scores themselves."""
        return self.scores.detach()
