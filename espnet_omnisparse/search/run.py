"""The search of a trained supernet's sparsities: what `omnisparse search` runs."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_omnisparse.console import bar
from espnet_omnisparse.core.search_space import SearchSpace, place
from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
from espnet_omnisparse.cost.budget import Budget
from espnet_omnisparse.cost.metrics import MEASURED, METRICS
from espnet_omnisparse.cost.size import CostTable
from espnet_omnisparse.cost.unit_costs import cost_table
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import load_tensors, write_text
from espnet_omnisparse.nn.batch_norm import has_batch_norm
from espnet_omnisparse.search.dev_set import DevSet
from espnet_omnisparse.search.evaluation_cache import Evaluations, Workers
from espnet_omnisparse.search.evolution import (
    Candidate,
    Found,
    Genes,
    Search,
    SearchOptions,
    Target,
)
from espnet_omnisparse.search.feasible import (
    check_budgets,
    check_objective,
    trained_sparsities,
)
from espnet_omnisparse.search.sensitivity import (
    cheapest_harm,
    measured_levels,
    sensitivity,
)
from espnet_omnisparse.search.spec_costs import SpecCosts
from espnet_omnisparse.train.journal import SUBNETS, read_specs

FOLDER = "search"


@dataclass(frozen=True)
class Problem:
    """What is searched: a supernet and budgets.

    Attributes:
        exp: The supernet's folder.
        checkpoint: Name of its file in there.
        config: Its configuration.
        model: The model, on the CPU.
        supernet: Its fingerprint.
        masks: Sets of branches that were trained, the full one first.
        genes: What candidates are made of.
        costs: Of candidates.
        budgets: In the order given.
    """

    exp: Path
    checkpoint: str
    config: Mapping[str, Any]
    model: Any
    supernet: str
    masks: tuple[tuple[bool, ...], ...]
    genes: Genes
    costs: SpecCosts
    budgets: tuple[Budget, ...]

    def cost(self, kind: str, candidate: Candidate) -> float:
        """A candidate's cost.

        Args:
            kind: A key of `METRICS`.
            candidate: The candidate.
        """
        return self.costs.of(kind, candidate.branches, candidate.sparsity)

    def targets(self) -> list[Target]:
        """The budgets, as the search knows them."""
        return [
            Target(one.name, lambda c, k=one.kind: self.cost(k, c), one.limit)
            for one in self.budgets
        ]

    def spec(self, candidate: Candidate, name: str) -> SubnetSpec:
        """A candidate as a size.

        Args:
            candidate: The candidate.
            name: The size's name.
        """
        space, mask = self.model.encoder.space, self.masks[candidate.branches]
        chunk = self.model.supernet.chunks[-1]
        return SubnetSpec(name, self.supernet, space, mask, candidate.sparsity, chunk)


def read_problem(exp: Path, checkpoint: str, budgets: Sequence[Budget]) -> Problem:
    """Loads a supernet and checks that the budgets can be met.

    Args:
        exp: The supernet's experiment folder.
        checkpoint: Its model file.
        budgets: Limits on costs.

    Raises:
        UserError: If it has no masks, or a budget is impossible.
    """
    config = family.read_config(exp)
    state = load_tensors(exp / checkpoint)
    model = family.build(config, state)
    plan = trained_sparsities(model, exp)
    space = model.encoder.space
    mark = fingerprint(state, config["token_list"])
    masks = _trained_masks(exp, mark, space)
    genes = _genes(space, masks, plan.levels(plan.final))
    kinds = {budget.kind for budget in budgets}
    tables = {}
    if "macs_10s" in kinds:
        tables["macs_10s"] = cost_table(model, "macs_10s")
    if MEASURED in kinds:
        tables[MEASURED] = _latencies(model, mark, exp / FOLDER / "latency.json")
    costs = SpecCosts(model, masks, tables)
    top = genes.grid[-1]
    sparsest = [genes.uniform(number, top).sparsity for number in range(len(masks))]
    check_budgets(costs, budgets, sparsest)
    budgets = tuple(dict.fromkeys(budgets))
    return Problem(exp, checkpoint, config, model, mark, masks, genes, costs, budgets)


def _trained_masks(
    exp: Path, supernet: str, space: SearchSpace
) -> tuple[tuple[bool, ...], ...]:
    """The sets of branches that sizes were trained with; the search made no others."""
    masks = {(True,) * len(space)}
    for spec in read_specs(exp / SUBNETS).values():
        spec.check_supernet(supernet)
        spec.check_space(space)
        if len(set(spec.sparsities.values())) <= 1:
            masks.add(spec.mask)
    # whatever the sizes are called: their numbers decide what a seed does
    return tuple(sorted(masks, key=lambda mask: (sum(mask), mask), reverse=True))


def _genes(
    space: SearchSpace, masks: Sequence[tuple[bool, ...]], grid: Sequence[float]
) -> Genes:
    places = [place(name) for name in space.weights]
    kinds = list(dict.fromkeys(at.kind for at in places))
    # the front end, and each decoder layer, is there in every subnet, like a block
    within = [at.branch if at.block is None else at.block for at in places]
    blocks = list(map(list(dict.fromkeys(within)).index, within))
    alive = []
    for mask in masks:
        there = SubnetSpec("", "", space, mask).weights
        alive.append(tuple(name in there for name in space.weights))
    scales = (
        tuple(range(len(places))),
        tuple(blocks),
        tuple(kinds.index(at.kind) for at in places),
    )
    return Genes(tuple(alive), tuple(grid), scales)


def _latencies(model: Any, mark: str, path: Path) -> CostTable:
    """The table of latencies; a search that goes on must find the same numbers.

    Args:
        model: The supernet.
        mark: Its fingerprint: what was measured of another net does not count.
        path: File that keeps them.
    """
    scale = METRICS[MEASURED].steps
    names = ("rest", "units", "shared", "pairs")
    try:
        kept = json.loads(path.read_text())
        steps = [kept[name] for name in names] if kept["supernet"] == mark else None
    except (OSError, ValueError, TypeError, KeyError):
        steps = None  # absent or useless: measured anew
    if steps is None:
        table = cost_table(model, MEASURED)
        steps = [getattr(table, name).tolist() for name in names]
        kept = {"supernet": mark, **dict(zip(names, steps, strict=True))}
        write_text(path, json.dumps(kept) + "\n")
    rest, *rows = steps
    costs = {
        name: [one / scale for one in row]
        for name, row in zip(names[1:], rows, strict=True)
    }
    return CostTable(MEASURED, model.encoder.space, rest / scale, **costs)


def run_search(
    problem: Problem,
    options: SearchOptions,
    objective: str,
    utterances: int,
    calibration: int,
    profile: int = 0,
) -> Found | None:
    """Searches, in as many processes as were launched; what is evaluated is kept.

    Args:
        problem: What is searched.
        options: Of the search.
        objective: `loss` or `wer`, on the validation set.
        utterances: How many validation or training utterances.
        calibration: Training utterances for BatchNorm's statistics.
        profile: Levels of the sensitivity profile to start from; 0: none.

    Returns:
        What was found, in the first process; `None` in the others.

    Raises:
        UserError: If the objective is not of all weights that take masks.
    """
    check_objective(objective, bool(problem.model.encoder.space.decoder))
    workers = Workers()
    checkpoint = problem.exp / problem.checkpoint
    header = {
        "checkpoint": problem.checkpoint,
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "utterances": utterances,
        "calibration": calibration if has_batch_norm(problem.model) else 0,
        "data": problem.config["valid_data_path_and_name_and_type"],
    }
    dev = DevSet(
        problem.model,
        problem.config,
        objective,
        utterances,
        calibration,
        workers.device,
    )

    def evaluations_of(kind: str) -> Evaluations:
        of = {**header, "objective": kind}
        digest = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:8]
        path = problem.exp / FOLDER / f"evaluations_{kind}_{digest}.jsonl"

        def fitness(key: Any) -> float:
            value = dev.score(*key, kind)
            return value if math.isfinite(value) else float("inf")

        return Evaluations(path, of, fitness, problem.masks, workers)

    evaluations = evaluations_of(objective)
    title = ""

    def begin(number: int, best: Mapping[str, float]) -> None:
        nonlocal title
        title = f"generation {number}/{options.generations}"
        title += "".join(f"  {name} {value:.3f}" for name, value in best.items())

    def told(of: Evaluations, title: str, candidates: list[Candidate]) -> list[float]:
        if not workers.first:
            return of.of(candidates)
        with bar(title, len(candidates), "net") as line:
            return of.of(candidates, line.update)

    def evaluate(candidates: list[Candidate]) -> list[float]:
        return told(evaluations, title, candidates)

    targets, starts = problem.targets(), {}
    if profile:
        # of losses: a word error rate hardly moves when one weight is masked
        losses = evaluations_of("loss")
        starts = _starts(
            problem, targets, profile, lambda ones: told(losses, "profile", ones)
        )
    search = Search(problem.genes, targets, options, evaluate, begin, starts)
    found = search.run()
    return found if workers.first else None


def _starts(
    problem: Problem,
    targets: Sequence[Target],
    count: int,
    evaluate: Callable[[list[Candidate]], list[float]],
) -> dict[str, list[Candidate]]:
    """Budget -> what a sensitivity profile of each set of branches suggests."""
    genes = problem.genes
    levels = measured_levels(genes.top, count)
    starts: dict[str, list[Candidate]] = {target.name: [] for target in targets}
    for branches in range(len(problem.masks)):
        harms = sensitivity(genes, branches, levels, evaluate)
        for target in targets:
            one = cheapest_harm(genes, branches, target, harms)
            starts[target.name] += [] if one is None else [one]
    return starts


def launch(jobs: int, argv: Sequence[str]) -> None:
    """Runs the command again in several processes of one machine.

    Args:
        jobs: How many processes.
        argv: The command line to run in each.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    module = ["-m", "espnet_omnisparse.cli"]
    command = [*launcher, "--nproc_per_node", str(jobs), *module, *argv]
    code = subprocess.run(command).returncode
    if code:
        raise UserError(
            f"The search was stopped (exit status {code}): run the same command again, "
            "and it goes on where it was."
        )
