"""Packed files: what is in them comes back, and a damaged one is told of."""

import json

import numpy as np
import pytest
import torch
from helpers.tiny import asr_config, build, transducer_config

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.export.description import describe
from espnet_omnisparse.export.packed import (
    Sparse,
    by_blocks,
    matrices_of,
    read_packed,
    restored,
    write_packed,
)

FILTERS = "frontend.logmel.melmat"
AUDIO = {
    "input_size": None,
    "frontend": "default",
    "frontend_conf": {"n_fft": 512, "hop_length": 160, "n_mels": 20},
}


def plain(encoder=None, **changes):
    """A model of CTC on audio, no supernet, and its configuration."""
    config = asr_config(encoder, **AUDIO, **changes)
    del config["model_conf"]["supernet"]
    return build(config), config


def masked(model, share=0.8):
    """Zeros in blocks of 8 x 1 in every matrix of the blocks."""
    generator = torch.Generator().manual_seed(1)
    for name, (out, inputs) in matrices_of(model).items():
        if ".encoders." in name:
            kept = torch.rand(-(-out // 8), inputs, generator=generator) > share
            mask = kept.repeat_interleave(8, 0)[:out]
            weight = model.get_parameter(name)
            with torch.no_grad():
                weight *= mask.view(weight.shape)
    return model


MODELS = {
    "ctc": lambda: plain(),
    "layer-norm": lambda: plain({"conv_norm": "layer_norm", "causal": True}),
    "masked": lambda: (masked(plain()[0]), plain()[1]),
    "dropped": lambda: plain({"kept": [["mhsa"], [], ["ffn1", "conv", "ffn2"]]}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_an_fp32_file_gives_the_state_back(tmp_path, kind):
    model, config = MODELS[kind]()
    path = tmp_path / "model.omni"
    write_packed(path, model, describe(model, config))
    told, tensors = read_packed(path)
    state = restored(told, tensors)
    expected = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert np.array_equal(state[name], tensor.numpy()), name
        assert state[name].dtype == tensor.numpy().dtype
    others = set(told["sparse"]) - {FILTERS}
    assert bool(others) == (kind == "masked")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_mel_filters_are_stored_by_what_is_not_zero_and_exactly(tmp_path, dtype):
    model, config = plain()
    path = tmp_path / "model.omni"
    write_packed(path, model, describe(model, config), dtype)
    told, tensors = read_packed(path)
    filters = model.state_dict()[FILTERS].numpy()
    assert told["features"]["mel"] == FILTERS
    assert np.array_equal(restored(told, tensors)[FILTERS], filters)
    parts = [tensors[f"{FILTERS}.{part}"] for part in ("values", "columns", "rows")]
    assert parts[0].dtype == np.float32 and f"{FILTERS}.scale" not in tensors
    assert sum(part.nbytes for part in parts) < filters.nbytes / 4


@pytest.mark.parametrize("dtype, tolerance", [("fp16", 1e-3), ("int8", 1 / 254)])
def test_smaller_types_are_as_close_as_they_can_be(tmp_path, dtype, tolerance):
    model = masked(plain()[0])
    path = tmp_path / "model.omni"
    write_packed(path, model, describe(model, plain()[1]), dtype)
    state = restored(*read_packed(path))
    for name in matrices_of(model):
        weight = model.get_parameter(name).detach().flatten(1).numpy()
        found = state[name].reshape(weight.shape)
        largest = np.abs(weight).max(1, keepdims=True)
        assert (np.abs(found - weight) <= 1.001 * tolerance * largest).all(), name


def test_the_standalone_transducer_is_described(tmp_path):
    config = transducer_config(**{})
    config |= AUDIO
    model = build(config)
    told = describe(model, config)
    state = model.state_dict()
    assert told["task"] == "transducer"
    for branch in (b for block in told["encoder"]["blocks"] for b in block["branches"]):
        assert f"{branch['norm']}.weight" in state
        assert any(name.startswith(branch["module"]) for name in state)
    for part in ("encoder", "decoder", "output"):
        assert told["transducer"]["joint"][part]["weight"] in state
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("block", [(8, 1), (4, 1), (3, 2), (1, 1), (16, 5)])
def test_blocks_hold_the_matrix(block):
    generator = np.random.default_rng(0)
    for shape in [(16, 10), (17, 9), (1, 1), (5, 30)]:
        matrix = generator.standard_normal(shape)
        matrix *= generator.random(shape) > 0.9
        sparse = by_blocks(matrix, block)
        assert isinstance(sparse, Sparse)
        assert np.array_equal(sparse.dense(), matrix)


def test_damaged_files_are_told_of(tmp_path):
    model, config = plain()
    path = tmp_path / "model.omni"
    write_packed(path, model, describe(model, config))
    whole = path.read_bytes()
    for place in (0, 20, 400, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError):
            read_packed(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole packed model"):
        read_packed(path)
    path.write_bytes(whole.replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(UserError, match="install a newer"):
        read_packed(path)


def test_another_swish_is_refused():
    config = transducer_config()
    config["encoder_conf"]["main_conf"] = {
        **config["encoder_conf"]["main_conf"],
        "swish_beta": 2.0,
        "conv_mod_act_type": "swish",
    }
    config |= AUDIO
    with pytest.raises(UserError, match="a beta of 2"):
        describe(build(config), config)
