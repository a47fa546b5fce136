"""Models in their run times against each other, all of them in turn in each round."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from espnet_omnisparse import runtime
from espnet_omnisparse.bench.contestants import LEFT, RATE, Contestant, Entry, noise
from espnet_omnisparse.console import bar
from espnet_omnisparse.report.tables import Table

CHUNKS = 12  # timed in a round, after those that fill what a stream remembers


@dataclass
class Row:
    """What was measured of one model in one run time.

    Attributes:
        model: Its name.
        run_time: What computed it.
        bytes: Of its file.
        threads: It had.
        cpu: On which.
        isa: The engine's instruction set there.
        seconds: Of the whole recording.
        macs: Multiplications with weights for 10 s.
        memory: Bytes at most, above its libraries.
        wer: Word error rate in per cent.
        whole: Seconds of each round for a whole recording.
        chunks: Size of a chunk -> seconds of each.
    """

    model: str
    run_time: str
    bytes: int
    threads: int
    cpu: str
    isa: str
    seconds: int
    macs: int | None = None
    memory: int | None = None
    wer: float | None = None
    whole: list[float] = field(default_factory=list)
    chunks: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the model and its run time."""
        return f"{self.run_time}, {self.model}"

    @property
    def series(self) -> str:
        """What the model's name has before a colon."""
        return self.model.rpartition(":")[0]

    @property
    def per_second(self) -> float:
        """Seconds of computation for one of audio: the real-time factor."""
        return statistics.median(self.whole) / self.seconds

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        seconds: Of a whole recording.
        chunks: Sizes of those of streams, in encoder frames.
        rounds: Timed.
    """

    seconds: int
    chunks: Sequence[int]
    rounds: int


def measure(entries: Sequence[Entry], plan: Plan, threads: int) -> list[Row]:
    """Times all entries in turn, round after round, after one that is not counted.

    Args:
        entries: The models and their run times.
        plan: What is measured.
        threads: That each has.
    """
    samples = noise(plan.seconds * RATE)
    isa = runtime.instruction_set()
    contestants, rows = [], []
    for entry in entries:
        contestants.append(entry.open(threads))
        told = (contestants[-1].bytes, threads, cpu(), isa, plan.seconds, entry.macs)
        rows.append(Row(entry.model, entry.run_time, *told))
    with bar("rounds", (1 + plan.rounds) * len(rows), "model") as shown:
        for number in range(1 + plan.rounds):
            for one, row in zip(contestants, rows, strict=True):
                start = time.perf_counter()
                one.whole(samples)
                spent = time.perf_counter() - start
                if number:
                    row.whole.append(spent)
                for size in plan.chunks:
                    times = _chunks(one, size)
                    if number:
                        row.chunks.setdefault(size, []).extend(times)
                shown.update()
    return rows


def _chunks(contestant: Contestant, size: int) -> list[float]:
    stream = contestant.chunks(size)
    for _ in range(2 + -(-LEFT // size)):
        next(stream)
    times = []
    for _ in range(CHUNKS):
        start = time.perf_counter()
        next(stream)
        times.append(time.perf_counter() - start)
    return times


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: medians, and the tails of the chunks.

    Args:
        rows: What was measured.
    """
    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda row: row.model,
        "run time": lambda row: row.run_time,
        "threads": lambda row: str(row.threads),
        "file (MB)": lambda row: f"{row.bytes / 1e6:.2f}",
        "memory (MB)": lambda row: _shown(row.memory, 1e-6),
        "MACs 10 s (G)": lambda row: _shown(row.macs, 1e-9),
        "WER (%)": lambda row: _shown(row.wer, 1.0),
        "whole (ms)": lambda row: f"{1e3 * statistics.median(row.whole):.1f}",
        "RTF": lambda row: f"{row.per_second:.4f}",
    }
    if len({row.threads for row in rows}) == 1:
        del columns["threads"]
    measured = {"memory (MB)": "memory", "MACs 10 s (G)": "macs", "WER (%)": "wer"}
    for name, value in measured.items():
        if all(getattr(row, value) is None for row in rows):
            del columns[name]
    for size in sorted({size for row in rows for size in row.chunks}):
        columns[f"chunk of {size}: p50 / p95 / p99 (ms)"] = partial(_tails, size)
    body = [[cell(row) for cell in columns.values()] for row in rows]
    first = rows[0]
    told = f"{first.cpu} ({' '.join(features())}), engine: {first.isa}, whole: "
    told += f"{first.seconds} s, medians of rounds\n\n"
    return told + "\n".join(Table(list(columns), body).markdown()) + "\n"


def _shown(value: float | None, scale: float) -> str:
    return "" if value is None else f"{value * scale:.2f}"


def _tails(size: int, row: Row) -> str:
    found = np.percentile(row.chunks[size], (50, 95, 99)) * 1e3
    return " / ".join(f"{one:.2f}" for one in found)


def features() -> list[str]:
    """What the processor has of the instruction sets that matter here."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").lower().split()
    except OSError:
        return []
    known = "avx2 avx512f avx512_vnni avx512vbmi avx_vnni amx_int8 asimd asimddp i8mm"
    return [name for name in known.split() if name in told]


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
