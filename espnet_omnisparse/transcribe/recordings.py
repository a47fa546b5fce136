"""Recordings of any length through a packed model, with memory that does not grow."""

from collections.abc import Iterator
from pathlib import Path

from espnet_omnisparse.console import bar
from espnet_omnisparse.data.audio_blocks import file_blocks
from espnet_omnisparse.runtime import Model
from espnet_omnisparse.transcribe.segments import segments
from espnet_omnisparse.transcribe.words import Word, words_of

_BLOCK = 10.0  # seconds read at a time


def words_in(model: Model, path: Path, beam: int = 1) -> Iterator[Word]:
    """The words of an audio file, with their times.

    A model with a chunk of its own hears the file as a stream. Any other hears it in
    segments of up to half a minute, cut where it is quiet.

    Args:
        model: A packed model.
        path: Any audio file; it is resampled and mixed down if need be.
        beam: Hypotheses kept; 1: greedy search.

    Raises:
        UserError: If the file cannot be read.
    """
    rate, text = model.sample_rate, model.info["text"]
    blocks = (block.numpy() for block in file_blocks(path, rate, _BLOCK))
    with bar(path.name, 0, "s") as told:
        if model.can_stream and model.chunk is not None:
            stream = model.stream(beam=beam)
            for block in blocks:
                stream.push(block)
                told.update(round(len(block) / rate))
            stream.finish()
            yield from words_of(stream.tokens, text)
            return
        for begin, samples in segments(blocks, rate):
            stream = model.whole(beam=beam)
            stream.push(samples)
            stream.finish()
            told.update(round(len(samples) / rate))
            yield from words_of(stream.tokens, text, begin)
