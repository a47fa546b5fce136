"""Run times against each other: every one computes, and is timed as often."""

import json

import numpy as np
import pytest
import soundfile
import torch

from espnet_omnisparse.bench.contestants import RATE, Spelling, noise
from espnet_omnisparse.bench.entries import of_files
from espnet_omnisparse.bench.random_net import Net, masked, write_size
from espnet_omnisparse.cli import main
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.export import onnx_session
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.runtime.library import VARIABLE


@pytest.fixture
def engine(engine_library, monkeypatch):
    for package in ("onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)
    monkeypatch.setenv(VARIABLE, str(engine_library))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_all_run_times_are_timed_alike(tmp_path, capsys, engine):
    out = tmp_path / "times.jsonl"
    arguments = "--random 1x64 --chunks 4 8 --rounds 2 --seconds 1 --sparsity 0.8"
    more = "--keep 0.5 --threads 1 2 --out"
    main(["bench", *arguments.split(), *more.split(), str(out)])
    rows = rows_of(out)
    names = {(row["model"], row["run_time"]) for row in rows}
    assert len(rows) == 2 * len(names) == 24
    for run_time in ("PyTorch", "ONNX Runtime", "sherpa-onnx", "engine"):
        assert {("dense", run_time), ("dense", f"{run_time} fp32")} & names
        assert ("dense", f"{run_time} int8") in names
    for row in rows:
        assert len(row["whole"]) == 2 and min(row["whole"]) > 0
        assert len(row["chunks"]["4"]) == len(row["chunks"]["8"]) == 24 and row["cpu"]
        assert row["memory"] is None or row["bytes"] / 2 < row["memory"] < 5e8
    size = {(row["model"], row["run_time"]): row["bytes"] for row in rows}
    assert size["80% zeros", "engine int8"] < size["80% zeros", "engine fp32"]
    assert size["80% zeros", "engine fp32"] < size["dense", "engine fp32"]
    macs = {
        row["model"]: row["macs"] for row in rows if row["run_time"] == "engine fp32"
    }
    assert macs["50% of branches"] < macs["dense"]
    table = capsys.readouterr().out
    assert all(f"| {model} | {run_time} |" in table for model, run_time in names)


def test_every_run_time_has_its_own_wer(tmp_path, engine):
    """The same net hears the same in fp32 everywhere; here, from its random weights."""
    size, data = tmp_path / "size", tmp_path / "data"
    write_size(size, Net(1, 64), None)
    data.mkdir()
    samples = {"a": noise(RATE), "b": noise(2 * RATE)[::-1]}
    for name, one in samples.items():
        soundfile.write(tmp_path / f"{name}.wav", one, RATE, "FLOAT")
    (data / "wav.scp").write_text(
        "".join(f"{name} {tmp_path / name}.wav\n" for name in samples)
    )
    model = family.load_size(size)
    config = family.read_config(size)
    heard = []
    with torch.no_grad():
        for one in samples.values():
            speech = torch.from_numpy(one.copy())[None]
            encoded, _ = model.encode(speech, torch.tensor([speech.shape[1]]))
            best = model.ctc.argmax(encoded)[0].unique_consecutive()
            heard.append([config["token_list"][n] for n in best if n > 1])
    # one word too many, and a text that nobody says
    texts = {"a": [*heard[0], "more"], "b": heard[1], "c": ["unheard"]}
    (data / "text").write_text(
        "".join(f"{n} {' '.join(t)}\n" for n, t in texts.items())
    )
    out, plot = tmp_path / "rows.jsonl", tmp_path / "figure.png"
    command = ["bench", f"net:whole={size}", "--rounds", "1", "--seconds", "1"]
    main([*command, "--test", str(data), "--out", str(out), "--plot", str(plot)])
    wer = {row["run_time"]: row["wer"] for row in rows_of(out)}
    expected = 100 / (len(heard[0]) + len(heard[1]) + 1)
    for run_time in ("PyTorch", "ONNX Runtime fp32", "engine fp32"):
        assert wer[run_time] == pytest.approx(expected), run_time
    assert plot.stat().st_size > 10_000


def test_a_run_time_that_is_not_installed_is_left_out(tmp_path, monkeypatch, capsys):
    size = tmp_path / "size"
    write_size(size, Net(1, 64, features="kaldi_fbank"), None)

    def find(name):
        raise ImportError(name)

    monkeypatch.setattr(onnx_session.importlib, "import_module", find)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(size)
    entries = of_files(["."], [], tmp_path / "out")
    assert {entry.model for entry in entries} == {"size"}
    found = [entry.run_time for entry in entries]
    assert found == ["PyTorch", "PyTorch int8", "engine fp32", "engine int8"]
    told = capsys.readouterr().err
    assert "ONNX Runtime is left out: it needs onnx, which is not installed" in told
    assert "sherpa-onnx is left out" in told


def test_the_best_tokens_are_spelt():
    told = {
        "tokens": ["<blank>", "a", "b", "<space>", "<sos/eos>"],
        "blank": 0,
        "silent": ["<sos/eos>"],
        "text": {"kind": "char", "space": "<space>"},
    }
    best = [0, 1, 1, 0, 1, 3, 3, 2, 4, 0, 2]
    assert Spelling(told).text(np.eye(5)[best]) == "aa bb"


def test_a_random_net_is_masked_as_asked(tmp_path):
    write_size(tmp_path / "net", Net(1, 64), Chunk(4, 8))
    model = masked(family.load_size(tmp_path / "net"), 0.75)
    weight = model.encoder.encoders[0].feed_forward.w_1.weight
    assert (weight == 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert (model.encoder.embed.conv[2].weight == 0).any()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("", "Name models, or give --random"),
        ("--random 12", "must be such as 12x256"),
        ("--random 1x64 --sparsity 2", "between 0 and 1"),
        ("--random 1x64 --keep 1", "between 0 and 1"),
        ("--random 1x64 --test here", "no WER"),
        ("x.omni --sparsity 0.5", "are of --random"),
        ("x.omni --keep 0.5", "are of --random"),
        ("x.omni --plot here.png", "give --test"),
        ("x.omni --test here --plot here.svg", "must be a .png file"),
        ("x.omni --out .", "is a folder: name a file"),
        ("x.omni --test nowhere", "has no wav.scp"),
        ("x.omni --out no/such/rows.jsonl", "no folder for no/such/rows.jsonl"),
    ],
)
def test_mistakes_are_told_in_one_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit):
        main(["bench", *arguments.split()])
    assert sentence in capsys.readouterr().err
