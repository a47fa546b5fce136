"""The tables and the figure of a comparison, from its recorded results."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from espnet_omnisparse.cost.metrics import METRICS
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import write_text
from espnet_omnisparse.report.comparison import Comparison, read_lines
from espnet_omnisparse.report.plots import COLOURS, MARKERS, save_figure
from espnet_omnisparse.report.tables import Table
from espnet_omnisparse.report.title_tables import Line, by_title, differences

_COSTS = [METRICS[name] for name in ("params", "nonzero", "macs_10s", "file")]
COLUMNS = (
    *("training", "size", *(metric.heading for metric in _COSTS), "updates"),
    *("training (min)", "WER per seed", "mean WER", "spread"),
    *("mean CER", "difference to individual"),
)


def write_table(comparison: Comparison, source: Path) -> Path:
    """Writes the table of all results so far between its markers in a Markdown file.

    The markers are `<!-- begin NAME -->` and `<!-- end NAME -->`, each on a line of
    its own, with the comparison file's name.

    Args:
        comparison: What is compared.
        source: Its file.

    Raises:
        UserError: If the file has no such markers.
    """
    page = Path(comparison.table)
    begin, end = f"<!-- begin {source.name} -->\n", f"<!-- end {source.name} -->\n"
    text = page.read_text() if page.exists() else ""
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise UserError(
            f"{page} needs the line {begin.strip()} and, below it, {end.strip()}."
        )
    table = "".join(f"{line}\n" for line in _table(comparison, source))
    write_text(page, before + begin + table + end + after)
    return page


def _table(comparison: Comparison, source: Path) -> Iterator[str]:
    lines = read_lines(comparison)
    yield f"**{comparison.title}.** WER on `{comparison.test_set}` in per cent."
    yield ""
    if comparison.columns:
        yield from by_title(comparison, lines)
        yield ""
        yield from differences(comparison, lines)
    if comparison.figure and lines:
        yield f"![WER against non-zero parameters]({comparison.figure})"
        yield ""
    table = Table(COLUMNS)
    for name, variant in comparison.variants.items():
        for size in variant.sizes:
            group = [x for x in lines if (x["variant"], x["size"]) == (name, size)]
            group.sort(key=lambda line: line["seed"])
            if group:
                table.rows.append(_row(comparison, lines, name, size, group))
    if comparison.columns:  # which says it in short
        yield "<details><summary>Each size, with its costs</summary>"
        yield ""
    yield from table.markdown()
    if comparison.columns:
        yield ""
        yield "</details>"
    seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
    yield ""
    yield (
        f"Seeds: {seeds}. Training time is that of a whole training, which gives all "
        "sizes of a supernet at once; updates and time of a repaired size have its "
        f"repair in them. Made by `omnisparse compare {source}`; every "
        f"result with its command: [{comparison.results}]({comparison.results})."
    )
    yield ""
    yield "<details><summary>Commands, with the seeds that ran</summary>"
    yield ""
    yield "```sh"
    for name in comparison.variants:
        seen = {x["command"]: x["seed"] for x in lines if x["variant"] == name}
        for command, seed in sorted(seen.items(), key=lambda item: item[1]):
            yield f"{command}  # seed {seed}"
    yield "```"
    yield ""
    yield "</details>"


def _row(
    comparison: Comparison,
    lines: Sequence[Line],
    name: str,
    size: str,
    group: Sequence[Line],
) -> list[str]:
    errors = [line["err"] for line in group]
    mean = statistics.mean(errors)
    difference = ""
    reference = comparison.reference.get(size)
    if reference and name not in comparison.reference.values():
        theirs = {x["seed"]: x["err"] for x in lines if x["variant"] == reference}
        pairs = [x["err"] - theirs[x["seed"]] for x in group if x["seed"] in theirs]
        difference = f"{statistics.mean(pairs):+.1f}" if pairs else ""
    # null where a training was suspended, so that its time means nothing
    times = [
        line["train_seconds"] + line.get("repair_seconds", 0.0)
        for line in group
        if line["train_seconds"]
    ]
    # null, or not there in lines of earlier versions
    characters = [x["cer"] for x in group if x.get("cer") is not None]
    return [
        comparison.variants[name].title or name,
        size,
        *(metric.shown(group[0][metric.field]) for metric in _COSTS),
        str(group[0]["updates"] or ""),
        f"{statistics.mean(times) / 60:.1f}" if times else "",
        " / ".join(f"{error:.1f}" for error in errors),
        f"{mean:.1f}",
        f"{max(errors) - min(errors):.1f}" if len(errors) > 1 else "",
        f"{statistics.mean(characters):.1f}" if characters else "",
        difference,
    ]


def write_figure(comparison: Comparison) -> None:
    """Draws mean WER against non-zero parameters, a line per title, if wanted."""
    lines = read_lines(comparison)
    if not comparison.figure or not lines:
        return
    metric = METRICS["nonzero"]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (title, names) in enumerate(comparison.titles().items()):
        groups: dict[tuple[str, str], list[Line]] = {}
        for line in lines:
            if line["variant"] in names:
                groups.setdefault((line["variant"], line["size"]), []).append(line)
        points = sorted(
            (
                statistics.mean(x[metric.field] for x in group) / metric.scale,
                [line["err"] for line in group],
            )
            for group in groups.values()
        )
        if not points:
            continue
        sizes = [size for size, _ in points]
        means = [statistics.mean(errors) for _, errors in points]
        below = [
            mean - min(errors) for mean, (_, errors) in zip(means, points, strict=True)
        ]
        above = [
            max(errors) - mean for mean, (_, errors) in zip(means, points, strict=True)
        ]
        axes.errorbar(
            sizes,
            means,
            (below, above),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="-" if index < len(COLOURS) else "--",
            capsize=3,
            label=title,
        )
    axes.set(xlabel=metric.axis, ylabel="WER (%), range of the seeds")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    save_figure(figure, Path(comparison.figure), dpi=110)
