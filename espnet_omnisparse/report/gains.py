"""What a search, or a repair, has gained on a test set, with a confidence interval.

Two sizes are compared on the same utterances: of the paired differences 2,000 bootstrap
samples of utterances are drawn (Bisani and Ney, ICASSP 2004).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import editdistance
import numpy as np

from espnet_omnisparse.core.spec import REPAIRED
from espnet_omnisparse.report.results import Series, SizeResult
from espnet_omnisparse.report.tables import Table

UNIFORM = "_uniform"  # behind a budget's name: the best with one sparsity everywhere
_SAMPLES = 2_000
_LINE = re.compile(r"^(.*)\(([^()]+)\)\s*$")
COLUMNS = ("size", "against", "dataset", "WER", "difference", "95 % interval")


@dataclass(frozen=True)
class Gain:
    """A difference of two word error rates, in percentage points.

    Attributes:
        difference: The first's minus the second's; below 0: the first is better.
        low: Where its 95 % interval begins.
        high: Where it ends.
    """

    difference: float
    low: float
    high: float


def paired_gain(
    errors: Sequence[int], others: Sequence[int], words: Sequence[int]
) -> Gain:
    """The difference of two word error rates on the same utterances.

    Args:
        errors: Of the one recogniser, per utterance.
        others: Of the other.
        words: Of the reference.

    >>> paired_gain([1, 0], [1, 0], [4, 6])
    Gain(difference=0.0, low=0.0, high=0.0)
    """
    more = 100.0 * (np.asarray(errors) - np.asarray(others))
    count = np.asarray(words)
    chosen = np.random.default_rng(0).integers(len(more), size=(_SAMPLES, len(more)))
    drawn = more[chosen].sum(1) / np.maximum(count[chosen].sum(1), 1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Gain(float(more.sum() / max(count.sum(), 1)), float(low), float(high))


def read_errors(folder: Path) -> dict[str, tuple[int, int]]:
    """Utterance -> its errors and words, of a folder that sclite has scored.

    Args:
        folder: It has `ref.trn` and `hyp.trn`.
    """
    reference, hypothesis = (_read(folder / name) for name in ("ref.trn", "hyp.trn"))
    return {
        name: (editdistance.eval(words, hypothesis.get(name, [])), len(words))
        for name, words in reference.items()
    }


def _read(path: Path) -> dict[str, list[str]]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _LINE.match(line):
            found[match[2]] = match[1].split()
    return found


def gain_table(series: Sequence[Series]) -> Table | None:
    """Searched sizes against uniform ones, repaired against not repaired.

    Args:
        series: Those of one family.

    Returns:
        A row per pair and data set; `None` where no pair has been decoded.
    """
    table = Table(COLUMNS)
    sizes = {size.label: size for one in series[:1] for size in one.sizes}
    repaired = {size.label: size for one in series[1:] for size in one.sizes}
    for name, size in {**sizes, **repaired}.items():
        base = f"{name}{UNIFORM}"
        if name.endswith(REPAIRED):
            base = name.removesuffix(REPAIRED)
        if base in sizes:
            table.rows += _rows(size, sizes[base])
    return table if table.rows else None


def _rows(size: SizeResult, other: SizeResult) -> Iterator[list[str]]:
    """A row per data set on which both have the same utterances."""
    for dataset, score in size.wer.items():
        ours, theirs = (_scored(one, dataset) for one in (size, other))
        if not ours or ours.keys() != theirs.keys():
            continue
        gain = paired_gain(
            [ours[name][0] for name in ours],
            [theirs[name][0] for name in ours],
            [ours[name][1] for name in ours],
        )
        yield [
            *(size.label, other.label, dataset, f"{score.err:.1f}"),
            f"{gain.difference:+.2f}",
            f"{gain.low:+.2f} to {gain.high:+.2f}",
        ]


def _scored(size: SizeResult, dataset: str) -> Mapping[str, tuple[int, int]]:
    folder = size.folder / dataset / "score_wer"
    there = all((folder / name).is_file() for name in ("ref.trn", "hyp.trn"))
    return read_errors(folder) if there else {}
