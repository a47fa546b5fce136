"""sherpa-onnx, from PyPI, recognises with our exports what we recognise."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers import engine_models
from helpers.learned import CHUNK, RATE, TOKENS, config_of, learned, sentences
from helpers.tiny import changed

from espnet_omnisparse import cli
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.export.onnx_modules import Head
from espnet_omnisparse.export.sherpa_modules import Batch
from espnet_omnisparse.export.sherpa_run import load, recognise
from espnet_omnisparse.export.source import source_of
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.streaming.recogniser import Recogniser
from espnet_omnisparse.streaming.search import GreedyTransducer

pytest.importorskip("sherpa_onnx")

UNSEEN = sentences(8, seed=7)
WAVES = [wave for _, wave in UNSEEN]
SAID = [text for text, _ in UNSEEN]
# some blocks have no attention, or a narrower one, or no Conv
PRUNED = [{"mhsa": 1, "conv": 1, "ffn2": 2}, {"ffn1": 4, "conv": 1}]


def slow(kind):
    return pytest.param(kind, marks=pytest.mark.slow)


def write_size(folder, config, model=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / family.MODEL, (model or family.build(config)).state_dict())
    write_yaml(folder / family.CONFIG, json.loads(json.dumps(config, default=str)))
    return folder


class Sizes:
    """Sizes of either head, trained when one is asked for to hear what is said here.

    Args:
        folder: Where they are written.
    """

    live = {"chunk": CHUNK}
    pruned = {"granularity": "component", "kept": PRUNED, "causal": True, **live}
    kinds = {
        "offline": ("ctc", 150, {}),
        "live": ("ctc", 150, {"causal": True, **live}),
        "pruned": ("ctc", 150, pruned),
        "transducer": ("transducer", 200, live),
    }

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, kind):
        folder = self.folder / kind
        if folder.exists():
            return folder
        if kind == "whole":  # the same weights, without chunks
            model = family.load_size(self["transducer"])
            return write_size(folder, config_of("transducer", self.folder), model)
        head, updates, encoder = self.kinds[kind]
        config = config_of(head, self.folder, **encoder)
        return write_size(folder, config, learned(config, updates))


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    return Sizes(tmp_path_factory.mktemp("sizes"))


def mostly_right(texts):
    """What was said has been recognised, but for two sentences at most."""
    same = [text == said for text, said in zip(texts, SAID, strict=True)]
    return sum(same) >= len(SAID) - 2


def exported(size, out, *options):
    cli.main(["export", str(size), "--to", "sherpa", "-o", str(out), *options])
    return out


def heard(folder, waves=WAVES):
    """The texts that sherpa-onnx finds, without more silence than they have."""
    recogniser, _ = load(folder)
    return [recognise(recogniser, wave, RATE, 0.0).strip() for wave in waves]


def ours(size, waves=WAVES, chunk=None):
    """The texts that our recogniser finds in waves of whole frames."""
    recogniser = Recogniser.load(size, chunk)
    texts = []
    for wave in waves:
        # sherpa-onnx, too, leaves out what is not a whole chunk
        stream = recogniser.stream()
        stream.push(torch.from_numpy(wave))
        texts.append(stream.text.strip())
    return texts


def test_an_offline_ctc_says_what_speech2text_says(sizes, tmp_path):
    from espnet2.bin import asr_inference

    from espnet_omnisparse.tasks import OmniASRTask

    folder = exported(sizes["offline"], tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asr_inference, "ASRTask", OmniASRTask)
        files = (sizes["offline"] / family.CONFIG, sizes["offline"] / family.MODEL)
        speech2text = asr_inference.Speech2Text(
            *map(str, files), ctc_weight=1.0, beam_size=1, maxlenratio=0.0
        )
    expected = [speech2text(wave)[0][0].strip() for wave in WAVES]
    assert heard(folder) == expected
    assert mostly_right(expected)


def test_an_offline_transducer_says_what_our_search_finds(sizes, tmp_path):
    folder = exported(sizes["whole"], tmp_path / "out")
    call = json.loads((folder / "sherpa.json").read_text())
    assert (call["class"], call["tail_seconds"]) == ("OfflineRecognizer", 0.0)
    model, expected = family.load_size(sizes["whole"]), []
    for wave in map(torch.from_numpy, WAVES):
        encoded, _ = model.encode(wave[None], torch.tensor([len(wave)]))
        search = GreedyTransducer(model.decoder, model.joint_network, max_symbols=1)
        search.push(encoded[0])
        text = "".join(TOKENS[id] for id in search.best())
        expected.append(text.replace("<space>", " ").strip())
    assert heard(folder) == expected and all(expected)


@pytest.mark.parametrize("normalize", ["utterance_mvn", "global_mvn"])
def test_a_batch_is_encoded_as_espnet_encodes_it(normalize, sizes, tmp_path):
    folder = sizes["offline"].parent
    config = config_of("ctc", folder, conv_norm="layer_norm")
    if normalize == "utterance_mvn":
        config |= {"normalize": normalize, "normalize_conf": {"norm_vars": True}}
    assert_a_batch_is_espnets(family.build(config), config)


@pytest.mark.parametrize("maker", ["e_branchformer", "transformer"])
def test_a_batch_of_other_encoders_is_encoded_as_espnet_encodes_it(maker):
    model, config = getattr(engine_models, maker)(**engine_models.KALDI)
    assert_a_batch_is_espnets(model, config)


def assert_a_batch_is_espnets(model, config):
    """Two recordings, of which one is padded."""
    args = argparse.Namespace(head=None, chunk=None, left=None)
    source = source_of(model, config, args)
    lengths = torch.tensor([20000, 9000])
    audio = 0.1 * torch.randn(2, 20000)
    feats, frames = model.frontend(audio, lengths)
    padding = torch.arange(feats.size(1)) >= frames[:, None]
    feats = feats.masked_fill(padding[..., None], -23.0)  # as sherpa-onnx pads
    found, found_lengths = Batch(source, Head(model, source.description, "ctc"))(
        feats, frames
    )
    encoded, encoded_lengths = model.encode(audio, lengths)
    assert found_lengths.tolist() == encoded_lengths.tolist()
    for row, ours, count in zip(found, encoded, encoded_lengths, strict=True):
        expected = model.ctc.log_softmax(ours[None, :count])[0]
        torch.testing.assert_close(row[:count], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["live", slow("pruned"), "transducer"])
def test_a_stream_says_what_our_recogniser_says(kind, sizes, tmp_path):
    folder = exported(sizes[kind], tmp_path / "out")
    found = heard(folder)
    assert found == ours(sizes[kind])
    assert mostly_right(found)


@pytest.mark.parametrize("kind", [slow("live"), "transducer"])
def test_streams_at_once_do_not_touch_each_other(kind, sizes, tmp_path):
    folder = exported(sizes[kind], tmp_path / "out")
    recogniser, _ = load(folder)
    streams = [recogniser.create_stream() for _ in WAVES[:3]]
    parts = [np.array_split(wave, 5) for wave in WAVES[:3]]
    for part in zip(*parts, strict=True):
        for stream, samples in zip(streams, part, strict=True):
            stream.accept_waveform(RATE, samples)
        while ready := [stream for stream in streams if recogniser.is_ready(stream)]:
            recogniser.decode_streams(ready)  # a transducer's as one batch
    texts = [recogniser.get_result(stream).strip() for stream in streams]
    assert texts == heard(folder, WAVES[:3]) and all(texts)


def test_offline_recordings_of_other_lengths_are_one_batch(sizes, tmp_path):
    recogniser, _ = load(exported(sizes["offline"], tmp_path / "out"))
    short = [np.concatenate([WAVES[0]] * 3), WAVES[1], np.zeros(100, np.float32)]
    streams = [recogniser.create_stream() for _ in short]
    for stream, wave in zip(streams, short, strict=True):
        stream.accept_waveform(RATE, wave)
    recogniser.decode_streams(streams)
    texts = [stream.result.text.strip() for stream in streams]
    assert texts == [*heard(tmp_path / "out", short[:2]), ""]
    assert all(texts[:2])


@pytest.mark.parametrize("kind", [slow("offline"), "live", slow("transducer")])
def test_int8_says_the_same(kind, sizes, tmp_path):
    folder = exported(sizes[kind], tmp_path / "out", "--dtype", "int8")
    assert all(".int8" in path.name for path in folder.glob("*.onnx"))
    assert mostly_right(heard(folder))


@pytest.mark.slow
def test_another_chunk_and_the_ctc_head_of_a_transducer(sizes, tmp_path):
    options = ("--head", "ctc", "--chunk", "6", "--left", "12")
    folder = exported(sizes["transducer"], tmp_path / "out", *options)
    call = json.loads((folder / "sherpa.json").read_text())
    assert call["method"] == "from_wenet_ctc"
    assert call["arguments"] == {"chunk_size": 6, "num_left_chunks": 2}
    assert all(text.replace(" ", "") for text in heard(folder))
    exported(sizes["live"], tmp_path / "live", *options[2:])
    assert heard(tmp_path / "live") == ours(sizes["live"], chunk=Chunk(6, 12))


def test_a_transducer_takes_hotwords(sizes, tmp_path):
    import sherpa_onnx

    folder = exported(sizes["transducer"], tmp_path / "out")
    call = json.loads((folder / "sherpa.json").read_text())
    files = {name: str(folder / file) for name, file in call["files"].items()}
    (tmp_path / "hotwords").write_text("A B\n")
    recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(
        **files,
        decoding_method="modified_beam_search",
        hotwords_file=str(tmp_path / "hotwords"),
        hotwords_score=20.0,
    )
    texts = [recognise(recogniser, wave, RATE, 0.0) for wave in WAVES]
    # so wanted, it is heard everywhere
    assert sum(text.count("AB") for text in texts) > 2 * " ".join(SAID).count("AB")


@pytest.mark.skipif("OMNISPARSE_TEST_DATA" not in os.environ, reason="no real audio")
@pytest.mark.parametrize("kind", ["live", "transducer"])
def test_real_speech_has_the_same_text(kind, sizes, tmp_path):
    data = Path(os.environ["OMNISPARSE_TEST_DATA"]) / "LibriSpeech/digits-test"
    paths = sorted(data.rglob("*.opus"))[:10]
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    waves = [wave[: len(wave) // 160 * 160] for wave in waves]
    found = heard(exported(sizes[kind], tmp_path / "out"), waves)
    assert found == ours(sizes[kind], waves) and any(found)


def test_the_folder_tells_how_it_is_used(sizes, tmp_path, capsys):
    folder = exported(sizes["live"], tmp_path / "out")
    assert capsys.readouterr().out.splitlines() == [f"{folder}: exported"]
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "model.onnx", "sherpa.json", "test.wav", "tokens.txt"),
    }
    tokens = (folder / "tokens.txt").read_text().splitlines()
    assert tokens == ["<blank> 0", "<unk> 1", "A 2", "B 3", "C 4", "5", "<sos/eos> 6"]
    # the README's program runs as it stands, and prints what the README says
    text = (folder / "README.md").read_text()
    program = text.split("```")[1].removeprefix("python\n")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"prints {json.dumps(done.stdout.strip())}." in text


STFT = {"frontend": "default", "frontend_conf": {"n_fft": 512, "hop_length": 160}}
LSTM = {"decoder": "rnn", "decoder_conf": {"embed_size": 8, "hidden_size": 8}}
LIVE = {"causal": True, "chunk": {"size": 4, "left": 6}}


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("ctc", STFT, "train with frontend: kaldi_fbank"),
        ("ctc", {"encoder_conf": {"input_layer": "conv2d6"}}, "subsample by 4"),
        ("ctc", {"encoder_conf": LIVE}, "--left, a multiple of it"),
        ("transducer", LSTM, "this one has lstm"),
    ],
)
def test_what_sherpa_cannot_have_is_told_in_a_sentence(
    kind, changes, sentence, tmp_path, capsys
):
    config = changed(config_of(kind, tmp_path), {"normalize": None, **changes})
    config |= {"normalize_conf": {}, **{k: changes[k] for k in changes if "_d" in k}}
    if "decoder_conf" in changes:
        config["decoder_conf"] = changes["decoder_conf"]
    if changes is STFT:
        config["frontend_conf"] = STFT["frontend_conf"]
    size = write_size(tmp_path / "size", config)
    with pytest.raises(SystemExit):
        cli.main(["export", str(size), "--to", "sherpa"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and sentence in told
    assert [path.name for path in tmp_path.iterdir()] == ["size"]


def test_what_sherpa_does_not_load_is_not_written(sizes, tmp_path, capsys, monkeypatch):
    from espnet_omnisparse.export import sherpa

    def broken(source, module=sherpa.WenetChunk):
        graph = plain(source)
        for one in graph.values():
            del one.metadata["num_blocks"]
        return graph

    plain = sherpa.graphs_of
    monkeypatch.setattr(sherpa, "graphs_of", broken)
    with pytest.raises(SystemExit):
        exported(sizes["live"], tmp_path / "out")
    assert "sherpa-onnx does not load the export" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
