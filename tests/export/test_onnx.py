"""ONNX files compute, in onnxruntime, what the model computes in PyTorch."""

import argparse
import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from helpers import REPOSITORY, engine_models
from helpers.tiny import (
    FEATURES,
    FRONTEND,
    TOKENS,
    asr_config,
    build,
    transducer_config,
)

from espnet_omnisparse import cli
from espnet_omnisparse.core.chunk import Chunk
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.onnx_file import write_graph
from espnet_omnisparse.export.onnx_folder import graphs_of
from espnet_omnisparse.export.onnx_session import session
from espnet_omnisparse.export.source import load_source, source_of
from espnet_omnisparse.extract import experiment as family
from espnet_omnisparse.files import save_tensors, write_yaml
from espnet_omnisparse.streaming.encoder import EncoderStream
from espnet_omnisparse.streaming.features import FeatureStream
from espnet_omnisparse.streaming.search import _Predictor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RATE = 16000
STFT = {"frontend": "default", "frontend_conf": {**FRONTEND, "n_mels": FEATURES}}
KALDI = {"frontend": "kaldi_fbank", "frontend_conf": {"fs": "16k"}}
LIVE = {"causal": True, "chunk": {"size": 4, "left": 8}}
ABSOLUTE = {"selfattention_layer_type": "selfattn", "rel_pos_type": "latest"}
PASTLESS = {"causal": True, "chunk": {"size": 3, "left": 0}}
NARROWED = [{"mhsa": 1, "ffn1": 2}, {}, {"conv": 1, "mhsa": 2, "ffn2": 3}]
ENCODERS = {
    "plain": {},
    "layer-norm": {"conv_norm": "layer_norm"},
    "dropped": {"kept": [["mhsa"], [], ["ffn1", "conv", "ffn2"]]},
    "no-attention": {"kept": [["ffn1"], [], ["ffn2"]]},
    "components": {"granularity": "component", "kept": NARROWED},
}


def asr(encoder=None, audio=KALDI, **changes):
    """A size of CTC, and its configuration."""
    plain = {"model": "espnet", "model_conf": {"ctc_weight": 1.0}}
    config = asr_config(encoder, input_size=None, **plain, **audio, **changes)
    return build(config), config


def transducer(decoder="stateless", audio=KALDI, **encoder):
    """A transducer with chunks, and its configuration."""
    chunk = {"chunk": {"size": 4, "left": 8}, "pattern": None}
    config = transducer_config(encoder={**chunk, **encoder}, auxiliary_ctc_weight=0.3)
    config |= {"input_size": None, **audio, "decoder": decoder}
    config["decoder_conf"] = {"embed_size": 8}
    if decoder != "stateless":
        config |= {"decoder": "rnn"}
        config["decoder_conf"] |= {"hidden_size": 8, "rnn_type": decoder}
        config["decoder_conf"]["num_layers"] = 2
    return build(config), config


def source(made, **args):
    given = {"head": None, "chunk": None, "left": None, **args}
    return source_of(*made, argparse.Namespace(**given))


def run(tmp_path, what, name, feed, dtype="fp32"):
    path = tmp_path / name
    write_graph(path, graphs_of(what)[name], dtype)
    return session(path).run(None, feed)


def log_probs(model, audio):
    with torch.no_grad():
        encoded, _ = model.encode(audio, torch.tensor([audio.size(1)]))
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        head = model.ctc.ctc_lo if hasattr(model, "ctc") else model.ctc_lin
        return head(encoded).log_softmax(-1).numpy()


