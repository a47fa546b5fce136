"""Audio in blocks is the audio of the whole, and bad audio is told in a sentence."""

import io
import os
import threading

import numpy as np
import pytest
import soundfile
import soxr
import torch

from espnet_omnisparse.data.audio_blocks import file_blocks
from espnet_omnisparse.data.audio_files import Recording, check_audio
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.streaming.audio import checked, pcm_blocks


@pytest.fixture
def write(tmp_path):
    def written(audio, rate=16000, name="audio.wav", subtype=None):
        soundfile.write(tmp_path / name, audio, rate, subtype)
        return tmp_path / name

    return written


def noise(*shape):
    return np.random.default_rng(1).uniform(-0.5, 0.5, shape).astype(np.float32)


def refuse_notice(text):
    raise AssertionError(text)


@pytest.mark.parametrize("name", ["audio.wav", "audio.flac"])
def test_a_file_comes_in_blocks_of_the_wanted_length(write, name):
    path = write(noise(16000), name=name)
    blocks = list(file_blocks(path, 16000, 0.3, refuse_notice))
    assert [len(block) for block in blocks] == [4800, 4800, 4800, 1600]
    whole, _ = soundfile.read(path, dtype="float32")
    assert torch.equal(torch.cat(blocks), torch.from_numpy(whole))


def test_a_file_is_read_as_its_blocks_are_asked_for(write, monkeypatch):
    path = write(noise(16000))
    asked = []
    read = soundfile.SoundFile.read

    def counted(sound, frames, **options):
        asked.append(frames)
        return read(sound, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    blocks = file_blocks(str(path), 16000, 0.1)
    next(blocks)
    next(blocks)
    assert asked == [1600, 1600]


def test_channels_are_mixed_down_with_a_notice(write):
    audio = noise(8000, 2)
    path = write(audio, subtype="FLOAT")
    notices = []
    mixed = torch.cat(list(file_blocks(path, 16000, 0.1, notices.append)))
    torch.testing.assert_close(mixed, torch.from_numpy(audio).mean(1))
    assert notices == [f"{path} has 2 channels: their mean is taken."]


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.007, 0.1, 10])
def test_resampled_blocks_are_the_whole_resampled(write, rate, seconds):
    audio = noise(rate)
    path = write(audio, rate, subtype="FLOAT")
    notices = []
    blocks = list(file_blocks(path, 16000, seconds, notices.append))
    assert notices == [f"{path} is resampled from {rate} to 16000 Hz."]
    expected = torch.from_numpy(soxr.resample(audio, rate, 16000))
    torch.testing.assert_close(torch.cat(blocks), expected, rtol=0, atol=1e-6)
    assert all(len(block) for block in blocks)


def test_a_resampled_tone_is_that_tone(write):
    """What is expected here does not come from the resampler itself."""
    path = write(0.5 * np.sin(np.arange(44100) * 2 * np.pi * 440 / 44100), 44100)
    resampled = torch.cat(list(file_blocks(path, 16000, 0.05, lambda text: None)))
    assert len(resampled) == 16000
    tone = 0.5 * torch.sin(torch.arange(16000) * 2 * torch.pi * 440 / 16000)
    torch.testing.assert_close(resampled[500:-500], tone[500:-500], rtol=0, atol=1e-3)


def test_notices_go_to_stderr(write, capsys):
    list(file_blocks(write(noise(8000, 2), 8000), 16000, 0.1))
    told = capsys.readouterr()
    assert "2 channels" in told.err and "from 8000 to 16000 Hz" in told.err
    assert not told.out


def test_ten_milliseconds_and_silence_simply_work(write):
    (block,) = file_blocks(write(noise(160)), 16000, 0.5, refuse_notice)
    assert len(block) == 160
    resampled = file_blocks(write(noise(441), 44100), 16000, 0.5, lambda text: None)
    assert sum(map(len, resampled)) == 160
    (block,) = file_blocks(write(np.zeros(800)), 16000, 0.5, refuse_notice)
    assert torch.equal(block, torch.zeros(800))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_no_number_is_refused_with_its_second(write, bad, channels):
    audio = noise(16000, channels)
    audio[12000, -1] = bad
    path = write(audio, subtype="FLOAT")
    blocks = file_blocks(path, 16000, 0.2, lambda text: None)
    assert len([next(blocks) for _ in range(3)]) == 3
    with pytest.raises(UserError, match=rf"{path} has a sample at 0\.750 s"):
        next(blocks)


