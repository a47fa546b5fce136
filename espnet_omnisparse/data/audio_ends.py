"""Whether an audio file ends before the end that its own header tells.

libsndfile hands on what there is of most truncated files, as if that were all.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from espnet_omnisparse.data.container import container

_MP3_BYTES = 1500  # that `container` looks at
_W64_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # behind the name of a chunk


@dataclass(frozen=True)
class _Chunks:
    """How a container lays out its chunks, one of which has the samples.

    Attributes:
        begin: Where the first is.
        header: Of each: its name and its length.
        data: Name of the chunk that has the samples.
        step: Where a chunk begins is a multiple of it.
        whole: Whether a chunk's length is its header's, too.
    """

    begin: int
    header: struct.Struct
    data: bytes
    step: int = 2
    whole: bool = False

    def find(self, file: BinaryIO, name: bytes) -> tuple[int, int] | None:
        """Where a chunk's content begins, and its length by its header."""
        size = file.seek(0, os.SEEK_END)
        position = self.begin
        while position + self.header.size <= size:
            file.seek(position)
            kind, length = self.header.unpack(file.read(self.header.size))
            position += self.header.size
            if self.whole:
                length -= self.header.size
            if kind == name:
                return position, length
            position += max(length, 0)
            position += -position % self.step
        return None

    def end_early(self, file: BinaryIO) -> bool:
        """Whether a file ends before its samples do, or without them."""
        data = self.find(file, self.data)
        return data is None or _is_short(file, *data)


_WAV = _Chunks(12, struct.Struct("<4sI"), b"data")
_AIFF = _Chunks(12, struct.Struct(">4sI"), b"SSND")
_W64 = _Chunks(40, struct.Struct("<16sq"), b"data" + _W64_GUID, 8, whole=True)
_CAF = _Chunks(8, struct.Struct(">4sq"), b"data", 1)


def kind_of(file: BinaryIO) -> str | None:
    """Names the container of an audio file; `None`: none that is known.

    Args:
        file: Open for reading bytes.
    """
    file.seek(0)
    return container(file.read(_MP3_BYTES))


def ends_early(file: BinaryIO) -> bool:
    """Whether a file ends before its header, or its last page, says.

    Of FLAC, MP3 and rare containers this does not tell: they count as whole.

    Args:
        file: Open for reading bytes.
    """
    kind = kind_of(file)
    return kind in _ENDS_EARLY and _ENDS_EARLY[kind](file)


def has_no_length(file: BinaryIO) -> bool:
    """Whether a FLAC or WAV file announces no sample and has some.

    Args:
        file: Open for reading bytes.
    """
    kind = kind_of(file)
    return kind in _HAS_NO_LENGTH and _HAS_NO_LENGTH[kind](file)


def _is_short(file: BinaryIO, start: int, length: int) -> bool:
    return not _is_unknown(length) and start + length > file.seek(0, os.SEEK_END)


def _is_unknown(length: int) -> bool:
    """Whether it stands in a header for a length that was not known.

    ffmpeg writes the largest number; sox, arecord and others about 2 GiB.
    """
    about_2_gib = length == 0x7F000000 or 0x7FFF0000 <= length <= 0x80000000
    return length < 0 or length == 0xFFFFFFFF or about_2_gib or length >= 1 << 62


def _rf64_ends_early(file: BinaryIO) -> bool:
    """RF64 is WAV whose data chunk may have its length, of 64 bits, in another."""
    data, lengths = (_WAV.find(file, name) for name in (b"data", b"ds64"))
    if data is not None and data[1] == 0xFFFFFFFF and lengths is not None:
        file.seek(lengths[0] + 8)  # after the length of the whole
        data = data[0], int.from_bytes(file.read(8), "little")
    return data is None or _is_short(file, *data)


def _aiff_ends_early(file: BinaryIO) -> bool:
    file.seek(8)
    # others are IFF files, such as SVX
    return file.read(4) in (b"AIFF", b"AIFC") and _AIFF.end_early(file)


def _au_ends_early(file: BinaryIO) -> bool:
    file.seek(4)
    header = file.read(8)
    return len(header) < 8 or _is_short(file, *struct.unpack(">2I", header))


def mp3_ends_early(file: BinaryIO) -> bool:
    """Whether an MP3 file has fewer bytes than a Xing header in it, if any, says.

    Some headers count tags as well, or were left as they are when the file was cut on
    purpose: whether anything is lost, only its last sample tells.

    Args:
        file: Open for reading bytes.
    """
    if kind_of(file) != "MP3":
        return False
    file.seek(0)
    tag, start = file.read(10), 0
    if tag.startswith(b"ID3"):
        for byte in tag[6:10]:  # 7 bits each
            start = start << 7 | byte & 0x7F
        start += len(tag)
    file.seek(start)
    frame = file.read(4 + 32 + 16)
    if len(frame) < 4 or frame[0] != 0xFF:
        return False
    mpeg1, mono = frame[1] & 0x08, frame[3] & 0xC0 == 0xC0
    xing = frame[4 + (17 if mono else 32) if mpeg1 else 4 + (9 if mono else 17) :]
    has_frames, has_bytes = 1, 2
    if len(xing) < 16 or xing[:4] not in (b"Xing", b"Info") or not xing[7] & has_bytes:
        return False
    place = 12 if xing[7] & has_frames else 8
    length = int.from_bytes(xing[place : place + 4])
    return start + length > file.seek(0, os.SEEK_END)


def _ogg_ends_early(file: BinaryIO) -> bool:
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


def _sphere_ends_early(file: BinaryIO) -> bool:
    """Whether a SPHERE file ends before the samples that its header announces.

    What is not SPHERE is left to soundfile to judge.
    """
    header = sphere_header(file)
    sizes = [header.get(name, "") for name in ("sample_count", "sample_n_bytes")]
    samples = header.get("channel_count", "1"), *sizes
    if not all(number.isdecimal() for number in samples):
        return False
    channels, count, width = map(int, samples)
    size = file.seek(0, os.SEEK_END)
    return int(header["header"]) + channels * count * width > size


def sphere_header(file: BinaryIO) -> dict[str, str]:
    """The fields of a SPHERE header, its own length as `header`; empty if it is none.

    A field is a line such as `sample_count -i 16000`.

    Args:
        file: Open for reading bytes.
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


def _wav_has_no_length(file: BinaryIO) -> bool:
    """Whether a data chunk of length 0 is followed by what the header does not count.

    The header has the file's length too; what it counts may be other chunks.
    """
    data = _WAV.find(file, _WAV.data)
    if data is None or data[1] > 0:
        return False
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    (announced,) = struct.unpack("<I", file.read(4))
    return data[0] < size and announced + 8 < size


_ENDS_EARLY = {
    "WAV": _WAV.end_early,
    "RF64": _rf64_ends_early,
    "W64": _W64.end_early,
    "AIFF": _aiff_ends_early,
    "AU": _au_ends_early,
    "CAF": _CAF.end_early,
    "Ogg": _ogg_ends_early,
    "NIST SPHERE": _sphere_ends_early,
}
_HAS_NO_LENGTH = {"WAV": _wav_has_no_length, "FLAC": _flac_has_no_length}
