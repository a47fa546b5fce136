"""Truncated audio of every container that tells its length, whatever its suffix."""

import struct

import numpy as np
import pytest
import soundfile

from espnet_omnisparse.data.audio_blocks import file_blocks
from espnet_omnisparse.data.audio_files import AudioError, check_audio

RATE = 16000
CONTAINERS = {
    "RF64": {"format": "RF64", "subtype": "PCM_16"},
    "W64": {"format": "W64", "subtype": "PCM_24"},
    "AIFF": {"format": "AIFF", "subtype": "PCM_16"},
    "AIFC": {"format": "AIFF", "subtype": "FLOAT"},
    "AU": {"format": "AU", "subtype": "PCM_16"},
    "CAF": {"format": "CAF", "subtype": "PCM_16"},
    "MP3": {"format": "MP3"},
    "WAVEX": {"format": "WAVEX", "subtype": "PCM_16"},
}


@pytest.fixture
def write(tmp_path):
    """Writes noise under a .wav suffix; hands out the path and the bytes."""

    def make(kind, samples=48000, channels=1, rate=RATE):
        path = tmp_path / "a.wav"
        wave = np.random.default_rng(0).normal(0.0, 0.1, (samples, channels))
        soundfile.write(path, wave, rate, **CONTAINERS[kind])
        return path, path.read_bytes()

    return make


@pytest.mark.parametrize("samples", [161, 48000])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_whole(write, kind, samples):
    path, _ = write(kind, samples)
    assert check_audio(path).seconds == samples / RATE


@pytest.mark.parametrize("kept", [-1, -20, -3000, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_truncated(write, kind, kept):
    path, whole = write(kind)
    path.write_bytes(whole[: int(kept * len(whole)) if kept > 0 else kept])
    with pytest.raises(AudioError, match="a.wav is truncated: copy or download it ag"):
        check_audio(path)


# a shortened CAF is one that libsndfile refuses
@pytest.mark.parametrize("kind", sorted({*CONTAINERS} - {"CAF"}))
def test_a_stream_is_told_once_and_goes_on(write, kind):
    path, whole = write(kind)
    path.write_bytes(whole[: len(whole) // 2])
    notices = []
    assert 0 < sum(map(len, file_blocks(path, RATE, 0.5, notices.append))) < 48000
    assert sum("it may be truncated" in one for one in notices) == 1, notices


@pytest.mark.parametrize("kind", CONTAINERS)
def test_any_part_of_a_header_is_told_in_a_sentence(write, kind):
    path, whole = write(kind)
    for kept in range(1, 100):
        path.write_bytes(whole[:kept])
        with pytest.raises(AudioError, match="a.wav .*again"):
            check_audio(path)


@pytest.mark.parametrize("channels, rate", [(1, 44100), (2, 44100), (2, 22050)])
def test_where_an_mp3_file_tells_its_length_depends_on_its_kind(write, channels, rate):
    path, whole = write("MP3", 48000, channels, rate)
    assert check_audio(path).seconds == 48000 / rate
    path.write_bytes(whole[:-3000])
    with pytest.raises(AudioError, match="is truncated"):
        check_audio(path)


def test_tags_of_an_mp3_file_are_no_audio(write):
    path, whole = write("MP3")
    before = b"ID3\x03\0\0" + bytes([0, 0, 10, 0]) + bytes(1280)
    path.write_bytes(before + whole + b"TAG" + bytes(125))
    assert check_audio(path).seconds == 3
    path.write_bytes((before + whole)[:-1200])
    with pytest.raises(AudioError, match="is truncated"):
        check_audio(path)


def test_an_mp3_file_whose_header_counts_too_much_is_whole(write):
    path, whole = write("MP3")
    place = whole.index(b"Xing") + 12
    more = (len(whole) + 128).to_bytes(4)
    path.write_bytes(whole[:place] + more + whole[place + 4 :])
    assert check_audio(path).seconds == 3


def test_a_length_that_was_not_known_is_none(write):
    path, whole = write("AU")
    path.write_bytes(whole[:8] + b"\xff" * 4 + whole[12:])
    assert check_audio(path).seconds == 3
    path, whole = write("AIFF")  # as sox writes it to a pipe
    place = whole.index(b"SSND") + 4
    path.write_bytes(whole[:place] + struct.pack(">I", 0x7F000000) + whole[place + 4 :])
    assert check_audio(path).seconds == 3


def test_an_iff_file_that_is_no_aiff_is_left_to_libsndfile(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1600), RATE, format="SVX", subtype="PCM_16")
    assert check_audio(path).seconds == 0.1