def test_a_sample_far_beyond_full_scale_is_refused_with_its_second(write):
    audio = noise(16000, 2)
    audio[12000:, 1] *= 32768
    path = write(audio, subtype="FLOAT")
    blocks = file_blocks(path, 16000, 0.2, lambda text: None)
    assert len([next(blocks) for _ in range(3)]) == 3
    with pytest.raises(
        UserError, match=r"at 0\.750 s, far beyond full scale, which is"
    ):
        next(blocks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pushed_samples_are_judged_as_a_files(dtype):
    samples = torch.from_numpy(noise(1000)).to(dtype)
    assert torch.equal(checked(2 * samples), 2 * samples)
    assert len(checked(samples[:0])) == 0
    with pytest.raises(UserError, match="The audio has a sample of .* far beyond full"):
        checked(samples * 32767)
    samples[700] = torch.nan
    with pytest.raises(UserError, match="The audio has a sample that is not a finite"):
        checked(samples)


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / "missing.wav"
    with pytest.raises(UserError, match=f"There is no audio file {path}"):
        next(file_blocks(path, 16000, 0.1))
    with pytest.raises(UserError, match=f"{tmp_path} is a folder"):
        next(file_blocks(tmp_path, 16000, 0.1))


@pytest.mark.parametrize("content", [b"", b"no audio at all"])
def test_a_file_that_is_no_audio_is_refused(tmp_path, content):
    path = tmp_path / "text.wav"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} cannot be read .*: check that it is"):
        next(file_blocks(path, 16000, 0.1))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_file_of_no_samples_is_refused(write, rate):
    path = write(np.zeros(0), rate)
    with pytest.raises(UserError, match=f"{path} holds no samples"):
        next(file_blocks(path, 16000, 0.1, lambda text: None))


def test_damage_amid_a_file_is_refused(write):
    path = write(noise(80000), name="audio.flac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{path} cannot be read"):
        list(file_blocks(path, 16000, 0.1))


def test_an_end_before_the_announced_one_is_told(write):
    path = write(noise(80000), name="audio.mp3")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    notices = []
    samples = sum(map(len, file_blocks(path, 16000, 0.1, notices.append)))
    assert notices == [
        f"{path} ends at {samples / 16000:.3f} s, before the end that its header "
        "announces: it may be truncated."
    ]


@pytest.mark.parametrize("seconds", [0.0001, 0.1, 1, 10])
def test_pcm_in_blocks_is_the_whole(seconds):
    samples = np.random.default_rng(1).integers(-32768, 32768, 16100, dtype="<i2")
    samples[:4] = [-32768, 32767, 0, 1]
    stream = io.BytesIO(samples.tobytes())
    blocks = list(pcm_blocks(stream, 16000, seconds, refuse_notice))
    size = max(2, int(16000 * seconds))
    assert [len(block) for block in blocks[:-1]] == [size] * (16099 // size)
    whole = torch.cat(blocks)
    assert whole.dtype == torch.float32
    assert whole[:4].tolist() == [-1, 1 - 2**-15, 0, 2**-15]
    assert torch.equal(whole * 32768, torch.from_numpy(samples).float())


@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_block_is_handed_on_while_the_pipe_is_open(buffered):
    reading, writing = os.pipe()
    data = bytes(300)
    # were more awaited than a block, nothing would come before the pipe is closed
    rescue = threading.Timer(5, os.close, [writing])
    with open(reading, "rb", buffering=-1 if buffered else 0) as stream:
        blocks = pcm_blocks(stream, 1000, 0.1, refuse_notice)
        rescue.start()
        os.write(writing, data[:77])
        os.write(writing, data[77:])
        assert len(next(blocks)) == 100
        rescue.cancel()
        rescue.join()
        os.close(writing)
        assert [len(block) for block in blocks] == [50]


def test_pcm_in_crumbs_is_put_together():
    class Crumbs(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 3))

    samples = np.arange(50, dtype="<i2")
    blocks = list(pcm_blocks(Crumbs(samples.tobytes()), 1000, 0.02, refuse_notice))
    assert [len(block) for block in blocks] == [20, 20, 10]
    assert torch.equal(torch.cat(blocks) * 32768, torch.arange(50.0))


@pytest.mark.parametrize("length", [3, 401, 301])
def test_half_a_sample_at_the_end_is_dropped_with_a_notice(length, capsys):
    blocks = list(pcm_blocks(io.BytesIO(bytes(length)), 1000, 0.1))
    assert sum(map(len, blocks)) == length // 2
    assert all(len(block) for block in blocks)
    assert "its last byte is dropped" in capsys.readouterr().err


def test_no_pcm_is_told():
    for nothing in (b"", b"\x01"):
        with pytest.raises(
            UserError, match="No audio came on standard input: pipe raw"
        ):
            list(pcm_blocks(io.BytesIO(nothing), 16000, 0.1, refuse_notice))


def test_a_wav_file_on_the_pipe_is_told():
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(16000), 16000, format="WAV")
    wav.seek(0)
    with pytest.raises(UserError, match="is a WAV file, but - takes raw .* 16000 Hz"):
        list(pcm_blocks(wav, 16000, 0.1, refuse_notice))


CONTAINERS = {
    "FLAC": {"format": "FLAC"},
    "Ogg": {"format": "OGG", "subtype": "VORBIS"},
    "MP3": {"format": "MP3"},
    "AIFF": {"format": "AIFF"},
    "AU": {"format": "AU"},
    "CAF": {"format": "CAF"},
    "NIST SPHERE": {"format": "NIST", "subtype": "PCM_16"},
    "RF64": {"format": "RF64"},
}


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_any_audio_file_on_the_pipe_is_told(kind, rate):
    file = io.BytesIO()
    soundfile.write(file, noise(rate), rate, **CONTAINERS[kind])
    file.seek(0)
    with pytest.raises(UserError, match=rf"is an? {kind} file, but - .*ffmpeg -i - "):
        list(pcm_blocks(file, 16000, 0.3, refuse_notice))


