"""Packed models, computed by the engine."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from espnet_omnisparse import runtime
from espnet_omnisparse.runtime import Token
from espnet_omnisparse.transcribe.windows import joined


class PackedModel:
    """A packed model; see `recordings.Transcriber`.

    One with a chunk of its own hears a recording as a stream, any other in windows.

    Args:
        path: The file.
        threads: Of the engine.
        beam: Hypotheses kept; 1: greedy search.

    Raises:
        UserError: If it is no packed model, or the engine is not built.
    """

    def __init__(self, path: Path, threads: int = 1, beam: int = 1):
        self._model, self._beam = runtime.load(path, threads), beam
        self._model.whole(beam=beam)  # refuses a beam that is none before any audio
        self.sample_rate = self._model.sample_rate
        self.text = self._model.info["text"]
        self._silent = frozenset(self._model.info["silent"])

    def tokens(self, blocks: Iterable[np.ndarray]) -> Iterator[Token]:
        """The tokens of a recording of any length, without those that are no text.

        Args:
            blocks: Its samples `[n]`, one block after the other, full scale being 1.
        """
        model = self._model
        if model.can_stream and model.chunk is not None:
            found = _all(model.stream(beam=self._beam), blocks)
        else:
            frame, rate = model.frame_samples, self.sample_rate
            found = joined(blocks, rate, frame, self._tokens_of)
        return (token for token in found if token.text not in self._silent)

    def _tokens_of(self, samples: np.ndarray) -> Iterable[Token]:
        return _all(self._model.whole(beam=self._beam), [samples])


def _all(stream: runtime.Stream, blocks: Iterable[np.ndarray]) -> Iterator[Token]:
    """The tokens of a whole stream."""
    for block in blocks:
        stream.push(block)
    stream.finish()
    yield from stream.tokens