def audio_of(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(1, samples, generator=generator)


def assert_close(found, expected, atol=1e-4):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_recording_has_pytorchs_log_probabilities(kind, tmp_path):
    made = asr(ENCODERS[kind], STFT)
    path = tmp_path / "ctc.onnx"
    write_graph(path, graphs_of(source(made))["ctc.onnx"])
    opened = session(path)
    for samples in (1600, 16000, 43210):
        audio = audio_of(samples)
        (found,) = opened.run(None, {"samples": audio.numpy()})
        assert_close(found, log_probs(made[0], audio))


#: of `engine_models`
OTHERS = (
    *("e-branchformer", "e-branchformer-sides", "e-branchformer-parts"),
    *("e-branchformer-masked", "e-branchformer-no-ffn", "e-branchformer-absolute"),
    *("transformer", "transformer-dropped", "absolute", "scaled-absolute"),
    *("stock-no-conv", "legacy", "legacy-sides"),
)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_encoders_have_pytorchs_log_probabilities(kind, tmp_path):
    made = engine_models.made(kind)
    path = tmp_path / "ctc.onnx"
    write_graph(path, graphs_of(source(made))["ctc.onnx"])
    opened = session(path)
    for samples in (1600, 43210):
        audio = torch.from_numpy(engine_models.sound(samples))[None]
        (found,) = opened.run(None, {"samples": audio.numpy()})
        assert_close(found, log_probs(made[0], audio))


@pytest.mark.parametrize("audio", [STFT, KALDI], ids=["stft", "kaldi"])
@pytest.mark.parametrize("normalize", [None, "utterance_mvn", "global_mvn"])
def test_features_and_their_normalisation_are_in_the_graph(audio, normalize, tmp_path):
    size = 80 if audio is KALDI else FEATURES
    stats = {"count": 10, "sum": -50 * np.ones(size), "sum_square": 300 * np.ones(size)}
    np.savez(tmp_path / "stats.npz", **stats)
    conf = {}
    if normalize == "global_mvn":
        conf = {"stats_file": str(tmp_path / "stats.npz")}
    made = asr(LIVE, audio, normalize=normalize, normalize_conf=conf)
    quiet = audio_of(20000) * torch.linspace(0, 1, 20000) + 0.02
    (found,) = run(tmp_path, source(made), "ctc.onnx", {"samples": quiet.numpy()})
    assert_close(found, log_probs(made[0], quiet))


PROGRAMS = (REPOSITORY / "docs/other_runtimes.md").read_text().split("```python")[1:3]
WHOLE, LIVE_PROGRAM = (text.split("```")[0] for text in PROGRAMS)


def streamed(path, audio):
    """What the program of the docs finds in a recording."""
    program = LIVE_PROGRAM.replace("ctc_stream.onnx", str(path))
    program += "    found.append(log_probs)\n"
    names = {"numpy": np, "onnxruntime": onnxruntime, "found": []}
    exec(program, {**names, "samples": audio[0].numpy()})
    return np.concatenate(names["found"], 1)


def test_the_program_of_the_docs_prints_the_tokens(tmp_path, monkeypatch, capsys):
    made = asr()
    write_graph(tmp_path / "ctc.onnx", graphs_of(source(made))["ctc.onnx"])
    samples = audio_of(30000)[0].numpy()
    soundfile.write(tmp_path / "speech.wav", samples, RATE, "FLOAT")
    monkeypatch.chdir(tmp_path)
    exec(WHOLE, {})
    best = log_probs(made[0], torch.from_numpy(samples)[None])[0].argmax(-1)
    ids = [int(id) for id, _ in itertools.groupby(best) if id != 0]
    assert capsys.readouterr().out == f"{[TOKENS[id] for id in ids]}\n"
    assert ids


def stream_of(model, chunk, audio):
    """The encoder's output in our own stream."""
    features = FeatureStream(model.frontend, model.normalize)
    encoder = EncoderStream(model.encoder, chunk)
    parts = [encoder.push(features.push(block)) for block in audio[0].split(777)]
    return torch.cat([*parts, encoder.push(features.finish()), encoder.finish()])


@pytest.mark.parametrize("kind", [*ENCODERS, "stft"])
def test_a_stream_has_the_recognisers_log_probabilities(kind, tmp_path):
    audio = STFT if kind == "stft" else KALDI
    made = asr({**ENCODERS.get(kind, {}), **LIVE}, audio)
    path = tmp_path / "ctc_stream.onnx"
    write_graph(path, graphs_of(source(made))["ctc_stream.onnx"])
    for samples in (1700, 33333):
        recording = audio_of(samples)
        encoded = stream_of(made[0], None, recording)
        expected = made[0].ctc.log_softmax(encoded[None]).detach().numpy()
        assert_close(streamed(path, recording), expected)
        assert_close(streamed(path, recording), log_probs(made[0], recording))


@pytest.mark.parametrize("chunk", [(1, 1), (3, 7), (8, 4)])
def test_a_stream_may_have_other_chunks_than_in_training(chunk, tmp_path):
    made = asr(LIVE)
    size, left = chunk
    path = tmp_path / "ctc_stream.onnx"
    what = source(made, chunk=size, left=left)
    write_graph(path, graphs_of(what)["ctc_stream.onnx"])
    recording = audio_of(20000)
    encoded = stream_of(made[0], Chunk(size, left), recording)
    expected = made[0].ctc.log_softmax(encoded[None]).detach().numpy()
    assert_close(streamed(path, recording), expected)


@pytest.mark.parametrize("decoder", ["stateless", "lstm", "gru"])
def test_a_transducer_is_three_files_and_its_stream(decoder, tmp_path):
    made = transducer(decoder)
    model, what = made[0], source(made)
    for name, graph in graphs_of(what).items():
        write_graph(tmp_path / name, graph)
    audio = audio_of(20000)
    with torch.no_grad():
        encoded, _ = model.encode(audio, torch.tensor([20000]))
        joint = model.joint_network
        expected = joint.lin_enc(encoded).numpy()
    (found,) = session(tmp_path / "encoder.onnx").run(None, {"samples": audio.numpy()})
    assert_close(found, expected)
    assert_close(streamed(tmp_path / "encoder_stream.onnx", audio), expected)

    steps, joiner = (session(tmp_path / f"{n}.onnx") for n in ("predictor", "joiner"))
    ours = _Predictor(model.decoder)
    state = ours.init_state(1)
    theirs = [np.zeros((2, 1, 8), np.float32) for _ in steps.get_inputs()[1:]]
    for frame, label in zip(encoded[0], (0, 2, 2, 4, 3), strict=False):
        with torch.no_grad():
            out, state = ours.step(label, state)
            wanted = joint(frame[None], out).numpy()
        names = [one.name for one in steps.get_inputs()]
        feed = dict(zip(names, [np.array([[label]]), *theirs], strict=True))
        predicted, *theirs = steps.run(None, feed)
        given = joint.lin_enc(frame[None]).detach().numpy()
        feed = {"encoded": given, "predicted": predicted}
        assert_close(joiner.run(None, feed)[0], wanted)


def test_the_ctc_head_of_a_transducer_can_be_asked_for(tmp_path):
    made = transducer()
    audio = audio_of(20000)
    what = source(made, head="ctc")
    assert set(graphs_of(what)) == {"ctc.onnx", "ctc_stream.onnx"}
    (found,) = run(tmp_path, what, "ctc.onnx", {"samples": audio.numpy()})
    assert_close(found, log_probs(made[0], audio))


def test_int8_has_integer_products_and_nearly_the_same_output(tmp_path):
    made = asr({**LIVE, "output_size": 64, "linear_units": 256})
    audio = audio_of(30000)
    feed = {"samples": audio.numpy()}
    (found,) = run(tmp_path, source(made), "ctc.onnx", feed, "int8")
    expected = log_probs(made[0], audio)
    assert 0 < np.abs(found - expected).mean() < 0.05
    model = onnx.load(tmp_path / "ctc.onnx")
    kinds = [node.op_type for node in model.graph.node]
    # per block: two FFNs of two, q, k, v, out, positions, two pointwise; front end, CTC
    assert kinds.count("MatMulInteger") == 3 * 11 + 2
    small = (tmp_path / "ctc.onnx").stat().st_size
    run(tmp_path, source(made), "ctc.onnx", feed)
    saved = (tmp_path / "ctc.onnx").stat().st_size - small
    # but for the scales, and the operations that quantise
    assert saved > 0.9 * 3 * sum(map(weights_of, made[0].modules()))


def weights_of(module):
    """Weights of a matrix product, each of which takes three bytes less."""
    product = isinstance(module, torch.nn.Linear)
    if isinstance(module, torch.nn.Conv1d):
        product = module.kernel_size == (1,)
    return module.weight.numel() if product else 0


def write_size(folder, made):
    model, config = made
    folder.mkdir()
    save_tensors(folder / family.MODEL, model.state_dict())
    write_yaml(folder / family.CONFIG, json.loads(json.dumps(config, default=str)))
    return folder


def test_the_command_writes_a_folder(tmp_path, capsys):
    size = write_size(tmp_path / "asr_x_s80", asr(LIVE))
    cli.main(["export", str(size), "--to", "onnx", "--dtype", "int8"])
    folder = tmp_path / "asr_x_s80_onnx_int8"
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder}: exported"
    files = {path.name for path in folder.iterdir()}
    assert files == {"ctc.onnx", "ctc_stream.onnx"}
    told = session(folder / "ctc.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(told["tokens"]) == TOKENS
    assert told["sample_rate"] == "16000"


@pytest.mark.parametrize(
    ("made", "arguments", "sentence"),
    [
        (lambda: asr(), ["--dtype", "fp16"], "--to onnx has --dtype fp32 or int8"),
        (lambda: asr(), ["--head", "transducer"], "no transducer head"),
        (lambda: asr(), ["--chunk", "4"], "cannot stream"),
        (
            lambda: engine_models.made("transformer"),
            ["--chunk", "4"],
            "cannot stream, since its encoder needs the whole recording",
        ),
        (lambda: asr(LIVE), ["--left", "4"], "--left needs --chunk"),
        (
            lambda: asr({**ABSOLUTE, "pos_enc_layer_type": "conv"}),
            [],
            "rel_pos or abs_pos",
        ),
        (lambda: asr(PASTLESS), [], "give --chunk and --left"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_sentence(
    made, arguments, sentence, tmp_path, capsys
):
    size = write_size(tmp_path / "size", made())
    with pytest.raises(SystemExit):
        cli.main(["export", str(size), "--to", "onnx", *arguments])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and sentence in told
    assert [path.name for path in tmp_path.iterdir()] == ["size"]


def test_a_missing_package_is_told_with_what_installs_it(tmp_path, monkeypatch):
    from espnet_omnisparse.export import onnx_session

    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(onnx_session.importlib, "import_module", refuse)
    with pytest.raises(UserError, match=r"pip install 'espnet-omnisparse\[onnx\]'"):
        onnx_session.require("onnxruntime")


@pytest.mark.parametrize("size", ["weight_s50", "layer_small"])
def test_an_extracted_size_of_either_axis_is_exported(size, tmp_path):
    folder = REPOSITORY / "tests/made_by_0.1" / size
    args = argparse.Namespace(size=folder, head=None, chunk=None, left=None)
    what, audio = load_source(args), audio_of(20000)
    (found,) = run(tmp_path, what, "ctc.onnx", {"samples": audio.numpy()})
    assert_close(found, log_probs(what.model, audio))
