"""The plot of how calm the training of sparse sizes was: masks, gradients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from espnet_omnisparse.report.plots import COLOURS, MARKERS
from espnet_omnisparse.train.diagnosis import COSINE, DENSE_KEPT, DENSE_MASKED, KEPT

Line = Mapping[str, Any]


def diagnosis_figure(log: Sequence[Line]) -> Figure | None:
    """Flip rates, and how the gradients of sizes agree with the dense net's.

    Args:
        log: The lines of the selection log, oldest first.

    Returns:
        `None` where no weights were masked.
    """
    flips = [line for line in log if line.get("flip_rate")]
    measured = [line for line in log if line.get("gradients")]
    if not flips:
        return None
    sizes = list(flips[-1]["flip_rate"])
    count = 3 if measured else 1
    figure = Figure(figsize=(4.2 * count, 3.4), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    _draw(panels[0], flips, sizes, lambda line, size: 100 * line["flip_rate"][size])
    panels[0].set_ylabel("weights flipped in the epoch (%)")
    if measured:

        def found(line: Line, size: str) -> Mapping[str, float]:
            return line["gradients"].get(size, {})

        def masked_share(line: Line, size: str) -> float | None:
            norms = found(line, size)
            return _ratio(norms.get(DENSE_MASKED), norms.get(DENSE_KEPT))

        def own_share(line: Line, size: str) -> float | None:
            norms = found(line, size)
            return _ratio(norms.get(KEPT), norms.get(DENSE_KEPT))

        _draw(panels[1], measured, sizes, lambda ln, size: found(ln, size).get(COSINE))
        panels[1].axhspan(-1, 0, color="#F3E3DD", zorder=0)  # in conflict
        panels[1].set_ylim(-1, 1)
        panels[1].set_ylabel("cosine with the dense net's gradient")
        _draw(panels[2], measured, sizes, own_share)
        _draw(panels[2], measured, sizes, masked_share, "--")
        panels[2].set_ylim(bottom=0)
        panels[2].set_ylabel("gradient norm / dense net's on kept weights")
        panels[2].set_title(
            "solid: the size's, on kept weights\ndashed: the dense net's, on masked",
            fontsize=9,
        )
    handles = panels[0].get_lines()
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _draw(
    axes: Axes,
    log: Sequence[Line],
    sizes: Sequence[str],
    value: Callable[[Line, str], float | None],
    style: str = "-",
) -> None:
    """A line per size; epochs in which it was not measured are left out."""
    for index, size in enumerate(sizes):
        points = [(line["update"], value(line, size)) for line in log]
        points = [point for point in points if point[1] is not None]
        axes.plot(
            *zip(*points, strict=True) if points else ((), ()),
            style,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=3,
            label=size,
        )
    axes.set_xlabel("update")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
