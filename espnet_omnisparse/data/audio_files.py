"""Whether an audio file is whole, and whether its samples can be audio's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from espnet_omnisparse.console import bar
from espnet_omnisparse.data.audio_ends import (
    ends_early,
    has_no_length,
    mp3_ends_early,
    sphere_header,
)
from espnet_omnisparse.errors import UserError

# Floating-point audio may exceed full scale a little, as mixing and codecs make it;
# what exceeds it so far has another full scale, such as that of 16-bit integers.
LOUDEST = 8.0

_CHECKING_THREADS = 8
_BLOCK = 1 << 16  # frames


class AudioError(UserError):
    """Why a recording, or a part of one, cannot be used.

    Attributes:
        subject: What it is, as a sentence begins with it.
        what: What is wrong with it.
        remedy: What to do.
        kind: `what` without particulars, to count by.
    """

    def __init__(self, subject: str, what: str, remedy: str, kind: str | None = None):
        super().__init__(f"{subject} {what}: {remedy}.")
        self.subject, self.what, self.remedy = subject, what, remedy
        self.kind = kind or what


@dataclass(frozen=True)
class Recording:
    """What an audio file holds.

    Attributes:
        seconds: Its length.
        rate: Samples per second.
        channels: Their number.
        peak: Largest magnitude of floating-point samples; of others, which are not
            read, 0.
    """

    seconds: float
    rate: int
    channels: int
    peak: float = 0.0


def over_files[T](
    function: Callable[[Path], T], name: str, paths: Sequence[Path]
) -> list[T]:
    """Applies a function such as `check_audio` to files, several at a time.

    Args:
        function: What to apply.
        name: What the progress bar calls the files.
        paths: The files.

    Returns:
        What it returned for each file, in their order.
    """
    results = []
    with (
        ThreadPool(_CHECKING_THREADS) as pool,
        bar(name, len(paths), " files") as shown,
    ):
        for result in pool.imap(function, paths, chunksize=16):
            results.append(result)
            shown.update()
    return results


def check_audio(path: Path) -> Recording:
    """Checks that an audio file holds samples, of audio, and is there to its end.

    Its header and its end are read, and floating-point samples, as only they can be
    beyond full scale, or not finite.

    Args:
        path: FLAC, WAV, Ogg Opus, NIST SPHERE, or what else libsndfile reads.

    Raises:
        AudioError: If it is empty, truncated, no audio, nothing that libsndfile reads,
            or has samples that no audio has.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise _broken(path, "is empty")
            check_header(path, file)
            if ends_early(file):
                raise _broken(path, "is truncated")
            shorter = mp3_ends_early(file)
        with soundfile.SoundFile(path) as sound:
            if sound.frames == 0:
                raise _broken(path, "holds no samples")
            if (shorter or sound.format == "FLAC") and _lacks_its_last(sound):
                raise _broken(path, "is truncated")
            return Recording(
                sound.frames / sound.samplerate,
                sound.samplerate,
                sound.channels,
                _float_peak(path, sound),
            )
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        what = f"cannot be read ({reason})"
        raise _broken(path, what, "cannot be read") from error


def write_audio(path: Path, blocks: Iterable[np.ndarray], rate: int) -> None:
    """Writes a file of one channel, 16 bits a sample, whole or with an error.

    Args:
        path: File to write, whose suffix says in which format.
        blocks: Its samples, one block `[n]` after the other, full scale being 1.
        rate: Samples per second.

    Raises:
        UserError: If there is no room for it.
    """
    try:
        with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as sound:
            for block in blocks:
                sound.write(block)
    except soundfile.LibsndfileError as error:
        raise _no_room(path) from error
    try:
        check_audio(path)  # what fails in closing, libsndfile tells nobody
    except AudioError as error:
        raise _no_room(path) from error


def _no_room(path: Path) -> UserError:
    return UserError(
        f"{path} could not be written to its end: make room on its disk, and run again."
    )


def check_samples(
    samples: np.ndarray, subject: str, start: float = 0.0, rate: int | None = None
) -> float:
    """Checks that floating-point samples, full scale being 1, can be audio's.

    Args:
        samples: `[n]` or `[n, channels]`.
        subject: What has them, as a sentence begins with it.
        start: Seconds before the first, of what the sentence counts seconds of.
        rate: Samples per second; `None`: the sentence tells no second.

    Returns:
        Their largest magnitude.

    Raises:
        AudioError: If one is not finite, or so large that full scale is not 1.
    """
    if not samples.size:
        return 0.0
    sizes = np.abs(np.atleast_1d(samples))
    sizes = sizes.reshape(len(sizes), -1)
    largest = float(sizes.max())  # not a number if one is none
    if largest <= LOUDEST:
        return largest
    bad = ~(sizes <= LOUDEST).all(axis=1)
    first = int(bad.argmax())
    at = "" if rate is None else f" at {start + first / rate:.3f} s"
    if not np.isfinite(sizes[first]).all():
        raise AudioError(
            subject,
            f"has a sample{at} that is not a finite number",
            "write it again without it",
            "has a sample that is not a finite number",
        )
    raise AudioError(
        subject,
        f"has a sample of {sizes[first].max():.6g}{at}, far beyond full scale, which "
        "is 1.0",
        "divide samples on the scale of 16-bit integers by 32768",
        "has samples far beyond full scale, which is 1.0",
    )


def check_header(path: Path, file: BinaryIO) -> None:
    """Refuses what libsndfile does not read to its end, although it is whole.

    Args:
        path: The file, for messages.
        file: The same, open for reading bytes.

    Raises:
        AudioError: For compressed SPHERE; for FLAC and WAV whose length was not known
            when their header was written, and is 0 there.
    """
    coding = sphere_header(file).get("sample_coding", "")
    if "embedded" in coding:
        raise AudioError(
            f"The audio file {path}",
            f"is compressed SPHERE ({coding}), which libsndfile does not read",
            "unpack it with sph2pipe -p -f sph and run again",
        )
    if has_no_length(file):
        raise AudioError(
            f"The audio file {path}",
            "has no length in its header, as when it was written to a pipe, and "
            "libsndfile cannot read it without",
            "write it again, as with ffmpeg, flac or sox, from file to file",
        )


def _broken(path: Path, what: str, kind: str | None = None) -> AudioError:
    remedy = "copy or download it again"
    return AudioError(f"The audio file {path}", what, remedy, kind)


def _float_peak(path: Path, sound: soundfile.SoundFile) -> float:
    if sound.subtype not in ("FLOAT", "DOUBLE"):
        return 0.0
    sound.seek(0)
    peak = 0.0
    while True:
        start = sound.tell() / sound.samplerate
        block = sound.read(_BLOCK, dtype="float64")
        if not len(block):
            return peak
        subject = f"The audio file {path}"
        peak = max(peak, check_samples(block, subject, start, sound.samplerate))


def _lacks_its_last(sound: soundfile.SoundFile) -> bool:
    """Decodes the last sample: FLAC has no mark at its end."""
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(1)) == 0
    except soundfile.LibsndfileError:
        return True
