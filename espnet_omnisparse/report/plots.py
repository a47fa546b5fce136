"""The plots of a report: WER against a cost, and what the sizes keep."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from espnet_omnisparse.core.branches import MERGE
from espnet_omnisparse.core.search_space import place
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.cost.metrics import Metric
from espnet_omnisparse.files import atomic_path
from espnet_omnisparse.report.results import Series

# Okabe and Ito's colours, told apart with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
KEPT, DROPPED = COLOURS[0], "#E4E4E4"
BRANCH_TITLES = {
    "ffn1": "FFN1",
    "mhsa": "MHSA",
    "conv": "Conv",
    "cgmlp": "cgMLP",
    MERGE: "Merge",
    "ffn2": "FFN2",
}


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Writes a figure as PNG, whole or not at all; the same one is the same bytes.

    Args:
        figure: The figure.
        path: File to write.
        dpi: Dots per inch.
    """
    with atomic_path(path) as temporary:
        # no version in the file
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})


def wer_figure(
    series: Sequence[Series],
    names: Callable[[str], str],
    metric: Metric,
) -> Figure:
    """WER against a cost: a panel per data set, a line per series.

    Args:
        series: The family first, whose points carry their size's name.
        names: Data set's name -> its title.
        metric: The cost, which every size must have.
    """
    datasets = list(dict.fromkeys(d for size in series[0].sizes for d in size.wer))
    figure = Figure(figsize=(5.2 * len(datasets), 4.0), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        for index, one in enumerate(series):
            sizes = [size for size in one.sizes if dataset in size.wer]
            points = [
                (size.value(metric) / metric.scale, size.wer[dataset].err)
                for size in sizes
            ]
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()),
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                linestyle="--" if index else "-",
                label=one.name,
                zorder=2 if index else 3,
                clip_on=False,  # a WER of 0 lies on the axis
            )
            for size, point in zip(sizes, points, strict=True) if not index else ():
                axes.annotate(
                    size.label,
                    point,
                    (5, 6),
                    textcoords="offset points",
                    color=COLOURS[0],
                    # other lines may pass behind
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
        axes.set(title=names(dataset), xlabel=metric.axis)
        _scale_wer(axes, [y for line in axes.lines for y in line.get_ydata()])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0].get_lines()
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


def _scale_wer(axes: Axes, rates: Sequence[float]) -> None:
    low, high = min(rates), max(rates)
    axes.margins(x=0.15)
    if high <= 10 * low + 5:
        axes.set_ylim(0, 1.12 * max(high, 1.0))
        axes.set_ylabel("WER (%)")
        return
    # nets cut without training are far above all others and would flatten them
    axes.set_yscale("symlog", linthresh=1.0)
    bottom, top = low / 2 if low > 2 else 0, 1.5 * high
    axes.set_yticks([t for t in (0, 1, 2, 5, 10, 20, 50, 100) if bottom <= t <= top])
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("WER (%), logarithmic above 1")


def selection_figure(
    specs: Sequence[SubnetSpec], log: Sequence[Mapping[str, Any]]
) -> Figure:
    """The branches that each size keeps, and the scores that led there.

    A branch whose weights are masked is lighter, and tells the mean share of them that
    is kept. So is the merge of an E-Branchformer, which is shown where it is masked.

    Args:
        specs: The sizes, smallest first.
        log: The lines of the selection log; without scores there is no history.
    """
    scored = [line for line in log if line["scores"] is not None]
    blocks = specs[0].space.num_blocks
    heights = [0.9 + 0.26 * blocks, 3.4 if scored else 0.0]
    width = max(1.6 * len(specs) + 0.6, 7.0 if scored else 3.2)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    upper, *lower = figure.subfigures(
        1 + bool(scored), 1, height_ratios=heights[: 1 + bool(scored)], squeeze=False
    )[:, 0]
    panels = upper.subplots(1, len(specs), sharey=True, squeeze=False)[0]
    for axes, spec in zip(panels, specs, strict=True):
        _draw_kept(axes, spec)
    panels[0].set_ylabel("block")
    patches = [Patch(color=KEPT, label="kept"), Patch(color=DROPPED, label="dropped")]
    upper.legend(handles=patches, loc="outside right center", frameon=False)
    if scored:
        _draw_history(lower[0].subplots(), specs[0], scored)
    return figure


