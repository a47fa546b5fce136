"""What a search leaves: specs of the sizes, the front, a table and a plot."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from espnet_omnisparse.core.search_space import place
from espnet_omnisparse.cost.metrics import METRICS, ZEROS
from espnet_omnisparse.files import write_text
from espnet_omnisparse.report.gains import UNIFORM
from espnet_omnisparse.report.plots import COLOURS, save_figure
from espnet_omnisparse.report.tables import Table
from espnet_omnisparse.search.evolution import Candidate, Found, pareto_front
from espnet_omnisparse.search.run import FOLDER, Problem
from espnet_omnisparse.train.journal import SUBNETS, write_specs

_TITLES = {"loss": "dev loss", "wer": "dev WER (%)"}
_ALWAYS = ("nonzero", "bytes")


def write_found(problem: Problem, found: Found, objective: str, command: str) -> str:
    """Writes everything and returns the table.

    Args:
        problem: What was searched.
        found: What was found.
        objective: Of the search.
        command: That made it.
    """
    sizes = _sizes(problem, found)
    specs = {name: problem.spec(one, name) for name, one in sizes.items()}
    write_specs(problem.exp / SUBNETS, specs)
    folder = problem.exp / FOLDER
    front = _front(problem, found)
    write_text(folder / "front.json", json.dumps(front, indent=1) + "\n")
    figure = _figure(problem, found, _TITLES[objective])
    save_figure(figure, folder / "front.png")
    table = "\n".join(_table(problem, found, _TITLES[objective]))
    text = f"# Sizes searched\n\n{table}\n\n```sh\n{command}\n```\n"
    write_text(folder / "table.md", text)
    return table


def _sizes(problem: Problem, found: Found) -> dict[str, Candidate]:
    """Name -> what was searched for a budget, and the uniform one beside it."""
    return {
        f"{budget.name}{suffix}": chosen[budget.name]
        for budget in problem.budgets
        for suffix, chosen in (("", found.best), (UNIFORM, found.uniform))
    }


def _kinds(problem: Problem) -> list[str]:
    """The kinds of cost of the budgets."""
    return list(dict.fromkeys(budget.kind for budget in problem.budgets))


def _front(problem: Problem, found: Found) -> dict[str, list[dict[str, Any]]]:
    """Per kind of cost the candidates that none is better than, cheapest first."""
    every = list(found.fitness)
    fronts = {}
    for kind in _kinds(problem):
        points = [(problem.cost(kind, one), found.fitness[one]) for one in every]
        fronts[kind] = [
            {
                "cost": points[number][0],
                "fitness": points[number][1],
                "units": [int(k) for k in problem.masks[every[number].branches]],
                "sparsity": list(every[number].sparsity),
            }
            for number in pareto_front(points)
        ]
    return fronts


def _table(problem: Problem, found: Found, title: str) -> Iterator[str]:
    shown = {*_ALWAYS, *_kinds(problem)} - {ZEROS}  # which has a column anyway
    kinds = [kind for kind in METRICS if kind in shown]
    costs = [METRICS[kind].heading for kind in kinds]
    weights = problem.model.encoder.space.weights
    layers = list(dict.fromkeys(place(name).kind for name in weights))
    table = Table(["size", "kept", "zeros (%)", *costs, title])
    second = Table(["size", *layers])
    for name, one in _sizes(problem, found).items():
        kept, of, _ = problem.spec(one, name).counts
        zeros = 100.0 * (1.0 - problem.cost(ZEROS, one))
        numbers = [METRICS[k].shown(problem.cost(k, one), 3) for k in kinds]
        cells = [name, f"{kept} of {of}", f"{zeros:.1f}", *numbers]
        table.rows.append([*cells, f"{found.fitness[one]:.3f}"])
        second.rows.append([name, *(_mean(problem, one, layer) for layer in layers)])
    yield from table.markdown()
    yield "\nMean sparsity of the layers of a kind, in the branches kept:\n"
    yield from second.markdown()


def _mean(problem: Problem, one: Candidate, layer: str) -> str:
    names = problem.model.encoder.space.weights
    alive = problem.genes.alive[one.branches]
    shares = [
        share
        for name, share, there in zip(names, one.sparsity, alive, strict=True)
        if there and place(name).kind == layer
    ]
    return f"{sum(shares) / len(shares):.2f}" if shares else "–"


def _figure(problem: Problem, found: Found, title: str) -> Figure:
    """Fitness against cost, a panel per kind of cost."""
    kinds = _kinds(problem)
    every = [one for one, value in found.fitness.items() if value < float("inf")]
    figure = Figure(figsize=(5.2 * len(kinds), 4.0), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        metric = METRICS[kind]

        def points(ones: Sequence[Candidate], m=metric) -> list:
            costs = (problem.cost(m.name, one) / m.scale for one in ones)
            return list(zip(costs, (found.fitness[one] for one in ones), strict=True))

        evaluated = points(every)
        front = [evaluated[number] for number in pareto_front(evaluated)]
        mine = [b.name for b in problem.budgets if b.kind == kind]
        uniform = points([found.uniform[name] for name in mine])
        style = {"clip_on": False}
        _draw(axes, evaluated, "o", color="#BBBBBB", ms=3, label="evaluated")
        _draw(axes, front, ".-", color=COLOURS[0], label="front", **style)
        _draw(axes, uniform, "s", color=COLOURS[1], label="uniform", **style)
        axes.set(xlabel=metric.axis, ylabel=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0].get_lines()
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


def _draw(axes: Any, points: Sequence[tuple[float, float]], style: str, **options):
    axes.plot(*zip(*points, strict=True) if points else ((), ()), style, **options)
