"""One recording through every kind of model: the same words, or a sentence."""

import builtins

import numpy as np
import pytest
import soundfile
import torch
from helpers.engine_models import OTHERS, RATE, log_probs, made, sound, write_folder

from espnet_omnisparse.cli import main
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.onnx_file import write_graph
from espnet_omnisparse.export.pack import pack
from espnet_omnisparse.runtime.library import VARIABLE
from espnet_omnisparse.streaming.recogniser import Recogniser
from espnet_omnisparse.transcribe import windows
from espnet_omnisparse.transcribe.engine import PackedModel
from espnet_omnisparse.transcribe.models import opened
from espnet_omnisparse.transcribe.pytorch import TorchModel

KINDS = (
    *("ctc", "live", "kaldi", "asr-transducer", "gru", "stateless"),
    *("e-branchformer-sides", "transformer", "legacy"),
)


@pytest.fixture
def engine(engine_library, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(engine_library))


@pytest.fixture
def no_engine(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))


@pytest.fixture
def audio(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(5 * RATE), RATE)
    return path


def run(capsys, *arguments):
    capsys.readouterr()
    main(["transcribe", *map(str, arguments)])
    return capsys.readouterr()


def told(path, wave, **options):
    with opened(path, **options) as model:
        tokens = model.tokens(np.array_split(wave, 5))
        return [(one.text, one.id, round(one.seconds, 3)) for one in tokens]


def exported(tmp_path, kind):
    pytest.importorskip("onnxruntime")
    folder = write_folder(tmp_path, kind)
    out = tmp_path / f"{kind}_onnx"
    main(["export", str(folder), "--to", "onnx", "-o", str(out)])
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_all_run_times_find_the_same_tokens(tmp_path, engine, kind):
    wave, size = sound(5 * RATE + 77), write_folder(tmp_path, kind)
    expected = told(size, wave)
    assert len(expected) > 20
    pack(size, tmp_path / "x.omni")
    assert told(tmp_path / "x.omni", wave) == expected
    assert told(exported(tmp_path, kind), wave) == expected
    blocks = TorchModel(size).tokens(np.array_split(wave, 5))
    assert [(one.text, one.id, round(one.seconds, 3)) for one in blocks] == expected


@pytest.mark.parametrize("kind", ["local", "live"])
def test_an_onnx_folder_hears_long_recordings(tmp_path, monkeypatch, engine, kind):
    wave, folder = sound(25 * RATE), exported(tmp_path, kind)
    monkeypatch.setattr(windows, "LENGTH", 9.0)
    parts = told(folder, wave)
    best = log_probs(made(kind)[0], wave).argmax(-1)
    ids = [int(b) for a, b in zip([0, *best], best, strict=False) if b not in (0, a)]
    assert [id for _, id, _ in parts] == ids
    assert told(folder / "ctc.onnx", wave) == parts
    for samples in (0, 1, 300, 900):  # too short for a frame
        assert told(folder, wave[:samples]) == []


@pytest.mark.parametrize("kind", ["ctc", "live", "gru"])
@pytest.mark.parametrize("beam", [1, 3])
def test_without_an_engine_pytorch_recognises(
    tmp_path, monkeypatch, capsys, audio, engine_library, kind, beam
):
    size = write_folder(tmp_path, kind)
    pack(size, tmp_path / "x.omni")
    texts = []
    for library in (str(engine_library), str(tmp_path / "none.so")):
        monkeypatch.setenv(VARIABLE, library)
        for model in (size, tmp_path / "x.omni"):
            shown = run(capsys, model, audio, "--beam", beam)
            texts.append(shown.out)
            line = "PyTorch recognises in place of the engine: "
            assert (line in shown.err) == ("none" in library)
    assert len(set(texts)) == 1 and texts[0].strip()


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_packed_pytorch_recognises(
    tmp_path, capsys, audio, engine, kind
):
    shown = run(capsys, write_folder(tmp_path, kind), audio)
    assert shown.err.count("in place of the engine") == 1
    wave, _ = soundfile.read(audio, dtype="float32")
    if kind == "loudness":
        wave = wave * np.float32(0.5) / np.abs(wave).max()
    best = log_probs(made(kind)[0], wave).argmax(-1)
    names = made(kind)[1]["token_list"]
    ids = [int(b) for a, b in zip([0, *best], best, strict=False) if b not in (0, a)]
    text = "".join(names[id] for id in ids).replace("<space>", " ")
    assert shown.out.split() == text.split() and len(ids) > 20


def test_a_beam_that_is_none_is_told_before_there_is_audio(tmp_path, engine):
    pack(write_folder(tmp_path, "ctc"), tmp_path / "x.omni")
    with pytest.raises(UserError, match="A beam has 1 to"):
        PackedModel(tmp_path / "x.omni", beam=100_000)


def test_a_streaming_size_is_streamed_by_pytorch(tmp_path, no_engine):
    wave, size = sound(4 * RATE), write_folder(tmp_path, "live")
    stream = Recogniser(*made("live")).stream()
    for block in np.array_split(wave, 5):
        stream.push(torch.from_numpy(block))
    stream.finish()
    assert [id for _, id, _ in told(size, wave)] == stream.ids


def mistake(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["transcribe", *map(str, arguments)])
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = [one for one in shown.err.splitlines() if one.startswith("error: ")]
    return line


def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, capsys, audio, engine):
    folder = exported(tmp_path, "stateless")
    assert "leave out --beam" in mistake(capsys, folder, audio, "--beam", 3)
    (folder / "joiner.onnx").unlink()
    assert "joiner.onnx is missing" in mistake(capsys, folder, audio)
    (folder / "encoder_stream.onnx").write_bytes(b"no graph")
    assert "is damaged" in mistake(capsys, folder, audio)
    (tmp_path / "empty").mkdir()
    assert "not an experiment folder" in mistake(capsys, tmp_path / "empty", audio)
    (tmp_path / "x.omni").write_bytes(b"no model")
    assert "not a packed model" in mistake(capsys, tmp_path / "x.omni", audio)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    assert "packed model" in mistake(capsys, tmp_path / "x.omni", audio)


def test_a_missing_onnxruntime_is_told_with_what_installs_it(
    tmp_path, monkeypatch, capsys, audio
):
    folder = exported(tmp_path, "ctc")
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", lambda name: refuse(name))
    line = mistake(capsys, folder, audio)
    assert "onnxruntime, which is not installed" in line and "pip install" in line


def test_a_graph_of_someone_else_is_told_of(tmp_path, capsys, audio):
    folder = exported(tmp_path, "ctc")

    from espnet_omnisparse.export.onnx_file import Graph

    other = Graph(torch.nn.ReLU(), {"samples": torch.zeros(1, 4)}, ["y"])
    write_graph(folder / "ctc.onnx", other)
    assert "export the size again" in mistake(capsys, folder, audio)