def _draw_kept(axes: Axes, spec: SubnetSpec) -> None:
    densities, of = _densities(spec), spec.space.slices
    if all(branch != MERGE for _, branch in densities):
        of.pop(MERGE, None)
    rows = [
        [len(row.get(branch, ())) / of[branch] for branch in of] for row in spec.slices
    ]
    shades = [
        [
            share * densities.get((y, branch), 1.0)
            for branch, share in zip(of, row, strict=True)
        ]
        for y, row in enumerate(rows)
    ]
    colours = LinearSegmentedColormap.from_list("kept", [DROPPED, KEPT])
    axes.pcolormesh(
        shades, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=1.5
    )
    axes.set_ylim(len(rows), 0)
    for y, row in enumerate(rows):
        for x, (branch, share) in enumerate(zip(of, row, strict=True)):
            texts = []
            if 0 < share < 1:
                texts.append(f"{round(share * of[branch])}/{of[branch]}")
            if share and (y, branch) in densities:
                texts.append(f"{100 * densities[y, branch]:.0f}%")
            if texts:
                text = "\n".join(texts)
                place = (x + 0.5, y + 0.5)
                axes.annotate(text, place, ha="center", va="center", fontsize=7)
    axes.set_title("{}\n{} of {}".format(spec.name, *spec.counts))
    centres = [index + 0.5 for index in range(len(rows))]
    titles = [BRANCH_TITLES[branch] for branch in of]
    axes.set_xticks([x + 0.5 for x in range(len(titles))], titles, rotation=90)
    axes.set_yticks(centres, range(len(rows)))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _densities(spec: SubnetSpec) -> dict[tuple[int, str], float]:
    """Block and branch -> mean share that its weights keep, if any is masked."""
    shares: dict[tuple[int, str], list[float]] = {}
    for name, sparsity in zip(spec.space.weights, spec.sparsity, strict=False):
        at = place(name)
        if at.block is not None:
            shares.setdefault((at.block, at.branch), []).append(1.0 - sparsity)
    means = {unit: sum(row) / len(row) for unit, row in shares.items()}
    return {unit: mean for unit, mean in means.items() if mean < 1.0}


def _draw_history(
    axes: Axes, smallest: SubnetSpec, log: Sequence[Mapping[str, Any]]
) -> None:
    """One line per unit, coloured by kind; what the smallest size drops is dashed."""
    updates = [line["update"] for line in log]
    branches = smallest.space.branches
    kinds = {branch: BRANCH_TITLES[branch] for branch in branches}
    by_block = smallest.space.granularity == "block"
    palette = dict(zip(("block",) if by_block else branches, COLOURS, strict=False))
    histories = zip(*(line["scores"] for line in log), strict=True)
    units = zip(smallest.space.units, smallest.mask, histories, strict=True)
    for unit, kept, history in units:
        colour = palette["block" if by_block else unit.split(".")[1]]
        axes.plot(updates, history, "-" if kept else "--", color=colour, lw=1.1)
    for before, after in zip(log, log[1:], strict=False):
        if before["phase"] != after["phase"]:
            axes.axvline(after["update"], color="black", lw=0.8, ls=":")
            axes.annotate(
                f" {after['phase']}",
                (after["update"], 1.0),
                xycoords=("data", "axes fraction"),
                va="top",
                fontsize=9,
            )
    handles = [
        Line2D([], [], color=c, label=kinds.get(k, k)) for k, c in palette.items()
    ]
    if not smallest.is_full:
        label = f"dropped by {smallest.name}"
        handles.append(Line2D([], [], color="grey", ls="--", label=label))
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
    )
    axes.set(xlabel="update", ylabel="score")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
