"""An audio file read block by block, as one channel at a wanted rate."""

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from espnet_omnisparse.console import say
from espnet_omnisparse.data.audio_ends import ends_early
from espnet_omnisparse.data.audio_files import check_header, check_samples
from espnet_omnisparse.errors import UserError


def file_blocks(
    path: Path | str,
    rate: int,
    seconds: float,
    notice: Callable[[str], None] = say,
    first: float | None = None,
) -> Iterator[torch.Tensor]:
    """Reads an audio file block by block, as one channel at the wanted rate.

    The memory it takes does not grow with the file. Resampling keeps its filter from
    block to block: the blocks together are the whole recording resampled.

    Args:
        path: Any file that libsndfile reads.
        rate: Wanted samples per second.
        seconds: Length of a block. The last is shorter, and a resampled one may be off
            by the filter's delay.
        notice: Is told, in a sentence, of channels mixed down, of resampling and of an
            end that comes too early.
        first: Length of the first block, if it is another.

    Yields:
        Samples `[n]`, float32, full scale being 1.

    Raises:
        UserError: If there is no such file, or it is no audio, or damaged, or holds no
            samples, or one that no audio has.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the audio files in it.")
    if not path.is_file():
        raise UserError(f"There is no audio file {path}: check its name.")
    try:
        with path.open("rb") as file:
            check_header(path, file)
            early = ends_early(file)
        with soundfile.SoundFile(path) as sound:
            if sound.channels > 1:
                notice(f"{path} has {sound.channels} channels: their mean is taken.")
            if sound.samplerate != rate:
                notice(f"{path} is resampled from {sound.samplerate} to {rate} Hz.")
            if early:
                notice(f"{path} ends before its header says: it may be truncated.")
            sizes = block_sizes(sound.samplerate, seconds, first)
            blocks = _mono_blocks(path, sound, sizes, notice)
            yield from _resampled(blocks, sound.samplerate, rate)
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise UserError(
            f"The audio file {path} cannot be read ({reason}): check that it is "
            "undamaged audio in a format such as WAV or FLAC."
        ) from error


def _mono_blocks(
    path: Path,
    sound: soundfile.SoundFile,
    sizes: Iterator[int],
    notice: Callable[[str], None],
) -> Iterator[np.ndarray]:
    """The file's blocks `[n]` at its own rate."""
    position = 0
    while len(block := sound.read(next(sizes), dtype="float32", always_2d=True)):
        start = position / sound.samplerate
        check_samples(block, f"The audio file {path}", start, sound.samplerate)
        yield block.mean(axis=1)
        position += len(block)
    if position == 0:
        raise UserError(f"The audio file {path} holds no samples: record it again.")
    if position < sound.frames:
        notice(
            f"{path} ends at {position / sound.samplerate:.3f} s, before the end that "
            "its header announces: it may be truncated."
        )


def _resampled(
    blocks: Iterator[np.ndarray], source_rate: int, rate: int
) -> Iterator[torch.Tensor]:
    if source_rate == rate:
        yield from map(torch.from_numpy, blocks)
        return
    stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32")
    for block in blocks:
        resampled = stream.resample_chunk(block)
        if len(resampled):
            yield torch.from_numpy(resampled)
    rest = stream.resample_chunk(np.empty(0, dtype=np.float32), last=True)
    if len(rest):
        yield torch.from_numpy(rest)


def block_sizes(rate: int, seconds: float, first: float | None) -> Iterator[int]:
    """Samples of each block, for ever.

    Args:
        rate: Samples per second.
        seconds: Length of a block.
        first: Length of the first block in seconds, if it is another.
    """
    lengths = chain([] if first is None else [first], repeat(seconds))
    return (max(1, round(rate * length)) for length in lengths)
