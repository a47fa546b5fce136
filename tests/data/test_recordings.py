"""Stage 1 judges all recordings of a corpus, and tells all that do not fit at once."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from helpers import REPOSITORY
from helpers.corpora import (
    command,
    prepared,
    refused,
    words,
    write_audio,
    write_chapter,
    write_librispeech,
    write_talk,
    write_tedlium,
)
from helpers.recipes import PARSE

from espnet_omnisparse.data import librispeech, recordings, tedlium
from espnet_omnisparse.data.recordings import AudioRules
from espnet_omnisparse.recipe import run as recipe
from espnet_omnisparse.recipe import template

LEAVE_OUT = AudioRules(leave_out=True)
CONVERT = AudioRules(convert=True)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_librispeech(tmp_path / "LibriSpeech")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_tedlium(tmp_path / tedlium.RELEASE)


@pytest.fixture
def rewrite(corpus):
    """Writes other samples in place of one of part `one`'s WAV files."""

    def written(samples, rate=16000, number=0, **options) -> Path:
        path = corpus / "one" / "12" / "30" / f"12-30-{number:04d}.wav"
        soundfile.write(path, samples, rate, **options)
        return path

    return written


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(2).uniform(-0.5, 0.5, shape)


def with_sample(value: float) -> np.ndarray:
    samples = noise(8000)
    samples[4000] = value
    return samples


def names(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "wav.scp").read_text().splitlines()]


UNFIT = {
    "nan": ({"samples": with_sample(np.nan), "subtype": "FLOAT"}, "at 0.250 s that is"),
    "inf": ({"samples": with_sample(-np.inf), "subtype": "DOUBLE"}, "finite number"),
    "integers": (
        {"samples": 32768 * noise(8000), "subtype": "FLOAT"},
        "far beyond full scale",
    ),
    "rate": ({"samples": noise(8000), "rate": 8000}, "8000 Hz, not 16000"),
    "stereo": ({"samples": noise(8000, 2)}, "number of channels, 2,"),
}


@pytest.mark.parametrize("unfit, sentence", UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_refused_or_left_out(
    corpus, tmp_path, rewrite, capsys, unfit, sentence
):
    path = rewrite(**unfit)
    refused(
        lambda: prepared(corpus, tmp_path / "d"), f"{path} ", sentence, "--leave_out"
    )
    assert not (tmp_path / "d").exists()
    prepared(corpus, tmp_path / "d", rules=LEAVE_OUT)
    assert names(tmp_path / "d" / "one") == ["12-30-0001", "7-70-0000", "7-70-0001"]
    assert "left out of 8: 1, which has " in capsys.readouterr().err


def test_all_is_told_at_once(corpus, tmp_path, rewrite):
    write_chapter(corpus / "one", 12, 40, ".wav")
    for number in range(2):
        rewrite(noise(8000), 8000, number)
    for chapter in (70, 71, 72, 73):
        write_chapter(corpus / "two", 7, chapter)
        for path in (corpus / "two" / "7" / str(chapter)).glob("*.flac"):
            path.write_bytes(b"")
    (corpus / "one" / "7" / "70" / "7-70-0001.flac").write_bytes(b"no audio at all")
    refused(
        lambda: prepared(corpus, tmp_path / "d", test_parts=["test-it"]),
        "Of 18 recordings 11 cannot be used",
        "8, each of which is empty",
        "7-70-0000.flac",
        ", ...;",
        "2, each of which has a sampling rate of 8000 Hz",
        "12-30-0001.wav; resample with --convert true",
        "1, which cannot be read",
    )


def test_another_rate_and_channels_are_converted(corpus, tmp_path, rewrite):
    other = noise(44100, 2)
    rewrite(other, 44100, subtype="PCM_24")
    prepared(corpus, tmp_path / "d", rules=CONVERT)
    scp = dict(
        line.split() for line in (tmp_path / "d/one/wav.scp").read_text().splitlines()
    )
    converted = tmp_path / "d" / "converted" / "one" / "12-30-0000.flac"
    assert scp["12-30-0000"] == str(converted)
    assert scp["12-30-0001"] == str(corpus / "one/12/30/12-30-0001.wav")
    assert (tmp_path / "d/train/wav.scp").read_text().count(str(converted)) == 1
    samples, rate = soundfile.read(converted)
    expected = soxr.resample(other.mean(axis=1), 44100, 16000)
    assert rate == 16000 and samples.shape == expected.shape == (16000,)
    assert np.abs(samples - expected).max() < 1e-3


def test_the_rate_is_that_of_the_option(corpus, tmp_path, rewrite):
    rewrite(noise(8000), 8000)
    prepared(corpus, tmp_path / "d", rules=AudioRules(rate=8000, convert=True))
    for line in (tmp_path / "d" / "one" / "wav.scp").read_text().splitlines():
        assert soundfile.info(line.split()[1]).samplerate == 8000
    most = AudioRules(rate=None)
    refused(lambda: prepared(corpus, tmp_path / "d", rules=most), "8000 Hz, not 16000")


def test_espnets_own_resampler_is_left_to_work(corpus, tmp_path, rewrite, monkeypatch):
    rewrite(noise(8000), 8000)
    monkeypatch.setattr(recordings, "find_spec", lambda name: name == "resampy" or None)
    prepared(corpus, tmp_path / "d")
    assert not (tmp_path / "d" / "converted").exists()


def test_a_corpus_of_two_channels_is_taken(tmp_path):
    chapter = write_chapter(tmp_path / "one", 7, 70)
    for path in chapter.glob("*.flac"):
        soundfile.write(path, noise(8000, 2), 16000)
    recordings.judge({"one": sorted(chapter.glob("*.flac"))}, AudioRules())


def test_samples_a_little_beyond_full_scale_are_told(corpus, tmp_path, rewrite, capsys):
    rewrite(with_sample(-1.5), subtype="FLOAT")
    prepared(corpus, tmp_path / "d")
    assert "1 recordings exceed full scale, and ESPnet clips" in capsys.readouterr().err


def test_the_shortest_is_what_espnet_decodes():
    frontend = DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160)
    encoder = ConformerEncoder(80, 16, 2, 16, 1).eval()

    def encoded(samples: int) -> torch.Tensor:
        length = torch.tensor([samples])
        return encoder(*frontend(torch.zeros(1, samples), length))[0]

    shortest = math.ceil(AudioRules().shortest * 16000)
    assert encoded(shortest).shape[1] == 1
    with pytest.raises(TooShortUttError):
        encoded(shortest - 1)


