"""`omnisparse stream` with a packed file: words and latency as of the folder."""

import json

import numpy as np
import pytest
import soundfile
from helpers.tiny import asr_config, build

from espnet_omnisparse.cli import main
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import write_packed
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.runtime.library import VARIABLE


@pytest.fixture
def size(tmp_path, engine_library, monkeypatch):
    """A folder, the same model packed, and audio."""
    monkeypatch.setenv(VARIABLE, str(engine_library))
    chunk = {"size": 8, "left": 16}
    config = asr_config(
        {"causal": True, "conv_norm": "layer_norm", "chunk": chunk},
        token_list=["<blank>", "<unk>", "<space>", *"abcdef", "<sos/eos>"],
        input_size=None,
        frontend="default",
        frontend_conf={"n_fft": 512, "hop_length": 160, "n_mels": 20},
        token_type="char",
        bpemodel=None,
    )
    del config["model_conf"]["supernet"]
    model = build(config)
    folder = tmp_path / "size"
    folder.mkdir()
    write_yaml(folder / "config.yaml", config)
    save_tensors(folder / "model.pth", model.state_dict())
    write_packed(tmp_path / "x.omni", model, describe(model, config))
    samples = 0.1 * np.random.default_rng(2).standard_normal(50000)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    return folder, tmp_path / "x.omni", tmp_path / "a.wav"


@pytest.mark.parametrize("options", ("", "--chunk 4 --left 8", "--beam 3"))
def test_a_packed_file_streams_as_its_folder(size, capsys, options):
    folder, packed, audio = size
    told = []
    for model in (folder, packed):
        command = ["stream", "--model", str(model), str(audio), "--json"]
        main([*command, *options.split()])
        told.append(json.loads(capsys.readouterr().out))
    for key in ("text", "audio_s", "latency_ms", "chunk_ms", "lookahead_ms"):
        assert told[0][key] == told[1][key]
    assert told[0]["text"]


def test_words_are_printed_as_they_come(size, capsys):
    folder, packed, audio = size
    printed = []
    for model in (folder, packed):
        main(["stream", "--model", str(model), str(audio)])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""
