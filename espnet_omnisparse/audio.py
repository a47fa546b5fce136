"""Whether an audio file is there to its end, from its header and its tail alone."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

import soundfile

from espnet_omnisparse.errors import UserError


def check_audio(path: Path) -> None:
    """Checks that an audio file holds samples and is there to its end.

    Args:
        path: FLAC, WAV or Ogg Opus file, by its suffix.

    Raises:
        UserError: If it is empty, truncated or no audio.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise _broken(path, "is empty")
            cut = (path.suffix == ".wav" and _wav_is_cut(file)) or (
                path.suffix == ".opus" and _ogg_is_cut(file)
            )
        if cut:
            raise _broken(path, "is truncated")
        with soundfile.SoundFile(path) as sound:
            if sound.frames == 0:
                raise _broken(path, "holds no samples")
            if path.suffix == ".flac" and _flac_is_cut(sound):
                raise _broken(path, "is truncated")
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise _broken(path, f"cannot be read ({reason})") from error


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