@pytest.mark.parametrize("tag", [b"ID3\x04", b"\0\0\0\x20ftypM4A ", b"\x1aE\xdf\xa3"])
def test_what_libsndfile_does_not_write_is_told(tag):
    with pytest.raises(UserError, match="Standard input is an? M"):
        list(pcm_blocks(io.BytesIO(tag + bytes(9999)), 16000, 0.3, refuse_notice))


def test_samples_that_begin_as_an_mp3_frame_are_samples():
    samples = np.random.default_rng(3).integers(-9999, 9999, 9999).astype("<i2")
    for first in (b"\xff\xfb\x90\x00", b"\xff\xf3\x40\xc0", b"\xff\xff\xff\xff"):
        data = first + samples.tobytes()
        blocks = list(pcm_blocks(io.BytesIO(data), 16000, 0.3, refuse_notice))
        assert sum(map(len, blocks)) == 2 + len(samples)


class Interrupted(io.RawIOBase):
    """A pipe on which somebody presses Ctrl-C after some bytes."""

    def __init__(self, *reads):
        self.reads = list(reads)

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.reads:
            raise KeyboardInterrupt
        data, rest = self.reads[0][: len(buffer)], self.reads[0][len(buffer) :]
        self.reads[:1] = [rest] if rest else []
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)


def test_ctrl_c_loses_nothing_that_has_come():
    samples = np.arange(1000, dtype="<i2")
    data = samples.tobytes()
    pipe = io.BufferedReader(Interrupted(data[:300], data[300:1101], data[1101:]))
    blocks = list(pcm_blocks(pipe, 1000, 0.3, refuse_notice, first=0.4))
    assert [len(block) for block in blocks] == [400, 300, 300]
    pipe = io.BufferedReader(Interrupted(data[:300], data[300:1100]))
    blocks = list(pcm_blocks(pipe, 1000, 0.3, refuse_notice))
    assert [len(block) for block in blocks] == [300, 250]
    assert torch.cat(blocks).mul(32768).tolist() == list(range(550))


@pytest.mark.parametrize("name", ["cut.wav", "cut.opus"])
def test_a_truncated_file_is_told_and_recognised_to_its_end(tmp_path, name):
    path = tmp_path / name
    wave = np.random.default_rng(0).normal(0.0, 0.1, 32000)
    options = {"format": "OGG", "subtype": "OPUS"} if name.endswith("opus") else {}
    soundfile.write(path, wave, 16000, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    notices = []
    blocks = list(file_blocks(path, 16000, 0.5, notices.append))
    assert 0 < sum(map(len, blocks)) < 32000
    assert any("ends before its header says: it may be truncated" in n for n in notices)


# as ffmpeg, sox, arecord and WAV writers of 32-bit counters write them to a pipe
@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF000, 0x80000000, 0x7FFFFFFF])
def test_a_wav_file_of_unknown_length_is_read_to_its_end(write, length):
    path = write(noise(16001))
    _write_lengths(path, min(length + 36, 0xFFFFFFFF), length)
    blocks = file_blocks(path, 16000, 0.5, refuse_notice)
    assert sum(map(len, blocks)) == 16001
    assert check_audio(path) == Recording(16001 / 16000, 16000, 1)


@pytest.mark.parametrize("name", ["audio.wav", "audio.flac"])
def test_a_length_of_zero_is_told_as_what_it_is(write, name):
    path = write(noise(16001), name=name)
    if name == "audio.wav":
        _write_lengths(path, 0, 0)
    else:
        whole = bytearray(path.read_bytes())
        assert whole[8 + 13] & 0x0F == 0  # the upper 4 of 36 bits
        whole[8 + 14 : 8 + 18] = bytes(4)
        path.write_bytes(whole)
    for read in (check_audio, lambda path: list(file_blocks(path, 16000, 0.5))):
        with pytest.raises(UserError, match=f"{path} has no length in its header"):
            read(path)


def _write_lengths(path, riff, data):
    whole = bytearray(path.read_bytes())
    position = whole.index(b"data") + 4
    whole[4:8] = riff.to_bytes(4, "little")
    whole[position : position + 4] = data.to_bytes(4, "little")
    path.write_bytes(whole)


@pytest.mark.parametrize("name", ["audio.wav", "audio.flac", "audio.opus"])
def test_any_part_of_a_header_is_told_in_a_sentence(tmp_path, name):
    path = tmp_path / name
    options = {"format": "OGG", "subtype": "OPUS"} if name.endswith("opus") else {}
    soundfile.write(path, noise(1600), 16000, **options)
    whole = path.read_bytes()
    for kept in range(1, 100):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=f"{path} .*again"):
            check_audio(path)