@pytest.mark.parametrize("seconds", [0.01, 0.02, 0.059])
def test_a_test_recording_too_short_to_be_decoded(corpus, tmp_path, seconds):
    path = corpus / "test-it" / "7" / "71" / "7-71-0001.flac"
    write_audio(path, seconds)
    refused(
        lambda: prepared(corpus, tmp_path / "d"),
        f"{path} is {seconds:.3f} s long, too short to be decoded",
        "--use_streaming true",
    )
    prepared(corpus, tmp_path / "d", test_parts=["two"])  # ESPnet's stage 4 drops it
    assert names(tmp_path / "d" / "dev") == ["7-71-0000", "7-71-0001"]
    prepared(corpus, tmp_path / "d", rules=AudioRules(shortest=0.0))
    assert len(names(tmp_path / "d" / "test_it")) == 2
    prepared(corpus, tmp_path / "d", rules=LEAVE_OUT)
    assert names(tmp_path / "d" / "test_it") == ["7-71-0000"]


def test_a_part_that_would_be_empty_is_refused(corpus, tmp_path):
    for path in (corpus / "two").rglob("*.opus"):
        path.write_bytes(b"")
    refused(
        lambda: prepared(corpus, tmp_path / "d", rules=LEAVE_OUT),
        "two has no recording",
    )


class TestTedlium:
    @pytest.fixture
    def other_rate(self, release):
        sphere = release / "dev" / "sph" / "Bob_2002.sph"
        soundfile.write(sphere, noise(8000 * 12), 8000, format="NIST", subtype="PCM_16")
        return sphere

    def test_another_rate(self, release, tmp_path, other_rate):
        refused(
            lambda: tedlium.prepare(release, tmp_path / "d"),
            "Bob_2002.sph has a sampling rate of 8000 Hz",
        )
        assert not (tmp_path / "d").exists()
        tedlium.prepare(release, tmp_path / "d", rules=CONVERT)
        converted = tmp_path / "d" / "converted" / "dev" / "Bob_2002.flac"
        scp = (tmp_path / "d" / "dev" / "wav.scp").read_text()
        assert scp == f"Bob_2002 {converted}\n"
        assert soundfile.info(converted).frames == 16000 * 12

    def test_a_talk_is_left_out_with_its_segments(self, release, tmp_path, other_rate):
        write_talk(release / "dev", "Eve_2005", "1 2 <F0_M> hello")
        tedlium.prepare(release, tmp_path / "d", rules=LEAVE_OUT)
        assert words(tmp_path / "d" / "dev") == ["hello"]
        assert names(tmp_path / "d" / "dev") == ["Eve_2005"]

    def test_a_segment_too_short_to_be_decoded(self, release, tmp_path):
        lines = "1.00 1.05 <F0_M> oh", "2.00 3.00 <F0_M> good bye"
        write_talk(release / "train", "Ann_2001", *lines)
        tedlium.prepare(release, tmp_path / "d")  # ESPnet's stage 4 drops it
        write_talk(release / "test", "Cid_2003", *lines)
        refused(
            lambda: tedlium.prepare(release, tmp_path / "e"),
            "Line 1 of ",
            "Cid_2003.stm is 0.050 s long",
        )
        tedlium.prepare(release, tmp_path / "e", rules=LEAVE_OUT)
        assert words(tmp_path / "e" / "test") == ["good bye"]


