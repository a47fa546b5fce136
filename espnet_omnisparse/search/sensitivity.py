"""A sensitivity profile: what each weight's zeros cost in loss, and where to start.

One weight after another is masked at a few levels, with all others whole; between the
levels measured, harm is interpolated. From the dense net on zeros are added where they
hurt least for what they save, until a budget is met: the greedy solution of the
knapsack, in the manner of the sensitivity analyses of Han et al. (arXiv 1506.02626).
That harms add up is an assumption: the search decides what is kept.
"""

from collections.abc import Callable, Sequence

from espnet_omnisparse.search.evolution import Candidate, Genes, Target

Evaluate = Callable[[list[Candidate]], list[float]]


def measured_levels(top: int, count: int) -> list[int]:
    """The levels of the grid that are measured: so many, evenly up to the highest.

    Args:
        top: The highest level.
        count: How many.

    >>> measured_levels(9, 2), measured_levels(2, 5)
    ([4, 9], [1, 2])
    """
    return sorted({max(top * n // count, 1) for n in range(1, count + 1)})


def sensitivity(
    genes: Genes, branches: int, levels: Sequence[int], evaluate: Evaluate
) -> list[list[float]]:
    """Loss beyond the dense net's, per weight and level of the grid.

    Args:
        genes: What candidates are made of.
        branches: Number of the set of branches.
        levels: Those measured, ascending, without 0.
        evaluate: Candidates -> losses.

    Returns:
        A row per weight, a value per level, rising; of a weight that the set has not
        all zero.
    """
    weights = range(len(genes.alive[branches]))
    there = [i for i in weights if genes.alive[branches][i]]

    def alone(weight: int, level: int) -> Candidate:
        return genes.candidate(branches, [level if i == weight else 0 for i in weights])

    asked = [alone(i, level) for i in there for level in levels]
    dense, *losses = evaluate([genes.candidate(branches, [0] * len(weights)), *asked])
    found = dict(zip(asked, losses, strict=True))
    rows = [[0.0] * len(genes.grid) for _ in weights]
    for i in there:
        points = [(0, 0.0)]
        for level in levels:
            # a loss that falls is noise: no weight is better off with more zeros
            harm = max(found[alone(i, level)] - dense, points[-1][1])
            points.append((level, harm))
        for (low, before), (high, after) in zip(points, points[1:], strict=False):
            for level in range(low, high + 1):
                share = (level - low) / (high - low)
                rows[i][level] = before + share * (after - before)
    return rows


def cheapest_harm(
    genes: Genes, branches: int, target: Target, harms: Sequence[Sequence[float]]
) -> Candidate | None:
    """The candidate within a budget that the profile says hurts least, greedily.

    Args:
        genes: What candidates are made of.
        branches: Number of the set of branches.
        target: The budget.
        harms: What `sensitivity` returned for the set.

    Returns:
        It; `None` if the set cannot meet the budget.
    """
    there = [i for i, alive in enumerate(genes.alive[branches]) if alive]
    levels = [0] * len(genes.alive[branches])

    def cost(levels: Sequence[int]) -> float:
        return target.cost(genes.candidate(branches, levels))

    def with_level(weight: int, level: int) -> list[int]:
        return [level if i == weight else old for i, old in enumerate(levels)]

    # what one weight saves at a level does not depend on the others
    dense = cost(levels)
    saved = {
        i: [dense - cost(with_level(i, level)) for level in range(genes.top + 1)]
        for i in there
    }
    while cost(levels) > target.limit:
        best: tuple[float, int, int] | None = None
        for i in there:
            for level in range(levels[i] + 1, genes.top + 1):
                gain = saved[i][level] - saved[i][levels[i]]
                if gain > 0:
                    price = (harms[i][level] - harms[i][levels[i]]) / gain
                    best = min(best or (price, i, level), (price, i, level))
        if best is None:
            return None
        levels[best[1]] = best[2]
    return genes.candidate(branches, levels)
