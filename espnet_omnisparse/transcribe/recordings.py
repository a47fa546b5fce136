"""Recordings of any length through a model, with memory that does not grow."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from espnet_omnisparse.console import bar
from espnet_omnisparse.data.audio_blocks import file_blocks
from espnet_omnisparse.runtime import Token
from espnet_omnisparse.transcribe.words import Word, words_of

_BLOCK = 10.0  # seconds read at a time


class Transcriber(Protocol):
    """A model, whatever computes it.

    Attributes:
        sample_rate: Samples per second that it hears.
        text: How its tokens spell, as a packed model's description has it.
    """

    sample_rate: int
    text: Mapping[str, Any]

    def tokens(self, blocks: Iterable[np.ndarray]) -> Iterator[Token]:
        """The tokens of a recording of any length, without those that are no text.

        Args:
            blocks: Its samples `[n]`, one block after the other, full scale being 1.
        """


def words_in(model: Transcriber, path: Path) -> Iterator[Word]:
    """The words of an audio file, with their times.

    Args:
        model: What recognises them.
        path: Any audio file; it is resampled and mixed down if need be.

    Raises:
        UserError: If the file cannot be read.
    """
    rate = model.sample_rate
    with bar(path.name, 0, "s") as told:

        def blocks() -> Iterator[np.ndarray]:
            heard = 0.0
            for block in file_blocks(path, rate, _BLOCK):
                yield block.numpy()
                heard += len(block) / rate
                told.update(round(heard) - told.n)

        yield from words_of(model.tokens(blocks()), model.text)