def test_opus_that_is_passed_over_in_the_middle_is_told_before(corpus, tmp_path):
    """libsndfile goes on behind damaged pages as if nothing had been there."""
    path = corpus / "one" / "12" / "30" / "12-30-0001.opus"
    path.with_suffix(".wav").unlink()
    soundfile.write(path, noise(48000, 2), 8000, format="OGG", subtype="OPUS")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    path.write_bytes(content)
    refused(
        lambda: prepared(corpus, tmp_path / "d", rules=CONVERT),
        f"{path} is damaged",
        "s of it cannot be decoded",
    )
    assert not (tmp_path / "d").exists()


# the last frame of a FLAC file is written when it is closed, of which libsndfile says
# nothing
FULL = """
import resource
import numpy as np
from pathlib import Path
from espnet_omnisparse.data.audio_files import write_audio
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
noise = np.random.default_rng(1).uniform(-0.5, 0.5, {samples})
write_audio(Path("x.flac"), [noise], 8000)
"""


@pytest.mark.parametrize("samples", [4200, 80000])
def test_audio_that_finds_no_room_is_told(tmp_path, samples):
    done = command(sys.executable, "-c", FULL.format(samples=samples), cwd=tmp_path)
    assert "UserError: x.flac could not be written to its end" in done.stderr


def test_a_folder_that_is_no_converted_part_is_not_replaced(corpus, tmp_path, rewrite):
    rewrite(noise(8000), rate=8000)
    kept = tmp_path / "d" / "converted" / "one" / "precious"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    refused(
        lambda: prepared(corpus, tmp_path / "d", rules=CONVERT),
        "converted/one is there already and is not a folder of converted recordings",
    )
    assert kept.read_text() == "x" and not (tmp_path / "d" / "one").exists()


def test_what_cannot_be_decoded_to_be_converted_is_told_before(corpus, tmp_path):
    path = corpus / "one" / "12" / "30" / "12-30-0001.wav"
    soundfile.write(path.with_suffix(".flac"), noise(24000), 8000)
    path.unlink()
    path = path.with_suffix(".flac")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(content)
    refused(
        lambda: prepared(corpus, tmp_path / "d", rules=CONVERT), f"{path} is damaged"
    )
    assert not (tmp_path / "d").exists()
    left = AudioRules(convert=True, leave_out=True)
    prepared(corpus, tmp_path / "d", rules=left)
    assert "12-30-0001" not in (tmp_path / "d/one/text").read_text()


@pytest.mark.parametrize("module", [librispeech, tedlium])
@pytest.mark.parametrize(
    "option, value",
    [
        *(("--fs", rate) for rate in ("fast", "0", "3000M")),
        *(("--shortest", seconds) for seconds in ("long", "nan", "-1", "inf")),
    ],
)
def test_options_that_are_no_numbers(module, option, value, capsys):
    with pytest.raises(SystemExit):
        module.main([option, value])
    assert f"error: {option} is a " in capsys.readouterr().err


STREAMING = ["--use_streaming", "true"]


@pytest.mark.parametrize(
    "given, rate, shortest, perturb",
    [
        ([], "16k", "0.06", "false"),
        (["--fs", "8k"], "8k", "0.06", "false"),
        (STREAMING, "16k", "0", "false"),
        (["--speed_perturb_factors", "0.9 1.1"], "16k", "0.06", "true"),
    ],
)
@pytest.mark.parametrize("name", ["librispeech", "tedlium2"])
def test_stage_1_is_told_how_audio_is_used(
    monkeypatch, tmp_path, given, rate, shortest, perturb, name
):
    for variable in ("OMNISPARSE_FS", "OMNISPARSE_SHORTEST", "OMNISPARSE_PERTURB"):
        monkeypatch.setenv(variable, "")
    recipe.tell_stage_1(recipe.parse(given))
    # what data.sh runs, instead of Python: it prints what it is given
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "parse_options.sh").write_text(PARSE)
    done = subprocess.run(
        [REPOSITORY / "egs2" / name / "asr1" / "local" / "data.sh"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    expected = f"--fs {rate} --shortest {shortest} --convert false --leave_out false"
    assert f"{expected} --perturb {perturb}" in done.stderr


@pytest.mark.parametrize(
    "name, option", [("librispeech", "train_parts="), ("tedlium2", "splits=")]
)
def test_stage_1_tells_its_options(tmp_path, name, option):
    utils = template.locate() / "egs2" / "TEMPLATE" / "asr1" / "utils"
    (tmp_path / "utils").symlink_to(utils.resolve())
    stage = REPOSITORY / "egs2" / name / "asr1" / "local" / "data.sh"
    done = subprocess.run(
        [stage, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert option in done.stderr and "convert=false" in done.stderr
