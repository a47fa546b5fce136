"""The engine from Python: the same texts as with PyTorch, without PyTorch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.tiny import asr_config, build
from helpers.transducers import AUDIO

from espnet_omnisparse import runtime
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import write_packed
from espnet_omnisparse.runtime import library
from espnet_omnisparse.streaming.recogniser import Recogniser

RATE = 16000
STREAMING = {
    "conv_norm": "layer_norm",
    "causal": True,
    "chunk": {"size": 4, "left": 8},
}


@pytest.fixture(scope="module", autouse=True)
def engine(engine_library):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, str(engine_library))
        yield


def model_of(encoder=None):
    config = asr_config(encoder, **AUDIO)
    del config["model_conf"]["supernet"]
    return build(config), config


def noise(seconds, seed=0):
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(int(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    """A model that streams, and its file."""
    model, config = model_of(STREAMING)
    path = tmp_path_factory.mktemp("packed") / "model.omni"
    write_packed(path, model, describe(model, config))
    return model, config, path


def reference(model, samples):
    """ESPnet's own log-probabilities of a whole recording."""
    speech = torch.from_numpy(samples)[None]
    with torch.no_grad():
        encoded, _ = model.encode(speech, torch.tensor([speech.size(1)]))
        return model.ctc.log_softmax(encoded)[0].numpy()


def test_log_probabilities_are_those_of_pytorch(tmp_path):
    model, config = model_of()
    path = tmp_path / "model.omni"
    write_packed(path, model, describe(model, config))
    loaded = runtime.load(path)
    samples = noise(2.3)
    found = loaded.log_probs(samples, RATE)
    expected = reference(model, samples)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4
    assert not loaded.can_stream and loaded.chunk is None
    with pytest.raises(UserError, match="sees the future"):
        loaded.stream()


def test_a_stream_gives_the_text_of_pytorchs(streaming):
    model, config, path = streaming
    samples = noise(3.1)
    expected = Recogniser(model, config).stream()
    expected.push(torch.from_numpy(samples))
    loaded = runtime.load(path)
    stream, other = loaded.stream(), loaded.stream()
    for start in range(0, len(samples), 1111):
        stream.push(samples[start : start + 1111])
        other.push(noise(0.1, start))
    assert stream.finish() == expected.finish()
    assert expected.ids and [token.id for token in stream.tokens] == expected.ids
    assert [t.text for t in stream.tokens] == [loaded.tokens[i] for i in expected.ids]
    seconds = [token.seconds for token in stream.tokens]
    assert seconds == sorted(seconds) and 0 <= seconds[0] and seconds[-1] <= 3.1
    assert loaded.recognize(samples, RATE) == stream.text
    assert np.abs(loaded.log_probs(samples, RATE) - reference(model, samples)).max() < (
        1e-4
    )


def test_a_stream_can_be_used_again(streaming):
    loaded = runtime.load(streaming[2], threads=2)
    stream = loaded.stream(chunk=8)
    samples = (noise(1.0) * 2**15).astype(np.int16)
    stream.push(samples)
    text = stream.finish()
    with pytest.raises(UserError, match="has ended"):
        stream.push(samples)
    stream.reset()
    assert stream.tokens == [] and stream.text == ""
    stream.push(samples.astype(np.float32) / 2**15)
    del loaded  # streams outlive their model
    assert stream.finish() == text


def test_a_model_tells_what_it_is(streaming):
    model, config, path = streaming
    loaded = runtime.load(path)
    assert loaded.info["task"] == "ctc" and loaded.info["dtype"] == "fp32"
    assert loaded.tokens == config["token_list"]
    assert (loaded.sample_rate, loaded.can_stream, loaded.chunk) == (RATE, True, 4)


MISTAKES = {
    "samples per second": (noise(1), 8000),
    "no numbers": (np.array([0.0, np.nan], np.float32), RATE),
    "one channel": (np.zeros((2, 100), np.float32), RATE),
    "are floats": (np.zeros(100, np.int32), RATE),
    "full scale": (np.full(100, 1e4), RATE),
    "beyond full scale": (np.full(100, 9.0), RATE),
}


@pytest.mark.parametrize("told", MISTAKES)
def test_wrong_audio_is_told_in_a_sentence(streaming, told):
    with pytest.raises(UserError, match=told):
        runtime.load(streaming[2]).recognize(*MISTAKES[told])


def test_wrong_streams_are_told_in_a_sentence(streaming):
    loaded = runtime.load(streaming[2])
    with pytest.raises(UserError, match="at least 1 frame"):
        loaded.stream(chunk=-3)
    with pytest.raises(UserError):
        loaded.stream(beam=0)
    with pytest.raises(UserError):
        loaded.stream(beam=2**32 + 1)
    with pytest.raises(UserError, match="threads must be 1 to 256"):
        runtime.load(streaming[2], threads=2**32 + 1)


def test_wrong_files_are_told_in_a_sentence(streaming, tmp_path):
    path = tmp_path / "model.omni"
    whole = streaming[2].read_bytes()
    for content in (b"", b"text", whole[:-1], whole[:99] + b"\xff" + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(UserError):
            runtime.load(path)
    with pytest.raises(UserError):
        runtime.load(tmp_path / "none.omni")
    with pytest.raises(UserError, match="no file's name"):
        runtime.load(f"{streaming[2]}\0.omni")
    with pytest.raises(UserError, match="threads"):
        runtime.load(streaming[2], threads=0)


def test_an_engine_that_is_not_built_is_told_of(monkeypatch, tmp_path):
    monkeypatch.delenv(library.VARIABLE)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(UserError, match="is not built: install a C.. compiler"):
        library.library()
    other = tmp_path / "omnisparse_engine.so"
    other.write_bytes(b"no library")
    with pytest.raises(UserError, match="build it again"):
        library.library()


def test_numpy_alone_is_imported(streaming):
    code = f"""
import json, sys
from espnet_omnisparse import runtime
import numpy as np
model = runtime.load({str(streaming[2])!r})
model.recognize(np.zeros(16000, np.float32), 16000)
print(json.dumps(sorted(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    modules = json.loads(run.stdout)
    tops = {name.split(".")[0] for name in modules} - {*sys.stdlib_module_names}
    # an environment's own start-up files are no part of it
    plain = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
    )
    tops -= {name.split(".")[0] for name in plain.stdout.split()}
    assert tops == {"espnet_omnisparse", "numpy"}
    ours = {name for name in modules if name.startswith("espnet_omnisparse.")}
    assert {name.split(".")[1] for name in ours} == {"moved", "errors", "runtime"}
