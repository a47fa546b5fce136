"""Audio files as words with times, by the command."""

import json
import re

import numpy as np
import pytest
import soundfile
from helpers.tiny import asr_config, build

from espnet_omnisparse import runtime
from espnet_omnisparse.cli import main
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import write_packed
from espnet_omnisparse.runtime import Token
from espnet_omnisparse.runtime.library import VARIABLE
from espnet_omnisparse.transcribe.words import Word, as_srt, words_of

RATE = 16000
TOKENS = ["<blank>", "<unk>", "<space>", *"abcdefgh", "<sos/eos>"]
CAUSAL = {"causal": True, "conv_norm": "layer_norm", "chunk": {"size": 8, "left": 16}}


@pytest.fixture
def engine(engine_library, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(engine_library))


def packed(path, encoder=None):
    config = asr_config(
        encoder,
        token_list=TOKENS,
        input_size=None,
        frontend="default",
        frontend_conf={"n_fft": 512, "hop_length": 160, "n_mels": 20},
        token_type="char",
    )
    del config["model_conf"]["supernet"]
    model = build(config)
    write_packed(path, model, describe(model, config))
    return path


def noise(path, seconds, rate=RATE):
    samples = 0.1 * np.random.default_rng(1).standard_normal(int(seconds * rate))
    soundfile.write(path, samples, rate, "PCM_16")
    return path


def run(capsys, *arguments):
    main(["transcribe", *map(str, arguments)])
    return capsys.readouterr().out.splitlines()


def squeezed(text):
    return " ".join(text.split())


@pytest.mark.parametrize("encoder", (None, CAUSAL))
def test_a_short_file_has_the_text_of_the_engine(tmp_path, capsys, engine, encoder):
    model = packed(tmp_path / "x.omni", encoder)
    audio = noise(tmp_path / "a.wav", 5)
    samples, _ = soundfile.read(audio, dtype="float32")
    expected = squeezed(runtime.load(model).recognize(samples, RATE))
    (line,) = run(capsys, model, audio)
    assert line == expected and line


def test_words_have_times(tmp_path, capsys, engine):
    model, audio = packed(tmp_path / "x.omni"), noise(tmp_path / "a.flac", 70)
    (line,) = run(capsys, model, audio, "--format", "json")
    told = json.loads(line)
    assert told["text"] == " ".join(word["text"] for word in told["words"])
    times = [word["begin"] for word in told["words"]]
    assert times == sorted(times) and times[0] < 1
    assert 60 < told["words"][-1]["end"] < 70.1


def test_one_bad_file_does_not_keep_the_others(tmp_path, capsys, engine):
    model, audio = packed(tmp_path / "x.omni"), noise(tmp_path / "a.wav", 3, 8000)
    (tmp_path / "bad.wav").write_text("no audio")
    with pytest.raises(SystemExit) as stopped:
        main(["transcribe", str(model), str(tmp_path / "bad.wav"), str(audio)])
    told = capsys.readouterr()
    assert stopped.value.code == 1
    assert told.out.startswith(f"{audio}: ")
    assert re.search(r"^error: .*bad\.wav", told.err, re.MULTILINE)


def test_a_model_that_is_none_is_told_of(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["transcribe", str(tmp_path / "none"), "a.wav"])
    assert "name a packed file" in capsys.readouterr().err


def test_pieces_and_words_are_joined():
    pieces = [Token(t, 0, n) for n, t in enumerate(("▁so", "me", "▁", "x", "▁day"))]
    bpe = {"kind": "bpe", "space": "<space>"}
    assert [w.text for w in words_of(pieces, bpe)] == ["some", "x", "day"]
    whole = [Token(t, 0, n) for n, t in enumerate(("some", "day"))]
    assert [w.begin for w in words_of(whole, {**bpe, "kind": "word"}, 5)] == [5, 6]


def test_subtitles_end_at_pauses_and_are_short():
    words = [Word("a", 0.0, 0.5), Word("b", 0.6, 1.0), Word("c", 3.0, 3.5)]
    assert as_srt(words) == (
        "1\n00:00:00,000 --> 00:00:01,000\na b\n\n"
        "2\n00:00:03,000 --> 00:00:03,500\nc"
    )
