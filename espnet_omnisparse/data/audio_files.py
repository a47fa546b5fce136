"""Whether an audio file is whole, and whether its samples can be audio's."""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from espnet_omnisparse.console import bar
from espnet_omnisparse.data.container import container
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
        path: FLAC, WAV, Ogg Opus or NIST SPHERE file.

    Raises:
        AudioError: If it is empty, truncated, no audio, nothing that libsndfile reads,
            or has samples that no audio has.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise _broken(path, "is empty")
            check_header(path, file)
            if _is_cut(file):
                raise _broken(path, "is truncated")
        with soundfile.SoundFile(path) as sound:
            if sound.frames == 0:
                raise _broken(path, "holds no samples")
            if sound.format == "FLAC" and _flac_is_cut(sound):
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
    kind = _container(file)
    if kind == "NIST SPHERE":
        coding = _sphere_header(file).get("sample_coding", "")
        if "embedded" in coding:
            raise AudioError(
                f"The audio file {path}",
                f"is compressed SPHERE ({coding}), which libsndfile does not read",
                "unpack it with sph2pipe -p -f sph and run again",
            )
    if kind in _HAS_NO_LENGTH and _HAS_NO_LENGTH[kind](file):
        raise AudioError(
            f"The audio file {path}",
            "has no length in its header, as when it was written to a pipe, and "
            "libsndfile cannot read it without",
            "write it again, as with ffmpeg, flac or sox, from file to file",
        )


def is_cut(path: Path) -> bool:
    """Whether a WAV, Ogg or SPHERE file ends before its own end; others: not known."""
    with path.open("rb") as file:
        return _is_cut(file)


def _is_cut(file: BinaryIO) -> bool:
    kind = _container(file)
    return kind in _ENDS_EARLY and _ENDS_EARLY[kind](file)


def _container(file: BinaryIO) -> str | None:
    file.seek(0)
    return container(file.read(8))


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


def _flac_has_no_length(file: BinaryIO) -> bool:
    """Whether FLAC frames follow a header that announces no sample."""
    file.seek(4)
    total, last = 0, False
    while not last:
        header = file.read(4)
        if len(header) < 4:
            return False
        last = bool(header[0] & 0x80)
        length = int.from_bytes(header[1:])
        block = file.read(length)
        if header[0] & 0x7F == 0:  # STREAMINFO: the number of samples has 36 bits
            total = int.from_bytes(block[13:18]) & (1 << 36) - 1
    return total == 0 and bool(file.read(1))


def _flac_is_cut(sound: soundfile.SoundFile) -> bool:
    """FLAC has no mark at its end; its last sample has to be decoded."""
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(1)) == 0
    except soundfile.LibsndfileError:
        return True


def _wav_data(file: BinaryIO) -> tuple[int, int] | None:
    """Where the data chunk's samples begin, and its length by its header."""
    size = file.seek(0, os.SEEK_END)
    position = 12  # after RIFF, the file's length and WAVE
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            return position + 8, length
        position += 8 + length + length % 2  # chunks are padded to even lengths
    return None


def _wav_is_cut(file: BinaryIO) -> bool:
    """Whether a RIFF file ends before its data chunk does, or without one."""
    data = _wav_data(file)
    if data is None:
        return True
    start, length = data
    return not _is_unknown(length) and start + length > file.seek(0, os.SEEK_END)


def _is_unknown(length: int) -> bool:
    """Whether it stands in a WAV header for a length that was not known.

    ffmpeg writes the largest number; sox, arecord and others about 2 GiB.
    """
    return length == 0xFFFFFFFF or 0x7FFF0000 <= length <= 0x80000000


def _wav_has_no_length(file: BinaryIO) -> bool:
    """Whether a data chunk of length 0 is followed by what the header does not count.

    The header has the file's length too; what it counts may be other chunks.
    """
    data = _wav_data(file)
    if data is None or data[1] > 0:
        return False
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    (announced,) = struct.unpack("<I", file.read(4))
    return data[0] < size and announced + 8 < size


def _ogg_is_cut(file: BinaryIO) -> bool:
    """Whether an Ogg file's last page is cut or lacks the end-of-stream flag.

    What is not Ogg is left to soundfile to judge.
    """
    header = struct.Struct("<4sBBqIIIB")  # up to the number of segments
    largest_page = header.size + 255 + 255 * 255
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - largest_page))
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0:
        return False
    if len(tail) < start + header.size:
        return True
    _, _, flags, *_, segments = header.unpack_from(tail, start)
    lengths = tail[start + header.size :][:segments]
    end = start + header.size + segments + sum(lengths)
    end_of_stream = 4
    return end > len(tail) or not flags & end_of_stream


def _sphere_is_cut(file: BinaryIO) -> bool:
    """Whether a SPHERE file ends before the samples that its header announces.

    What is not SPHERE is left to soundfile to judge.
    """
    header = _sphere_header(file)
    sizes = [header.get(name, "") for name in ("sample_count", "sample_n_bytes")]
    samples = header.get("channel_count", "1"), *sizes
    if not all(number.isdecimal() for number in samples):
        return False
    channels, count, width = map(int, samples)
    size = file.seek(0, os.SEEK_END)
    return int(header["header"]) + channels * count * width > size


def _sphere_header(file: BinaryIO) -> dict[str, str]:
    """The fields of a SPHERE header, its own length as `header`; empty if it is none.

    A field is a line such as `sample_count -i 16000`.
    """
    file.seek(0)
    if file.readline(16).strip() != b"NIST_1A":
        return {}
    length = file.readline(16).strip()
    if not length.isdigit():
        return {}
    file.seek(0)
    header = {"header": length.decode()}
    for line in file.read(int(length)).decode("ascii", "replace").split("\n"):
        if line.strip() == "end_head":
            break
        name, _, value = (*line.split(None, 2), "", "", "")[:3]
        header[name] = value
    return header


_ENDS_EARLY = {"WAV": _wav_is_cut, "Ogg": _ogg_is_cut, "NIST SPHERE": _sphere_is_cut}
_HAS_NO_LENGTH = {"WAV": _wav_has_no_length, "FLAC": _flac_has_no_length}
