"""Schedules: pure functions of the number of updates made so far."""

from collections.abc import Mapping
from dataclasses import dataclass

from espnet_omnisparse.errors import UserError

PHASES = WARM, STEP1, RAMP, STEP2, SETTLE = "warm", "step1", "ramp", "step2", "settle"


def resolve_updates(name: str, length: int | float, total: int | None) -> int:
    """Turns a length given in updates (int) or as a fraction of the run into updates.

    Args:
        name: The option's name, for the error message.
        length: Updates as an int, or a fraction in [0, 1] as a float.
        total: Updates of the whole run; `None` where nobody knows.

    Raises:
        UserError: If a fraction is asked of a run of unknown length.

    >>> resolve_updates("step1", 0.6, 1000)
    600
    """
    if isinstance(length, int):
        return length
    if length == 0.0:
        return 0
    if total is None:
        raise UserError(
            f"{name}: {length} is a fraction of a run whose length is unknown, since "
            f"its iterator cannot tell it: give {name} in updates, a whole number."
        )
    return round(length * total)


@dataclass(frozen=True)
class Stage:
    """A part of gradual pruning at whose end the net is kept as a size.

    Attributes:
        size: The size's name.
        initial: Sparsity when it begins.
        final: That of the size.
        begin: Its first update.
        still_at: The update from which on the mask stands still, at `final`.
        end: The update at which the net is kept, the next one's first.
    """

    size: str
    initial: float
    final: float
    begin: int
    still_at: int
    end: int

    def sparsity(self, update: int) -> float:
        """The sparsity at an update of it, or after it."""
        ramp = self.still_at - self.begin
        return cubic_ramp(update - self.begin, ramp, self.initial, self.final)


def stages_of(
    sizes: Mapping[str, float], begin: int, end: int, still: float
) -> tuple[Stage, ...]:
    """Equal stages, one for each size, from the densest to the sparsest.

    Args:
        sizes: Name -> sparsity.
        begin: The first update of the first one.
        end: The end of the last.
        still: Share of each in which the mask stands still.

    >>> [(one.size, one.still_at, one.end)
    ...  for one in stages_of({"s80": 0.8, "s50": 0.5}, 20, 100, 0.25)]
    [('s50', 50, 60), ('s80', 90, 100)]
    """
    ranked = sorted(sizes.items(), key=lambda item: item[1])
    length = (end - begin) / len(ranked)
    stages: list[Stage] = []
    for number, (name, final) in enumerate(ranked, 1):
        initial = stages[-1].final if stages else 0.0
        start = stages[-1].end if stages else begin
        stop = begin + round(number * length)
        still_at = stop - round(still * (stop - start))
        stages.append(Stage(name, initial, final, start, still_at, stop))
    return tuple(stages)


@dataclass(frozen=True)
class Timeline:
    """The phases of a supernet's training, counted in updates.

    Attributes:
        warm: Updates that train the full net alone.
        step1: Updates that learn the selection beside it.
        ramp: Updates in which the sparsity of masked subnets rises.
        settle_at: The update from which on masks on weights stay what they are;
            `None`: they never do.
        stages: Those at whose ends nets are kept, in order, to the end of the run.
    """

    warm: int
    step1: int
    ramp: int = 0
    settle_at: int | None = None
    stages: tuple[Stage, ...] = ()

    def stage(self, update: int) -> Stage | None:
        """The stage that an update belongs to; after the run its last one."""
        begun = [one for one in self.stages if one.begin <= update]
        return begun[-1] if begun else None

    def masks_stand(self, update: int) -> bool:
        """Whether the masks on weights do not follow the weights at an update."""
        if not self.stages:
            return self.phase(update) == SETTLE
        stage = self.stage(update)
        return stage is not None and update >= stage.still_at

    @property
    def selected_at(self) -> int:
        """The update from which on the selection is settled."""
        return self.warm + self.step1

    @property
    def settled_at(self) -> int:
        """The update from which on every size is trained as it will be deployed."""
        return self.ramped_at if self.settle_at is None else self.settle_at

    @property
    def ramped_at(self) -> int:
        """The update from which on every sparsity is available."""
        return self.selected_at + self.ramp

    def phase(self, update: int) -> str:
        """Which of `PHASES` this update belongs to."""
        if update < self.warm:
            return WARM
        if update < self.selected_at:
            return STEP1
        if update < self.ramped_at:
            return RAMP
        return STEP2 if self.settle_at is None or update < self.settle_at else SETTLE


def shrinking_k(update: int, start: int, stop: int, shrink: int, length: int) -> int:
    """How many units Simple-Top-k keeps at an update of step 1.

    `k(t) = max(start - shrink - shrink * floor(t / T), stop)` with
    `T = length * shrink / (start - stop)` (arXiv 2407.18930).

    Args:
        update: t, counted from the beginning of step 1.
        start: Units of the full net.
        stop: Units of the smallest size.
        shrink: r, units dropped at a time.
        length: Updates of step 1.

    >>> [shrinking_k(t, 8, 4, 1, 8) for t in range(8)]
    [7, 7, 6, 6, 5, 5, 4, 4]
    """
    if start == stop or length == 0:
        return stop
    # integer arithmetic: t / T without a rounded T
    intervals = update * (start - stop) // (length * shrink)
    return max(start - shrink - shrink * intervals, stop)


def iteration_ends(length: int, count: int, first: int | None = None) -> list[int]:
    """Where the iterations of Iterative-Zero-Out end, in updates of step 1.

    Args:
        length: Updates of step 1.
        count: Iterations.
        first: Length of the first one; `None`: all are alike. The others share what
            is left evenly.

    >>> iteration_ends(210_000, 8, 63_000)[:3]
    [63000, 84000, 105000]
    >>> iteration_ends(100, 3)
    [33, 67, 100]
    """
    if first is None or count == 1:
        return [round(length * number / count) for number in range(1, count + 1)]
    rest = length - first
    return [first + round(rest * number / (count - 1)) for number in range(count)]


def cubic_ramp(update: int, length: int, initial: float, final: float) -> float:
    """The sparsity of gradual pruning, which rises fast and then ever more slowly.

    `s(t) = s_f + (s_i - s_f) * (1 - t / T)^3` (Zhu and Gupta, arXiv 1710.01878).

    Args:
        update: t, counted from the beginning of the ramp.
        length: T.
        initial: s_i, at the beginning.
        final: s_f, from T on.

    >>> [round(cubic_ramp(t, 4, 0.0, 0.8), 3) for t in range(6)]
    [0.0, 0.463, 0.7, 0.788, 0.8, 0.8]
    """
    if update >= length:
        return final
    return final + (initial - final) * (1.0 - update / length) ** 3
