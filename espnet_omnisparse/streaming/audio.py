"""Audio as it comes: samples pushed, and raw PCM from a pipe, block by block."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import torch

from espnet_omnisparse.console import say
from espnet_omnisparse.data.audio_blocks import block_sizes
from espnet_omnisparse.data.audio_files import check_samples
from espnet_omnisparse.data.container import container
from espnet_omnisparse.errors import UserError


def checked(samples: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Samples `[n]`, if they are what a stream takes.

    Args:
        samples: Full scale being 1.

    Raises:
        UserError: If they are integers, or one is none that audio has.
    """
    samples = torch.as_tensor(samples)
    if not samples.is_floating_point():
        raise UserError(
            f"A stream takes samples whose full scale is 1.0, not {samples.dtype}: "
            "divide 16-bit ones by 32768.0."
        )
    check_samples(samples.detach().double().cpu().numpy(), "The audio")
    return samples


def pcm_blocks(
    stream: BinaryIO,
    rate: int,
    seconds: float,
    notice: Callable[[str], None] = say,
    first: float | None = None,
) -> Iterator[torch.Tensor]:
    """Reads raw audio from a pipe and hands on each block as soon as it is full.

    Ctrl-C, while it waits for samples, ends the audio as the pipe's end does: what has
    come until then is handed on.

    Args:
        stream: 16-bit little-endian PCM of one channel, such as `sys.stdin.buffer`.
        rate: Its samples per second.
        seconds: Length of a block; the last may be shorter.
        notice: Is told, in a sentence, of an input that ends in the middle of a sample.
        first: Length of the first block, if it is another.

    Yields:
        Samples `[n]`, float32, in [-1, 1).

    Raises:
        UserError: If there is no sample at all, or if it is an audio file, such as
            WAV, FLAC or MP3.
    """
    # as much as there is: what a longer read holds back, Ctrl-C would lose
    read = getattr(stream, "read1", stream.read)
    beginning = pending = b""
    for samples in block_sizes(rate, seconds, first):
        size = 2 * samples
        try:
            while len(pending) < size and (more := read(size - len(pending))):
                pending += more
        except KeyboardInterrupt:
            break
        if not beginning:
            beginning = pending
            _refuse_container(beginning, rate)
        if len(pending) < size:
            break
        yield _from_pcm(pending)
        pending = b""
    if len(beginning) < 2 and len(pending) < 2:
        raise UserError(
            "No audio came on standard input: pipe raw 16-bit PCM into it, as arecord "
            f"-f S16_LE -r {rate} -t raw writes it."
        )
    if len(pending) % 2:
        notice("The input ends in the middle of a sample: its last byte is dropped.")
        pending = pending[:-1]
    if pending:
        yield _from_pcm(pending)


def _refuse_container(beginning: bytes, rate: int) -> None:
    kind = container(beginning)
    if kind is not None:
        article = "an" if kind.startswith(("A", "MP")) else "a"
        raise UserError(
            f"Standard input is {article} {kind} file, but - takes raw 16-bit PCM at "
            f"{rate} Hz, one channel: give the file's name instead, or pipe it through "
            f"ffmpeg -i - -f s16le -ar {rate} -ac 1 - first."
        )


def _from_pcm(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768)
