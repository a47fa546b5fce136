"""Models in their run times against each other, all of them in turn in each round."""

import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from espnet_omnisparse import runtime
from espnet_omnisparse.bench.contestants import Contestant, noise
from espnet_omnisparse.console import bar
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.report.tables import Table

RATE = 16000
LEFT = 32  # frames before a chunk
CHUNKS = 12  # timed in a round, after those that fill what a stream remembers


@dataclass
class Row:
    """What was measured of one contestant.

    Attributes:
        name: Its.
        bytes: Of its file.
        threads: It had.
        cpu: On which.
        isa: The engine's instruction set there.
        whole: Seconds of each round for a whole recording.
        chunks: Size of a chunk -> seconds of each.
    """

    name: str
    bytes: int
    threads: int
    cpu: str
    isa: str
    whole: list[float] = field(default_factory=list)
    chunks: dict[int, list[float]] = field(default_factory=dict)

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def measure(
    contestants: Sequence[Contestant],
    seconds: int,
    chunks: Sequence[int],
    rounds: int,
    threads: int,
) -> list[Row]:
    """Times all contestants in turn, round after round, after one that is not counted.

    Args:
        contestants: The models.
        seconds: Of the whole recording.
        chunks: Sizes of chunks in encoder frames.
        rounds: Timed.
        threads: That they were given, to be told.
    """
    samples = noise(seconds * RATE)
    isa = runtime.instruction_set()
    rows = [Row(c.name, c.bytes, threads, cpu(), isa) for c in contestants]
    with bar("rounds", (1 + rounds) * len(rows), "model") as told:
        for number in range(1 + rounds):
            for one, row in zip(contestants, rows, strict=True):
                start = time.perf_counter()
                one.whole(samples)
                spent = time.perf_counter() - start
                if number:
                    row.whole.append(spent)
                for size in chunks:
                    times = _chunks(one, Chunk(size, LEFT))
                    if number:
                        row.chunks.setdefault(size, []).extend(times)
                told.update()
    return rows


def _chunks(contestant: Contestant, chunk: Chunk) -> list[float]:
    stream = contestant.chunk(chunk)
    for _ in range(2 + -(-chunk.left // chunk.size)):
        next(stream)
    times = []
    for _ in range(CHUNKS):
        start = time.perf_counter()
        next(stream)
        times.append(time.perf_counter() - start)
    return times


def table(rows: Sequence[Row], seconds: int) -> str:
    """The rows as Markdown: medians, and the tails of the chunks.

    Args:
        rows: What was measured.
        seconds: Of the whole recording.
    """
    sizes = sorted({size for row in rows for size in row.chunks})
    head = ["model", "file (MB)", f"{seconds} s whole (ms)", "RTF"]
    head += [f"chunk of {size}: p50 / p95 / p99 (ms)" for size in sizes]
    body = []
    for row in rows:
        median = statistics.median(row.whole)
        cells = [row.name, f"{row.bytes / 1e6:.2f}", f"{1e3 * median:.1f}"]
        cells.append(f"{median / seconds:.4f}")
        for size in sizes:
            found = np.percentile(row.chunks[size], (50, 95, 99)) * 1e3
            cells.append(" / ".join(f"{one:.2f}" for one in found))
        body.append(cells)
    first = rows[0]
    told = f"{first.cpu}, {first.isa}, {first.threads} thread(s), medians of rounds\n\n"
    return told + "\n".join(Table(head, body).markdown()) + "\n"


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
