"""`omnisparse stream`: words printed as they come, and how long they took."""

import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np
import torch

from espnet_omnisparse.data.audio_blocks import file_blocks
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.streaming.audio import pcm_blocks
from espnet_omnisparse.streaming.packed import PackedRecogniser
from espnet_omnisparse.streaming.recogniser import Recogniser


@dataclass
class Latency:
    """How fast a stream was recognised.

    Attributes:
        chunk: Seconds of audio in a chunk.
        lookahead: Seconds of audio after it that its features need.
        audio: Seconds of audio.
        chunks: Seconds of computation for each chunk; the end of the recording counts
            to the last.
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
    recogniser: Recogniser | PackedRecogniser,
    blocks: Iterable[torch.Tensor],
    out: TextIO | None = None,
) -> tuple[str, Latency]:
    """Recognises audio block by block.

    Args:
        recogniser: With what.
        blocks: Samples; a first block as long as a chunk and its look-ahead, and others
            as long as a chunk, give the time of each chunk.
        out: Where text is written to as it comes; `None`: nowhere.

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
        printer.show(stream.likely_text)
    start = time.perf_counter()
    text = stream.finish()
    last = latency.chunks.pop() if latency.chunks else 0.0
    latency.chunks.append(last + time.perf_counter() - start)
    printer.end(text)
    return text, latency


class _Printer:
    """Writes text as it grows; if a beam revises it, all of it again at the end."""

    def __init__(self, out: TextIO | None):
        self._out = out
        self._written = ""

    def show(self, text: str) -> None:
        if self._out is None:
            return
        new = text.removeprefix(self._written)
        if new == text and self._written:  # another beginning: the words after it
            words = text.split()[len(self._written.split()) :]
            new = "".join(f" {word}" for word in words)
        if new:
            self._out.write(new)
            self._out.flush()
            self._written += new

    def end(self, text: str) -> None:
        text = " ".join(text.split())
        self.show(text)
        if self._out is not None:
            self._out.write("\n" if self._written == text else f"\n{text}\n")
            self._out.flush()


def _until_ctrl_c(blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The blocks before Ctrl-C, the usual way to end what a microphone says.

    It breaks into the wait for a block, not into the recognition of one.
    """
    waiting = stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        if waiting:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        while not stopped:
            waiting = True
            block = next(blocks, None)
            waiting = False
            if block is None:
                break
            yield block
    finally:
        signal.signal(signal.SIGINT, before)


def run(
    recogniser: Recogniser | PackedRecogniser, source: str, as_json: bool = False
) -> None:
    """Recognises a file, or raw PCM on stdin, and prints words and latency.

    Args:
        recogniser: With what.
        source: An audio file, or `-`, which Ctrl-C ends as its end does.
        as_json: Print one JSON object instead.

    Raises:
        UserError: If there is no audio, or none that can be recognised.
    """
    seconds, rate = recogniser.chunk_seconds, recogniser.sample_rate
    # the first chunk is complete when its look-ahead has come
    first = seconds + recogniser.lookahead_seconds
    if source != "-":
        blocks = file_blocks(source, rate, seconds, first=first)
    elif sys.stdin is None:
        raise UserError("There is no standard input to read audio from: name a file.")
    else:
        pushed = pcm_blocks(sys.stdin.buffer, rate, seconds, first=first)
        blocks = _until_ctrl_c(pushed)
    text, latency = recognise(recogniser, blocks, None if as_json else sys.stdout)
    if as_json:
        print(json.dumps({"text": text, **latency.as_dict()}))
    else:
        print(latency, file=sys.stderr)
