"""Which audio container bytes begin, by its magic number."""

# where the magic number is, it, and what it is of
_MAGIC = (
    (0, b"RIFF", "WAV"),
    (0, b"RF64", "RF64"),
    (0, b"riff.\x91\xcf", "W64"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"NIST_1A", "NIST SPHERE"),
    (0, b"FORM", "AIFF"),
    (0, b"ID3", "MP3"),
    (0, b".snd", "AU"),
    (0, b"caff", "CAF"),
    (0, b"#!AMR", "AMR"),
    (0, b"wvpk", "WavPack"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (4, b"ftyp", "MP4"),
)
_KBPS = {  # of layer III by version, 3 being MPEG 1; 0 and 15 are not used
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000)}


def container(beginning: bytes) -> str | None:
    """Names the container of an audio file.

    Args:
        beginning: Its first bytes: 8 for all but MP3 without a tag, which takes the
            first frame and the next one's header, 1500 at most.

    Returns:
        Its name; `None`: none that is known, as of raw PCM.
    """
    for position, magic, name in _MAGIC:
        if beginning.startswith(magic, position):
            return name
    return "MP3" if _is_mp3(beginning) else None


def _is_mp3(beginning: bytes) -> bool:
    """Whether an MPEG layer III frame is followed by another.

    One frame header alone is two bytes, which raw samples may begin with.
    """
    if len(beginning) < 4 or beginning[0] != 0xFF or beginning[1] & 0xE6 != 0xE2:
        return False
    version = beginning[1] >> 3 & 3
    kbps, rate = beginning[2] >> 4, beginning[2] >> 2 & 3
    if version not in _RATES or kbps in (0, 15) or rate == 3:
        return False
    size = 144000 if version == 3 else 72000
    size = size * _KBPS[version][kbps - 1] // _RATES[version][rate]
    size += beginning[2] >> 1 & 1  # padding
    return beginning[size : size + 2] == beginning[:2]
