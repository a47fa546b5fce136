"""The figure that decides: WER against time, and against bytes."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from espnet_omnisparse.bench.runtimes import Row
from espnet_omnisparse.report.plots import COLOURS, MARKERS

LINES = ("-", "--", ":", "-.")


def figure(rows: Sequence[Row]) -> Figure:
    """Two panels, a line for each series in each run time.

    A series is what the models' names have before a colon: `supernet:s80`.

    Args:
        rows: What was measured, those of `wer` alone.
    """
    rows = [row for row in rows if row.wer is not None]
    run_times = list(dict.fromkeys(row.run_time for row in rows))
    series = list(dict.fromkeys(row.series for row in rows))
    drawn = Figure(figsize=(11, 5), layout="constrained")
    panels = drawn.subplots(1, 2, sharey=True)
    costs = (
        ("computation for a second of audio (ms)", lambda row: 1e3 * row.per_second),
        ("file (MB)", lambda row: row.bytes / 1e6),
    )
    for axes, (title, cost) in zip(panels, costs, strict=True):
        for colour, run_time in enumerate(run_times):
            for mark, name in enumerate(series):
                points = sorted(
                    (cost(row), row.wer)
                    for row in rows
                    if (row.run_time, row.series) == (run_time, name)
                )
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        color=COLOURS[colour % len(COLOURS)],
                        linestyle=LINES[mark % len(LINES)],
                        marker=MARKERS[mark % len(MARKERS)],
                        label=f"{name}, {run_time}" if name else run_time,
                    )
        axes.set(xlabel=title, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("WER (%)")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return drawn
