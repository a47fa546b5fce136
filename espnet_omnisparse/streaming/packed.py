"""A packed model in place of a recogniser: streams of the engine."""

import math
from pathlib import Path

import torch

from espnet_omnisparse import runtime
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.streaming.text import settled_text


class PackedRecogniser:
    """A packed model that recognises streams; see `Recogniser`.

    Args:
        path: The file.
        chunk: What each frame sees; `None`: as in training.
        beam: Hypotheses that are kept; 1: greedy search.

    Raises:
        UserError: If it is no packed model, or cannot stream.
    """

    def __init__(self, path: Path, chunk: Chunk | None = None, beam: int = 1):
        self._model = runtime.load(path)
        self._given, self._beam = chunk, beam
        self.sample_rate = self._model.sample_rate
        self.stream()  # a model that cannot stream is told of at once
        told = self._model.info
        size = chunk.size if chunk is not None else told["encoder"]["chunk"]["size"]
        stride, field = 1, 1
        for conv in told["front_end"]["convs"]:
            field += (conv["kernel"][0] - 1) * stride
            stride *= conv["stride"][0]
        hop, lookahead = _window(told["features"])
        #: Duration of a chunk, in seconds.
        self.chunk_seconds = size * self._model.frame_samples / self.sample_rate
        beyond = (field - 1 - stride) * hop + lookahead
        #: Audio after a chunk's end that its features need, in seconds.
        self.lookahead_seconds = beyond / self.sample_rate

    def stream(self) -> "PackedStream":
        """A new stream."""
        given = self._given
        size, left = (None, None) if given is None else (given.size, given.left)
        stream = self._model.stream(size, left, self._beam)
        return PackedStream(stream, self._beam > 1)


class PackedStream:
    """One recording on its way through the engine; see `recogniser.Stream`.

    Args:
        stream: The engine's.
        revises: Whether its text may change.
    """

    def __init__(self, stream: runtime.Stream, revises: bool):
        self._stream, self._revises = stream, revises

    def push(self, samples: torch.Tensor) -> None:
        """Takes the next samples `[n]`, full scale being 1.

        Raises:
            UserError: If a sample is not finite, or far beyond full scale.
        """
        self._stream.push(samples.numpy())

    def finish(self) -> str:
        """Ends the recording.

        Returns:
            Its text.
        """
        return self._stream.finish()

    @property
    def likely_text(self) -> str:
        """The text so far without what the next chunks may well change."""
        return settled_text(self._stream.text, self._revises)


def _window(features: dict) -> tuple[int, int]:
    """Samples from a frame to the next, and of a frame after its place."""
    if features["kind"] == "stft":
        window = features["n_fft"]
        before = window // 2 if features["center"] else 0
        return features["hop_length"], window - before
    if features["kind"] == "kaldi":
        length, shift = features["frame_length"], features["frame_shift"]
        return shift, math.ceil((length + shift) / 2)
    raise UserError(f"Features of the kind {features['kind']} are not known.")
