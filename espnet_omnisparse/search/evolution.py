"""Evolutionary search for the best sparsities under several budgets at once.

A candidate is one of the trained sets of branches and a sparsity for each weight. What
it costs is a formula; how good it is only an evaluation tells, so every candidate that
is evaluated lies within a budget and as near below it as the grid of sparsities allows:
a child that is too costly is repaired, not rejected. All budgets learn from all
evaluations. Everything follows from the seed, the costs and the evaluations: a search
that is run again with its evaluations stored goes the same way.

After HAT (arXiv 2005.14187) and AlphaNet (arXiv 2102.07954); repair, and mutations of a
whole block or of one kind of layer, are ours.
"""

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# steps by which a mutation moves a sparsity on the grid
_STEPS = (-2, -1, 1, 2)
# a uniform sparsity is a multiple of 1 / this
_FINEST = 10_000
# how often a child is made again that has been evaluated before
_TRIES = 10


@dataclass(frozen=True, order=True)
class Candidate:
    """One point of the search.

    Attributes:
        branches: Number of its set of branches.
        sparsity: Per weight; 0 for those of branches that it has not.
    """

    branches: int
    sparsity: tuple[float, ...]


@dataclass(frozen=True)
class Genes:
    """What candidates are made of.

    Attributes:
        alive: Per set of branches, whether each weight is in one of them.
        grid: Sparsities, ascending from 0.
        scales: Ways to divide the weights into groups that mutate together: each has
            a label per weight.

    >>> genes = Genes(((True, True), (True, False)), (0.0, 0.5, 0.9), ((0, 1),))
    >>> genes.candidate(1, [2, 2])
    Candidate(branches=1, sparsity=(0.9, 0.0))
    >>> genes.levels(Candidate(0, (0.4, 0.8)))
    [1, 2]
    """

    alive: tuple[tuple[bool, ...], ...]
    grid: tuple[float, ...]
    scales: tuple[tuple[int, ...], ...]

    @property
    def top(self) -> int:
        """The highest level of the grid."""
        return len(self.grid) - 1

    def candidate(self, branches: int, levels: Sequence[int]) -> Candidate:
        """The candidate that has these levels of the grid.

        Args:
            branches: Number of the set of branches.
            levels: A level of the grid per weight.
        """
        pairs = zip(levels, self.alive[branches], strict=True)
        shares = (self.grid[level] if there else 0.0 for level, there in pairs)
        return Candidate(branches, tuple(shares))

    def uniform(self, branches: int, share: float) -> Candidate:
        """The candidate with the same sparsity, on the grid or not, in every weight.

        Args:
            branches: Number of the set of branches.
            share: The sparsity of every weight.
        """
        alive = self.alive[branches]
        return Candidate(branches, tuple(share if there else 0.0 for there in alive))

    def levels(self, candidate: Candidate) -> list[int]:
        """The nearest levels; the mean one for weights that it has not."""
        alive = self.alive[candidate.branches]
        shares = [
            s for s, there in zip(candidate.sparsity, alive, strict=True) if there
        ]
        mean = sum(shares) / len(shares) if shares else 0.0
        return [
            self._nearest(share if there else mean)
            for share, there in zip(candidate.sparsity, alive, strict=True)
        ]

    def _nearest(self, share: float) -> int:
        return min(range(len(self.grid)), key=lambda k: abs(self.grid[k] - share))


@dataclass(frozen=True)
class Target:
    """A budget: candidates cost at most a limit.

    Attributes:
        name: Of the size that is searched.
        cost: Of a candidate; never grows when a sparsity does.
        limit: The largest cost allowed.
    """

    name: str
    cost: Callable[[Candidate], float]
    limit: float

    def met_by(self, candidate: Candidate) -> bool:
        """Whether the candidate is within the budget."""
        return self.cost(candidate) <= self.limit


@dataclass(frozen=True)
class SearchOptions:
    """How a search goes.

    Attributes:
        population: Children per budget and generation.
        generations: After the initial one.
        mutation: Probability that a gene mutates.
        crossover: Share of the children that have two parents.
        seed: Of all random decisions.
    """

    population: int = 16
    generations: int = 10
    mutation: float = 0.2
    crossover: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        fitness: Of every candidate evaluated, in the order of evaluation.
        best: Per budget, the best candidate within it.
        uniform: Per budget, the best candidate with one sparsity in all weights.
    """

    fitness: Mapping[Candidate, float]
    best: Mapping[str, Candidate]
    uniform: Mapping[str, Candidate]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points that no other is better than; less is better in both.

    Returns:
        Ascending in the first coordinate; of equal points the first.

    >>> pareto_front([(1, 5), (2, 5), (2, 3), (3, 4), (0, 9), (2, 3)])
    [4, 0, 2]
    """
    front: list[int] = []
    for number in sorted(range(len(points)), key=lambda n: (*points[n], n)):
        if not front or points[number][1] < points[front[-1]][1]:
            front.append(number)
    return front


