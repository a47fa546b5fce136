"""The demo corpus: its plan, its audio, and how it is written."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile
from helpers import REPOSITORY

from espnet_omnisparse.data import demo_corpus, synthesis
from espnet_omnisparse.data.demo_corpus import UTTERANCES, VOICES, WORDS, plan
from espnet_omnisparse.data.librispeech import prepare
from espnet_omnisparse.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """A plan of a few utterances in place of twenty minutes."""
    monkeypatch.setattr(
        demo_corpus, "UTTERANCES", {"demo-train": 16, "demo-dev": 8, "demo-test": 9}
    )


@pytest.fixture
def spoken(monkeypatch):
    """Noise in place of the voices: for what does not depend on them."""
    monkeypatch.setattr(
        synthesis,
        "speak",
        lambda utterance: np.random.default_rng(1).uniform(-0.5, 0.5, 1600),
    )


def test_plan_is_closed_and_the_same_each_time():
    utterances = plan()
    assert utterances == plan()
    assert Counter(item.part for item in utterances) == UTTERANCES
    vocabulary = {word for words in WORDS.values() for word in words}
    assert len(vocabulary) <= 40
    assert {word for item in utterances for word in item.words.split()} == vocabulary
    assert all(2 <= len(item.words.split()) <= 6 for item in utterances)
    assert len({item.name for item in utterances}) == len(utterances)
    for part in UTTERANCES:
        voices = {item.voice for item in utterances if item.part == part}
        assert voices == set(VOICES)


def test_no_tested_words_are_trained_on():
    words = {
        part: {item.words for item in plan() if item.part == part}
        for part in UTTERANCES
    }
    assert not words["demo-train"] & (words["demo-dev"] | words["demo-test"])
    assert not words["demo-dev"] & words["demo-test"]


def test_written_corpus_is_read_by_the_data_preparation(tmp_path, small):
    pytest.importorskip("espeakng_loader")
    corpus = tmp_path / "LibriSpeech"
    said = demo_corpus.write_corpus(corpus)
    assert "demo-train 16 utterances" in said and "36 words" in said
    prepare(
        corpus,
        tmp_path / "data",
        train_set="train",
        train_parts=["demo-train"],
        valid_set="dev",
        valid_parts=["demo-dev"],
        test_parts=["demo-test"],
    )
    assert len((tmp_path / "data/train/text").read_text().splitlines()) == 16
    sexes = (tmp_path / "data/train/spk2gender").read_text().split()[1::2]
    assert sexes == ["m", "f"] * 4
    for path in corpus.rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert 0.5 < info.duration < 6
        samples, _ = soundfile.read(path)
        assert 0.1 < np.abs(samples).max() < 1


def test_fresh_processes_write_the_same_bytes(tmp_path):
    pytest.importorskip("espeakng_loader")
    # espeak starts anew in each fork; a second apart, as it would seed by the clock
    code = """
import os, sys, time
from espnet_omnisparse.data import demo_corpus
demo_corpus.UTTERANCES = {"demo-train": 9, "demo-dev": 8, "demo-test": 1}
for folder in sys.argv[1:]:
    if os.fork() == 0:
        demo_corpus.main(["--out", folder])
        os._exit(0)
    os.wait()
    time.sleep(1.1)
"""
    command = [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"]
    subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True)
    written = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in "ab"
    ]
    assert written[0] == written[1] and len(written[0]) == 18 + 17 + 1


def test_finished_corpus_is_left_alone(tmp_path, small, spoken):
    said = demo_corpus.write_corpus(tmp_path / "corpus")
    before = (tmp_path / "corpus").stat()
    assert demo_corpus.write_corpus(tmp_path / "corpus") == said
    after = (tmp_path / "corpus").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("left", [None, b"", b"garbled", 0.5])
def test_incomplete_corpus_is_redone(tmp_path, small, spoken, left):
    corpus = tmp_path / "corpus"
    demo_corpus.write_corpus(corpus)
    lost = sorted(corpus.rglob("*.flac"))[3]
    whole = lost.read_bytes()
    lost.unlink()
    if left is not None:
        lost.write_bytes(whole[: len(whole) // 2] if left == 0.5 else left)
    demo_corpus.write_corpus(corpus)
    assert lost.read_bytes() == whole


def test_interruption_leaves_nothing(tmp_path, small, monkeypatch):
    def interrupted(utterance):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesis, "speak", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_corpus.write_corpus(tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_not_replaced(tmp_path):
    (tmp_path / "dev-clean").mkdir()
    with pytest.raises(UserError, match="already holds dev-clean"):
        demo_corpus.write_corpus(tmp_path)
    assert (tmp_path / "dev-clean").is_dir()


def test_file_in_the_way(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="is a file"):
        demo_corpus.write_corpus(tmp_path / "out")


def test_missing_loader_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    synthesis.synthesiser.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        demo_corpus.main(["--out", str(tmp_path / "corpus")])
    assert stopped.value.code == 1
    assert "pip install 'espnet-omnisparse[demo]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
