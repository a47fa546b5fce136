"""A comparison's table with a row per title, and the differences of two rows."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from espnet_omnisparse.report.comparison import Comparison
from espnet_omnisparse.report.gains import Gain, paired_gain
from espnet_omnisparse.report.tables import Table

Line = Mapping[str, Any]


def by_title(comparison: Comparison, lines: Sequence[Line]) -> Iterator[str]:
    """A row per title, a column per heading: mean WER, and each seed's.

    Args:
        comparison: What is compared.
        lines: All results so far.
    """
    columns = comparison.columns
    totals = ("updates in total", "trainings", "training in total (min)")
    table = Table(["", *columns, *totals])
    for title, names in comparison.titles().items():
        cells = []
        for heading in columns:
            found = _cell(comparison, title, heading, lines)
            errors = [found[seed]["err"] for seed in sorted(found)]
            text = " / ".join(f"{error:.1f}" for error in errors)
            if len(errors) > 1:
                text = f"**{statistics.mean(errors):.2f}** ({text})"
            if title != comparison.against:
                theirs = _cell(comparison, comparison.against, heading, lines)
                text += _against(found, theirs)
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


def differences(comparison: Comparison, lines: Sequence[Line]) -> Iterator[str]:
    """A row per pair of titles, a column per heading: how far apart they are.

    Args:
        comparison: What is compared.
        lines: All results so far.
    """
    table = Table(["", "less", *comparison.columns])
    for pair in comparison.pairs:
        cells = []
        for heading in comparison.columns:
            both = (_cell(comparison, title, heading, lines) for title in pair)
            gain = _gain(*both)
            cells.append(
                "" if gain is None else f"{gain.difference:+.2f} {_range(gain)}"
            )
        if any(cells):
            table.rows.append([*pair, *cells])
    if table.rows:
        yield from table.markdown()
        yield ""
        yield "Differences in points, of the same seeds, each with its 95 % interval."
        yield ""


def _cell(
    comparison: Comparison, title: str, heading: str, lines: Sequence[Line]
) -> dict[int, Line]:
    """Seed -> a row's result under a heading."""
    wanted = comparison.under(title, heading)
    return {x["seed"]: x for x in lines if (x["variant"], x["size"]) in wanted}


def _against(found: Mapping[int, Line], theirs: Mapping[int, Line]) -> str:
    """How a row's results compare with others of the same seeds."""
    paired = [(found[seed], theirs[seed]) for seed in found if seed in theirs]
    total = sum(other["err"] for _, other in paired)
    ratio = sum(mine["err"] for mine, _ in paired) / total if total else None
    text = "" if ratio is None else f" {100 * (ratio - 1):+.0f} %"
    gain = _gain(found, theirs)
    return text if gain is None else f"{text} {_range(gain)}"


def _range(gain: Gain) -> str:
    return f"[{gain.low:+.2f}, {gain.high:+.2f}]"


def _gain(found: Mapping[int, Line], theirs: Mapping[int, Line]) -> Gain | None:
    """The same in points, of the seeds whose errors are known for each utterance."""
    paired = [(found[seed], theirs[seed]) for seed in found if seed in theirs]
    # results of earlier versions have none
    paired = [both for both in paired if all(line.get("errors") for line in both)]
    if not paired:
        return None
    mine, other = (
        np.sum([line["errors"] for line in side], 0)
        for side in zip(*paired, strict=True)
    )
    return paired_gain(mine, other, np.sum([line["words"] for line, _ in paired], 0))


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
