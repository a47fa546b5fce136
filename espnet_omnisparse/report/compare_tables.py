"""The tables and the figure of a comparison, from its recorded results."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from espnet_omnisparse.cost.metrics import METRICS
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.files import write_text
from espnet_omnisparse.report.comparison import Comparison, read_lines
from espnet_omnisparse.report.gains import paired_gain
from espnet_omnisparse.report.plots import COLOURS, MARKERS, save_figure
from espnet_omnisparse.report.tables import Table

Line = Mapping[str, Any]
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
        yield from _by_title(comparison, lines)
        yield ""
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
    yield from table.markdown()
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


def _titles(comparison: Comparison) -> dict[str, list[str]]:
    """Title -> the variants that have it."""
    found: dict[str, list[str]] = {}
    for name, variant in comparison.variants.items():
        found.setdefault(variant.title or name, []).append(name)
    return found


def _cell(
    names: Sequence[str], wanted: Sequence[str], lines: Sequence[Line]
) -> dict[int, Line]:
    """Seed -> a row's result under a heading."""
    return {
        line["seed"]: line
        for line in lines
        if line["variant"] in names
        and {line["variant"], line["size"], f"{line['variant']}/{line['size']}"}
        & {*wanted}
    }


def _by_title(comparison: Comparison, lines: Sequence[Line]) -> Iterator[str]:
    """A row per title, a column per heading: mean WER, and each seed's."""
    columns = comparison.columns
    totals = ("updates in total", "trainings", "training in total (min)")
    table = Table(["", *columns, *totals])
    titles = _titles(comparison)
    theirs = {
        heading: _cell(titles.get(comparison.against, ()), wanted, lines)
        for heading, wanted in columns.items()
    }
    for title, names in titles.items():
        cells = []
        for heading, wanted in columns.items():
            found = _cell(names, wanted, lines)
            errors = [found[seed]["err"] for seed in sorted(found)]
            text = " / ".join(f"{error:.1f}" for error in errors)
            if len(errors) > 1:
                text = f"**{statistics.mean(errors):.2f}** ({text})"
            if title != comparison.against:
                text += _against(found, theirs[heading])
            cells.append(text)
        if not any(cells):
            continue
        table.rows.append([title, *cells, *_total_cost(comparison, names, lines)])
    yield from table.markdown()
    yield ""
    relative = ""
    if comparison.against:
        relative = (
            f", and relative to {comparison.against}, seeds in pairs; in square "
            "brackets the 95 % interval of that difference in points, by bootstrap "
            "over utterances, of the seeds whose errors are known for each utterance"
        )
    yield f"Mean WER of the seeds, each seed's in brackets{relative}."


def _against(found: Mapping[int, Line], theirs: Mapping[int, Line]) -> str:
    """How a row's results compare with others of the same seeds."""
    paired = [(found[seed], theirs[seed]) for seed in found if seed in theirs]
    total = sum(other["err"] for _, other in paired)
    ratio = sum(mine["err"] for mine, _ in paired) / total if total else None
    text = "" if ratio is None else f" {100 * (ratio - 1):+.0f} %"
    # results of earlier versions have no errors per utterance
    paired = [both for both in paired if all(line.get("errors") for line in both)]
    if not paired:
        return text
    mine, other = (
        np.sum([line["errors"] for line in side], 0)
        for side in zip(*paired, strict=True)
    )
    gain = paired_gain(mine, other, np.sum([line["words"] for line, _ in paired], 0))
    return f"{text} [{gain.low:+.2f}, {gain.high:+.2f}]"


def _total_cost(
    comparison: Comparison, names: Sequence[str], lines: Sequence[Line]
) -> list[str]:
    """Updates, trainings and minutes of a row, those of repairs counted in.

    Sizes cut out of another row's training cost nothing more, unless they are repaired:
    then that training is counted, too.
    """
    rows = [line for line in lines if line["variant"] in names]
    repairs = [line for line in rows if line.get("repair_updates")]
    updates, minutes = 0.0, [_mean_sum(repairs, "repair_seconds")]
    bases = []
    for name in names:
        base = comparison.training(name)
        mine = [line for line in rows if line["variant"] == name]
        repaired = any(line in repairs for line in mine)
        if mine and (base == name or repaired) and base not in bases:
            bases.append(base)
            one = {line["seed"]: line for line in mine}.values()
            made = [x["updates"] - x.get("repair_updates", 0) for x in one]
            updates += statistics.mean(made)
            times = [x["train_seconds"] for x in one if x["train_seconds"]]
            minutes.append(statistics.mean(times) if times else None)
    if not bases:
        return ["", "0", ""]
    updates += _mean_sum(repairs, "repair_updates")
    sizes = len({(line["variant"], line["size"]) for line in repairs})
    trainings = str(len(bases)) + (f" + {sizes} repairs" if sizes else "")
    known = None not in minutes
    time = f"{sum(minutes) / 60:.1f}" if known else ""
    return [f"{updates:.0f}", trainings, time]


def _mean_sum(lines: Sequence[Line], field: str) -> float:
    """What the lines of one seed add up to, mean over the seeds."""
    seeds = {line["seed"] for line in lines}
    return sum(line[field] for line in lines) / max(len(seeds), 1)


def write_figure(comparison: Comparison) -> None:
    """Draws mean WER against non-zero parameters, a line per title, if wanted."""
    lines = read_lines(comparison)
    if not comparison.figure or not lines:
        return
    metric = METRICS["nonzero"]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (title, names) in enumerate(_titles(comparison).items()):
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