class Search:
    """A search.

    Args:
        genes: What candidates are made of.
        targets: The budgets; each can be met.
        options: How it goes.
        evaluate: Candidates -> their fitness, of which less is better.
        starts: Budget -> candidates within it to start from beside the uniform ones.
        on_generation: Is told the number of the generation that begins, and the best
            fitness within each budget so far.
    """

    def __init__(
        self,
        genes: Genes,
        targets: Sequence[Target],
        options: SearchOptions,
        evaluate: Callable[[list[Candidate]], list[float]],
        on_generation: Callable[[int, Mapping[str, float]], None] | None = None,
        starts: Mapping[str, Sequence[Candidate]] | None = None,
    ):
        self._genes = genes
        self._targets = targets
        self._options = options
        self._evaluate = evaluate
        self._on_generation = on_generation or (lambda number, best: None)
        self._fitness: dict[Candidate, float] = {}
        self._starts = starts or {}
        self._uniform = {target.name: self._uniforms(target) for target in targets}

    def run(self) -> Found:
        """Searches to the end."""
        for number in range(self._options.generations + 1):
            best = self._best() if number else {}
            so_far = {name: self._fitness[one] for name, one in best.items()}
            self._on_generation(number, so_far)
            children: list[Candidate] = []
            for target in self._targets:
                # a generator of its own: budgets do not disturb each other's draws
                seed = f"{self._options.seed} {target.name} {number}"
                self._add_children(children, target, number, random.Random(seed))
            if children:
                values = self._evaluate(children)
                self._fitness.update(zip(children, values, strict=True))
        by_fitness = self._fitness.__getitem__
        uniform = {
            name: min(ones, key=by_fitness) for name, ones in self._uniform.items()
        }
        return Found(self._fitness, self._best(), uniform)

    def _uniforms(self, target: Target) -> list[Candidate]:
        """Per set of branches that can meet the budget: the least uniform sparsity."""
        genes, found = self._genes, []
        most = round(genes.grid[-1] * _FINEST)
        for branches in range(len(genes.alive)):
            least = bisect_left(
                range(most),
                True,
                key=lambda k, b=branches: target.met_by(genes.uniform(b, k / _FINEST)),
            )
            share = least / _FINEST if least < most else genes.grid[-1]
            if target.met_by(candidate := genes.uniform(branches, share)):
                found.append(candidate)
        if not found:
            raise ValueError(f"the budget {target.name} cannot be met")
        return found

    def _best(self) -> dict[str, Candidate]:
        def order(target: Target, one: Candidate) -> tuple:
            # of those as good a uniform one: what was searched must be better
            searched = one not in self._uniform[target.name]
            return self._fitness[one], searched, target.cost(one), one

        return {
            target.name: min(
                filter(target.met_by, self._fitness),
                key=lambda c, t=target: order(t, c),
            )
            for target in self._targets
        }

    def _add_children(
        self,
        children: list[Candidate],
        target: Target,
        number: int,
        rng: random.Random,
    ) -> None:
        """Adds a generation's candidates for one budget to those of the others."""
        uniform = self._uniform[target.name]
        wanted = self._options.population
        parents = uniform
        if number == 0:
            starts = [
                self._repaired(one.branches, self._genes.levels(one), target, rng)
                for one in self._starts.get(target.name, ())
            ]
            parents = [*uniform, *starts]
            new = [one for one in dict.fromkeys(parents) if one not in children]
            children += new
            wanted -= len(new)
        else:
            parents = self._parents(target)
        for _ in range(wanted):
            for _ in range(_TRIES):
                child = self._child(parents, target, rng)
                if child not in self._fitness and child not in children:
                    children.append(child)
                    break

    def _parents(self, target: Target) -> list[Candidate]:
        """The best within the budget, and those of the front that are nearest to it."""
        count = max(2, self._options.population // 2)
        # ties are broken by value: the order of evaluation may differ between runs
        every = sorted(self._fitness, key=lambda one: (self._fitness[one], one))
        costs = {one: target.cost(one) for one in every}
        within = [one for one in every if costs[one] <= target.limit][:count]
        front = pareto_front([(costs[one], self._fitness[one]) for one in every])
        near = sorted(
            (every[number] for number in front),
            key=lambda one: (abs(costs[one] - target.limit), one),
        )
        return list(dict.fromkeys(within + near[: count // 2]))

    def _child(
        self, parents: Sequence[Candidate], target: Target, rng: random.Random
    ) -> Candidate:
        first = rng.choice(parents)
        branches, levels = first.branches, self._genes.levels(first)
        if len(set(parents)) > 1 and rng.random() < self._options.crossover:
            second = rng.choice([one for one in parents if one != first])
            branches = rng.choice((branches, second.branches))
            pairs = zip(levels, self._genes.levels(second), strict=True)
            levels = [rng.choice(pair) for pair in pairs]
        levels = self._mutated(levels, rng)
        possible = [one.branches for one in self._uniform[target.name]]
        if branches not in possible or rng.random() < self._options.mutation:
            branches = rng.choice(possible)
        return self._repaired(branches, levels, target, rng)

    def _mutated(self, levels: list[int], rng: random.Random) -> list[int]:
        """Moves single weights, or all of a block, or all of a kind, at random."""
        labels = rng.choice(self._genes.scales)
        steps = {
            label: rng.choice(_STEPS) if rng.random() < self._options.mutation else 0
            for label in sorted(set(labels))
        }
        pairs = zip(levels, labels, strict=True)
        top = self._genes.top
        return [min(max(level + steps[label], 0), top) for level, label in pairs]

    def _repaired(
        self, branches: int, levels: list[int], target: Target, rng: random.Random
    ) -> Candidate:
        """Steps of single weights until the budget is met and no step back fits."""
        genes = self._genes
        there = [i for i, alive in enumerate(genes.alive[branches]) if alive]

        def fits() -> bool:
            return target.met_by(genes.candidate(branches, levels))

        while not fits():
            raisable = [i for i in there if levels[i] < genes.top]
            levels[rng.choice(raisable)] += 1
        moved = True
        while moved:
            moved = False
            for i in rng.sample(there, len(there)):
                if levels[i] == 0:
                    continue
                levels[i] -= 1
                if fits():
                    moved = True
                else:
                    levels[i] += 1
        return genes.candidate(branches, levels)
