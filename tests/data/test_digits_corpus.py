"""The corpus of connected digits: its plan and its audio."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile

from espnet_omnisparse.data import digits_corpus
from espnet_omnisparse.data.digits_corpus import RECORDINGS, VOICES, WORDS, plan
from espnet_omnisparse.data.librispeech import prepare


@pytest.fixture(scope="module")
def fsdd(tmp_path_factory):
    """Recordings of 0.1 s, each of a level of its own."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    level = 0
    for number in range(50):
        for voice in VOICES:
            for digit in range(10):
                level += 1
                samples = np.full(800, level, dtype=np.int16)
                soundfile.write(
                    folder / f"{digit}_{voice.name}_{number}.wav", samples, 8000
                )
    return folder.parent


@pytest.fixture
def small(monkeypatch):
    counts = {"digits-train": 30, "digits-dev": 12, "digits-test": 18}
    monkeypatch.setattr(digits_corpus, "UTTERANCES", counts)
    return counts


def test_the_plan_is_the_same_each_time_and_no_recording_is_in_two_parts():
    utterances = plan()
    assert utterances == plan()
    assert Counter(one.part for one in utterances) == digits_corpus.UTTERANCES
    assert len({one.name for one in utterances}) == len(utterances)
    lengths = Counter(len(one.words.split()) for one in utterances)
    assert sorted(lengths) == [3, 4, 5, 6, 7]
    assert {word for one in utterances for word in one.words.split()} == {*WORDS}
    numbers = [number for part in RECORDINGS.values() for number in part]
    assert sorted(numbers) == [*range(50)]


def test_digits_are_those_said_and_lie_between_pauses(fsdd):
    recordings = digits_corpus.read_recordings(fsdd)
    utterance = next(one for one in plan() if one.part == "digits-dev")
    samples = digits_corpus.join(recordings, utterance)
    said = utterance.words.split()
    # what lies at the middle of each run that is no pause, in units of the recordings
    loud = np.flatnonzero(np.diff(np.abs(samples) > 0.5 / 32768, prepend=0, append=0))
    starts, ends = loud[::2], loud[1::2]
    long = [(a, b) for a, b in zip(starts, ends, strict=True) if b - a > 1000]
    assert len(long) == len(said)
    levels = {
        round(32768 * float(recording[0])): (voice, word, number)
        for (voice, word, number), recording in recordings.items()
    }
    for (start, end), word in zip(long, said, strict=True):
        level = round(32768 * float(samples[(start + end) // 2]))
        assert levels[level][:2] == (utterance.voice.name, word)
        assert levels[level][2] in RECORDINGS["digits-dev"]
    silence = (len(samples) - 1600 * len(said)) / 16000 / (len(said) + 1)
    assert 0.05 <= silence <= 0.2


def test_the_recipe_reads_it_and_a_finished_one_is_left_alone(
    tmp_path, fsdd, small, capsys
):
    corpus = tmp_path / "LibriSpeech"
    arguments = ["--fsdd", str(fsdd), "--out", str(corpus)]
    digits_corpus.main(arguments)
    assert "digits-test 18 utterances" in capsys.readouterr().out
    data = tmp_path / "data"
    parts = ["digits-train"], "dev", ["digits-dev"], ["digits-test"]
    prepare(corpus, data, "train", *parts)
    assert len((data / "train" / "text").read_text().splitlines()) == 30
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    digits_corpus.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


@pytest.mark.parametrize("fault", ["missing", "empty", "another rate"])
def test_a_dataset_that_is_not_whole_is_told(tmp_path, fsdd, fault, capsys):
    broken = tmp_path / "fsdd"
    shutil.copytree(fsdd, broken, copy_function=os.symlink)
    path = broken / "recordings" / "7_lucas_49.wav"
    path.unlink()
    if fault == "empty":
        path.touch()
    elif fault == "another rate":
        soundfile.write(path, np.zeros(800), 16000)
    with pytest.raises(SystemExit) as stopped:
        digits_corpus.main(["--fsdd", str(broken), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "7_lucas_49.wav" in line and "clone" in line
    assert not (tmp_path / "out").exists()
