"""`omnisparse stream`: words printed as they come, and how long they took."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np
import torch

from espnet_omnisparse.streaming.audio import file_blocks, pcm_blocks
from espnet_omnisparse.streaming.recogniser import Recogniser


@dataclass
class Latency:
    """How fast a stream was recognised.

    Attributes:
        chunk: Seconds of audio in a chunk.
        lookahead: Seconds of audio after it that its features need.
        audio: Seconds of audio.
        chunks: Seconds of computation for each chunk.
    """

    chunk: float
    lookahead: float
    audio: float = 0.0
    chunks: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, float]:
        """Plain numbers: seconds, the real-time factor, milliseconds per chunk."""
        spent = sum(self.chunks)
        quantiles = np.percentile(self.chunks or [0.0], (50, 95, 99))
        p50, p95, p99 = (round(1000.0 * float(one), 2) for one in quantiles)
        return {
            "audio_s": round(self.audio, 3),
            "rtf": round(spent / self.audio, 4) if self.audio else 0.0,
            "latency_ms": round(1000.0 * (self.chunk + self.lookahead), 1),
            "chunk_ms": round(1000.0 * self.chunk, 1),
            "lookahead_ms": round(1000.0 * self.lookahead, 1),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
        }

    def __str__(self) -> str:
        found = self.as_dict()
        return (
            "{audio_s:.2f} s of audio, real-time factor {rtf:.4f} on one thread; "
            "algorithmic latency {latency_ms:.0f} ms = chunk {chunk_ms:.0f} + "
            "look-ahead {lookahead_ms:.0f}; computation per chunk p50 {p50_ms:.1f}, "
            "p95 {p95_ms:.1f}, p99 {p99_ms:.1f} ms".format(**found)
        )


def recognise(
    recogniser: Recogniser, blocks: Iterable[torch.Tensor], out: TextIO | None = None
) -> tuple[str, Latency]:
    """Recognises audio block by block.

    Args:
        recogniser: With what.
        blocks: Samples; blocks as long as a chunk give its time of computation.
        out: Where words are written to as they come; `None`: nowhere.

    Returns:
        The text, and how fast it came.
    """
    stream = recogniser.stream()
    latency = Latency(recogniser.chunk_seconds, recogniser.lookahead_seconds)
    printer = _Printer(out)
    for block in blocks:
        start = time.perf_counter()
        stream.push(block)
        latency.chunks.append(time.perf_counter() - start)
        latency.audio += len(block) / recogniser.sample_rate
        printer.show(stream.text)
    start = time.perf_counter()
    text = stream.finish()
    latency.chunks.append(time.perf_counter() - start)
    printer.end(text)
    return text, latency


class _Printer:
    """Writes words once they are followed by others, which rarely change them."""

    def __init__(self, out: TextIO | None):
        self._out = out
        self._written: list[str] = []

    def show(self, text: str) -> None:
        words = text.split()
        self._write(words[len(self._written) : -1])

    def end(self, text: str) -> None:
        words = text.split()
        # a beam may have thought better of a word
        revised = words[: len(self._written)] != self._written
        self._write(words[len(self._written) :])
        if self._out is not None:
            self._out.write("\n" + (f"{text}\n" if revised else ""))
            self._out.flush()

    def _write(self, words: list[str]) -> None:
        if self._out is None or not words:
            return
        self._out.write((" " if self._written else "") + " ".join(words))
        self._out.flush()
        self._written += words


def _until_interrupted(blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The blocks before Ctrl-C, the usual way to end what a microphone says."""
    with suppress(KeyboardInterrupt):
        yield from blocks


def run(recogniser: Recogniser, source: str, as_json: bool = False) -> None:
    """Recognises a file, or raw PCM on stdin, and prints words and latency.

    Args:
        recogniser: With what.
        source: An audio file, or `-`, which Ctrl-C ends as its end does.
        as_json: Print one JSON object instead.
    """
    seconds, rate = recogniser.chunk_seconds, recogniser.sample_rate
    if source == "-":
        blocks = _until_interrupted(pcm_blocks(sys.stdin.buffer, rate, seconds))
    else:
        blocks = file_blocks(source, rate, seconds)
    text, latency = recognise(recogniser, blocks, None if as_json else sys.stdout)
    if as_json:
        print(json.dumps({"text": text, **latency.as_dict()}))
    else:
        print(latency, file=sys.stderr)
