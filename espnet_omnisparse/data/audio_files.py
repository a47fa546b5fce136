"""Whether an audio file is there to its end, from its header and its tail alone."""

import os
import struct
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import soundfile

from espnet_omnisparse.console import bar
from espnet_omnisparse.errors import UserError

_CHECKING_THREADS = 8


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


def check_audio(path: Path) -> float:
    """Checks that an audio file holds samples and is there to its end.

    Args:
        path: FLAC, WAV, Ogg Opus or NIST SPHERE file, by its suffix.

    Returns:
        Its length in seconds.

    Raises:
        UserError: If it is empty, truncated, no audio or compressed SPHERE.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise _broken(path, "is empty")
            if path.suffix == ".sph":
                _refuse_compressed(path, file)
            if path.suffix in _IS_CUT and _IS_CUT[path.suffix](file):
                raise _broken(path, "is truncated")
        with soundfile.SoundFile(path) as sound:
            if sound.frames == 0:
                raise _broken(path, "holds no samples")
            if path.suffix == ".flac" and _flac_is_cut(sound):
                raise _broken(path, "is truncated")
            return sound.frames / sound.samplerate
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise _broken(path, f"cannot be read ({reason})") from error


def is_cut(path: Path) -> bool:
    """Whether a WAV or Ogg Opus file ends before its own end; others: not known."""
    if path.suffix not in (".wav", ".opus"):
        return False
    with path.open("rb") as file:
        return _IS_CUT[path.suffix](file)


def _broken(path: Path, what: str) -> UserError:
    return UserError(f"The audio file {path} {what}: copy or download it again.")


def _flac_is_cut(sound: soundfile.SoundFile) -> bool:
    """FLAC has no mark at its end; its last sample has to be decoded."""
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(1)) == 0
    except soundfile.LibsndfileError:
        return True


def _wav_is_cut(file: BinaryIO) -> bool:
    """Whether a RIFF file ends before its data chunk does, or without one.

    What is not RIFF is left to soundfile to judge.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != b"RIFF":
        return False
    position = 12  # after RIFF, the file's length and WAVE
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            return position + 8 + length > size
        position += 8 + length + length % 2  # chunks are padded to even lengths
    return True


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


def _refuse_compressed(path: Path, file: BinaryIO) -> None:
    coding = _sphere_header(file).get("sample_coding", "")
    if "embedded" in coding:
        raise UserError(
            f"The audio file {path} is compressed SPHERE ({coding}), which libsndfile "
            "does not read: unpack it with sph2pipe -p -f sph and run again."
        )


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


_IS_CUT = {".wav": _wav_is_cut, ".opus": _ogg_is_cut, ".sph": _sphere_is_cut}
