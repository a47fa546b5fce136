"""The corpus of many voices: its plan and its audio."""

import gzip

import pytest
import soundfile

from espnet_omnisparse.data import voices_corpus
from espnet_omnisparse.data.librispeech import prepare
from espnet_omnisparse.errors import UserError

WORDS = "THE OLD MAN WENT DOWN TO THE SEA AND SAW A SHIP WITH TWO SAILS".split()


@pytest.fixture
def lines():
    """Transcripts of which no two phrases are alike."""
    return [
        f"1-1-{n:04d} " + " ".join(WORDS[n % 7 :] + [f"N{n}"] + WORDS[: n % 11])
        for n in range(1500)
    ]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(voices_corpus, "HELD_OUT", {"voices-dev": 4, "voices-test": 6})


def test_no_tested_phrase_or_voice_is_trained_on(lines):
    utterances = voices_corpus.plan(lines, hours=0.1)
    assert utterances == voices_corpus.plan(lines, hours=0.1)
    names = [one.name for one in utterances]
    assert len(set(names)) == len(names)

    def of(part, what):
        return {getattr(u, what) for u in utterances if u.part == part}

    for part, count in voices_corpus.HELD_OUT.items():
        assert len([u for u in utterances if u.part == part]) == count
        for what in ("words", "voice"):
            assert not of(part, what) & of("voices-train", what)
    assert not of("voices-dev", "words") & of("voices-test", "words")


def test_hours_are_about_what_was_asked_and_the_recipe_reads_them(
    tmp_path, lines, small
):
    pytest.importorskip("espeakng_loader")
    text = tmp_path / "text.gz"
    text.write_bytes(gzip.compress("\n".join(lines).encode()))
    corpus = tmp_path / "LibriSpeech"
    said = voices_corpus.write_corpus(text, 0.03, corpus)
    assert "voices-test 6 utterances" in said
    audio = sorted((corpus / "voices-train").rglob("*.flac"))
    hours = sum(soundfile.info(path).duration for path in audio) / 3600
    assert 0.02 < hours < 0.06  # "N7" is spoken as two words
    data = tmp_path / "data"
    parts = ["voices-train"], "dev", ["voices-dev"], ["voices-test"]
    prepare(corpus, data, "train", *parts)
    assert len((data / "dev" / "text").read_text().splitlines()) == 4


def test_too_few_transcripts_are_told_in_one_sentence(tmp_path, lines, capsys):
    text = tmp_path / "text"
    text.write_text("\n".join(lines))
    with pytest.raises(SystemExit):
        voices_corpus.main(["--text", str(text), "--hours", "50", "--out", "x"])
    assert "give more transcripts" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        voices_corpus.read_lines(tmp_path / "nothing")
